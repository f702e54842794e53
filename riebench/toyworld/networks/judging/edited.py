"""Edited pictures with labels that follow from their source and target pictures.

No code imitates what edits inside the model do to a picture. But source and target come from the same noise and differ
where the edit should act, so an edited picture can be held against both: how far it has gone from the one to the other
there, and how much of it is like neither.
"""

from __future__ import annotations

import random
from collections.abc import Set
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from riebench.errors import RiebenchError
from riebench.scoring.metrics.judge_network import ATTRIBUTES, UNREADABLE_LABEL, WIDE_ATTRIBUTES, Values
from riebench.store.folder import RunFolder
from riebench.tasks.schema import EditExample
from riebench.tasks.suites import load_suite
from riebench.toyworld.networks.judging.damage import NO_LABEL, Floats, LabelledPool, Readings
from riebench.toyworld.networks.judging.labelled import is_held_out
from riebench.toyworld.scenes import Scene
from riebench.utils.images import read_image

MOST = 260
"""Pictures of one configuration."""
DIFFERENCE = 22.0
"""Mean difference of source and target, in 0..255, from which a pixel counts as one where the edit should act."""
ENDS = ("no_edit", "target_prompt")
"""Configurations that show what a prompt gives and edit nothing."""

Origin = tuple[str, int]
"""Example id and index of the seed."""


@dataclass(frozen=True)
class EditedWorld:
    """A toy world whose pictures a judge learns from.

    Attributes:
        model: that makes the pictures.
        suite: of the examples.
        values: those of the world.
        shown: attribute -> those of its values that a picture shows if its caption says them; of attributes that are
            not named here, all. The model may draw another in the place of the rest, so a caption is no label of them.
    """

    model: str
    suite: str
    values: Values
    shown: Values

    def keep_shown(self, readings: Readings) -> Readings:
        """Drop the labels that a caption gives and its picture need not show."""
        return {
            name: NO_LABEL if label >= 0 and self.values[name][label] not in self.shown.get(name, self.values[name])
            else label for name, label in readings.items()
        }  # fmt: skip


FIRST = EditedWorld("toy-turbo", "toy", ATTRIBUTES, {})
SECOND = EditedWorld("toy-mixed", "toy-mixed", WIDE_ATTRIBUTES, {"material": ("plain",)})
"""toy-mixed takes patterns for one another."""


def _masks() -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    edge, core = np.zeros((64, 64), dtype=bool), np.zeros((64, 64), dtype=bool)
    edge[:6] = edge[-6:] = edge[:, :5] = edge[:, -5:] = True
    core[12:54, 12:52] = True
    return edge, core


EDGE, CORE = _masks()
"""Pixels in which the background is seen, and in which the object is."""


def edited_readings(
    edited: Floats, source: Floats, target: Floats, before: dict[str, str], after: dict[str, str],
    values: Values = ATTRIBUTES,
) -> Readings | None:  # fmt: skip
    """Return the labels of an edited picture.

    Args:
        edited: float32 [64, 64, 3] in 0..255.
        source: the same of the picture before the edit.
        target: the same of the target prompt's picture.
        before: attributes of the source.
        after: attributes of the target, which differ in one.
        values: those of the world.

    Returns:
        Attribute -> label; None where source and target hardly differ or the edit changed next to nothing.
    """
    changed = next(name for name in before if before[name] != after[name])
    way = target - source
    region = np.abs(way).mean(2) > DIFFERENCE
    if region.sum() < 25 or np.abs(edited - source).mean() < 1:
        return None
    length = float((way[region] ** 2).sum())
    share = float(((edited - source)[region] * way[region]).sum()) / length
    nearest = source + np.clip(share, 0, 1) * way
    unlike = float(((edited - nearest)[region] ** 2).sum()) / length
    found = dict.fromkeys(ATTRIBUTES, NO_LABEL)
    if unlike < 0.2 and (share > 0.8 or share < 0.15):
        found[changed] = values[changed].index((after if share > 0.5 else before)[changed])
    elif unlike > 0.55 or 0.33 < share < 0.62:
        found[changed] = UNREADABLE_LABEL
    object_off = float(np.abs(edited - nearest)[CORE].mean())
    edge_off = float(np.abs(edited - (nearest if changed == "background" else source))[EDGE].mean())
    at_an_end = changed not in ("object", "pose") or not 0.12 <= share <= 0.85
    for name in ATTRIBUTES:
        if name in (changed, "background"):
            continue
        if object_off < 9 and at_an_end:
            found[name] = values[name].index(before[name])
        elif name != "style" and object_off > (26 if name in ("object", "material", "emblem") else 42):
            found[name] = UNREADABLE_LABEL
    if changed != "background" and (edge_off < 7 or edge_off > 60):
        is_kept = edge_off < 7
        found["background"] = values["background"].index(before["background"]) if is_kept else UNREADABLE_LABEL
    return found


