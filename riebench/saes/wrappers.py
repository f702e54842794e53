"""Prefixes that wrappers of a module give to the names of its tensors.

Data parallelism trains `module.encoder.weight` where the module has `encoder.weight`, and `torch.compile` trains
`_orig_mod.encoder.weight`; state dicts saved from such a wrapper keep these names.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from riebench.errors import RiebenchError

PARALLEL = "module."
"""What parallel training puts before the names of all tensors."""
_COMPILED = "_orig_mod"
"""Part that `torch.compile` puts into the names below a module that it has compiled."""


def plain_state(state: Mapping[Any, Any], where: Path) -> tuple[dict[str, Any], str]:
    """Return a state dict without the prefixes that wrappers of a module add.

    `_orig_mod.` is left out wherever it stands, `module.` (as often as it is repeated) where all tensors begin with it.

    Args:
        state: what a file holds.
        where: the file, for messages.

    Returns:
        The state by plain names, and the prefix of `module.` that was taken off; "" for none.

    Raises:
        RiebenchError: if two tensors then have the same name.
    """
    plain: dict[str, Any] = {}
    for key, value in state.items():
        name = without_compiler(str(key))
        if name in plain:
            raise RiebenchError(
                f"{where} holds {name} twice, once with {_COMPILED!r} before it, as torch.compile names it; have it "
                "saved again with one of them"
            )
        plain[name] = value
    tensors = [name for name, value in plain.items() if isinstance(value, Tensor)]
    wrapper = ""
    while tensors and all(name.startswith(wrapper + PARALLEL) for name in tensors):
        wrapper += PARALLEL
    return {name.removeprefix(wrapper): value for name, value in plain.items()}, wrapper


def without_compiler(name: str) -> str:
    """Return a tensor's name without the parts that `torch.compile` adds."""
    return ".".join(part for part in name.split(".") if part != _COMPILED) if _COMPILED in name else name
