"""Runs that artefacts are read from: stored results, and short runs for the rest.

`collect_runs` finds the runs of some configurations and makes those that are missing. `SelectionPools` counts the
features and units that methods select from, so that configurations can be compared at equal shares.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction

from riebench.analysis.configurations import configurations
from riebench.blocks import usual_blocks
from riebench.errors import RiebenchError
from riebench.generation.regions.options import DEFAULT_REGIONS
from riebench.jobs.request import RunRequest
from riebench.jobs.run import produce
from riebench.models.lookup import look_up
from riebench.models.presets import is_shipped
from riebench.paper.artefact import ArtefactSettings, Scalar
from riebench.paper.job import HASH_DIGITS, PaperJob
from riebench.store.folder import RunFolder, find_run_folders
from riebench.tasks.schema import Setting
from riebench.tasks.settings import MAIN_SET, setting_names
from riebench.tasks.suites import load_suite

PAPER_SET, SWEEP_SET = "paper", "sweep"
SHORT_RUNS = "results"
"""Folder of short runs below the work folder."""
END_SETTINGS = {"no_edit": MAIN_SET, "target_prompt": MAIN_SET}
"""Both ends of the scale and their set: part of every short run, which makes their pictures anyway."""
COUNT_PARAMETERS = {"sae": "n_features", "neurons": "n_units"}
"""Method -> its parameter for the number of features or units switched each way."""


@dataclass(frozen=True)
class RunSet:
    """Run folders of one suite and model.

    Their numbers belong together as far as their examples and seeds do.

    Attributes:
        suite: its name.
        model: its name among results.
        folders: stored ones first.
    """

    suite: str
    model: str
    folders: tuple[RunFolder, ...]

    @property
    def settings(self) -> ArtefactSettings:
        """Identities of model, SAEs, regions and runs, for an artefact's settings."""
        specs = {f.spec.setting.name: f.spec for f in sorted(self.folders, key=lambda f: f.spec.setting.name)}
        first = next(iter(specs.values()), None)
        model = {} if first is None else {k: v for k, v in first.model.identity.items() if v is not None}
        saes: dict[str, Scalar] = {
            block: sha[:HASH_DIGITS] for spec in specs.values() for block, sha in spec.sae_sha256.items()
        }
        return {
            "suite": self.suite,
            "model": {"name": self.model, **{k: v for k, v in model.items() if isinstance(v, str | int | float)}},
            "SAEs": saes,
            "regions": "" if first is None else first.regions,
            "runs": {name: spec.run_id[:HASH_DIGITS] for name, spec in specs.items()},
        }


def collect_runs(job: PaperJob, wanted: Mapping[str, str], others: Iterable[str] = ()) -> RunSet:
    """Collect stored runs of configurations, and make short runs of the others.

    Args:
        job: sets the results folder, and the options of short runs.
        wanted: configuration -> its set; run if it is not stored.
        others: configurations that are read if they are stored.

    Raises:
        RiebenchError: whatever a run raises.
    """
    request = short_request(job, MAIN_SET, ())
    suite = load_suite(job.suite)[0].suite
    model = (
        look_up(job.few_step_model, dtype=job.dtype, options=job.options)
        .spec.with_fixed_noise(request.fixed_noise)
        .name
    )
    names = {*wanted, *others}
    stored = [
        folder for folder in find_run_folders(job.results)
        if (folder.spec.suite, folder.spec.model.name) == (suite, model) and folder.spec.setting.name in names
    ]  # fmt: skip
    available = {folder.spec.setting.name for folder in stored}
    missing = {name: which for name, which in wanted.items() if name not in available}
    return RunSet(suite, model, (*stored, *_short_runs(job, missing)))


def short_request(job: PaperJob, settings_set: str, names: tuple[str, ...]) -> RunRequest:
    """Return the request of short runs of some configurations, below the work folder.

    A profile may ask for regions found by networks trained on photographs. Shipped models generate no photographs, so
    that under every profile their regions come from their own text attention.
    """
    shipped = is_shipped(look_up(job.few_step_model, dtype=job.dtype, options=job.options).spec)
    return RunRequest(
        suite=job.suite, settings=names, settings_set=settings_set, model=job.model, sae=job.sae,
        seeds=job.seeds if job.profile == "default" else (), limit=job.limit, batch_size=job.batch_size,
        device=job.device, dtype=job.dtype, results=job.work / SHORT_RUNS, leaderboard=job.work / "leaderboard.md",
        offline=job.offline, options=job.options, profile=job.profile,
        regions=DEFAULT_REGIONS if shipped else None,
    )  # fmt: skip


