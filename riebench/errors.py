"""The exceptions a user may see, and helpers that word their messages.

A message is one line: what is wrong and what to do about it.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

MAX_MESSAGE_LENGTH = 4000
"""Number of characters of an error message that are kept."""

MAX_NAME_LENGTH = 200
"""Longest word, in characters, that is compared with known names; a longer one is no misspelt name."""

MAX_KNOWN_NAMES = 1000
"""Most names among which a near match is looked for; more come from an untrusted file, and each costs time."""


class RiebenchError(Exception):
    """Base of every error whose cause is the input and not the program.

    The message is one line: what is wrong, and how to correct it. The command line prints it without a traceback and
    exits with the error's status.

    Args:
        message: the text; it may quote a file's content, so line ends, control characters and excess length are
            removed from it.

    Attributes:
        exit_status: status with which the command line ends, 2 unless a kind of error has its own.
    """

    exit_status = 2

    def __init__(self, message: object = "") -> None:
        super().__init__(one_line(str(message)))


class TaskFileError(RiebenchError):
    """A task or configuration file that cannot be used.

    The message names file, key and nearest match.
    """


class MissingWordsError(RiebenchError):
    """Words that are looked for in a prompt that does not contain them."""


class IdentityError(RiebenchError):
    """A run folder that belongs to another run.

    The message names the fields that differ.
    """


class FolderInUseError(RiebenchError):
    """A run folder that another process is writing to."""


class StoreError(RiebenchError):
    """A run folder whose files contradict each other or cannot be written."""


class MetricError(RiebenchError):
    """Pictures, masks or prompts that a metric cannot take."""


class MemoryShortageError(RiebenchError):
    """A lack of memory, with what to try.

    Its cause is the machine, not the work item being made.
    """


class NothingMadeError(RiebenchError):
    """A run, or a configuration of it, in which no unit succeeded.

    Everything that was recorded is kept.
    """

    exit_status = 3


class DeviceLostError(RiebenchError):
    """A device that computes no more until its process ends.

    The work item being made is not its cause.
    """


class ForeignExitError(RiebenchError):
    """Code of the user's or of a package that would have ended the process."""


def one_line(text: str, longest: int | None = MAX_MESSAGE_LENGTH) -> str:
    """Return a text as one printable line.

    What the text quotes can then neither break lines nor steer a terminal.

    Args:
        text: any text.
        longest: number of characters after which it is cut; None leaves it whole.
    """
    if not text.isprintable():
        text = "".join(character if character.isprintable() else _escape_character(character) for character in text)
    return text if longest is None or len(text) <= longest else f"{text[:longest]} ..."


def _escape_character(character: str) -> str:
    return " " if character.isspace() else character.encode("unicode_escape").decode("ascii")


@contextmanager
def foreign_code(what: str) -> Iterator[None]:
    """Run code of the user's or of a package, which may not end the process.

    Args:
        what: the code, as a message begins: "plugin /place/mine.py".

    Raises:
        ForeignExitError: for `SystemExit` and all else that is no `Exception`, which would end the process without a
            word, and with success as well; Ctrl-C stays what it is.
    """
    try:
        yield
    except (Exception, KeyboardInterrupt):
        raise
    except BaseException as error:
        raise ForeignExitError(ended_by(what, error)) from error


def ended_by(what: str, error: BaseException) -> str:
    """Return the message about code that would have ended the process."""
    return f"{what} would end the process ({type(error).__name__}: {error}); it has to raise an exception instead"


def near_match(word: str, known: Iterable[str]) -> str:
    """Return a hint that names the known word that was probably meant.

    Args:
        word: what the user wrote.
        known: what would have been accepted.

    Returns:
        " (did you mean 'X'?)", or " (known: A, B, ...)" if nothing is near; "" where there is too much to compare.
    """
    names = sorted(name for name in known if len(name) <= MAX_NAME_LENGTH)
    if len(word) > MAX_NAME_LENGTH or len(names) > MAX_KNOWN_NAMES:
        return ""
    near = difflib.get_close_matches(word, names, n=1)
    if near:
        return f" (did you mean {near[0]!r}?)"
    return f" (known: {', '.join(names)})" if names else ""


def reason(error: BaseException) -> str:
    """Return an error as one line, as records store it.

    An error that is not a `RiebenchError` is preceded by the name of its type.
    """
    text = str(error).strip()
    first = one_line(text.splitlines()[0]) if text else "no message"
    return first if isinstance(error, RiebenchError) else f"{type(error).__name__}: {first}"
