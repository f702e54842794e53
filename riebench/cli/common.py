"""Parts that all verbs share: printing, errors, and parsing of option values.

The options that several verbs have in common stand at the end.
"""

from __future__ import annotations

import errno
import inspect
import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ParamSpec

import typer

from riebench.cli.names import (
    DEVICE_WORDS,
    check_names,
    completing,
    known_attentions,
    known_categories,
    known_formats,
    known_models,
    known_offloads,
    known_profiles,
    known_scorer_names,
    known_scorers,
    known_suites,
    words_beginning_with,
)
from riebench.errors import MAX_NAME_LENGTH, MemoryShortageError, RiebenchError, ended_by
from riebench.utils.processes.collector import resume_collector
from riebench.utils.terminal import print_line, print_note

if TYPE_CHECKING:
    from riebench.store.folder import RunFolder


P = ParamSpec("P")

EXIT_USER_ERROR = 2
MOST_NUMBERS = 1000
"""Most numbers in one option."""


def say_written(paths: Sequence[Path], check: bool) -> None:
    """Print the files that were written, or how many are up to date."""
    if check:
        say(f"{len(paths)} files are up to date")
    else:
        for path in paths:
            print_line(path)


def say(text: str) -> None:
    """Print a line about what is being done on standard error.

    Standard output so holds results alone. `--log-level` can hide such lines.
    """
    print_note(text)


def friendly(verb: Callable[P, None]) -> Callable[P, None]:
    """Turn errors that a user can cause into one line and an exit code.

    `--debug` shows the traceback too.
    """

    @wraps(verb)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> None:
        if not _debugging():
            # Each attempt to reach the hub would print two more lines; the outcome is in the error's own line.
            logging.getLogger("huggingface_hub.utils._http").setLevel(logging.ERROR)
        try:
            with _ended_in_order():
                _check_numbers(kwargs)
                check_names(verb.__name__, kwargs)
                verb(*args, **kwargs)
        except KeyboardInterrupt as error:
            end = error if isinstance(error, SignalReceived) else SignalReceived(signal.SIGINT)
            _print_last(
                f"riebench: {end.words}; everything finished so far is kept, and the same command goes on from there"
            )
            raise typer.Exit(end.exit_status) from None
        except BrokenPipeError:
            # The reader (`| head`) is gone; point stdout elsewhere so that Python's own flush at exit stays quiet.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(1) from None
        except (RiebenchError, OSError) as error:
            if _debugging():
                traceback.print_exc()
            print_line(f"riebench: {_one_line(error)}", err=True)
            raise typer.Exit(getattr(error, "exit_status", EXIT_USER_ERROR)) from None
        except Exception as error:
            words = _shortage(error) or _unwritable(error)
            if words is None:
                raise
            if _debugging():
                traceback.print_exc()
            print_line(f"riebench: {words}", err=True)
            raise typer.Exit(EXIT_USER_ERROR) from None
        except BaseException as error:
            # Commands end with exceptions of typer; this one comes from code of a plug-in, a package or a library.
            if _debugging():
                traceback.print_exc()
            print_line(f"riebench: {ended_by('code that riebench called', error)}", err=True)
            raise typer.Exit(EXIT_USER_ERROR) from None
        finally:
            resume_collector()

    return wrapped


