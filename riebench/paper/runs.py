"""The runs that artefacts are read from: stored results, and short runs for what is missing there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction

from riebench.analysis.configurations import configurations
from riebench.blocks import default_blocks
from riebench.errors import RiebenchError
from riebench.generation.regions.options import DEFAULT_REGIONS
from riebench.jobs.request import RunRequest
from riebench.jobs.run import produce
from riebench.models.lookup import look_up
from riebench.models.presets import is_shipped
from riebench.paper.artefact import Scalar
from riebench.paper.job import HASH, PaperJob, Said
from riebench.store.folder import RunFolder, run_folders
from riebench.tasks.schema import Setting
from riebench.tasks.settings import MAIN_SET, setting_names
from riebench.tasks.suites import load_suite

PAPER_SET, SWEEP_SET = "paper", "sweep"
SHORT_RUNS = "results"
"""Folder below the work folder that short runs go to."""
ENDS = {"no_edit": MAIN_SET, "target_prompt": MAIN_SET}
"""Both ends of the scale and their set: asked for with every short run, which makes their pictures anyway."""


@dataclass(frozen=True)
class Runs:
    """Run folders of one suite and model, whose numbers belong together as far as their examples and seeds do.

    Attributes:
        suite: its name.
        model: its name among results.
        folders: stored ones first.
    """

    suite: str
    model: str
    folders: tuple[RunFolder, ...]

    @property
    def settings(self) -> Said:
        """What an artefact says of the runs behind it: identities of everything, in the order of their names."""
        specs = {f.spec.setting.name: f.spec for f in sorted(self.folders, key=lambda f: f.spec.setting.name)}
        first = next(iter(specs.values()), None)
        model = {} if first is None else {k: v for k, v in first.model.identity.items() if v is not None}
        saes: dict[str, Scalar] = {
            block: sha[:HASH] for spec in specs.values() for block, sha in spec.sae_sha256.items()
        }
        return {
            "suite": self.suite,
            "model": {"name": self.model, **{k: v for k, v in model.items() if isinstance(v, str | int | float)}},
            "SAEs": saes,
            "regions": "" if first is None else first.regions,
            "runs": {name: spec.run_id[:HASH] for name, spec in specs.items()},
        }


def runs(job: PaperJob, wanted: Mapping[str, str], others: Iterable[str] = ()) -> Runs:
    """The runs of some settings: those stored, and short ones of what is not.

    Args:
        job: where results are, and what is run.
        wanted: setting -> its set; run if it is not stored.
        others: settings that are read if they are stored.

    Raises:
        RiebenchError: whatever a run raises.
    """
    request = short_request(job, MAIN_SET, ())
    suite = load_suite(job.suite)[0].suite
    model = look_up(job.few_steps, dtype=job.dtype, options=job.options).spec.with_fixed_noise(request.fixed_noise).name
    names = {*wanted, *others}
    stored = [
        folder for folder in run_folders(job.results)
        if (folder.spec.suite, folder.spec.model.name) == (suite, model) and folder.spec.setting.name in names
    ]  # fmt: skip
    there = {folder.spec.setting.name for folder in stored}
    missing = {name: which for name, which in wanted.items() if name not in there}
    return Runs(suite, model, (*stored, *_short_runs(job, missing)))


def short_request(job: PaperJob, settings_set: str, names: tuple[str, ...]) -> RunRequest:
    """Return what `riebench run` would be asked for to make short runs of some settings below the work folder.

    A profile may want regions found by networks that know photographs; shipped models draw none, so that their words
    are looked for in their own text attention under every profile.
    """
    shipped = is_shipped(look_up(job.few_steps, dtype=job.dtype, options=job.options).spec)
    return RunRequest(
        suite=job.suite, settings=names, settings_set=settings_set, model=job.model, sae=job.sae,
        seeds=job.seeds if job.profile == "default" else (), limit=job.limit, batch_size=job.batch_size,
        device=job.device, dtype=job.dtype, results=job.work / SHORT_RUNS, leaderboard=job.work / "leaderboard.md",
        offline=job.offline, options=job.options, profile=job.profile,
        regions=DEFAULT_REGIONS if shipped else None,
    )  # fmt: skip


def _short_runs(job: PaperJob, missing: Mapping[str, str]) -> list[RunFolder]:
    if not missing:
        return []
    made: list[RunFolder] = []
    asked = {**ENDS, **missing}
    for settings_set in dict.fromkeys(asked.values()):
        names = tuple(name for name, which in asked.items() if which == settings_set)
        one = short_request(job, settings_set, names)
        there = {f.spec.setting.name: f for f in run_folders(one.results)}
        if not all(name in there and complete(there[name], one) for name in names):
            job.say(f"running {', '.join(names)} into {one.results}: no stored results in {job.results}")
            produce(one, job.say)
        found = {f.spec.setting.name: f for f in run_folders(one.results)}
        made += [found[name] for name in names]
    return made


def complete(folder: RunFolder, job: RunRequest) -> bool:
    """Whether a short run holds a number for everything that it would be asked for."""
    tasks, settings = job.plan()
    wanted = {(example.id, seed) for task in tasks for example in task.examples for seed in job.seeds}
    setting = next(one for one in settings if one.name == folder.spec.setting.name)
    if setting.model_dump(exclude={"description"}) != folder.spec.setting.model_dump(exclude={"description"}):
        return False
    found = configurations(folder, job.profile)
    planned = len(setting.block_sets) * len(setting.strengths)
    return len(found) >= planned and all(wanted <= set(c.units.get("lpips", {})) for c in found)


def paper_settings(suite: str) -> dict[str, str]:
    """The paper's own settings of a suite -> their set."""
    return dict.fromkeys(setting_names(suite, PAPER_SET), PAPER_SET)


