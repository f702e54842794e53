"""What metrics are given of a unit: its pictures, mask and prompts, read from the run folder and checked."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from riebench.errors import StoreError
from riebench.metrics.base import Bool, Sample, UInt8
from riebench.store.folder import RunFolder, SharedFolder
from riebench.store.records import EditRecord
from riebench.tasks.schema import EditExample
from riebench.utils.files import file_sha256
from riebench.utils.images import read_image

CACHED_PICTURES = 64
"""Source pictures and masks kept in memory; units are scored in the order of their source pictures."""


class Samples:
    """Reads samples; source and target pictures and masks, shared by all settings, only once."""

    def __init__(self) -> None:
        self._shared = lru_cache(maxsize=CACHED_PICTURES)(read_image)
        self._mask = lru_cache(maxsize=CACHED_PICTURES)(_read_mask)

    def read(self, folder: RunFolder, record: EditRecord, example: EditExample, *, target: bool) -> Sample:
        """A finished unit's sample.

        Args:
            folder: where it is.
            record: the unit's.
            example: what it was made from.
            target: whether the target picture is wanted too.

        Raises:
            StoreError: if a picture or mask is missing, or the edited picture is not the one that was recorded.
        """
        attributes = example.attributes
        return Sample(
            edited=_edited(folder, record),
            source=self._plain(folder, record, record.source_image, "source"),
            mask=self._mask(folder.shared.path, folder.shared.mask_name(record.key)),
            source_prompt=example.source,
            target_prompt=example.target,
            source_attributes=None if attributes is None else attributes.source,
            target_attributes=None if attributes is None else attributes.target,
            target=self._plain(folder, record, record.target_image, "target") if target else None,
        )

    def _plain(self, folder: RunFolder, record: EditRecord, name: str | None, role: str) -> UInt8:
        if name is None:
            raise StoreError(f"{folder.path}: unit {record.key.digest} names no {role} picture; run it again")
        return self._shared(folder.shared.path / name)


def _edited(folder: RunFolder, record: EditRecord) -> UInt8:
    path = folder.path / str(record.image)
    picture = read_image(path)
    if file_sha256(path) != record.image_sha256:
        raise StoreError(f"{path} is not the picture that was recorded; repeat `riebench run` to make it again")
    return picture


def _read_mask(shared: Path, name: str) -> Bool:
    from riebench.tasks.masks import RegionMasks

    stored = SharedFolder(shared).read_json(name)
    if stored is None:
        raise StoreError(f"{shared / name} is missing; make it again with the same `riebench run`")
    return RegionMasks.from_json(stored).editable
