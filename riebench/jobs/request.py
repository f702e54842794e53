"""Options of `riebench run`, and their checks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from riebench.blocks import module_path, short_name
from riebench.errors import RiebenchError, near_match
from riebench.generation.regions.options import DEFAULT_REGIONS, parse_regions
from riebench.jobs.config import RunConfig, parse_config
from riebench.jobs.repeat import stored_setting
from riebench.methods.check import check_setting
from riebench.models.lookup import ModelRecipe, blocks_on_model, own_names, refused_methods, usual_blocks_of
from riebench.models.spec import ModelOptions
from riebench.runs.failures import STOP_AFTER
from riebench.runs.plan import Unit, plan
from riebench.scoring.metrics.networks import parse_weights
from riebench.scoring.profiles import DEFAULT, get_profile
from riebench.scoring.scorers import ScorerChoice, check_profile, choose_scorers, is_clip
from riebench.store.folder import REDO_MODES, Redo
from riebench.tasks.mask_files import check_masks
from riebench.tasks.schema import EditTask, Identifier, Setting, parse_interval
from riebench.tasks.settings import MAIN_SET, load_settings
from riebench.tasks.suites import default_model, load_suite
from riebench.utils.machine import pick_device

ENGINES = ("local", "ray")
"""Names of engines: this machine's processor or GPU; workers on a Ray cluster."""


@dataclass(frozen=True)
class EngineOptions:
    """Options of the engine; they change floating-point noise at most.

    Attributes:
        engine: a word of `ENGINES`.
        address: address of a running Ray cluster; None starts one on this machine.
        workers: number of workers; None for what is soonest done here, and on a cluster for one per GPU.
        shard: (i, n) for the i-th of n processes that share the work, each started on its own.

    Raises:
        RiebenchError: for an unknown engine, or options that do not go together.
    """

    engine: str = "local"
    address: str | None = None
    workers: int | None = None
    shard: tuple[int, int] = (1, 1)

    def __post_init__(self) -> None:
        if self.engine not in ENGINES:
            raise RiebenchError(f"--engine {self.engine!r}{near_match(self.engine, ENGINES)}")
        if self.engine != "ray" and self.address is not None:
            raise RiebenchError("--address belongs to --engine ray")

    @property
    def sharded(self) -> bool:
        """True if other processes make parts of the work."""
        return self.shard != (1, 1)


def parse_shard(text: str) -> tuple[int, int]:
    """Parse the part of the work that a process does.

    Args:
        text: "I/N", the I-th of N parts, from 1.

    Raises:
        RiebenchError: if it is anything else.
    """
    first, _, second = text.partition("/")
    numbers = tuple(int(one) if one.isdecimal() and len(one) < 10 else 0 for one in (first, second))
    if not 1 <= numbers[0] <= numbers[1]:
        raise RiebenchError(f"--shard {text!r}: write I/N for the I-th of N parts, such as 1/4 ... 4/4")
    return numbers[0], numbers[1]


_MODEL_OPTIONS = ModelOptions.__dataclass_fields__
"""Options of the model that have the same name in a file."""

SEEDS = {"sweep": (0, 1, 2)}
"""Set of settings -> seeds of each example, for sets that compare methods; other sets have one seed."""


