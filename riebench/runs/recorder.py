"""Writer of a run's pictures and records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from riebench.methods.base import Role
from riebench.runs.failures import FailureWatch
from riebench.runs.plan import ExampleWork, Unit
from riebench.runs.prepare import PreparedSetting
from riebench.store.records import EditRecord
from riebench.tasks.masks import RegionMasks

Pixels = NDArray[np.uint8]
"""One picture: uint8 [H, W, 3]."""
WRITERS = 4
"""Pictures of a batch that are encoded and stored at a time."""


class Recorder:
    """Writer of the runner's pictures and records.

    Args:
        prepared: setting name -> setting; their folders are being written.
        bar: progress bar that counts units.

    Attributes:
        failures: is told every outcome.
    """

    def __init__(self, prepared: Mapping[str, PreparedSetting], bar: Any) -> None:
        self.prepared = prepared
        self.bar = bar
        self.failures = FailureWatch(0)
        self.shared = next(iter(prepared.values())).folder.shared

    def shared_image(self, work: ExampleWork, role: Role, fresh: Pixels) -> Pixels:
        """Store a source or target picture, unless it is stored; return the stored one.

        The stored one stays because earlier settings were compared with it.
        """
        name = self.shared.image_name(work.units[0].key, role)
        if not (self.shared.path / name).exists():
            self.shared.write_image(name, fresh)
        return self.shared.read_image(name)

    def details(self, unit: Unit, masks: RegionMasks) -> dict[str, Any]:
        """Return the fields that every record with a picture has in common."""
        return {
            "source_image": self.shared.image_name(unit.key, "source"),
            "target_image": self.shared.image_name(unit.key, "target"),
            "mask_share": masks.share,
        }

    def save(self, unit: Unit, picture: Pixels, details: Mapping[str, Any]) -> None:
        """Store a unit's picture and then its record."""
        self.save_all([(unit, picture, details)])

    def save_all(self, made: Sequence[tuple[Unit, Pixels, Mapping[str, Any]]]) -> None:
        """Store some units' pictures, and then their records.

        Pictures are stored several at a time, and each folder's records in one write.
        If a picture cannot be stored, the others are recorded before its error is raised.
        """
        folders = {unit.setting.name: self.prepared[unit.setting.name].folder for unit, _, _ in made}
        # Encoding keeps one processor busy, and storing waits for the disk.
        with ThreadPoolExecutor(min(WRITERS, len(made)), "riebench-write") as threads:
            writing = [
                threads.submit(folders[unit.setting.name].write_image, unit.key, picture) for unit, picture, _ in made
            ]
        records: dict[str, list[EditRecord]] = {name: [] for name in folders}
        for (unit, _, details), written in zip(made, writing, strict=True):
            if written.exception() is None:
                name, sha256 = written.result()
                records[unit.setting.name].append(
                    EditRecord(
                        key=unit.key, status="ok", image=name, image_sha256=sha256, cluster=unit.example.cluster,
                        **details,
                    )
                )  # fmt: skip
        for setting, some in records.items():
            folders[setting].append_many(some)
            for record in some:
                self.failures.note(record)
            self.bar.update(len(some))
        for written in writing:
            written.result()

    def finish(self, units: Sequence[Unit], status: Literal["skipped", "error"], reason: str) -> None:
        """Record units that have no picture."""
        for unit in units:
            self._append(unit, EditRecord(key=unit.key, status=status, reason=reason, cluster=unit.example.cluster))

    def _append(self, unit: Unit, record: EditRecord) -> None:
        self.prepared[unit.setting.name].folder.append(record)
        self.failures.note(record)
        self.bar.update()
