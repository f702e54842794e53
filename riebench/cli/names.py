"""Names on the command line: their check, and their completion by shells.

`check_names` looks at all options that name something: a word of a list, a file that is read, a model, a block. It
imports none of the libraries that take seconds.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import typer

from riebench.errors import RiebenchError, near_match, one_line

REDO_WORDS = ("missing", "errors", "all")
ENGINE_WORDS = ("local", "ray")
DEVICE_WORDS = ("auto", "cpu", "cuda", "mps")
KIND_WORDS = ("topk", "batchtopk", "jumprelu", "matryoshka")
RECIPE_WORDS = ("standard", "published")
BASELINE_WORDS = (
    "random_init", "frozen_decoder", "frozen_encoder", "soft_frozen", "pca", "ica", "random_orthogonal", "neurons",
)  # fmt: skip
SIGNAL_WORDS = ("update", "output", "input")
"""What is collected of blocks; SAEs are trained on the first two."""
BLOCK_WORDS = ("each", "together", "both")
DISTANCE_WORDS = ("lpips", "dreamsim")
"""Distances between two pictures by which strengths are found."""

Options = Mapping[str, Any]
"""Parameter of a command -> its value."""


def check_word(flag: str, word: str, known: Iterable[str], other_names: Mapping[str, str] | None = None) -> None:
    """Refuse a word that is not in a list.

    Args:
        flag: the option.
        word: its value.
        known: the list.
        other_names: other name of a known word -> that word, for the hint.

    Raises:
        RiebenchError: naming the word that was probably meant, or all.
    """
    known = tuple(known)
    if word not in known:
        meant = (other_names or {}).get(word.lower())
        hint = f" (did you mean {meant!r}?)" if meant in known else near_match(word, known)
        raise RiebenchError(f"{flag} {word!r}{hint}")


def check_names(verb: str, options: Options) -> None:
    """Refuse what stands for nothing among a command's options.

    Args:
        verb: name of the command's function.
        options: parameter -> value; None where it was not given.

    Raises:
        RiebenchError: naming the option, and the nearest name where there are names to choose from.
    """
    for name, value in options.items():
        check_text(name, value)
    # A file of options may name another suite or model; what depends on them is checked once it is read.
    later = ("settings", "settings_set", "blocks") if options.get("config") is not None else ()
    for name, check in CHECKS.items():
        if (value := options.get(name)) is not None and (verb, name) not in OTHER_MEANING and name not in later:
            check(value, options)


def check_text(name: str, value: Any) -> None:
    """Refuse bytes that are no text: they can be stored in no document.

    Raises:
        RiebenchError: naming the parameter.
    """
    for one in value if isinstance(value, list | tuple) else (value,):
        if isinstance(one, str | Path) and (re.search("[\ud800-\udfff]", str(one)) or "\0" in str(one)):
            where = f"{name.replace('_', '-')} {str(one)!r}"
            if _is_utf8(str(one)):
                raise RiebenchError(f"{where} cannot be read in this locale; set PYTHONUTF8=1 or LC_ALL=C.UTF-8")
            raise RiebenchError(f"{where} holds bytes that are no text in UTF-8; rename it, or name another")


def _is_utf8(text: str) -> bool:
    try:
        os.fsencode(text).decode("utf-8")
    except UnicodeError:
        return False
    return True


def _word_check(flag: str, known: Callable[[], Iterable[str]]) -> Callable[[Any, Options], None]:
    return lambda value, _: check_word(flag, value, known())


def _file_check(what: str) -> Callable[[Any, Options], None]:
    def check(value: Any, _: Options) -> None:
        if not Path(value).expanduser().exists():
            raise RiebenchError(f"{what} {value}: cannot be read, there is no such file or folder")

    return check


def _list(value: str) -> list[str]:
    return [part.strip() for part in value.split(",") if part.strip()]


def _check_device(value: str, _: Options) -> None:
    if not re.fullmatch(r"cuda:\d{1,4}", value):
        check_word("--device", value, DEVICE_WORDS, {"gpu": "cuda", "nvidia": "cuda", "metal": "mps"})


def _check_suites(value: str | list[str], _: Options) -> None:
    from riebench.tasks.suites import suite_folder

    for suite in [value] if isinstance(value, str) else value:
        suite_folder(suite)


def _check_settings(value: list[str], options: Options) -> None:
    from riebench.tasks.settings import setting_path

    for name in value:
        setting_path(name, options["suite"], options["settings_set"])


def _check_setting(value: str, options: Options) -> None:
    _check_settings([value], options)


def _check_settings_set(value: str, options: Options) -> None:
    from riebench.tasks.settings import settings_folder

    settings_folder(options["suite"], value)


def _check_categories(value: str, _: Options) -> None:
    from riebench.tasks.suites import check_categories

    check_categories(_list(value))


def _check_model(value: str, _: Options) -> None:
    from riebench.models.lookup import check_name

    if value != "none":
        check_name(value)


def _check_models(value: str, options: Options) -> None:
    names = _list(value)
    if not names:
        raise RiebenchError("--model is empty: name a model, or several with commas between")
    for name in names:
        _check_model(name, options)


def _check_places(value: list[str], options: Options) -> None:
    for place in value:
        _check_saes(place, options)


def _check_saes(value: str, _: Options) -> None:
    # Text with other forms in it is read by the loader's own parser, which asks for more libraries.
    place = value.partition("#")[0]
    if "://" not in value and not value.startswith("asset:") and not re.search("[,=]", place):
        if not Path(place).expanduser().exists():
            raise RiebenchError(f"no SAE folder {place}; give a folder, a file, or hf://OWNER/NAME[@REVISION]")
    else:
        from riebench.saes.sources import SCHEME, parse_place, parse_sources

        for source in parse_sources(value):
            if source.place.startswith(SCHEME):
                parse_place(source.place)
            elif not source.place.startswith("asset:"):
                source.locate(offline=True)


def _check_blocks(value: str, options: Options) -> None:
    words = BLOCK_WORDS if "edit_steps" in options else ()
    if value in words:
        return
    names = _list(value)
    known = "write block names with commas between"
    if words:
        known = "write each, together (all in one edit), both, or block names with commas between"
    if not names:
        raise RiebenchError(f"--blocks is empty: {known}")
    try:
        for name in names:
            _check_block(name, options)
    except RiebenchError as error:
        raise RiebenchError(f"--blocks {value!r}: {known}; {error}") from error


def _check_block(value: str, options: Options) -> None:
    from riebench.blocks import as_named, block_of, short_name
    from riebench.models.lookup import blocks_of
    from riebench.tasks.suites import default_model

    name = block_of(short_name(value))
    if "model" not in options or (options["model"] is None and options.get("suite") is None):
        return
    model = options["model"] or default_model(options["suite"])
    known = blocks_of(model)
    if as_named(name, known) not in known:
        raise RiebenchError(f"{model} has no block {value}{near_match(value, known)}")


def _check_regions(value: str, _: Options) -> None:
    from riebench.generation.regions.options import parse_regions

    parse_regions(value).folders()


def _check_scorers(value: str | list[str], _: Options) -> None:
    from riebench.models.clip import scorer_pair

    scorer_pair([one for one in ([value] if isinstance(value, str) else value) if one != "none"])


def _check_scorer_names(value: str, _: Options) -> None:
    from riebench.scoring.scorers import choose_scorers

    names = _list(value)
    if not names:
        raise RiebenchError("--scorers is empty: name scorers with commas between")
    choose_scorers(names)


def _check_weights(value: list[str], _: Options) -> None:
    from riebench.registry import NETWORKS

    for entry in value:
        name, equals, path = entry.partition("=")
        if name in NETWORKS and equals and not Path(path).expanduser().exists():
            raise RiebenchError(f"--weights {entry}: there is no {path}")
        if name not in NETWORKS or not equals:
            raise RiebenchError(f"--weights {entry!r}{near_match(name, NETWORKS.names())}: write NETWORK=PATH")


def _check_metrics(value: str, _: Options) -> None:
    from riebench.registry import METRICS

    for name in _list(value):
        if name not in METRICS:
            raise RiebenchError(f"unknown metric {name!r}{near_match(name, METRICS.names())}")


def _check_profile(value: str, _: Options) -> None:
    from riebench.scoring.profiles import get_profile

    get_profile(value)


def _check_unet(value: str, _: Options) -> None:
    from riebench.models.files import safetensors_file

    safetensors_file("--unet", value)


def _check_loras(value: list[str], _: Options) -> None:
    from riebench.models.files import safetensors_file
    from riebench.models.spec import parse_lora

    for one in value:
        safetensors_file("--lora", parse_lora(one)[0])


def _check_vae(value: str, _: Options) -> None:
    from riebench.models.families.base import families
    from riebench.models.files import autoencoder_source

    if not Path(value).expanduser().is_dir():
        autoencoder_source(families()[0], value)


def _check_single_file_config(value: str, _: Options) -> None:
    from riebench.models.presets import PRESETS

    if value not in PRESETS and not Path(value).expanduser().is_dir() and not is_hub_id(value):
        raise RiebenchError(
            f"--single-file-config {value!r}{near_match(value, PRESETS)}; a model's folder or hub id works too"
        )


def _check_dataset(value: str, _: Options) -> None:
    if not Path(value).expanduser().exists() and not is_hub_id(value):
        raise RiebenchError(f"there is no {value} here, and it is no hub id OWNER/NAME")


def _check_updates(value: Path, _: Options) -> None:
    if not value.expanduser().exists():
        raise RiebenchError(f"there is no folder {value}; `riebench sae collect` makes it")


def _check_kinds(value: str, _: Options) -> None:
    for kind in _list(value):
        check_word("--kind", kind, KIND_WORDS)


def _check_baselines(value: str, _: Options) -> None:
    for kind in _list(value) or [""]:
        check_word("--kinds", kind, BASELINE_WORDS)


def _check_training(value: Path, _: Options) -> None:
    if not value.expanduser().exists():
        raise RiebenchError(f"--like {value}: there is no such folder; `riebench sae train` makes it")


def _check_signals(value: str, options: Options) -> None:
    known = SIGNAL_WORDS[:2] if "updates" in options else SIGNAL_WORDS
    for word in _list(value) or [""]:
        check_word("--signal", word, known)


def _check_formats(value: str, _: Options) -> None:
    from riebench.analysis.export import check_formats

    check_formats(_list(value))


def _check_format(value: str, _: Options) -> None:
    from riebench.models.spec import check_format

    check_format(value)


def is_hub_id(text: str) -> bool:
    """Check that a text has the form OWNER/NAME[@REVISION]."""
    return re.fullmatch(r"[\w.-]*\w[\w.-]*/[\w.-]+(@\S+)?", text) is not None


CHECKS: dict[str, Callable[[Any, Options], None]] = {
    "mapping": _file_check("--mapping"),
    "suite": _check_suites,
    "suites": _check_suites,
    "settings_set": _check_settings_set,
    "settings": _check_settings,
    "setting": _check_setting,
    "distance": _word_check("--distance", lambda: DISTANCE_WORDS),
    "categories": _check_categories,
    "model": _check_model,
    "models": _check_models,
    "base": _check_model,
    "dtype": _check_format,
    "device": _check_device,
    "offload": _word_check("--offload", lambda: known_offloads()),
    "attention": _word_check("--attention", lambda: known_attentions()),
    "redo": _word_check("--redo", lambda: REDO_WORDS),
    "engine": _word_check("--engine", lambda: ENGINE_WORDS),
    "kind": _check_kinds,
    "kinds": _check_baselines,
    "like": _check_training,
    "signal": _check_signals,
    "recipe": _word_check("--recipe", lambda: RECIPE_WORDS),
    "profile": _check_profile,
    "regions": _check_regions,
    "scorer": _check_scorers,
    "scorers": _check_scorer_names,
    "weights": _check_weights,
    "metrics": _check_metrics,
    "formats": _check_formats,
    "sae": _check_saes,
    "sweep": _check_saes,
    "source": _check_saes,
    "places": _check_places,
    "seeds_of": _check_places,
    "blocks": _check_blocks,
    "block": _check_block,
    "unet": _check_unet,
    "lora": _check_loras,
    "vae": _check_vae,
    "single_file_config": _check_single_file_config,
    "dataset": _check_dataset,
    "prompts": _file_check("--prompts"),
    "verify": _file_check("--verify"),
    "updates": _check_updates,
    "file": _file_check("file"),
    "images": _file_check("images"),
}
"""Parameter -> function that refuses a value which stands for nothing."""

OTHER_MEANING = {
    ("compare", "suite"), ("compare", "model"), ("compare_models", "suite"), ("compare_models", "models"),
    ("publish", "verify"), ("paper", "redo"), ("doctor", "sae"),
    ("doctor", "unet"), ("doctor", "lora"), ("doctor", "vae"),
}  # fmt: skip
"""Verb and parameter that is no such name there, or whose absence the verb itself reports."""


def words_beginning_with(words: Iterable[str]) -> Callable[[str], list[str]]:
    """Return a function that completes the beginning of a word from a list."""

    def complete(incomplete: str) -> list[str]:
        return [word for word in words if word.startswith(incomplete)]

    return complete


def completing(known: Callable[[], Iterable[str]], *, several: bool = False) -> Callable[[str], list[str]]:
    """Return a function that completes names for a shell.

    It says nothing where they cannot be read.

    Args:
        known: returns all names.
        several: whether names stand with commas between; the last one is completed.
    """

    def complete(incomplete: str) -> list[str]:
        before, comma, last = incomplete.rpartition(",") if several else ("", "", incomplete)
        try:
            return [one_line(f"{before}{comma}{name}") for name in known() if name.startswith(last)]
        except (RiebenchError, OSError):
            return []

    return complete


def known_formats() -> Iterable[str]:
    """Return the names of the number formats."""
    from riebench.models.spec import FORMATS

    return FORMATS


def known_offloads() -> Iterable[str]:
    """Return the ways to keep weights off the GPU."""
    from riebench.models.spec import OFFLOADS

    return OFFLOADS


def known_attentions() -> Iterable[str]:
    """Return the attention kernels."""
    from riebench.models.spec import ATTENTIONS

    return ATTENTIONS


def known_suites() -> Iterable[str]:
    """Return all names of the shipped suites."""
    from riebench.tasks.suites import known_suites as found

    return found()


def known_models() -> Iterable[str]:
    """Return the names of the model presets."""
    from riebench.models.presets import PRESETS

    return PRESETS


def known_metrics() -> Iterable[str]:
    """Return the names of the metrics."""
    from riebench.registry import METRICS

    return METRICS.names()


def known_scorers() -> Iterable[str]:
    """Return the short names of the CLIPs that score."""
    from riebench.models.clip import SCORERS

    return SCORERS


def known_scorer_names() -> Iterable[str]:
    """Return the names of all scorers."""
    from riebench.scoring.scorers import scorer_names

    return scorer_names()


def known_profiles() -> Iterable[str]:
    """Return the names of the scoring profiles."""
    from riebench.scoring.profiles import PROFILES

    return PROFILES


def known_categories() -> Iterable[str]:
    """Return the names of the categories."""
    from riebench.tasks.schema import ALL_CATEGORIES

    return ALL_CATEGORIES


def known_blocks() -> Iterable[str]:
    """Return the short names of the blocks, and the words for several of them."""
    from riebench.blocks import known_blocks as blocks

    return (*BLOCK_WORDS, *blocks())


def known_regions() -> Iterable[str]:
    """Return the names of the region providers."""
    from riebench.registry import REGIONS

    return REGIONS.names()


def complete_settings(ctx: typer.Context, incomplete: str) -> list[str]:
    """Complete the name of an official method configuration of suite and set."""
    from riebench.tasks.settings import setting_names

    suite, chosen = ctx.params.get("suite") or "toy", ctx.params.get("settings_set") or "main"
    return completing(lambda: setting_names(suite, chosen))(incomplete)


def complete_settings_set(ctx: typer.Context, incomplete: str) -> list[str]:
    """Complete the name of a set of method configurations of the suite on the line."""
    from riebench.tasks.settings import settings_sets

    return completing(lambda: settings_sets(ctx.params.get("suite") or "toy"))(incomplete)