def _short_runs(job: PaperJob, missing: Mapping[str, str]) -> list[RunFolder]:
    """Make the short runs that are missing or incomplete, and return all of them."""
    if not missing:
        return []
    made: list[RunFolder] = []
    requested = {**END_SETTINGS, **missing}
    for settings_set in dict.fromkeys(requested.values()):
        names = tuple(name for name, which in requested.items() if which == settings_set)
        one = short_request(job, settings_set, names)
        available = {f.spec.setting.name: f for f in find_run_folders(one.results)}
        if not all(name in available and is_complete(available[name], one) for name in names):
            job.say(f"running {', '.join(names)} into {one.results}: no stored results in {job.results}")
            produce(one, job.say)
        found = {f.spec.setting.name: f for f in find_run_folders(one.results)}
        made += [found[name] for name in names]
    return made


def is_complete(folder: RunFolder, job: RunRequest) -> bool:
    """Check that a short run holds a number for everything in its request.

    Args:
        folder: the short run.
        job: the request.
    """
    tasks, settings = job.plan()
    wanted = {(example.id, seed) for task in tasks for example in task.examples for seed in job.seeds}
    setting = next(one for one in settings if one.name == folder.spec.setting.name)
    if setting.model_dump(exclude={"description"}) != folder.spec.setting.model_dump(exclude={"description"}):
        return False
    found = configurations(folder, job.profile)
    planned = len(setting.block_sets) * len(setting.strengths)
    return len(found) >= planned and all(wanted <= set(c.units.get("lpips", {})) for c in found)


def paper_settings(suite: str) -> dict[str, str]:
    """Return the paper's own configurations of a suite, mapped to their set."""
    return dict.fromkeys(setting_names(suite, PAPER_SET), PAPER_SET)


@dataclass(frozen=True)
class SelectionPools:
    """Numbers of features and units that methods select from.

    Attributes:
        features: block -> features of its SAE; empty where no SAE is available.
        units: block -> feed-forward units over all its layers.
    """

    features: Mapping[str, int]
    units: Mapping[str, int]

    def size(self, setting: Setting) -> int | None:
        """Count the features or units of all of a configuration's blocks together.

        Returns:
            Their number; None if the method has no pool, or a block's is unknown.
        """
        pool = {"sae": self.features, "neurons": self.units}.get(setting.method, {})
        return sum(pool[block] for block in setting.blocks) if set(setting.blocks) <= set(pool) else None

    def share(self, setting: Setting) -> Fraction | None:
        """Compute the share of its pool that a configuration switches on, and off.

        Returns:
            The share; None as for `size`, or if blocks select separately.
        """
        size, count = self.size(setting), switched_count(setting)
        if not size or count is None or setting.params.get("ranking") == "separate":
            return None
        return Fraction(count, size)


def count_pools(job: PaperJob) -> SelectionPools:
    """Count features and units of the usual blocks of the job's few-step model."""
    known = look_up(job.few_step_model, dtype=job.dtype, options=job.options)
    units = {block: known.shape.units(block) for block in usual_blocks(known.shape.blocks, known.family.name)}
    place = job.sae or (known.preset.saes if known.preset else None)
    return SelectionPools(_feature_counts(place, tuple(units), job.offline) if place else {}, units)


def _feature_counts(place: str, blocks: tuple[str, ...], offline: bool) -> dict[str, int]:
    """Count the features of each block's SAE; empty if the SAEs cannot be loaded."""
    from riebench.saes.sources import load_sources, parse_sources

    try:
        found = load_sources(parse_sources(place), blocks, offline=offline)
    except RiebenchError:
        # Results may be read on a machine without their SAEs; their shares are then reported as missing.
        return {}
    return {block: sae.n for block, sae in found.items()}


def switched_count(setting: Setting) -> int | None:
    """Return the number of features or units switched each way; None if not set."""
    count = setting.params.get(COUNT_PARAMETERS.get(setting.method, ""))
    return count if isinstance(count, int) else None


def share_text(share: Fraction | None) -> str | None:
    """Format a share as tables print it.

    Returns:
        "1/128", or "1/153.6" where it is no whole part; None for None.
    """
    return None if share is None else f"1/{float(1 / share):.6g}"
