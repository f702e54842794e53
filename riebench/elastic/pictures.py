"""Pictures of a search, made by the ordinary runner, and their distances.

They lie in run folders below the output folder, so that a search that was stopped goes on where it was, and makes
nothing twice. Distances are read again.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from riebench.elastic.search import Floats, Limits
from riebench.errors import RiebenchError
from riebench.jobs.request import RunRequest
from riebench.jobs.run import generate
from riebench.registry import METRICS
from riebench.runs.references import reference_order
from riebench.scoring.metrics.base import Reason, Sample, UInt8
from riebench.scoring.metrics.networks import Networks
from riebench.store.folder import RunFolder
from riebench.store.records import EditRecord
from riebench.tasks.schema import EditExample, EditTask, Setting
from riebench.utils.images import read_image

if TYPE_CHECKING:
    from riebench.models.loading import LoadedModel

DISTANCES = {"lpips": "LPIPS", "dreamsim": "DreamSim"}
"""Metric of the distance between two pictures -> its name for people."""
KEPT_PICTURES = 256
"""Pictures kept in memory."""
BATCH = 32
"""Pairs of pictures measured at a time."""


@dataclass(frozen=True)
class ElasticRequest:
    """Options of one `riebench elastic`.

    Attributes:
        run: what is run: one method configuration, a model, a suite, one seed; its results folder holds the pictures.
        out: folder for what is written.
        distance: a key of `DISTANCES`.
        limits: numbers of the search.
        points: strengths to find.
        examples: examples of each category that are looked at, at most.
    """

    run: RunRequest
    out: Path
    distance: str = "lpips"
    limits: Limits = field(default_factory=Limits)
    points: int = 6
    examples: int = 4


def chosen_examples(tasks: Sequence[EditTask], count: int) -> dict[str, tuple[EditExample, ...]]:
    """Choose the examples that a search looks at: category -> the first ones.

    They are the first in the order of reference (`riebench.runs.references`), in which supervised methods learn, too.

    Args:
        tasks: whole tasks.
        count: of each category, at most.
    """
    members: dict[str, list[EditExample]] = {}
    for task in tasks:
        members.setdefault(task.category, []).extend(task.examples)
    return {category: tuple(reference_order(some)[:count]) for category, some in members.items()}


def unseen_examples(tasks: Sequence[EditTask], chosen: Collection[EditExample]) -> list[str]:
    """Return the ids of the examples that share nothing with those looked at.

    Args:
        tasks: whole tasks.
        chosen: those looked at; others of their clusters are left out as well.
    """
    ids, clusters = {one.id for one in chosen}, {one.cluster for one in chosen if one.cluster is not None}
    return [one.id for task in tasks for one in task.examples if one.id not in ids and one.cluster not in clusters]


class CategoryPictures:
    """Pictures of a category's examples at the strengths of one method configuration.

    Args:
        request: the options.
        setting: the configuration; all its blocks are edited together.
        category: of the examples.
        examples: the examples.
        model: the loaded model.
        networks: measure distances.
    """

    def __init__(
        self, request: ElasticRequest, setting: Setting, category: str, examples: Sequence[EditExample],
        model: LoadedModel, networks: Networks,
    ) -> None:  # fmt: skip
        self.category, self.examples = category, tuple(examples)
        self._request, self._setting = request, setting.model_copy(update={"block_mode": "together"})
        self._model, self._networks = model, networks
        self._folder: RunFolder | None = None
        self._records: dict[tuple[str, float], EditRecord] = {}
        self._known: dict[tuple[str, float, float], float] = {}
        self._asked: set[float] = set()
        self._read = lru_cache(maxsize=KEPT_PICTURES)(self._read_picture)

    @property
    def ids(self) -> tuple[str, ...]:
        """The examples that have a picture at every strength that was asked for."""
        return tuple(
            one.id
            for one in self.examples
            if all(self._records[one.id, strength].status == "ok" for strength in self._asked)
        )

    @property
    def made(self) -> int:
        """Number of edited pictures, those at strength 0 not among them."""
        return sum(record.status == "ok" for (_, strength), record in self._records.items() if strength)

    def make(self, strengths: Sequence[float]) -> None:
        """Make the pictures at some strengths that are missing.

        Raises:
            RiebenchError: if no example has all its pictures, or strength 0 is an edit.
        """
        missing = sorted({0.0, *strengths} - self._asked)
        if not missing:
            return
        setting = self._setting.model_copy(update={"strengths": tuple(missing)})
        run = replace(
            self._request.run, settings=(), given=(setting,), categories=(self.category,),
            examples=tuple(one.id for one in self.examples),
        )  # fmt: skip
        self._folder = generate(run, *run.plan(), lambda _: None, loaded=self._model)[0]
        wanted, seed = {one.id for one in self.examples}, run.seeds[0]
        for record in self._folder.records(features=False):
            key = record.key
            if key.example_id in wanted and key.seed == seed and key.strength in missing:
                self._records[key.example_id, key.strength] = record
        new = not self._asked
        self._asked |= set(missing)
        if not self.ids:
            reasons = sorted({record.reason for record in self._records.values() if record.reason is not None})
            raise RiebenchError(f"{self.category}: no example has all its pictures: {reasons[0]}")
        if new:
            self._check_zero()

    def _check_zero(self) -> None:
        """Refuse a method whose strength 0 is not the source picture."""
        changed = [one for one in self.ids if not np.array_equal(self._read(one, 0.0), self._read(one, None))]
        if changed:
            raise RiebenchError(
                f"{self._setting.name}: strength 0 is not the source picture ({changed[0]}), so that its range cannot "
                "begin there; choose strengths of this method by hand"
            )

    def distances(self, first: float, second: float) -> Floats:
        """Return the distance of each example's pictures at two strengths, [E]."""
        low, high = sorted((first, second))
        ids = self.ids
        missing = [one for one in ids if (one, low, high) not in self._known]
        metric = METRICS.get(self._request.distance)
        for start in range(0, len(missing), BATCH):
            some = missing[start : start + BATCH]
            samples = [_pair(self._read(one, high), self._read(one, low)) for one in some]
            for one, value in zip(some, metric(samples, self._networks), strict=True):
                if isinstance(value, Reason):
                    raise RiebenchError(f"{metric.name} of {one} at strengths {low:g} and {high:g}: {value.value}")
                self._known[one, low, high] = max(value, 0.0)
        return np.array([self._known[one, low, high] for one in ids])

    def _read_picture(self, example: str, strength: float | None) -> UInt8:
        """Return the picture at a strength; the source picture for None."""
        assert self._folder is not None
        if strength is None:
            name = self._records[example, 0.0].source_image
            return read_image(self._folder.shared.path, str(name))
        record = self._records[example, strength]
        return read_image(self._folder.pictures, str(record.image), record.image_sha256)


def _pair(edited: UInt8, source: UInt8) -> Sample:
    """Return two pictures as the metrics of distances take them."""
    return Sample(edited, source, np.ones(edited.shape[:2], dtype=np.bool_), "", "")
