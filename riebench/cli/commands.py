"""Commands with grouped help, one-line errors, and options that stand anywhere.

`command_group` makes a group of commands of this kind. Help is plain text, since rich alone would take a third of the
time that help may take.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from riebench.errors import near_match
from riebench.utils.terminal import print_line

DEBUG_FLAG = "--debug"
LOG_FLAG = "--log-level"
EXIT_USAGE = 2

PANELS: dict[str, tuple[str, ...]] = {
    "Methods and examples": (
        "settings_set", "suite", "categories", "examples", "limit", "seeds", "seed", "prompts",
        "labels", "trust_plugins", "dataset", "dataset_config", "revision", "split", "column", "toy_captions",
        "strengths", "top", "updates", "training_examples", "folds", "detectors", "points", "start",
    ),
    "Edits": (
        "sae", "sae_name", "accept_sae", "sweep", "blocks", "signal", "features", "edit_steps", "regions", "mapping",
        "seeds_of",
    ),
    "Model": (
        "model", "models", "base", "steps", "guidance", "size", "dtype", "single_file_config", "vae", "unet", "lora",
    ),
    "Training": (
        "k", "width", "kind", "recipe", "epochs", "lr", "warmup", "decay", "auxk", "dead_after", "buffer", "held_out",
        "log_every", "checkpoint_every", "trust", "kinds", "like",
    ),
    "Device and memory": (
        "device", "batch_size", "offload", "vae_slicing", "vae_tiling", "attention", "channels_last",
    ),
    "Scoring": ("profile", "scorer", "scorers", "weights", "metrics", "distance", "most", "gap"),
    "Files and repetition": (
        "results", "config", "out", "work", "report", "redo", "redo_damaged", "stop_after", "shard_pictures", "dry_run",
        "measure_saes", "json_file", "as_json", "open_page", "check", "stored", "licence", "leaderboard",
    ),
    "Network and machines": ("offline", "engine", "address", "workers", "shard"),
}  # fmt: skip
"""Heading in a command's help -> the parameters below it; all others stand under "Options"."""
MANY_OPTIONS = 12
"""Options of a command whose help has these headings; the help of a command with fewer has one list."""

OTHER_WORDS = {
    "--task": "--categories", "--tasks": "--categories", "--category": "--categories", "--ids": "--examples",
    "--example": "--examples", "--output": "--results", "--output-dir": "--results", "--precision": "--dtype",
    "--fp16": "--dtype", "--half": "--dtype", "--num-steps": "--steps", "--num-inference-steps": "--steps",
    "--cfg": "--guidance", "--guidance-scale": "--guidance", "--gpu": "--device", "--gpus": "--workers",
    "--cuda": "--device", "--resolution": "--size", "--width": "--size", "--height": "--size", "--block": "--blocks",
    "--layers": "--blocks", "--saes": "--sae", "--clip": "--scorer", "--set": "--settings-set", "--n": "--limit",
    "--resume": "--redo", "--overwrite": "--redo", "--force": "--redo", "--num-workers": "--workers",
    "--verbose": LOG_FLAG, "--quiet": LOG_FLAG, "--method": "--settings-set", "--checkpoint": "--unet",
    "--prompt-file": "--prompts", "--output-folder": "--out", "--dataset-name": "--dataset",
}  # fmt: skip
"""Option of other programs, or of other commands here -> the option that is meant, where a command has it."""


def heading(parameter: str) -> str:
    """Return the heading under which a command's help shows a parameter."""
    return next((title for title, names in PANELS.items() if parameter in names), "Options")


class GroupedCommand(TyperCommand):
    """A command whose help shows its options under headings."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write arguments, then options, under their headings if there are many of them."""
        sections: dict[str, list[tuple[str, str]]] = {"Arguments": []}
        parameters: list[Any] = self.get_params(ctx)
        many = sum(one.param_type_name == "option" for one in parameters) >= MANY_OPTIONS
        if many:
            sections |= {title: [] for title in PANELS}
        for one in parameters:
            record = one.get_help_record(ctx)
            title = heading(one.name) if many else "Options"
            title = "Arguments" if one.param_type_name == "argument" else title
            if record is not None:
                sections.setdefault(title, []).append(record)
        for title, records in sections.items():
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)


class CommandGroup(typer.Typer):
    """A group of commands with grouped help."""

    def command(self, *names: Any, **options: Any) -> Callable[[Any], Any]:
        """Register a command; see `typer.Typer.command`."""
        return super().command(*names, **{"cls": GroupedCommand, **options})


class RootGroup(TyperGroup):
    """The root of all commands.

    Its own options may stand anywhere, and a wrong option gives one line.
    """

    def make_context(self, *args: Any, **options: Any) -> Any:
        """Read the line's beginning."""
        with _one_line_errors():
            return super().make_context(*args, **options)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the root's own options, wherever they stand."""
        return super().parse_args(ctx, own_options_first(args))

    def invoke(self, ctx: Any) -> Any:
        """Read and run the command that follows."""
        with _one_line_errors():
            return super().invoke(ctx)


def own_options_first(args: list[str]) -> list[str]:
    """Return a command line with the root's own options moved to its beginning.

    They are `--debug` and `--log-level WORD`. Words after `--` are arguments and stay.
    """
    own: list[str] = []
    rest: list[str] = []
    words = iter(args)
    for word in words:
        if word == "--":
            rest += [word, *words]
        elif word == DEBUG_FLAG or word.startswith(f"{LOG_FLAG}="):
            own.append(word)
        elif word == LOG_FLAG:
            # Without its word it is refused as an empty one, instead of taking the command's name.
            own.append(f"{word}={next(words, '')}")
        else:
            rest.append(word)
    return [*own, *rest]


@contextmanager
def _one_line_errors() -> Iterator[None]:
    """Print a wrong option or argument as one line.

    Raises:
        typer.Exit: after that.
    """
    try:
        yield
    except Exception as error:
        # Typer brings its own copy of click or uses click's, by version: only the names are the same.
        kinds = {kind.__name__ for kind in type(error).__mro__}
        if "ClickException" not in kinds or "NoArgsIsHelpError" in kinds:
            raise
        print_line(f"riebench: {usage_error(error)}", err=True)
        raise typer.Exit(EXIT_USAGE) from None


def usage_error(error: Any) -> str:
    """Return what is wrong with a command line, and where its options are listed."""
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "riebench"
    text = error.format_message().strip().rstrip(".")
    name = getattr(error, "option_name", None)
    if type(error).__name__ == "NoSuchOption" and context is not None:
        known = [one for parameter in context.command.params for one in (*parameter.opts, *parameter.secondary_opts)]
        known += [DEBUG_FLAG, LOG_FLAG, "--help"]
        text = f"there is no option {name}{meant_option(str(name), known)}"
    return f"{text}; `{path} --help` lists what there is"


def meant_option(name: str, known: list[str]) -> str:
    """Return a hint at the option that was probably meant, or nothing.

    Args:
        name: what the user wrote.
        known: the command's options.
    """
    meant = OTHER_WORDS.get(name)
    if meant in known:
        return f" (did you mean {meant}?)"
    near = near_match(name, [one for one in known if one.startswith("--")])
    return near if near.startswith(" (did you mean") else ""
