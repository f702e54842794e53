"""Readers of stored autoencoders, one function a format.

A new format is one function in a module of this package:

    @sae_format("name", needs=("weights.pt", "settings.json"))
    def read_name(checkpoint: Checkpoint) -> SparseAutoencoder: ...

`needs` (and, where file names are not enough, `when`) say how it is recognised; `fetch` what a hub download needs.
Other people's packages name such functions as entry points of the group `riebench.sae_formats`.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from riebench.registry import SAE_FORMATS
from riebench.saes.files import Checkpoint
from riebench.saes.sae import Signal, SparseAutoencoder

Reader = Callable[[Checkpoint], SparseAutoencoder]


@dataclass(frozen=True)
class SaeFormat:
    """A format that can be read.

    Attributes:
        name: as messages and reports call it.
        read: makes the SAE of a checkpoint.
        needs: files that must be there.
        when: what else must hold.
        fetch: patterns of the files a hub download needs, beside `needs`.
        usual_signal: what its files hold where neither they nor the user say it; None for no usual one.
        left_open: the options (fields of `SaeOptions`) that a checkpoint needs and neither it nor the user states.
    """

    name: str
    read: Reader
    needs: tuple[str, ...] = ()
    when: Callable[[Checkpoint], bool] | None = None
    fetch: tuple[str, ...] = ()
    usual_signal: Signal | None = None
    left_open: Callable[[Checkpoint], tuple[str, ...]] | None = None

    def fits(self, checkpoint: Checkpoint) -> bool:
        """Return whether a checkpoint is of this format."""
        if self.needs and not checkpoint.has(*self.needs):
            return False
        return self.when is None or self.when(checkpoint)


def sae_format(
    name: str,
    *,
    needs: tuple[str, ...] = (),
    when: Callable[[Checkpoint], bool] | None = None,
    fetch: tuple[str, ...] = (),
    usual_signal: Signal | None = None,
    left_open: Callable[[Checkpoint], tuple[str, ...]] | None = None,
) -> Callable[[Reader], Reader]:
    """Register a reader, as a decorator; see `SaeFormat`."""

    def enter(read: Reader) -> Reader:
        made = SaeFormat(name, read, needs, when, fetch, usual_signal=usual_signal, left_open=left_open)
        SAE_FORMATS.register(name)(made)
        return read

    return enter


@lru_cache(maxsize=1)
def _import_all() -> None:
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")


def sae_formats() -> tuple[SaeFormat, ...]:
    """Return all formats: first those that ship, then those of installed packages.

    Both are sorted by name. A package that cannot be imported is left out; `unusable_formats` says why.
    """
    _import_all()
    found = SAE_FORMATS.usable()
    return tuple(found[name] for name in sorted(found, key=lambda name: (is_from_package(name), name)))


def is_from_package(name: str) -> bool:
    """Return whether an installed package brings a format."""
    return SAE_FORMATS.package(name) is not None


def unusable_formats() -> tuple[str, ...]:
    """Return one line for each format whose package cannot be imported.

    The line names the package and the reason.
    """
    return tuple(SAE_FORMATS.failures().values())