def edited_pool(runs: Path, leave_out: Set[Origin], world: EditedWorld = FIRST) -> LabelledPool:
    """Read edited pictures of a world's suite and label them.

    Those of the examples kept for calibration are left out.

    Args:
        runs: results with pictures, as `riebench run --settings-set sweep` makes them.
        leave_out: examples and seeds of which no picture is taken.
        world: that the pictures show.

    Raises:
        RiebenchError: if there are no such pictures.
    """
    examples = _examples(world)
    rng = random.Random(5)
    images: list[NDArray[np.uint8]] = []
    labels: list[Readings] = []
    for path in sorted((runs / world.suite / world.model).glob("*/run.json")):
        if path.parent.name in ENDS:
            continue
        folder = RunFolder(path.parent)
        records = [
            record for record in folder.records()
            if record.status == "ok" and (record.key.example_id, record.key.seed) not in leave_out
            and not is_held_out(record.key.example_id)
        ]  # fmt: skip
        rng.shuffle(records)
        for record in records[:MOST]:
            truth = examples[record.key.example_id].attributes
            names = (record.image, record.source_image, record.target_image)
            if truth is None or None in names:
                continue
            places = (folder.path, folder.shared.path, folder.shared.path)
            edited, source, target = (read_image(a, str(b)) for a, b in zip(places, names, strict=True))
            readings = edited_readings(
                edited.astype(np.float32), source.astype(np.float32), target.astype(np.float32), truth.source,
                truth.target, world.values,
            )  # fmt: skip
            if readings is not None:
                images.append(edited)
                labels.append(world.keep_shown(readings))
    if not images:
        raise RiebenchError(
            f"{runs} holds no edited pictures of the suite {world.suite}: run `riebench run --suite {world.suite} "
            f"--results {runs}` first"
        )
    return LabelledPool(
        np.stack(images), np.array([[found[name] for name in ATTRIBUTES] for found in labels], dtype=np.int8)
    )


def unedited_pools(runs: Path, leave_out: Set[Origin], world: EditedWorld = FIRST) -> tuple[LabelledPool, LabelledPool]:
    """Read a suite's source and target pictures; their captions label them.

    Args:
        runs: results with pictures, `no_edit` among them.
        leave_out: examples and seeds of which no picture is taken.
        world: that the pictures show.

    Returns:
        Pictures to train on, and those of the examples kept for calibration.

    Raises:
        RiebenchError: if there are no such pictures.
    """
    folder = RunFolder(runs / world.suite / world.model / ENDS[0])
    parts: tuple[dict[str, Scene], dict[str, Scene]] = ({}, {})
    examples = _examples(world)
    for record in folder.records():
        truth = examples[record.key.example_id].attributes
        if truth is None or (record.key.example_id, record.key.seed) in leave_out:
            continue
        for name, values in ((record.source_image, truth.source), (record.target_image, truth.target)):
            if name is not None:
                parts[is_held_out(record.key.example_id)][name] = Scene(**values)
    if not all(parts):
        raise RiebenchError(
            f"{folder.path} holds too few pictures: run `riebench run --suite {world.suite} --results {runs}` first"
        )
    pools = [
        LabelledPool(
            np.stack([read_image(folder.shared.path, name) for name in part]),
            np.array([_shown_labels(scene, world) for scene in part.values()], dtype=np.int8),
        )
        for part in parts
    ]
    return pools[0], pools[1]


def _examples(world: EditedWorld) -> dict[str, EditExample]:
    return {example.id: example for task in load_suite(world.suite) for example in task.examples}


def _shown_labels(scene: Scene, world: EditedWorld) -> list[int]:
    return list(world.keep_shown(dict(zip(world.values, scene.labels(), strict=True))).values())
