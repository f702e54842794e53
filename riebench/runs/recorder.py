"""Writer of a run's pictures and records, beside the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Condition, Thread
from types import TracebackType
from typing import Any, Literal, Self

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
Made = tuple[Unit, Pixels, Mapping[str, Any]]
"""A unit with its picture and the further fields of its record."""
WRITERS = 4
"""Pictures that are encoded and stored at a time."""
MOST_WAITING = 64
"""Pictures that may wait to be stored; then the making waits. Those of 1024 pixels take 3 MiB each."""


class Recorder:
    """Writer of the runner's pictures and records.

    Inside its `with` block pictures are stored by a thread of its own, while the model makes the next ones. What waits
    when the thread is free is stored together. When the block is left, also by an error, everything is stored.

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
        self._changed = Condition()
        self._waiting: list[Made] = []
        self._is_busy = self._is_closing = False
        self._stored = 0
        self._error: BaseException | None = None
        self._thread: Thread | None = None

    def __enter__(self) -> Self:
        self._is_closing = False
        # A daemon, so that one that waits for a stuck disk or a lost reader keeps no process alive.
        self._thread = Thread(target=self._store_waiting, name="riebench-record", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()
        if error is None:
            self._report()

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

    def save_all(self, made: Sequence[Made]) -> None:
        """Let some units' pictures be stored, and then their records.

        Raises:
            Exception: the error of an earlier picture that could not be stored.
        """
        with self._changed:
            self._changed.wait_for(lambda: len(self._waiting) < MOST_WAITING)
            self._waiting.extend(made)
            self._changed.notify_all()
        self._report()

    def wait(self) -> None:
        """Wait until everything is stored.

        Raises:
            Exception: see `save_all`.
        """
        with self._changed:
            self._changed.wait_for(lambda: not self._waiting and not self._is_busy)
        self._report()

    def _report(self) -> None:
        """Count what is stored by now; raise what went wrong."""
        with self._changed:
            stored, self._stored = self._stored, 0
            error, self._error = self._error, None
        if stored:
            self.bar.update(stored)
        if error is not None:
            raise error

    def _store_waiting(self) -> None:
        """Store what waits, again and again.

        Ends when nothing waits and the `with` block is left.
        """
        with ThreadPoolExecutor(WRITERS, "riebench-write") as threads:
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: self._waiting or self._is_closing)
                    made, self._waiting = self._waiting, []
                    self._is_busy = bool(made)
                    self._changed.notify_all()
                if not made:
                    return
                error: BaseException | None = None
                try:
                    self._store(made, threads)
                except BaseException as found:
                    error = found
                with self._changed:
                    self._is_busy = False
                    self._stored += len(made)
                    self._error = self._error or error
                    self._changed.notify_all()

    def _store(self, made: Sequence[Made], threads: ThreadPoolExecutor) -> None:
        """Store pictures, and then each folder's records in one write.

        Pictures are stored several at a time. If a picture cannot be stored, the others are recorded before its error
        is raised.
        """
        folders = {unit.setting.name: self.prepared[unit.setting.name].folder for unit, _, _ in made}
        # Encoding keeps one processor busy, and storing waits for the disk.
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
        for written in writing:
            written.result()

    def finish(self, units: Sequence[Unit], status: Literal["skipped", "error"], reason: str) -> None:
        """Record units that have no picture, after those that wait to be stored.

        Raises:
            Exception: see `save_all`.
        """
        self.wait()
        for unit in units:
            self._append(unit, EditRecord(key=unit.key, status=status, reason=reason, cluster=unit.example.cluster))

    def _append(self, unit: Unit, record: EditRecord) -> None:
        self.prepared[unit.setting.name].folder.append(record)
        self.failures.note(record)
        self.bar.update()
