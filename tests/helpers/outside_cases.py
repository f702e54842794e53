"""Cases of a family in a package of its own, for the contract suite.

The environment variable RIEBENCH_FAMILY_CASES names a Python file. Its function `cases(case, steps)` makes the cases,
and `WRONG`, if it is there, holds families that are wrong on purpose, each under the name of the right one.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

VARIABLE = "RIEBENCH_FAMILY_CASES"


@lru_cache(maxsize=1)
def _module() -> ModuleType | None:
    place = os.environ.get(VARIABLE)
    if not place:
        return None
    file = Path(place).expanduser().resolve()
    spec = importlib.util.spec_from_file_location(file.stem, file)
    if not file.is_file() or spec is None or spec.loader is None:
        raise FileNotFoundError(f"{VARIABLE}={place}: there is no such Python file")
    # What lies beside the file can be imported from it, as beside a test.
    sys.path.insert(0, str(file.parent))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def outside_cases(case: Any, steps: int) -> tuple[Any, ...]:
    """The cases of the file that is named; none if none is.

    Args:
        case: the suite's class of cases.
        steps: of all runs.
    """
    module = _module()
    return () if module is None else tuple(module.cases(case, steps))


def wrong_families() -> tuple[Any, ...]:
    """Families of that file which the suite has to find wrong."""
    return tuple(getattr(_module(), "WRONG", ()))
