"""Pictures of the ladder: feature-count configurations on all its SAEs.

The work is divided into parts, whose run folders lie in one results folder; a part that is done is skipped, and one
that was stopped goes on where it was.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from riebench.analysis.sae_score.effects import FEW
from riebench.errors import RiebenchError
from riebench.jobs.request import RunRequest
from riebench.jobs.run import generate
from riebench.models.lookup import look_up, usual_blocks_of
from riebench.models.presets import second_scorer_for
from riebench.runs.plan import plan
from riebench.sae_validity.measures import SCORED_COUNT
from riebench.sae_validity.rungs import Rung
from riebench.sae_validity.study.statistics import TRAINED, TRAINING, TRUE, TWIN, UNTRAINED
from riebench.saes.formats import load_saes
from riebench.scoring.score import score
from riebench.store.folder import RunFolder, find_run_folders, run_path
from riebench.store.records import RUN_FILE
from riebench.tasks.schema import Setting
from riebench.tasks.settings import load_settings
from riebench.tasks.suites import load_suite
from riebench.utils.files import append_lines, read_lines

FEATURES_SET = "features"
"""Set of configurations with one number of features each."""
PATCH = "activation_patch_once"
TOGETHER, SINGLE, FIXED, CONTROL = "sae_n", "sae_each_n", "sae_fixed_n", "random_n"
"""Beginnings of the names of configurations.

All blocks together, each block alone, features chosen in other examples, random features.
"""
SINGLE_COUNTS = (*FEW, SCORED_COUNT)
"""Numbers of features for single blocks: those that the bars look at."""
NOISE_RUNGS = ("steps_15", TRAINED)
"""Rungs whose pictures are made with several seeds."""
PATCH_OWNER = "patch"
"""Stands for the rung in the name of the activation patch's run folder."""
RUNS, SAES, TIMES = "runs", "saes", "times.jsonl"
"""Names inside the work folder."""
METRICS = (
    "clip_gain", "clip_margin", "clip_direction", "clip_selectivity", "lpips", "judge_target", "judge_kept",
)  # fmt: skip
"""Metrics that the ladder's measures are made of."""

Say = Callable[[str], None]
SaeFolders = Mapping[tuple[str, int], Path]
"""Rung and training seed -> folder of its SAEs."""


@dataclass(frozen=True)
class LadderRequest:
    """Options of the ladder's pictures.

    Attributes:
        work: folder for SAEs, pictures and scores.
        model: the toy model.
        suite: its suite.
        training_seeds: of each rung.
        rungs: names of the rungs; empty for all.
        limit: examples of each category whose blocks are edited together.
        block_limit: examples of each category whose blocks are edited one at a time, for the trained SAE and its twins.
        picture_seeds: of the rungs of `NOISE_RUNGS`; the others have the first one alone.
        device: torch device.
        batch_size: pictures at a time; None for what device and memory allow.
        progress: whether bars are shown.
    """

    work: Path
    model: str = "toy-turbo"
    suite: str = "toy"
    training_seeds: tuple[int, ...] = (0, 1, 2)
    rungs: tuple[str, ...] = ()
    limit: int = 3
    block_limit: int = 2
    picture_seeds: tuple[int, ...] = (0, 1)
    device: str = "auto"
    batch_size: int | None = None
    progress: bool = True

    @property
    def runs(self) -> Path:
        """Results folder of all pictures."""
        return self.work / RUNS


@dataclass(frozen=True)
class Part:
    """Configurations that are run in one call.

    Attributes:
        name: for people.
        settings: the configurations, each with the SAE of one rung and training seed.
        limit: examples of each category.
        seeds: picture seeds.
    """

    name: str
    settings: tuple[Setting, ...]
    limit: int
    seeds: tuple[int, ...]


def run_name(rung: str, training_seed: int, setting: str) -> str:
    """Return the name of the configuration, and so of the run folder, of one SAE."""
    return f"{rung}.{training_seed}.{setting}"


def parse_run_name(name: str) -> tuple[str, int, str]:
    """Return rung, training seed and configuration of a run folder's name.

    Raises:
        RiebenchError: if it is the name of no folder of the ladder.
    """
    rung, _, rest = name.partition(".")
    seed, _, setting = rest.partition(".")
    if not (rung and seed.isdecimal() and setting):
        raise RiebenchError(f"run folder {name!r} is none of the ladder's; give the ladder a work folder of its own")
    return rung, int(seed), setting


