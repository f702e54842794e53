"""Pause of Python's garbage collector while libraries and models are loaded.

Loading makes a million objects, none of them garbage, and the collector goes through all of them again and again: that
is a fifth of the processor time of a short command. Only commands use this, since a program that calls riebench may
hold garbage of its own.
"""

from __future__ import annotations

import gc

_state = {"paused": False}
"""True for "paused" while this module keeps the collector from running."""


def pause_collector() -> None:
    """Keep the garbage collector from running until `resume_collector`.

    Nothing happens if it does not run anyway.
    """
    if gc.isenabled():
        gc.disable()
        _state["paused"] = True


def resume_collector(*, keep: bool = False) -> None:
    """Let the garbage collector run again, if `pause_collector` stopped it.

    Args:
        keep: whether it never looks at the objects that are there now, which stay until the end of the process.
    """
    if _state["paused"]:
        _state["paused"] = False
        if keep:
            gc.freeze()
        gc.enable()
