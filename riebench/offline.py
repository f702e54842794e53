"""Offline means: no library asks the network for anything."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

VARIABLES = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")
"""What huggingface_hub (and with it diffusers, transformers and open_clip) and datasets read, once, when imported."""
_COPIES = (
    ("huggingface_hub.constants", "HF_HUB_OFFLINE"),
    ("diffusers.utils.hub_utils", "HF_HUB_OFFLINE"),
    ("datasets.config", "HF_HUB_OFFLINE"),
    ("datasets.config", "HF_DATASETS_OFFLINE"),
)
"""Where they keep what they have read."""
_TRUE = {"1", "ON", "YES", "TRUE"}


def is_offline() -> bool:
    """Whether the network must not be used, by `offline_mode` or by the user's own environment."""
    return any(os.environ.get(name, "").upper() in _TRUE for name in VARIABLES[:2])


@contextmanager
def offline_mode(wanted: bool = True) -> Iterator[None]:
    """Keeps the libraries off the network, those imported already and those still to come.

    Args:
        wanted: False changes nothing.
    """
    if not wanted:
        yield
        return
    variables = {name: os.environ.get(name) for name in VARIABLES}
    copies = {place: getattr(sys.modules[place[0]], place[1]) for place in _COPIES if place[0] in sys.modules}
    before = is_offline()
    os.environ.update(dict.fromkeys(VARIABLES, "1"))
    for module, name in copies:
        setattr(sys.modules[module], name, True)
    try:
        yield
    finally:
        for variable, value in variables.items():
            if value is None:
                os.environ.pop(variable, None)
            else:
                os.environ[variable] = value
        for module, name in _COPIES:
            if module in sys.modules:
                # What was imported meanwhile has read the variables that are gone again.
                setattr(sys.modules[module], name, copies.get((module, name), before))