class SignalReceived(KeyboardInterrupt):
    """A signal that asks the process to end.

    It is Ctrl-C, or comes from a scheduler or from a terminal that is closed. Libraries let it pass as Ctrl-C.

    Args:
        number: the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    @property
    def exit_status(self) -> int:
        """The status with which shells report this signal."""
        return 128 + self.number

    @property
    def words(self) -> str:
        """The reason of the end, for people."""
        return "stopped" if self.number == signal.SIGINT else f"stopped by {signal.Signals(self.number).name}"


ENDING_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")
"""Signals after which a command ends in order, where the system has them."""


@contextmanager
def _ended_in_order() -> Iterator[None]:
    """End in order at the first signal, and at once at the second one.

    The signals are `ENDING_SIGNALS`. Nothing recorded is lost by either: lines and pictures are whole or absent at
    every moment.
    """
    # Signals can be set in the main thread alone; a caller that ignores or handles them goes on doing so.
    usual = (signal.SIG_DFL, signal.default_int_handler)
    ours: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        numbers = [int(getattr(signal, name)) for name in ENDING_SIGNALS if hasattr(signal, name)]
        ours = {number: handler for number in numbers if (handler := signal.getsignal(number)) in usual}

    def second(number: int, _: object) -> None:
        _write_error(b"\nriebench: ended at once; the same command goes on from what was finished\n")
        os._exit(128 + number)

    def first(number: int, _: object) -> None:
        for one in ours:
            signal.signal(one, second)
        if number == signal.SIGINT:
            _write_error(b"\nriebench: stopping; Ctrl-C again ends at once\n")
        raise SignalReceived(number)

    for number in ours:
        signal.signal(number, first)
    try:
        yield
    finally:
        for number, handler in ours.items():
            signal.signal(number, handler)


def _write_error(text: bytes) -> None:
    """Write to standard error, unless its terminal has been closed."""
    with suppress(OSError):
        os.write(2, text)


def _print_last(text: str) -> None:
    """Print a command's last line, as far as its output still leads anywhere."""
    try:
        print_line(text, err=True)
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:
        # The terminal is closed, or the reader of a pipe has ended: Python's own flush at exit must not fail again.
        for stream in (1, 2):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream)


def _check_numbers(options: Mapping[str, Any]) -> None:
    """Refuse options with numbers that no computation is meant for.

    Raises:
        RiebenchError: naming the first of them.
    """
    if not any(isinstance(value, int | float) for value in options.values()):
        return
    from riebench.tasks.schema import number_fault

    for name, value in options.items():
        fault = number_fault(value)
        # A seed counts nothing, and each use of one says itself how large it may be.
        if fault is not None and name != "seed":
            raise RiebenchError(f"--{name.replace('_', '-')}: {fault}")


def parse_numbers(text: str, flag: str, example: str, largest: int) -> tuple[int, ...]:
    """Parse whole numbers with commas between.

    Args:
        text: what the user wrote.
        flag: the option, for messages.
        example: what it should look like.
        largest: the largest number that is taken.

    Raises:
        RiebenchError: if they are no numbers from 0, or more than `MOST_NUMBERS`.
    """
    try:
        numbers = tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise RiebenchError(f"{flag} {text[:MAX_NAME_LENGTH]!r}: write {example}") from error
    if not 0 <= min(numbers) <= max(numbers) <= largest:
        raise RiebenchError(f"{flag}: the numbers go from 0 to {largest}")
    if len(numbers) > MOST_NUMBERS:
        raise RiebenchError(f"{flag}: {len(numbers)} numbers; at most {MOST_NUMBERS} are taken")
    return numbers


def _shortage(error: Exception) -> str | None:
    """Return what to do about a shortage (see `riebench.utils.machine`), or None."""
    from riebench.utils.machine import shortage

    return shortage(error)


def _unwritable(error: Exception) -> str | None:
    """Return what to do about bytes of a path that no document can hold, or None."""
    if isinstance(error, UnicodeEncodeError) and any("\ud800" <= mark <= "\udfff" for mark in error.object):
        return f"a path holds bytes that are no text in UTF-8 ({error.object!r:.200}); rename it"
    return None


def _one_line(error: RiebenchError | OSError) -> str:
    short = _shortage(error)
    if isinstance(error, RiebenchError):
        # An error that knows its cause says what helps.
        knows = short is None or short in str(error) or isinstance(error, MemoryShortageError)
        return " ".join(str(error).split()) if knows else f"{short} ({error})"
    if short is not None:
        return short
    if error.errno == errno.EROFS:
        return f"{error.filename or 'a file'} cannot be written ({error.strerror}); use another folder with --results"
    if isinstance(error, PermissionError):
        what = f"{error.filename or 'a file'} cannot be read or written ({error.strerror})"
        return f"{what}; change its permissions, or write to another folder with --results"
    # A folder in the place of a file, a lost network drive, a hub that does not answer: use the system's message.
    words = f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error)
    return " ".join(words.split()) or type(error).__name__


def _debugging() -> bool:
    return bool(os.environ.get("RIEBENCH_DEBUG"))