def plan_parts(request: LadderRequest, rungs: Sequence[Rung], saes: SaeFolders) -> list[Part]:
    """Divide the work into parts, the most important ones first.

    First come the pictures that the bars need, then fixed and random features, then the rungs of other k and widths,
    and last the further picture seeds.

    Args:
        request: the options.
        rungs: all rungs.
        saes: the SAEs that there are.
    """
    everything = {one.name: one for one in load_settings(request.suite, (), FEATURES_SET)}
    once = request.picture_seeds[:1]

    def settings(some: Iterable[Rung], names: Sequence[str]) -> tuple[Setting, ...]:
        return tuple(
            everything[name].model_copy(update={"name": run_name(rung.name, seed, name), "sae": str(folder.resolve())})
            for rung in some
            for (owner, seed), folder in sorted(saes.items()) if owner == rung.name
            for name in names
        )  # fmt: skip

    def counted(beginning: str, counts: Sequence[int]) -> list[str]:
        return [f"{beginning}{count}" for count in counts]

    together = _named(everything, TOGETHER)
    training = [rung for rung in rungs if rung.family == TRAINING]
    controls = [rung for rung in rungs if rung.family == TWIN or rung.name in (*UNTRAINED, TRUE)]
    paired = [rung for rung in rungs if rung.family == TWIN or rung.name == TRAINED]
    urgent = list(dict.fromkeys([*training, *controls]))
    patch = everything[PATCH].model_copy(update={"name": run_name(PATCH_OWNER, 0, PATCH)})
    parts = [
        Part("activation patch", (patch,), request.limit, request.picture_seeds),
        Part("training", settings(training, together), request.limit, once),
        Part("controls", settings([r for r in controls if r not in training], together), request.limit, once),
        Part("single blocks", settings(paired, counted(SINGLE, SINGLE_COUNTS)), request.block_limit, once),
        Part("fixed features", settings(urgent, counted(FIXED, FEW)), request.limit, once),
        Part("random features", settings(urgent, counted(CONTROL, FEW)), request.limit, once),
        Part("other rungs", settings([r for r in rungs if r not in urgent], together), request.limit, once),
        Part(
            "more picture seeds", settings([r for r in rungs if r.name in NOISE_RUNGS], together), request.limit,
            request.picture_seeds,
        ),
    ]  # fmt: skip
    return [one for one in parts if one.settings]


def _named(names: Iterable[str], beginning: str) -> list[str]:
    """Return the names that are a beginning and a number."""
    return [name for name in names if name.startswith(beginning) and name.removeprefix(beginning).isdecimal()]


def make_pictures(request: LadderRequest, parts: Sequence[Part], say: Say) -> list[RunFolder]:
    """Make and score what is missing of all parts, and return all run folders.

    Args:
        request: the options.
        parts: of `plan_parts`.
        say: function that prints a line for people.

    Raises:
        RiebenchError: as `riebench.jobs.run.run_job`. What is finished is kept.
    """
    for number, one in enumerate(parts, start=1):
        if is_done(request, one):
            continue
        started = time.monotonic()
        run = RunRequest(
            suite=request.suite, given=one.settings, model=request.model, limit=one.limit, seeds=one.seeds,
            accept_sae=True, batch_size=request.batch_size, device=request.device, results=request.runs,
            progress=request.progress,
        )  # fmt: skip
        tasks, settings = run.plan()
        folders = generate(run, tasks, settings, lambda _: None)
        scored = score_pictures(request, folders)
        seconds = time.monotonic() - started
        append_lines(request.work / TIMES, [json.dumps({"part": one.name, "seconds": round(seconds, 1)})])
        say(f"part {number} of {len(parts)}, {one.name}: {seconds:.0f} s; {scored}")
    return ladder_folders(request, parts)


def is_done(request: LadderRequest, part: Part) -> bool:
    """Return whether all pictures of a part are there, of these SAEs, and scored."""
    tasks = load_suite(request.suite, limit=part.limit)
    suite, model = tasks[0].suite, look_up(request.model).spec.name
    hashes: dict[str, dict[str, str]] = {}
    for setting in part.settings:
        path = run_path(request.runs, suite, model, setting.name)
        if not (path / RUN_FILE).is_file():
            return False
        folder = RunFolder(path)
        if setting.sae is not None and setting.sae not in hashes:
            saes = load_saes(Path(setting.sae), setting.blocks)
            hashes[setting.sae] = {block: sae.sha256 for block, sae in saes.items()}
        if folder.spec.sae_sha256 != hashes.get(setting.sae or "", {}):
            return False
        planned = {
            unit.key.digest for unit in plan(tasks, (setting,), part.seeds, usual=usual_blocks_of(request.model))
        }
        made = {record.key.digest for record in folder.records(features=False) if record.status != "error"}
        scored = {(unit, metric) for unit, metric, _ in folder.scores()}
        if not planned <= made or not {(unit, metric) for unit in planned for metric in METRICS} <= scored:
            return False
    return True


def score_pictures(request: LadderRequest, folders: Sequence[RunFolder]) -> str:
    """Compute the missing scores of some folders; return a summary in words."""
    from riebench.utils.machine import pick_device

    second = ("clip_gain_2",) if second_scorer_for(folders[0].spec.model) is not None else ()
    report = score(
        folders, load_suite(request.suite), metrics=(*METRICS, *second), device=pick_device(request.device),
        progress=request.progress,
    )  # fmt: skip
    return report.summary


def ladder_folders(request: LadderRequest, parts: Sequence[Part]) -> list[RunFolder]:
    """Return the run folders that belong to some parts, as far as they are there."""
    names = {setting.name for part in parts for setting in part.settings}
    return [folder for folder in find_run_folders(request.runs) if folder.spec.setting.name in names]


def by_sae(folders: Sequence[RunFolder]) -> Iterator[tuple[tuple[str, int], list[RunFolder]]]:
    """Yield rung and training seed with their run folders; the patch's are left out."""
    groups: dict[tuple[str, int], list[RunFolder]] = {}
    for folder in folders:
        rung, seed, _ = parse_run_name(folder.spec.setting.name)
        groups.setdefault((rung, seed), []).append(folder)
    groups.pop((PATCH_OWNER, 0), None)
    yield from sorted(groups.items())


def total_seconds(request: LadderRequest) -> float:
    """Return the wall time of all calls so far, making and scoring, in seconds."""
    file = request.work / TIMES
    if not file.is_file():
        return 0.0
    found = [line.get("seconds") for _, line in read_lines(file) if isinstance(line, dict)]
    return float(sum(one for one in found if isinstance(one, int | float)))
