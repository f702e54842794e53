"""The main job: from a suite's files to pictures, scores, tables and leaderboard, in one repeatable call."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from riebench.analysis.leaderboard import write_leaderboard
from riebench.analysis.tables import write_tables
from riebench.blocks import module_path, short_name
from riebench.errors import RiebenchError, near_match
from riebench.generation.regions.options import DEFAULT_REGIONS, parse_regions
from riebench.methods.check import check_setting
from riebench.models.lookup import ModelRecipe, profiled
from riebench.models.presets import scorer_for
from riebench.models.spec import EngineOptions, ModelOptions, ModelSpec
from riebench.report.gallery import write_galleries
from riebench.runs.prepare import check_prompts, provenance
from riebench.scoring.metrics.clip_models import scorer_pair
from riebench.scoring.metrics.networks import parse_weights
from riebench.scoring.profiles import DEFAULT, get_profile
from riebench.store.folder import REDO_MODES, Redo, RunFolder, complaints, run_folders, run_path, set_aside
from riebench.summary import Say, print_per_block, say_failures, say_page
from riebench.tasks.schema import EditTask, Setting, parse_interval
from riebench.tasks.settings import MAIN_SET, load_settings
from riebench.tasks.suites import default_model, load_suite
from riebench.utils.files import sweep
from riebench.utils.hub import offline_mode
from riebench.utils.machine import pick_device

if TYPE_CHECKING:
    from riebench.models.loading import LoadedModel

SEEDS = {"sweep": (0, 1, 2)}
"""Set of settings -> seeds of each example, where methods are to be compared; one seed elsewhere."""


@dataclass(frozen=True)
class Job:
    """What `riebench run` was asked for; the fields are its options.

    What a profile says of generation (seed, regions) holds for fields that are left empty.
    """

    suite: str = "toy"
    settings: tuple[str, ...] = ()
    settings_set: str = MAIN_SET
    model: str | None = None
    sae: str | None = None
    blocks: str | None = None
    edit_steps: str | None = None
    categories: tuple[str, ...] = ()
    steps: int | None = None
    guidance: float | None = None
    seeds: tuple[int, ...] = ()
    limit: int | None = None
    batch_size: int | None = None
    device: str = "auto"
    dtype: str | None = None
    results: Path = Path("results")
    leaderboard: Path = Path("leaderboard.md")
    report: Path | None = None
    redo: str = "missing"
    offline: bool = False
    regions: str | None = None
    options: ModelOptions = field(default_factory=ModelOptions)
    profile: str = DEFAULT
    scorers: tuple[str, ...] = ()
    weights: tuple[str, ...] = ()
    engine: EngineOptions = field(default_factory=EngineOptions)

    def __post_init__(self) -> None:
        profile = get_profile(self.profile)
        seeds = (profile.fixed_seed,) if profile.fixed_seed is not None else SEEDS.get(self.settings_set, (0,))
        object.__setattr__(self, "seeds", self.seeds or seeds)
        object.__setattr__(self, "regions", self.regions or profile.regions)

    def model_spec(self, spec: ModelSpec) -> ModelSpec:
        """A model's spec under the job's profile, whose pictures get a folder of their own if they are others."""
        return profiled(spec, self.profile)

    @property
    def redo_mode(self) -> Redo:
        """`redo`, checked.

        Raises:
            RiebenchError: if it is no such word.
        """
        for mode in REDO_MODES:
            if mode == self.redo:
                return mode
        raise RiebenchError(f"--redo {self.redo!r}{near_match(self.redo, REDO_MODES)}")

    def plan(self) -> tuple[tuple[EditTask, ...], tuple[Setting, ...]]:
        """Reads and checks everything that needs no model, so that slips show before minutes are spent.

        Raises:
            RiebenchError: for anything unknown or malformed.
        """
        parse_regions(self.regions or DEFAULT_REGIONS).folders()
        scorer_pair(self.scorers)
        parse_weights(self.weights)
        tasks = load_suite(self.suite, categories=self.categories, limit=self.limit)
        official = load_settings(self.suite, self.settings, self.settings_set)
        settings = tuple(self._with_options(setting) for setting in official)
        for setting in settings:
            check_setting(setting, setting.name)
        return tasks, settings

    def _with_options(self, setting: Setting) -> Setting:
        changes: dict[str, object] = {}
        if self.sae is not None:
            changes["sae"] = self.sae
        if self.blocks is not None and setting.blocks:
            changes.update(blocks_option(self.blocks))
        if self.edit_steps is not None and setting.blocks:
            changes["edit_steps"] = parse_interval(self.edit_steps)
        try:
            return Setting.model_validate({**setting.model_dump(), **changes})
        except ValidationError as error:
            reason = error.errors()[0]["msg"].removeprefix("Value error, ")
            raise RiebenchError(f"{setting.name} with these options: {reason}") from error

    def run(self, say: Say) -> None:
        """Does all of it and prints the per-block table and where everything is.

        Args:
            say: receives lines for people.

        Raises:
            RiebenchError: for anything the user can mend. What is finished is kept.
        """
        with offline_mode(self.offline):
            self._run(say)

    def produce(self, say: Say) -> list[RunFolder]:
        """Generates and scores what is missing, and writes no tables; returns the run folders.

        Args:
            say: receives lines for people.

        Raises:
            RiebenchError: as `run`.
        """
        with offline_mode(self.offline):
            return self._produce(say)

    def _produce(self, say: Say) -> list[RunFolder]:
        redo = self.redo_mode
        tasks, settings = self.plan()
        sweep(self.results)
        folders = self._generate(tasks, settings, redo, say)
        from riebench.scoring.score import score

        # Whole tasks: units of earlier runs with another --limit are scored and are not taken for changed ones.
        scorer, second = scorer_pair(self.scorers)
        report = score(
            folders, load_suite(self.suite), scorer=scorer, second=second, profile=self.profile,
            weights=parse_weights(self.weights), offline=self.offline, device=self._scoring_device(),
        )  # fmt: skip
        say(report.summary)
        return folders

    def _run(self, say: Say) -> None:
        started = time.monotonic()
        if self.engine.sharded:
            folders = self._generate(*self.plan(), self.redo_mode, say)
            say_failures(folders, say)
            say(f"shard {'/'.join(map(str, self.engine.shard))} done in {time.monotonic() - started:.0f} s; when all "
                "shards have ended, the same command without --shard scores and tabulates")  # fmt: skip
            return
        folders = self._produce(say)
        model_folder = folders[0].path.parent
        group = [folder for folder in run_folders(self.results) if folder.path.parent == model_folder]
        written = write_tables(model_folder, group)
        write_leaderboard(self.results, self.leaderboard)
        galleries = write_galleries(model_folder, group)
        # What was asked for; the tables have all that is stored beside it.
        print_per_block(folders, self.profile)
        say(f"pictures and records  {model_folder}/")
        if galleries:
            say(f"look at               {galleries[0].parent}/ (one picture per setting)")
        say(f"tables                {', '.join(str(path) for path in written)}")
        say(f"leaderboard           {self.leaderboard}")
        if self.report is not None:
            say_page(self.results, self.report, load_suite(self.suite), self.leaderboard, say)
        say_failures(folders, say)
        say(f"done in {time.monotonic() - started:.0f} s; the same command does only what is missing")

    def _scoring_device(self) -> str:
        """Where this process scores: with workers, `--device cuda` is said of them, and only they may have a GPU."""
        away = self.engine.engine != "local" and self.device == "cuda"
        return pick_device("auto" if away else self.device)

    def _find_scorer(self, model: ModelSpec) -> None:
        """Fetches the CLIP that will score, or refuses: hours of pictures should not wait for a missing file."""
        from riebench.scoring.metrics.clip_models import ClipSpec, locate

        locate(ClipSpec.parse(scorer_pair(self.scorers)[0] or scorer_for(model)), offline=self.offline)

    def _generate(
        self, tasks: tuple[EditTask, ...], settings: tuple[Setting, ...], redo: Redo, say: Say
    ) -> list[RunFolder]:
        from riebench.runs import engines

        name, engine = self.model or default_model(self.suite), self.engine
        recipe = ModelRecipe(
            name, self.steps, self.guidance, self.dtype, self.device, self.offline, self.options, self.profile
        )
        if engine.engine == "local":
            device = pick_device(self.device)
            say(f"loading {name} on {device}")
            model = recipe.load()
            check_prompts(model, tasks)
            made: LoadedModel | ModelRecipe = model
            more: dict[str, Any] = {"provenance": provenance(device=device, **self.options.placement)}
        else:
            # Workers load the model, check prompts and say where they run.
            made = recipe
            notes = provenance(engine=engine.engine, **self.options.placement)
            more = {"address": engine.address, "workers": engine.workers, "say": say, "provenance": notes}
        self._find_scorer(made.spec)
        if redo == "all" and not engine.sharded:
            for setting in settings:
                place = run_path(self.results, tasks[0].suite, made.spec.name, setting.name)
                if (aside := set_aside(place)) is not None:
                    say(f"{place} was changed or damaged; its records and scores are in {aside.name}/ there")
        folders = engines.run(
            engine.engine,
            tasks,
            settings,
            made,
            shard=engine.shard,
            results_root=self.results,
            seeds=self.seeds,
            batch_size=self.batch_size,
            regions=self.regions or DEFAULT_REGIONS,
            redo=redo,
            offline=self.offline,
            # Whole tasks: what methods look at beside the edited example must not depend on --limit.
            pool=load_suite(self.suite, categories=self.categories),
            **more,
        )
        for line in complaints(folders):
            say(line)
        return folders


def blocks_option(text: str) -> dict[str, object]:
    """What `--blocks` changes in a setting.

    Args:
        text: "each", "together", "both", or block names with commas between (edited together).

    Raises:
        RiebenchError: for an unknown block; names the nearest match.
    """
    if text in ("each", "together", "both"):
        return {"block_mode": text}
    known = "write each, together (all in one edit), both, or block names with commas between"
    try:
        names = tuple(short_name(module_path(part.strip())) for part in text.split(",") if part.strip())
    except RiebenchError as error:
        raise RiebenchError(f"--blocks {text!r}: {known}; {error}") from error
    if not names:
        raise RiebenchError(f"--blocks is empty: {known}")
    return {"blocks": names, "block_mode": "together"}


def batch_size_of(text: str) -> int | None:
    """What `--batch-size` says: a number, or None for "auto".

    Raises:
        RiebenchError: for anything else.
    """
    if text == "auto":
        return None
    if not text.isdecimal() or int(text) < 1:
        raise RiebenchError(f"--batch-size {text!r}: give a number from 1, or auto")
    return int(text)
