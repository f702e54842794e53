"""Runs from Python: `run` makes and scores edits, `score` measures what is stored.

Both take what the command line takes, under the same names, and give `Results`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypedDict, Unpack, get_type_hints

from riebench.api.functions import FunctionMethod, metric_names
from riebench.api.models import Saes, interval_text, sae_text
from riebench.api.results import Results, load_results
from riebench.errors import RiebenchError, near_match, one_line
from riebench.jobs.request import RunRequest
from riebench.jobs.run import produce, say_failures
from riebench.registry import METHODS
from riebench.runs.failures import check_success
from riebench.runs.plan import Unit
from riebench.scoring.metrics.base import Metric
from riebench.scoring.metrics.networks import parse_weights
from riebench.scoring.profiles import DEFAULT, get_profile
from riebench.scoring.score import score as compute_scores
from riebench.scoring.scorers import check_profile, choose_scorers
from riebench.store.invocations import begin_invocation
from riebench.tasks.schema import Setting
from riebench.tasks.settings import load_plugin, make_setting
from riebench.tasks.suites import load_suite
from riebench.utils.hub import offline_mode
from riebench.utils.machine import pick_device

LOGGER = logging.getLogger("riebench")
"""Logger of what the command line prints."""

RESULTS = Path("runs")
"""Folder of results where none is named."""

SettingLike = str | Path | Setting | FunctionMethod
"""A method configuration: its name, its YAML file, an object, or a function decorated with `riebench.method`."""

Words = str | Sequence[str]
"""One word, or several."""


class RunOptions(TypedDict, total=False):
    """Options of `riebench run`, with its names; what is left out is as there.

    `docs/python.md` lists them.
    """

    settings_set: str
    sae_name: str
    accept_sae: bool
    blocks: Words
    edit_steps: str | tuple[float, float]
    categories: Words
    examples: Words
    steps: int
    guidance: float
    seeds: int | Sequence[int]
    batch_size: int | Literal["auto"]
    device: str
    dtype: str
    size: int
    single_file_config: str | Path
    vae: str | Path
    unet: str | Path
    lora: Words
    offload: str
    vae_slicing: bool
    vae_tiling: bool
    attention: str
    channels_last: bool
    regions: str
    profile: str
    scorer: Words
    scorers: Words
    weights: Words | Mapping[str, str | Path]
    redo: str
    stop_after: int
    offline: bool
    engine: str
    address: str
    workers: int
    trust_plugins: bool


def run(
    settings: SettingLike | Sequence[SettingLike] = (),
    *,
    suite: str | Path = "toy",
    model: str | Path | None = None,
    saes: str | Path | Mapping[str, str | Path] | Saes | None = None,
    limit: int | None = None,
    results: str | Path = RESULTS,
    progress: bool = True,
    **options: Unpack[RunOptions],
) -> Results:
    """Generate and score edits, as `riebench run` does.

    What is stored already is not made again.

    Args:
        settings: one or several method configurations; none for all official ones of the suite. Functions decorated
            with `riebench.method` are configurations, too.
        suite: a shipped suite, or a folder of task files.
        model: preset, folder, single file or hub id; None for the suite's.
        saes: what `riebench.load_saes` takes or gives; None for each configuration's own, or else the model's.
        limit: only the first examples of each category.
        results: folder for everything that is written.
        progress: whether bars are shown.
        options: further options of the command line, with its names (`RunOptions`).

    Returns:
        The runs that were asked for, with all that is stored of them.

    Raises:
        NothingMadeError: after everything else is done, if a configuration has not one edited picture.
        RiebenchError: for anything that the command line reports. What is finished is kept.
    """
    stated = {"suite": suite, "model": model, "saes": saes, "limit": limit, "results": results, **options}
    request = replace(run_request(settings, stated), progress=progress)
    begin_invocation(_call("run", settings, stated), request.to_config())
    tasks, chosen = request.plan()

    def units() -> list[Unit]:
        return request.units(tasks, chosen)

    folders = produce(request, LOGGER.info)
    say_failures(folders, LOGGER.warning)
    check_success(folders, units)
    return Results(request.results, folders, [request.suite] if Path(request.suite).expanduser().is_dir() else [])


def run_request(settings: Any, options: Mapping[str, Any]) -> RunRequest:
    """Return the request that some arguments of `run` stand for.

    Args:
        settings: see `run`.
        options: all other arguments.

    Raises:
        RiebenchError: if one is unknown or of a wrong type.
    """
    forms: dict[str, Callable[[Any], Any]] = {
        "categories": _words, "examples": _words, "scorer": _words, "scorers": _words, "lora": _words,
        "weights": _weights, "saes": sae_text, "blocks": lambda blocks: ",".join(_words(blocks)),
        "edit_steps": interval_text, "results": lambda place: str(Path(place).expanduser()),
    }  # fmt: skip
    names, objects = _split_settings(settings)
    values: dict[str, Any] = {}
    for name, value in options.items():
        if name not in known_options():
            raise RiebenchError(f"riebench.run has no option {name!r}{near_match(name, known_options())}")
        if value is not None:
            plain = forms.get(name, lambda one: str(one) if isinstance(one, Path) else one)(value)
            values["sae" if name == "saes" else name] = plain
    request = RunRequest.from_config({**values, "settings": names, "report": False}, Path("riebench.run"))
    if request.engine.engine != "local" and any(one.method in METHODS.defined() for one in objects):
        raise RiebenchError("functions defined here are not known to workers; use engine='local', or a plug-in file")
    return replace(request, given=objects)


def known_options() -> tuple[str, ...]:
    """Return the names of the options of `run`."""
    return ("suite", "model", "saes", "limit", "results", *get_type_hints(RunOptions))


def _call(verb: str, first: Any, options: Mapping[str, Any]) -> str:
    """Return a call as a person would write it, for run.json."""
    listed = first if isinstance(first, list | tuple) else [first]
    named = [one if isinstance(one, str) else getattr(one, "name", one) for one in listed]
    stated = [f"{name}={_shown(value)}" for name, value in options.items() if value is not None and value != ()]
    return one_line(f"riebench.{verb}({', '.join([_shown(named), *stated])})")


def _shown(value: Any) -> str:
    return repr(str(value)) if isinstance(value, Path) else repr(getattr(value, "source", value))


def _split_settings(settings: Any) -> tuple[tuple[str, ...], tuple[Setting, ...]]:
    """Return the configurations given by name or path, and those given as objects."""
    listed = list(settings) if isinstance(settings, list | tuple | set | frozenset) else [settings]
    names, objects = [], []
    for one in listed:
        if isinstance(one, str | Path):
            names.append(str(one))
        elif isinstance(one, FunctionMethod):
            objects.append(one.setting())
        elif isinstance(one, Setting):
            objects.append(_checked_setting(one))
        else:
            shown = getattr(one, "__name__", type(one).__name__)
            raise RiebenchError(
                f"{shown} is no method configuration; give a name, a YAML file, a Setting, or put "
                "@riebench.method(access=...) above a function"
            )
    every = [*names, *(one.name for one in objects)]
    repeated = sorted({name for name in every if every.count(name) > 1})
    if repeated:
        raise RiebenchError(f"method configuration {repeated[0]!r} is given twice")
    return tuple(names), tuple(objects)


def _checked_setting(setting: Setting) -> Setting:
    """Return a configuration with short block names and its plug-in's hash."""
    if setting.plugin is not None and setting.plugin_sha256 is None:
        # Who names the file in Python trusts it as much as the code that names it.
        plugin = Path(setting.plugin).expanduser().resolve()
        setting = setting.model_copy(update={"plugin": str(plugin), "plugin_sha256": load_plugin(plugin)})
    if setting.method not in METHODS and setting.plugin_sha256 is None:
        raise RiebenchError(
            f"{setting.name}: unknown method {setting.method!r}{near_match(setting.method, METHODS.names())}"
        )
    return make_setting(setting.model_dump(), Path(setting.name))


