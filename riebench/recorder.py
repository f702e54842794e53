"""What becomes of units is written: pictures with their records, and records of units that have none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from riebench.methods.base import Role
from riebench.planning import Unit, Work
from riebench.preparing import Prepared
from riebench.store.records import EditRecord
from riebench.tasks.masks import RegionMasks

Pixels = NDArray[np.uint8]


class Recorder:
    """Writes what the runner makes.

    Args:
        prepared: setting name -> setting; their folders are being written.
        bar: counts units.
    """

    def __init__(self, prepared: Mapping[str, Prepared], bar: Any) -> None:
        self.prepared = prepared
        self.bar = bar
        self.shared = next(iter(prepared.values())).folder.shared

    def shared_image(self, work: Work, role: Role, fresh: Pixels) -> Pixels:
        """Stores a source or target picture; the one that earlier settings were compared with stays."""
        name = self.shared.image_name(work.units[0].key, role)
        if not (self.shared.path / name).exists():
            self.shared.write_image(name, fresh)
        return self.shared.read_image(name)

    def details(self, unit: Unit, masks: RegionMasks) -> dict[str, Any]:
        """What every record with a picture says."""
        return {
            "source_image": self.shared.image_name(unit.key, "source"),
            "target_image": self.shared.image_name(unit.key, "target"),
            "mask_share": masks.share,
        }

    def save(self, unit: Unit, picture: Pixels, details: Mapping[str, Any]) -> None:
        """Stores a unit's picture and then its record."""
        folder = self.prepared[unit.setting.name].folder
        name, sha256 = folder.write_image(unit.key, picture)
        folder.append(
            EditRecord(
                key=unit.key, status="ok", image=name, image_sha256=sha256, cluster=unit.example.cluster, **details
            )
        )
        self.bar.update()

    def finish(self, units: Sequence[Unit], status: Literal["skipped", "error"], reason: str) -> None:
        """Records units that have no picture."""
        for unit in units:
            record = EditRecord(key=unit.key, status=status, reason=reason, cluster=unit.example.cluster)
            self.prepared[unit.setting.name].folder.append(record)
            self.bar.update()
