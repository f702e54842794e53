"""What an engine does before and after it makes pictures: folders are opened for writing, and what is left is found."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any

from riebench.models.spec import ModelSpec
from riebench.planning import Unit, Work, part, works_of
from riebench.preparing import claim_shared
from riebench.store.folder import Redo, RunFolder


@contextmanager
def opened(
    folders: Mapping[str, RunFolder], units: Sequence[Unit], model: ModelSpec, regions: str, told: Mapping[str, Any],
    *, redo: Redo, shard: tuple[int, int],
) -> Iterator[list[Work]]:  # fmt: skip
    """Opens the folders of a run for writing, and closes them in the end whatever happens.

    Args:
        folders: setting name -> its folder.
        units: all of the run, in every shard.
        model: what generates.
        regions: identity of the region provider.
        told: what ran, for run.json.
        redo: which of the recorded units to make again.
        shard: (i, n) to make the i-th of n parts, from 1.

    Yields:
        What this process has to make.

    Raises:
        RiebenchError: if a folder is in use or holds something else.
    """
    first = next(iter(folders.values()))
    claim_shared(first, model, regions)
    with ExitStack() as stack:
        for name, folder in folders.items():
            keys = [unit.key for unit in units if unit.setting.name == name]
            stack.enter_context(folder.writing(dict(told), keys, shard))
        # Parted before anything is left out, so that every part is the same whatever is done already.
        mine = part(units, shard)
        digests: dict[str, dict[str, Unit]] = {name: {} for name in folders}
        for unit in mine:
            digests[unit.setting.name][unit.key.digest] = unit
        # What settings share is looked at once for all of them.
        whole = cache(first.shared.is_whole)
        done = {name: folder.done(redo, digests[name], whole) for name, folder in folders.items()}
        left = [unit for unit in mine if unit.key.digest not in done[unit.setting.name]]
        works = works_of(left, fixed_noise=model.fixed_noise)
        for work in works:
            # Also what no record of these folders has named yet: other settings may have made it.
            first.drop_damaged(work.units[0].key)
        yield works
