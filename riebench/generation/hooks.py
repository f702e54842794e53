"""Hooks on a denoiser that are always removed and whose calls are counted."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn

from riebench.blocks import as_named, block_of, short_name
from riebench.errors import RiebenchError, near_match
from riebench.models.families.base import family_of_denoiser
from riebench.models.families.blocks import BatchLayout, Site


def known_sites(denoiser: nn.Module) -> tuple[str, ...]:
    """Return the short names of all blocks of a denoiser."""
    return family_of_denoiser(denoiser).sites(denoiser)


def unit_layers(denoiser: nn.Module, block: str) -> int:
    """Return the number of layers with feed-forward units in a block.

    Raises:
        RiebenchError: if the block is missing or has none.
    """
    layers = family_of_denoiser(denoiser).unit_layers(find_module(denoiser, block))
    if layers is None:
        raise RiebenchError(f"{block} has no feed-forward units; only attention blocks have")
    return layers


class Hooks:
    """Hooks on one denoiser, with the count of calls per site.

    Args:
        denoiser: the network.
        layout: how a step is laid out in calls.
        title: what people call the network.

    Attributes:
        time: the time of the running call, float32 []; None before the first, and if calls state none.
    """

    def __init__(self, denoiser: nn.Module, layout: BatchLayout, title: str = "U-Net") -> None:
        self.denoiser = denoiser
        self.layout = layout
        self.title = title
        self.calls = 0
        self.time: Tensor | None = None
        self.seen: dict[str, int] = {}
        self.handles: list[Any] = []

    @property
    def call(self) -> int:
        """The running call of the denoiser, from 0."""
        return self.calls - 1

    @property
    def step(self) -> int:
        """The running step, from 0."""
        return self.call // self.layout.calls

    def find(self, name: str) -> Site:
        """Return a site of the denoiser, which sees the calls that it has to see.

        Raises:
            RiebenchError: as `find_site`.
        """
        site = find_site(self.denoiser, name)
        if site.watches:
            self.before(site.watched, site.enter)
        return site

    def before(self, module: nn.Module, function: Callable[[Any, Any], Any]) -> None:
        """Call a function before the module runs.

        The call is `function(positional arguments, keyword arguments)`.

        What it returns, if not None, is the arguments in whose place the module runs, both kinds as a pair.
        """
        self.handles.append(
            module.register_forward_pre_hook(lambda _module, args, kwargs: function(args, kwargs), with_kwargs=True)
        )

    def after(self, module: nn.Module, function: Callable[[Any, Any, Any], Any]) -> None:
        """Call a function after the module has run.

        The call is `function(positional arguments, keyword arguments, output)`.

        What it returns, if not None, is the new output.
        """
        self.handles.append(
            module.register_forward_hook(
                lambda _module, args, kwargs, output: function(args, kwargs, output), with_kwargs=True
            )
        )

    def at(self, site: Site, function: Callable[[Any, Any, Any], Any]) -> None:
        """Call a function with what holds a site's stream, in each call of its `point`.

        The call is `function(positional arguments, keyword arguments, output)`; where the stream is what enters
        `point`, that stands for the output.

        What it returns, if not None, takes its place.
        """
        if not site.takes_input:
            self.after(site.point, function)
            return

        def enter(args: Any, kwargs: Any) -> Any:
            changed = function(args, kwargs, args[0])
            return None if changed is None else ((changed, *args[1:]), kwargs)

        self.before(site.point, enter)

    def count(self, site: str) -> None:
        """Count one call of a site."""
        self.seen[site] = self.seen.get(site, 0) + 1

    def check(self, names: Mapping[str, int], steps: int | None) -> None:
        """Check the numbers of calls.

        Args:
            names: site -> in how many steps, the first ones, it does not run.
            steps: of the run, if known.

        Raises:
            RiebenchError: if a site or the denoiser ran more or less often.
        """
        each = self.layout.calls
        if steps is not None and self.calls != steps * each:
            raise RiebenchError(
                f"expected {steps * each} {self.title} calls, saw {self.calls}; one generation per capture or edit"
            )
        for name, absent_steps in names.items():
            if self.seen.get(name, 0) != self.calls - absent_steps * each:
                raise RiebenchError(f"{name} ran {self.seen.get(name, 0)} times in {self.calls} {self.title} calls")


@contextmanager
def hooked(
    denoiser: nn.Module, names: Iterable[str], steps: int | None, absent_steps: Callable[[str], int] = lambda name: 0,
    *, guided: bool = False,
) -> Iterator[Hooks]:  # fmt: skip
    """Count the calls of some sites with hooks that are always removed.

    The counts are checked at the end.

    Args:
        denoiser: the network.
        names: short names of the sites.
        steps: the number of steps there must be, if known.
        absent_steps: in how many steps, the first ones, a site does not run (see `riebench.generation.prefix`).
        guided: whether there is an unconditional half.

    Yields:
        The hooks; more can be added inside the `with` block.

    Raises:
        RiebenchError: if a site is missing, or at the end if the number of calls is wrong.
    """
    sites = {name: find_site(denoiser, name) for name in names}
    family = family_of_denoiser(denoiser)
    hooks = Hooks(denoiser, family.layout(guided), family.denoiser_title)

    def count(args: Any, kwargs: Any) -> None:
        hooks.calls += 1
        hooks.time = family.time(args, kwargs)

    def count_site(name: str, args: Any, kwargs: Any, output: Any) -> None:
        hooks.count(name)

    try:
        hooks.before(denoiser, count)
        for name, site in sites.items():
            hooks.after(site.module, partial(count_site, name))
        yield hooks
    finally:
        for handle in hooks.handles:
            handle.remove()
    hooks.check({name: absent_steps(name) for name in sites}, steps)


def find_site(denoiser: nn.Module, name: str) -> Site:
    """Return a site by any of its names.

    Raises:
        RiebenchError: if the denoiser has none; names the nearest block.
    """
    family, short = family_of_denoiser(denoiser), short_name(name)
    if family.names.short_name(short) is None:
        # Another family's name of the same place.
        short = as_named(short, family.sites(denoiser))
    try:
        return family.site(denoiser, short)
    except AttributeError as error:
        known = family.sites(denoiser)
        raise RiebenchError(
            f"the {family.denoiser_title} has no block {name}{near_match(block_of(name), known)}"
        ) from error


def find_module(denoiser: nn.Module, name: str) -> nn.Module:
    """Return the module of a site.

    Raises:
        RiebenchError: as `find_site`.
    """
    return find_site(denoiser, name).module
