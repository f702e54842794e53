"""One run folder's scores: what is there, what is missing, what is new.

Every score carries the hash of the picture it was computed from, so a unit that is generated again is scored again.
`scoring.json` beside scores.jsonl says which networks measured, and which prompts they saw without their end.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from riebench.metrics.base import Metric, Reason
from riebench.metrics.judge import SIDE
from riebench.metrics.tools import Tools
from riebench.store.folder import RunFolder
from riebench.store.records import EditRecord, ScoreRecord
from riebench.tasks.schema import EditExample
from riebench.utils.files import parse_json, write_atomic

SCORING_FILE = "scoring.json"
"""What measured, and which prompts were too long for it."""


class ScoreBook:
    """Scores of one folder, read once and added to.

    Args:
        folder: the run folder, locked.
        tools: the networks that measure.
    """

    def __init__(self, folder: RunFolder, tools: Tools) -> None:
        self.folder, self.tools = folder, tools
        self.path = folder.path / SCORING_FILE
        self.stored = folder.scores()
        meta = self._read()
        self.networks: dict[str, dict[str, str]] = dict(meta.get("networks", {}))
        self.cut: set[str] = set(meta.get("cut_prompts", ()))
        self._new: list[ScoreRecord] = []

    def _read(self) -> dict[str, Any]:
        try:
            meta = parse_json(self.path.read_bytes())
        except (FileNotFoundError, ValueError):
            return {}
        known = isinstance(meta, dict) and isinstance(meta.get("networks", {}), dict)
        cut = meta.get("cut_prompts", []) if known else None
        return meta if isinstance(cut, list) and all(isinstance(prompt, str) for prompt in cut) else {}

    def missing(self, record: EditRecord, example: EditExample, metrics: Sequence[Metric]) -> tuple[Metric, ...]:
        """The metrics that this unit still needs, for the picture it has now."""
        judged = example.attributes is not None and self.folder.spec.model.size == SIDE
        wanted = [metric for metric in metrics if judged or not metric.needs_attributes]
        unit = record.key.digest
        return tuple(metric for metric in wanted if not self._has(unit, record, metric))

    def _has(self, unit: str, record: EditRecord, metric: Metric) -> bool:
        found = self.stored.get((unit, metric.name, self.tools.backbone(metric)))
        if found is None or (found.version, found.picture) != (metric.version, record.picture_id):
            return False
        # What lacked its network is measured as soon as that is there.
        return found.reason != Reason.NO_WEIGHTS or self.tools.missing(metric, fetch=True) is not None

    def forget(self) -> None:
        """Lets go of the scores that are there: nobody asks again, and all folders' together may be large."""
        self.stored.clear()

    def add(self, scores: list[ScoreRecord]) -> None:
        """Keeps a unit's new scores until `flush`."""
        self._new += scores

    def flush(self) -> None:
        """Stores what was added since the last call, and before it what measured: no score is there without that."""
        if self._new:
            self._remember()
        self.folder.append_scores(self._new)
        self._new.clear()

    def close(self) -> None:
        """Writes `scoring.json` if it changed."""
        self._remember()

    def _remember(self) -> None:
        self.networks |= self.tools.details
        self.cut |= set(self.tools.cut_prompts)
        meta = {"networks": self.networks, "cut_prompts": sorted(self.cut)}
        if meta != self._read() and self.networks:
            write_atomic(self.path, (json.dumps(meta, indent=0, sort_keys=True, ensure_ascii=False) + "\n").encode())


@contextmanager
def opened(folder: RunFolder, tools: Tools) -> Iterator[ScoreBook]:
    """A folder's book; what it remembers is written at the end, also after an error."""
    book = ScoreBook(folder, tools)
    try:
        yield book
    finally:
        book.close()