@dataclass(frozen=True)
class RunRequest:
    """Options of one `riebench run`; the fields are its options.

    Fields that are left empty take what the profile says of generation (seed, regions); an empty path of the
    leaderboard is `leaderboard.md` in the results folder. With `repeat`, a run.json, the setting is the stored one
    unless `settings` names its file; `repeat_exactly` refuses a run of another identity. `scorers` holds the values of
    `--scorer` and of `--scorers`. Two fields are for callers in
    Python alone: `given`, settings as objects, run after those that are named; and `progress`, whether bars are shown.
    """

    suite: str = "toy"
    settings: tuple[str, ...] = ()
    settings_set: str = MAIN_SET
    model: str | None = None
    sae: str | None = None
    sae_name: str | None = None
    accept_sae: bool = False
    blocks: str | None = None
    edit_steps: str | None = None
    categories: tuple[str, ...] = ()
    examples: tuple[str, ...] = ()
    steps: int | None = None
    guidance: float | None = None
    seeds: tuple[int, ...] = ()
    limit: int | None = None
    batch_size: int | None = None
    device: str = "auto"
    dtype: str | None = None
    results: Path = Path("runs")
    leaderboard: Path = Path()
    report: Path | None = None
    redo: str = "missing"
    offline: bool = False
    regions: str | None = None
    options: ModelOptions = field(default_factory=ModelOptions)
    profile: str = DEFAULT
    scorers: tuple[str, ...] = ()
    weights: tuple[str, ...] = ()
    engine: EngineOptions = field(default_factory=EngineOptions)
    stop_after: int = STOP_AFTER
    trust_plugins: bool = False
    repeat: Path | None = None
    repeat_exactly: bool = True
    given: tuple[Setting, ...] = ()
    progress: bool = True

    def __post_init__(self) -> None:
        profile = get_profile(self.profile)
        seeds = (profile.fixed_seed,) if profile.fixed_seed is not None else SEEDS.get(self.settings_set, (0,))
        object.__setattr__(self, "seeds", self.seeds or seeds)
        object.__setattr__(self, "regions", self.regions or profile.regions)
        if self.leaderboard == Path():
            object.__setattr__(self, "leaderboard", self.results / "leaderboard.md")

    @classmethod
    def from_config(cls, values: Mapping[str, Any], file: Path = Path("the options")) -> RunRequest:
        """Return the request of some options (see `riebench.jobs.config.RunConfig`).

        Args:
            values: option -> value; options that are not there have their defaults.
            file: the file that they come from, for messages.

        Raises:
            RiebenchError: for an unknown option, or a value that does not fit.
        """
        stated = parse_config(values, file)
        results = Path(stated.results)
        names = set(RunConfig.model_fields) & set(cls.__dataclass_fields__)
        names -= {"engine", "results", "report", "scorers"}
        options = {name: getattr(stated, name) for name in set(RunConfig.model_fields) & set(_MODEL_OPTIONS)}
        return cls(
            **{name: getattr(stated, name) for name in names - {"batch_size", "repeat"}},
            batch_size=None if stated.batch_size == "auto" else stated.batch_size,
            repeat=None if stated.repeat is None else Path(stated.repeat),
            results=results,
            report=results / "report" if stated.report else None,
            scorers=(*stated.scorer, *stated.scorers),
            engine=EngineOptions(stated.engine, stated.address, stated.workers, parse_shard(stated.shard)),
            options=ModelOptions(**options, config=stated.single_file_config, loras=stated.lora),
        )

    def to_config(self, *, defaults: bool = False) -> dict[str, Any]:
        """Return the options as a plain mapping that JSON and YAML can hold.

        `from_config` makes the same request of it.

        Args:
            defaults: whether to state options that have their defaults, too.
        """
        same = set(RunConfig.model_fields) & set(self.__dataclass_fields__)
        same -= {"engine", "report", "batch_size", "scorers"}
        values = {
            **{name: getattr(self, name) for name in same},
            **{name: getattr(self.options, name) for name in set(RunConfig.model_fields) & set(_MODEL_OPTIONS)},
            "batch_size": self.batch_size or "auto",
            "results": str(self.results),
            "report": self.report is not None,
            "repeat": None if self.repeat is None else str(self.repeat),
            "scorer": tuple(name for name in self.scorers if is_clip(name)),
            "scorers": tuple(name for name in self.scorers if not is_clip(name)),
            "engine": self.engine.engine,
            "address": self.engine.address,
            "workers": self.engine.workers,
            "shard": "/".join(map(str, self.engine.shard)),
            "single_file_config": self.options.config,
            "lora": self.options.loras,
        }
        stated: dict[str, Any] = RunConfig(**values).model_dump(mode="json", exclude_defaults=not defaults)
        return stated

    @property
    def recipe(self) -> ModelRecipe:
        """The recipe for loading the requested model."""
        return ModelRecipe(
            self.model or default_model(self.suite), self.steps, self.guidance, self.dtype, self.device, self.offline,
            self.options, self.fixed_noise,
        )  # fmt: skip

    @property
    def scorer_choice(self) -> ScorerChoice:
        """The scorers that were named, sorted into CLIPs and others.

        Raises:
            MetricError: as `choose_scorers`.
        """
        return choose_scorers(self.scorers)

    @property
    def fixed_noise(self) -> str:
        """The profile, if its pictures all have the same noise; else empty.

        It ends the model's name.
        """
        return "" if get_profile(self.profile).fixed_seed is None else self.profile

    @property
    def scoring_device(self) -> str:
        """The device on which this process scores.

        With workers, `--device cuda` means theirs, and only they may have a GPU.
        """
        away = self.engine.engine != "local" and self.device == "cuda"
        return pick_device("auto" if away else self.device)

    @property
    def redo_mode(self) -> Redo:
        """`redo`, checked.

        Raises:
            RiebenchError: if it is not one of `REDO_MODES`.
        """
        for mode in REDO_MODES:
            if mode == self.redo:
                return mode
        raise RiebenchError(f"--redo {self.redo!r}{near_match(self.redo, REDO_MODES)}")

    def plan(self) -> tuple[tuple[EditTask, ...], tuple[Setting, ...]]:
        """Read and check everything that needs no model.

        So mistakes show before minutes are spent.

        Raises:
            RiebenchError: for anything unknown or malformed.
        """
        parse_regions(self.regions or DEFAULT_REGIONS).folders()
        self._check_sae_name()
        check_profile(self.scorer_choice, self.profile, get_profile(self.profile).scorers)
        parse_weights(self.weights)
        tasks = load_suite(self.suite, categories=self.categories, limit=self.limit, examples=self.examples)
        official: tuple[Setting, ...] = ()
        if self.repeat is not None and not self.settings:
            official = (stored_setting(self.repeat),)
        elif self.settings:
            official = load_settings(self.suite, self.settings, self.settings_set, trust_plugins=self.trust_plugins)
        elif not self.given:
            official = tuple(one for one in self._whole_set if one.name not in self.left_out)
        settings = tuple(self._with_options(setting) for setting in (*official, *self.given))
        for setting in settings:
            check_setting(setting, setting.name)
        check_masks(tasks)
        return tasks, settings

    @cached_property
    def _whole_set(self) -> tuple[Setting, ...]:
        """All official configurations of the set, where none are named."""
        whole = self.repeat is None and not self.settings and not self.given
        return load_settings(self.suite, (), self.settings_set, trust_plugins=self.trust_plugins) if whole else ()

    @cached_property
    def left_out(self) -> Mapping[str, str]:
        """Official configurations that the model's family cannot run -> why.

        They are left out where the whole set is asked for; one that is named is refused instead.
        """
        refused = refused_methods(self.recipe.name)
        return {one.name: f"{one.method}: {refused[one.method]}" for one in self._whole_set if one.method in refused}

    def units(self, tasks: Sequence[EditTask], settings: Sequence[Setting]) -> list[Unit]:
        """Return the units of all shards, their block sets named for the model.

        Args:
            tasks: of `plan`.
            settings: likewise.

        Raises:
            RiebenchError: if the model's name stands for nothing.
        """
        return plan(tasks, settings, self.seeds, usual=usual_blocks_of(self.recipe.name))

    def _check_sae_name(self) -> None:
        """Refuse a name of SAEs that cannot be part of a folder's name."""
        try:
            TypeAdapter(Identifier | None).validate_python(self.sae_name)
        except ValidationError as error:
            raise RiebenchError(
                f"--sae-name {self.sae_name!r}: use letters, digits, dots, hyphens and underscores, the first a letter "
                "or digit, and at most 120 of them"
            ) from error

    def _with_options(self, setting: Setting) -> Setting:
        from riebench.methods.base import get_method

        changes: dict[str, object] = {}
        if self.sae is not None:
            changes["sae"] = self.sae
        if self.sae_name is not None and "saes" in get_method(setting.method).needs:
            changes["name"] = f"{setting.name}.{self.sae_name}"
        model = self.model or default_model(self.suite)
        if setting.blocks:
            changes["blocks"] = blocks_on_model(model, setting.blocks)
        if self.blocks is not None and setting.blocks:
            named = blocks_option(self.blocks)
            changes.update({key: own_names(model, value) if isinstance(value, tuple) else value
                            for key, value in named.items()})  # fmt: skip
        if self.edit_steps is not None and setting.blocks:
            changes["edit_steps"] = parse_interval(self.edit_steps)
        try:
            return Setting.model_validate({**setting.model_dump(), **changes})
        except ValidationError as error:
            reason = error.errors()[0]["msg"].removeprefix("Value error, ")
            raise RiebenchError(f"{setting.name} with these options: {reason}") from error


def blocks_option(text: str) -> dict[str, object]:
    """Return the fields of a setting that `--blocks` changes.

    Args:
        text: "each", "together", "both", or block names with commas between (edited together).

    Raises:
        RiebenchError: for an unknown block; names the nearest match.
    """
    if text in ("each", "together", "both"):
        return {"block_mode": text}
    known = "write each, together (all in one edit), both, or block names with commas between"
    try:
        names = tuple(short_name(part.strip()) for part in text.split(",") if part.strip())
        for name in names:
            module_path(name)
    except RiebenchError as error:
        raise RiebenchError(f"--blocks {text!r}: {known}; {error}") from error
    if not names:
        raise RiebenchError(f"--blocks is empty: {known}")
    return {"blocks": names, "block_mode": "together"}


def parse_batch_size(text: str) -> int | None:
    """Parse `--batch-size`: a number, or None for "auto".

    Raises:
        RiebenchError: for anything else.
    """
    if text == "auto":
        return None
    if not text.isdecimal() or len(text) >= 10 or int(text) < 1:
        raise RiebenchError(f"--batch-size {text!r}: give a number from 1, or auto")
    return int(text)
