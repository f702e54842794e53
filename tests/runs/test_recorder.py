"""The writer of pictures and records works beside the model, and loses nothing."""

from __future__ import annotations

from collections.abc import Iterable
from threading import Event
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tiny_runs import PATCH, task

from riebench.runs.plan import Unit, plan
from riebench.runs.recorder import Recorder
from riebench.store.records import EditRecord, UnitKey

UNITS = plan([task(80)], [PATCH])


class Folder:
    """A run folder in memory, whose pictures wait until they may be stored."""

    def __init__(self) -> None:
        self.shared = SimpleNamespace(path=None)
        self.open = Event()
        self.lines: list[str] = []
        self.writes = 0

    def write_image(self, key: UnitKey, pixels: Any) -> tuple[str, str]:
        assert self.open.wait(20)
        if pixels[0, 0, 0]:
            raise OSError(28, "No space left on device")
        return f"images/{key.digest}.png", "0" * 64

    def append_many(self, records: Iterable[EditRecord]) -> None:
        self.writes += 1
        self.lines += [f"{record.key.digest} {record.status}" for record in records]

    def append(self, record: EditRecord) -> None:
        self.append_many([record])


class Bar:
    def __init__(self) -> None:
        self.done = 0

    def update(self, count: int = 1) -> None:
        self.done += count


def recorder() -> tuple[Recorder, Folder, Bar]:
    folder, bar = Folder(), Bar()
    prepared: Any = {PATCH.name: SimpleNamespace(folder=folder)}
    return Recorder(prepared, bar), folder, bar


def made(units: Iterable[Unit], colour: int = 0) -> list[tuple[Unit, Any, dict[str, Any]]]:
    return [(unit, np.full((2, 2, 3), colour, np.uint8), {"seconds": 1.0}) for unit in units]


def ok(units: Iterable[Unit]) -> list[str]:
    return [f"{unit.key.digest} ok" for unit in units]


def test_pictures_are_stored_beside_and_what_waits_goes_into_one_write() -> None:
    writer, folder, bar = recorder()
    with writer:
        for unit in UNITS[:6]:
            writer.save_all(made([unit]))
        # Nothing can be stored yet, and yet the caller goes on.
        assert (folder.lines, bar.done) == ([], 0)
        folder.open.set()
        writer.wait()
        assert folder.lines == ok(UNITS[:6]) and bar.done == 6 and folder.writes <= 3
        writer.save_all(made(UNITS[6:8]))
    assert folder.lines == ok(UNITS[:8]) and bar.done == 8


def test_a_record_without_a_picture_comes_after_those_that_wait() -> None:
    writer, folder, _ = recorder()
    folder.open.set()
    with writer:
        writer.save_all(made(UNITS[:3]))
        writer.finish(UNITS[3:4], "error", "why")
    assert folder.lines == [*ok(UNITS[:3]), f"{UNITS[3].key.digest} error"]
    assert not writer.failures.due


def test_what_cannot_be_stored_ends_the_run_and_the_others_are_recorded() -> None:
    writer, folder, _ = recorder()
    folder.open.set()
    with pytest.raises(OSError, match="No space left"), writer:
        writer.save_all([*made(UNITS[:1]), *made(UNITS[1:2], colour=9), *made(UNITS[2:3])])
        writer.wait()
    assert folder.lines == ok([UNITS[0], UNITS[2]])


def test_an_error_elsewhere_loses_nothing_that_waits_and_is_the_one_raised() -> None:
    writer, folder, _ = recorder()
    with pytest.raises(KeyboardInterrupt), writer:
        writer.save_all([*made(UNITS[:2]), *made(UNITS[2:3], colour=9)])
        folder.open.set()
        raise KeyboardInterrupt
    assert folder.lines == ok(UNITS[:2])


def test_no_more_pictures_wait_than_memory_has_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("riebench.runs.recorder.MOST_WAITING", 4)
    writer, folder, _ = recorder()
    held: list[int] = []
    original = folder.append_many

    def append_many(records: Iterable[EditRecord]) -> None:
        some = list(records)
        held.append(len(some))
        original(some)

    monkeypatch.setattr(folder, "append_many", append_many)
    folder.open.set()
    with writer:
        for unit in UNITS[:60]:
            writer.save_all(made([unit]))
    assert sum(held) == 60 and max(held) <= 4
