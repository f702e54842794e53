"""What `riebench doctor` lists: one line for each thing that is needed, and what came of looking for it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from riebench.errors import RiebenchError
from riebench.utils.machine import size_text

_ABSENT = re.compile("(not|only in part) on this machine|not in the cache")

State = Literal["ok", "missing", "optional", "note"]


@dataclass(frozen=True)
class Check:
    """One thing a job needs.

    Attributes:
        what: its name.
        state: here; missing; not here and done without; or only told.
        found: what is here, or what is wrong.
        mend: the line that gets it, or the advice.
        nbytes: what would be downloaded.
    """

    what: str
    state: State
    found: str
    mend: str = ""
    nbytes: int = 0


def looked_for(
    what: str, look: Callable[[], object], *, command: str = "", nbytes: int = 0, needed: bool = True
) -> Check:  # fmt: skip
    """What came of looking for something.

    Args:
        what: its name.
        look: says what is here, or raises a `RiebenchError` that says what is not.
        command: the line that gets it; otherwise the one in the error's text, or all of that text.
        nbytes: size of the download.
        needed: whether the job cannot do without.
    """
    try:
        return Check(what, "ok", str(look()))
    except RiebenchError as error:
        text = " ".join(str(error).split())
        line = command or next(iter(re.findall(r"`((?:hf|pip|git) [^`]+)`", text)), "")
        about = f" ({size_text(nbytes)} to download)" if nbytes else ""
        shown = f"not on this machine{about}" if line.startswith("hf ") and _ABSENT.search(text) else text
        return Check(what, "missing" if needed else "optional", shown, line, nbytes)
