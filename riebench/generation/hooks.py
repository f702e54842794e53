"""Hooks on a U-Net that are always removed and whose calls are counted."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from riebench.blocks import module_path, short_name
from riebench.errors import RiebenchError, near_match


def known_sites(unet: nn.Module) -> tuple[str, ...]:
    """Short names of all blocks of a U-Net."""
    found = []
    for path, _ in unet.named_modules():
        parts = path.split(".")
        if parts[-1].isdigit() and len(parts) >= 3 and parts[-2] in ("attentions", "resnets"):
            found.append(short_name(path))
    return tuple(found)


def unit_layers(unet: nn.Module, block: str) -> int:
    """Number of transformer layers in an attention block.

    Raises:
        RiebenchError: if the block is missing or has none.
    """
    module = find_module(unet, block)
    layers = getattr(module, "transformer_blocks", None)
    if layers is None:
        raise RiebenchError(f"{block} has no feed-forward units; only attention blocks have")
    return len(layers)


class Hooks:
    """Hooks on one U-Net, with the count of calls per site."""

    def __init__(self, unet: nn.Module) -> None:
        self.unet = unet
        self.calls = 0
        self.seen: dict[str, int] = {}
        self.handles: list[Any] = []

    @property
    def step(self) -> int:
        """The running step, from 0."""
        return self.calls - 1

    def before(self, module: nn.Module, function: Any) -> None:
        """Calls `function(positional arguments, keyword arguments)` before the module.

        What it returns, if not None, is the arguments in whose place the module runs, both kinds as a pair.
        """
        self.handles.append(
            module.register_forward_pre_hook(lambda _module, args, kwargs: function(args, kwargs), with_kwargs=True)
        )

    def after(self, module: nn.Module, function: Any) -> None:
        """Calls `function(arguments, output)` after the module; what it returns, if not None, is the new output."""
        self.handles.append(module.register_forward_hook(lambda _module, args, output: function(args, output)))

    def count(self, site: str) -> None:
        """Notes one call of a site."""
        self.seen[site] = self.seen.get(site, 0) + 1

    def check(self, names: Mapping[str, int], steps: int | None) -> None:
        """Refuses a wrong number of calls; of the first ones, each site misses as many as are named with it."""
        if steps is not None and self.calls != steps:
            raise RiebenchError(f"expected {steps} U-Net calls, saw {self.calls}; one generation per capture or edit")
        for name, missed in names.items():
            if self.seen.get(name, 0) != self.calls - missed:
                raise RiebenchError(f"{name} ran {self.seen.get(name, 0)} times in {self.calls} U-Net calls")


@contextmanager
def hooked(
    unet: nn.Module, names: Iterable[str], steps: int | None, missed: Callable[[str], int] = lambda name: 0
) -> Iterator[Hooks]:
    """Hooks that count the calls of some sites, are always removed, and check the counts at the end.

    Args:
        unet: the U-Net.
        names: short names of the sites.
        steps: the number of U-Net calls there must be, if known.
        missed: in how many calls, the first ones, a site does not run (see `riebench.generation.prefix`).

    Yields:
        The hooks; more can be added inside the `with` block.

    Raises:
        RiebenchError: if a site is missing, or at the end if the number of calls is wrong.
    """
    sites = {name: find_module(unet, name) for name in names}
    hooks = Hooks(unet)

    def count(args: Any, kwargs: Any) -> None:
        hooks.calls += 1

    try:
        hooks.before(unet, count)
        for name, module in sites.items():
            hooks.after(module, lambda args, output, name=name: hooks.count(name))
        yield hooks
    finally:
        for handle in hooks.handles:
            handle.remove()
    hooks.check({name: missed(name) for name in sites}, steps)


def find_module(unet: nn.Module, name: str) -> nn.Module:
    """The module of a site.

    Raises:
        RiebenchError: if the U-Net has none; names the nearest block.
    """
    try:
        return unet.get_submodule(module_path(name))
    except AttributeError as error:
        sites = known_sites(unet)
        raise RiebenchError(f"the U-Net has no block {name}{near_match(name.split('.ff.')[0], sites)}") from error


def first_output(output: Any) -> Tensor:
    """What a module gives, alone or as the first of several values."""
    return output if isinstance(output, Tensor) else output[0]