def _words(words: Words) -> tuple[str, ...]:
    """Return words that are given one by one, or in one text with commas between."""
    if isinstance(words, str):
        return tuple(part.strip() for part in words.split(",") if part.strip())
    return tuple(map(str, words))


def _weights(weights: Any) -> tuple[str, ...]:
    return (
        tuple(f"{name}={path}" for name, path in weights.items()) if isinstance(weights, Mapping) else _words(weights)
    )


def score(
    results: str | Path | Results = RESULTS,
    *,
    metrics: str | Metric | Sequence[str | Metric] | None = None,
    suite: str | Path | Sequence[str | Path] = (),
    scorer: Words = (),
    scorers: Words = (),
    profile: str = DEFAULT,
    weights: Words | Mapping[str, str | Path] = (),
    device: str = "auto",
    batch_size: int = 32,
    offline: bool = False,
    progress: bool = True,
) -> Results:
    """Compute the scores that stored pictures lack, as `riebench score` does.

    Args:
        results: a results folder, or results of which only these runs are scored.
        metrics: names of metrics, or functions decorated with `riebench.metric`; None for all of the profile.
        suite: folders of task files of the user's own that runs were made from; results of `riebench.run` know theirs.
        scorer: the CLIP that scores, then an independent second one.
        scorers: scorers by name: CLIPs, and others that measure on request.
        profile: "default", "paper" or "piebench".
        weights: where the networks of optional metrics lie: {"dino": FOLDER}.
        device: cpu, cuda, cuda:1, mps, or auto.
        batch_size: pictures scored at a time.
        offline: True to use only what is on this machine.
        progress: whether a bar is shown.

    Returns:
        The results, read anew.

    Raises:
        RiebenchError: for an unknown metric, scorer or suite, or a missing or changed picture. Scores computed before
            the error are kept.
    """
    if batch_size < 1:
        raise RiebenchError(f"batch_size {batch_size}: score at least 1 picture at a time")
    names = metric_names(metrics)
    stored = results if isinstance(results, Results) else load_results(results, offline=offline)
    own = [suite] if isinstance(suite, str | Path) else list(suite)
    suites = list(dict.fromkeys([*stored.suites, *map(str, own)]))
    chosen = choose_scorers([*_words(scorer), *_words(scorers)])
    check_profile(chosen, profile, get_profile(profile).scorers)
    begin_invocation(_call("score", str(stored.folder), {"metrics": names, "profile": profile}))
    with offline_mode(offline):
        report = compute_scores(
            stored.run_folders, [task for name in suites for task in load_suite(name)],
            scorer=chosen.first, second=chosen.second, metrics=names, beside=chosen.metrics, profile=profile,
            weights=parse_weights(_weights(weights)), offline=offline, device=pick_device(device),
            batch_size=batch_size, progress=progress,
        )  # fmt: skip
    LOGGER.info(report.summary)
    return Results(stored.folder, stored.run_folders, suites)
