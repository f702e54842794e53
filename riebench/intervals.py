"""Which denoising steps an edit changes: an interval of the run, in shares, so that it means the same for any number.

`[first, last)` holds every step that begins when at least the share `first` and less than the share `last` of the run
is done. Step i of T begins at the share i / T: the first step at 0, whatever T is.

| interval | 1 step | 4 steps | 20 steps |
| --- | --- | --- | --- |
| 0:1 | the step | 0-3 | 0-19 |
| 0:0.5 | the step | 0, 1 | 0-9 |
| 0.5:1 | none: refused | 2, 3 | 10-19 |
"""

from __future__ import annotations

import math

from riebench.errors import RiebenchError

Interval = tuple[float, float]
"""First and last share of the run, the last one excluded."""

WHOLE_RUN: Interval = (0.0, 1.0)
"""Every step."""

_ROUNDING = 1e-9
"""0.3 of 20 steps are 6, though 0.3 * 20 may come out a little above."""


def check_interval(interval: Interval) -> Interval:
    """The interval, if it is one.

    Raises:
        ValueError: if it does not lie in 0 to 1 or is empty.
    """
    first, last = interval
    if not 0 <= first < last <= 1:
        raise ValueError(f"{first:g}:{last:g} is no part of a run; write shares with 0 <= FIRST < LAST <= 1")
    return interval


def parse_interval(text: str) -> Interval:
    """Reads "FIRST:LAST".

    Raises:
        RiebenchError: if it is no interval.
    """
    first, colon, last = text.partition(":")
    try:
        if not colon:
            raise ValueError(f"{text!r} has no colon; write FIRST:LAST, such as 0:0.5 for the first half")
        return check_interval((float(first), float(last)))
    except ValueError as error:
        reason = str(error)
        if reason.startswith("could not convert"):
            reason = f"{text!r} are not two numbers; write FIRST:LAST, such as 0:0.5 for the first half"
        raise RiebenchError(f"--edit-steps: {reason}") from error


def step_window(interval: Interval, steps: int) -> tuple[int, int]:
    """The steps of an interval: first one, and the one after the last.

    Args:
        interval: shares of the run.
        steps: how many steps the run has.

    Raises:
        RiebenchError: if no step begins inside the interval.
    """
    first, last = (math.ceil(share * steps - _ROUNDING) for share in interval)
    if first >= last:
        raise RiebenchError(
            f"none of the {steps} steps begins between {interval[0]:g} and {interval[1]:g} of the run; "
            "take a wider interval, or more steps"
        )
    return first, last
