"""Errors a user can cause and mend: one line saying what is wrong and what to do about it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass


MAX_MESSAGE_LENGTH = 4000
"""Characters of a message that are kept."""
MAX_NAME_LENGTH = 200
"""Longer words are no misspelt names: comparing them would take long and tell nothing."""
MAX_KNOWN_NAMES = 1000
"""Among more names than these nothing is looked for: they are a stranger's, and each costs time."""


def one_line(text: str) -> str:
    """A text as one printable line: what it quotes cannot break lines or steer a terminal."""
    if not text.isprintable():
        text = "".join(mark if mark.isprintable() else _escape_character(mark) for mark in text)
    return text if len(text) <= MAX_MESSAGE_LENGTH else f"{text[:MAX_MESSAGE_LENGTH]} ..."


def _escape_character(mark: str) -> str:
    return " " if mark.isspace() else mark.encode("unicode_escape").decode("ascii")


class RiebenchError(Exception):
    """Base of every error that is the input's fault, not the program's.

    The message is one line: what is wrong, and how to mend it. The command line prints it without a traceback and
    exits with code 2.

    Args:
        message: may quote what a file holds; line ends, control characters and excess length are taken out of it.
    """

    def __init__(self, message: object = "") -> None:
        super().__init__(one_line(str(message)))


class TaskFileError(RiebenchError):
    """A task or setting file that cannot be used; the message names file, key and nearest match."""


class MissingWordsError(RiebenchError):
    """Words that a prompt does not contain."""


class IdentityError(RiebenchError):
    """A run folder that belongs to another run; the message names the fields that differ."""


class FolderInUseError(RiebenchError):
    """A run folder that another process is writing to."""


class StoreError(RiebenchError):
    """A run folder whose files contradict each other or cannot be written."""


class MemoryShortageError(RiebenchError):
    """Memory that does not suffice, with what to try: the machine's fault, not that of what was being made."""


class DeviceLostError(RiebenchError):
    """A device that computes no more until its process ends; no fault of what was being made."""


def near_match(word: str, known: Iterable[str]) -> str:
    """Says which known word was probably meant.

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
    """An error in one line, as records keep it; what is not the input's fault is named by its type too."""
    text = str(error).strip()
    first = one_line(text.splitlines()[0]) if text else "no message"
    return first if isinstance(error, RiebenchError) else f"{type(error).__name__}: {first}"


class MetricError(RiebenchError):
    """Pictures, masks or prompts that a metric cannot take."""
