"""Calls of the libraries that load models, with failures as one line."""

from __future__ import annotations

from typing import Any

from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging

from riebench.errors import RiebenchError
from riebench.models.placement import out_of_memory
from riebench.utils.machine import shortage
from riebench.utils.terminal import warnings_held


def call_loader(shown: str, load: Any, *arguments: Any, **options: Any) -> Any:
    """Call a function that loads a model or a part of it.

    Args:
        shown: what the user called it.
        load: the function.
        arguments: for it.
        options: for it.

    Raises:
        RiebenchError: in one line, if it fails.
    """
    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    try:
        with warnings_held("diffusers", "transformers"):
            return load(*arguments, **options)
    except (
        ImportError,
        LookupError,
        OSError,
        ValueError,
        TypeError,
        AttributeError,
        RuntimeError,
        MemoryError,
    ) as error:
        if out_of_memory(error):
            reason = f"{shortage(error)}, or --dtype float16"
        else:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise RiebenchError(f"cannot load the model {shown}: {reason}") from error