def with_options_of(make: Callable[..., Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a verb another function's options beside its own, as a decorator.

    What that function returns is the verb's first argument.

    Args:
        make: the function whose parameters are the options.
    """
    shared = inspect.signature(make, eval_str=True).parameters

    def decorate(verb: Callable[..., None]) -> Callable[..., None]:
        own = list(inspect.signature(verb, eval_str=True).parameters.values())[1:]

        @wraps(verb)
        def wrapped(**values: Any) -> None:
            verb(make(**{name: values.pop(name) for name in shared}), **values)

        # Typer reads options from the signature.
        wrapped.__dict__["__signature__"] = inspect.Signature([*shared.values(), *own])
        return wrapped

    return decorate


def parse_seeds(text: str) -> tuple[int, ...]:
    """Parse seed numbers with commas between.

    Raises:
        RiebenchError: if they are no numbers, repeat or are negative.
    """
    from riebench.tasks.schema import MAX_WHOLE

    numbers = parse_numbers(text, "--seeds", "seed numbers with commas between, such as 0,1,2", MAX_WHOLE - 1)
    if len(set(numbers)) != len(numbers):
        raise RiebenchError(f"--seeds {text[:MAX_NAME_LENGTH]!r}: use each number once, from 0 on")
    return numbers


def split_names(text: str | None) -> tuple[str, ...]:
    """Split words with commas between; none for None."""
    return tuple(part.strip() for part in text.split(",") if part.strip()) if text else ()


PUBLISHED_RESULTS, OWN_RESULTS = Path("results"), Path("runs")
"""Folders of published results and of runs made here."""


def results_to_write(results: Path | None) -> Path:
    """Return the folder that `riebench run` and `riebench score` write to.

    Args:
        results: the value of --results; None for `OWN_RESULTS`.

    Raises:
        RiebenchError: for an address on the hub.
    """
    refuse_remote(results)
    return OWN_RESULTS if results is None else results


def refuse_remote(results: Path | None) -> None:
    """Refuse an address on the hub as a folder to write to.

    Raises:
        RiebenchError: if it is one.
    """
    from riebench.store.remote import check_address, is_address

    if results is not None and is_address(results):
        check_address(results)
        raise RiebenchError(
            "--results hf://... can only be read, by compare, export, report, paper and validity; `riebench publish "
            "--push-to OWNER/NAME` writes there"
        )


def results_to_read(results: Path | None, *, offline: bool = False) -> Path:
    """Return the folder that commands on stored results read.

    Args:
        results: the value of --results, a folder or an address on the hub; None for `PUBLISHED_RESULTS` if that folder
            holds runs, or else `OWN_RESULTS`.
        offline: whether results on the hub are taken from this machine's cache.
    """
    from riebench.store.remote import fetch_results, is_address

    if results is not None and is_address(results):
        return fetch_results(results, offline=offline)
    if results is not None:
        return results
    return PUBLISHED_RESULTS if any(PUBLISHED_RESULTS.glob("*/*/*/run.json")) else OWN_RESULTS


def documents_folder(results: Path) -> Path:
    """Return the folder of the leaderboard and the page of some results.

    That of published results is the working directory; of all others it is the results folder itself.
    """
    return Path() if results == PUBLISHED_RESULTS else results


def folders_in(results: Path) -> list[RunFolder]:
    """List all run folders below a results folder.

    Raises:
        RiebenchError: if there are none.
    """
    from riebench.store.folder import find_run_folders

    folders = find_run_folders(results)
    if not folders:
        raise RiebenchError(f"{results} holds no runs; `riebench run` makes them")
    return folders


SuiteOption = Annotated[
    str,
    typer.Option(help="A shipped suite, or a folder of task files.", autocompletion=completing(known_suites)),
]
PromptsOption = Annotated[Path | None, typer.Option(help="Text file with a prompt a line, instead of a suite.")]
SaeOption = Annotated[
    str | None,
    typer.Option(help="SAEs: a folder, file, hf://ID[@REVISION] or BLOCK=PLACE,... [default: the model's]"),
]

ModelNameOption = Annotated[
    str, typer.Option(help="Preset, folder, single file or hub id.", autocompletion=completing(known_models))
]
StepsOption = Annotated[int | None, typer.Option(min=1, help="Denoising steps. [default: the model's]")]
GuidanceOption = Annotated[float | None, typer.Option(min=0, help="Guidance scale. [default: the model's]")]
SuiteModelOption = Annotated[
    str | None,
    typer.Option(
        help="Preset, folder, single file or hub id. [default: the suite's]", autocompletion=completing(known_models)
    ),
]
CategoriesOption = Annotated[
    str | None,
    typer.Option(
        help="Only these categories, with commas between.", autocompletion=completing(known_categories, several=True)
    ),
]
BatchSizeOption = Annotated[
    str, typer.Option(help="Pictures generated at a time; auto: what device and free memory allow.")
]
PicturesOption = Annotated[int, typer.Option(min=1, help="Pictures generated at a time.")]
DeviceOption = Annotated[
    str,
    typer.Option(help="cpu, cuda, cuda:1, mps, or auto.", autocompletion=words_beginning_with(DEVICE_WORDS)),
]
DtypeOption = Annotated[
    str | None,
    typer.Option(help="float32, float16 or bfloat16. [default: the model's]", autocompletion=completing(known_formats)),
]
SizeOption = Annotated[int | None, typer.Option(min=8, help="Picture side in pixels. [default: the model's]")]
SingleFileConfigOption = Annotated[
    str | None,
    typer.Option(
        "--single-file-config", help="For a single file: a preset (sdxl-turbo, sd15), or its model's folder or hub id."
    ),
]
VaeOption = Annotated[
    str | None, typer.Option(help="Another autoencoder: fp16-fix, a folder or a hub id. [default: the model's]")
]
UnetOption = Annotated[
    str | None,
    typer.Option(help="Another U-Net or transformer for the model: a .safetensors file. [default: the model's]"),
]
LoraOption = Annotated[
    list[str] | None,
    typer.Option("--lora", help="LoRA added to the weights before the run: FILE or FILE:SCALE; may be given again."),
]
OffloadOption = Annotated[
    str,
    typer.Option(help="Weights kept off the GPU: none, model, sequential.", autocompletion=completing(known_offloads)),
]
AttentionOption = Annotated[
    str,
    typer.Option(
        help="default, sliced, or one of PyTorch's kernels: math, efficient, flash.",
        autocompletion=completing(known_attentions),
    ),
]
ChannelsLastOption = Annotated[
    bool, typer.Option("--channels-last", help="Lay convolutions out channels last; faster on some GPUs.")
]
OfflineOption = Annotated[bool, typer.Option("--offline", help="Use only what is on this machine.")]

ResultsOption = Annotated[
    Path | None,
    typer.Option(
        "--results",
        help="Folder of the results, or hf://datasets/OWNER/NAME. [default: results if it holds runs (published ones), "
        "else runs]",
    ),
]
OwnResultsOption = Annotated[
    Path | None, typer.Option("--results", help="Folder for everything that is written. [default: runs]")
]
ProfileOption = Annotated[
    str,
    typer.Option(
        help="default; or paper, piebench: as published scripts do, in tables of their own.",
        autocompletion=completing(known_profiles),
    ),
]
ScorerOption = Annotated[
    list[str] | None,
    typer.Option(
        "--scorer",
        help="The CLIP that scores, then an independent second one: a name, local-dir:FOLDER, MODEL/TAG or MODEL@FILE. "
        "[default: the model's]",
        autocompletion=completing(known_scorers),
    ),
]
ScorersOption = Annotated[
    str | None,
    typer.Option(
        "--scorers",
        help="Scorers by name, with commas between: CLIPs as for --scorer, and those measured on request.",
        autocompletion=completing(known_scorer_names, several=True),
    ),
]
WeightsOption = Annotated[
    list[str] | None,
    typer.Option("--weights", help="Where an optional metric's network lies: dino=FOLDER, squeezenet=FILE."),
]
UpToDateOption = Annotated[bool, typer.Option("--check", help="Only say whether the files are up to date.")]
OpenOption = Annotated[bool, typer.Option("--open", help="Open the page in a browser.")]
