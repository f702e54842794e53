"""riebench: a benchmark of sparse autoencoder features in image generation.

It measures edit by edit what switching the features of a text-to-image model does to its pictures. The names below are
its Python interface (docs/python.md); each is imported when it is first used, so that `import riebench` loads nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from riebench._version import __version__

if TYPE_CHECKING:
    from riebench.api.edits import edit as edit
    from riebench.api.functions import method as method
    from riebench.api.functions import metric as metric
    from riebench.api.models import load_model as load_model
    from riebench.api.models import load_saes as load_saes
    from riebench.api.results import Results as Results
    from riebench.api.results import load_results as load_results
    from riebench.api.runs import run as run
    from riebench.api.runs import score as score
    from riebench.errors import RiebenchError as RiebenchError
    from riebench.tasks.schema import Setting as Setting

_PLACES = {
    "Results": "riebench.api.results",
    "RiebenchError": "riebench.errors",
    "Setting": "riebench.tasks.schema",
    "edit": "riebench.api.edits",
    "load_model": "riebench.api.models",
    "load_results": "riebench.api.results",
    "load_saes": "riebench.api.models",
    "method": "riebench.api.functions",
    "metric": "riebench.api.functions",
    "run": "riebench.api.runs",
    "score": "riebench.api.runs",
}
"""Public name -> the module that defines it."""

__all__ = [
    "Results", "RiebenchError", "Setting", "__version__", "edit", "load_model", "load_results", "load_saes", "method",
    "metric", "run", "score",
]  # fmt: skip


if not TYPE_CHECKING:
    # Type checkers, which would take every name for one that this gives, see the imports above instead.

    def __getattr__(name: str) -> Any:
        """Import a public name when it is first used.

        Raises:
            AttributeError: for any other name.
        """
        if name not in _PLACES:
            raise AttributeError(f"module 'riebench' has no attribute {name!r}")
        found = getattr(importlib.import_module(_PLACES[name]), name)
        globals()[name] = found
        return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