COUNTED = {"sae": "n_features", "neurons": "n_units"}
"""Method -> its parameter that says how many are switched each way."""


@dataclass(frozen=True)
class Pools:
    """What methods choose from.

    Attributes:
        features: block -> features of its SAE; empty where no SAE is at hand.
        units: block -> feed-forward units over all its layers.
    """

    features: Mapping[str, int]
    units: Mapping[str, int]

    def size(self, setting: Setting) -> int | None:
        """Features or units of all of a setting's blocks together; None if the method has none, or nobody can say."""
        pool = {"sae": self.features, "neurons": self.units}.get(setting.method, {})
        return sum(pool[block] for block in setting.blocks) if set(setting.blocks) <= set(pool) else None

    def share(self, setting: Setting) -> Fraction | None:
        """How much of its pool a setting switches on, and off; None as `size`, or if blocks choose separately."""
        size, count = self.size(setting), count_of(setting)
        if not size or count is None or setting.params.get("ranking") == "separate":
            return None
        return Fraction(count, size)


def count_of(setting: Setting) -> int | None:
    """How many features or units a setting switches each way, if it says so."""
    count = setting.params.get(COUNTED.get(setting.method, ""))
    return count if isinstance(count, int) else None


def share_text(share: Fraction | None) -> str | None:
    """A share as tables print it: "1/128", or "1/153.6" where it is no whole part."""
    return None if share is None else f"1/{float(1 / share):.6g}"


def pools(job: PaperJob) -> Pools:
    """Counts features and units of the four blocks of the job's few-step model."""
    known = look_up(job.few_steps, dtype=job.dtype, options=job.options)
    units = {block: known.shape.units(block) for block in default_blocks() if block in known.shape.blocks}
    place = job.sae or (known.preset.saes if known.preset else None)
    return Pools(_features(place, tuple(units), job.offline) if place else {}, units)


def _features(place: str, blocks: tuple[str, ...], offline: bool) -> dict[str, int]:
    from riebench.saes.sources import load_sources, parse_sources

    try:
        found = load_sources(parse_sources(place), blocks, offline=offline)
    except RiebenchError:
        # Results are also read where their SAEs are not; then shares are not known, and said to be missing.
        return {}
    return {block: sae.n for block, sae in found.items()}
