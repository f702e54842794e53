"""Pictures of edits of single blocks, and all that is measured on them.

Whole updates are patched here, and the pictures of the benchmark's own runs are read. Both are measured alike: against
the target picture, by the judge, and by the scores of the benchmark.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from riebench.generation.edits import Edit, StaticEdit, Term
from riebench.generation.generator import Capture, Generator
from riebench.models.families.sdxl.names import BLOCKS
from riebench.models.loading import LoadedModel
from riebench.models.presets import judge_for, scorer_for, second_scorer_for
from riebench.models.spec import ModelSpec
from riebench.registry import METRICS
from riebench.scoring.metrics.base import Sample
from riebench.scoring.metrics.judge_network import JUDGES, Judge
from riebench.scoring.metrics.lpips import LpipsModel
from riebench.scoring.metrics.networks import Networks
from riebench.store.folder import RunFolder
from riebench.store.records import noise_seed
from riebench.tasks.suites import load_suite
from riebench.toyworld.captions import parse
from riebench.toyworld.scenes import CATEGORY_ATTRIBUTE
from riebench.utils.terminal import ProgressBar

SCORES = (
    "clip_gain", "clip_gain_2", "clip_margin", "clip_margin_2", "clip_direction", "clip_selectivity", "lpips",
)  # fmt: skip
"""Scores of the benchmark that are measured on every picture."""
PIXELS, LPIPS_WAY, JUDGED = "pixels", "lpips_way", "judged"
"""Measures that need the target picture or the toy world: the way from source to target in pixels; the same by LPIPS,
what is left of it being the distance to the target; and how much likelier the judge finds the target's value."""
Images = NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Example:
    """One example of the toy suite with the pictures of its edits.

    Attributes:
        category: its category.
        name: its id.
        prompts: source and target prompt.
        source: the unedited picture, uint8 [H, W, 3].
        target: what the model makes of the target prompt, likewise.
        patched: block -> the picture with the block's whole update replaced.
    """

    category: str
    name: str
    prompts: tuple[str, str]
    source: Images
    target: Images
    patched: Mapping[str, Images]


def patch_examples(model: LoadedModel, suite: str, *, limit: int | None = None, batch: int = 24) -> list[Example]:
    """Patch single blocks in all examples of a suite.

    Patching adds the whole difference between the target's and the source's updates of the block, at all positions.

    Args:
        model: toy-mixed.
        suite: name of the suite.
        limit: at most so many examples a category.
        batch: examples generated at a time.
    """
    generator = Generator(model, cached_prompts=2 * batch)
    examples = [(task.category, one) for task in load_suite(suite, limit=limit) for one in task.examples]
    found: list[Example] = []
    for first in ProgressBar(range(0, len(examples), batch), title="patch single blocks"):
        some = examples[first : first + batch]
        sources, targets = [one.source for _, one in some], [one.target for _, one in some]
        seeds = [noise_seed(one.id, 0) for _, one in some]
        both = generator.generate([*sources, *targets], [*seeds, *seeds], capture=Capture(BLOCKS))
        patched: dict[str, Images] = {}
        for block in BLOCKS:
            edits = []
            for i in range(len(some)):
                values = both.trace.row(block, len(some) + i) - both.trace.row(block, i)
                edits.append(Edit({block: StaticEdit((Term(torch.arange(values.shape[1]), values),))}))
            patched[block] = generator.generate(sources, seeds, edits=edits).images
        found += [
            Example(
                category, one.id, (one.source, one.target), both.images[i], both.images[len(some) + i],
                {block: images[i] for block, images in patched.items()},
            )
            for i, (category, one) in enumerate(some)
        ]  # fmt: skip
    return found


def stored_pictures(folder: RunFolder, examples: Sequence[Example]) -> dict[str, Images]:
    """Read a run's pictures of edits of single blocks.

    They are those at strength 1, of the first seed.

    Args:
        folder: the run folder.
        examples: those wanted.

    Returns:
        Block -> uint8 [examples, H, W, 3].
    """
    names = {
        (record.key.example_id, record.key.block_set): record.image
        for record in folder.records(features=False)
        if record.key.strength == 1 and record.key.seed == 0 and record.image is not None
    }
    return {block: np.stack([folder.read_image(names[one.name, block]) for one in examples]) for block in BLOCKS}


def measure_pictures(
    edit: str, pictures: Mapping[str, Images], examples: Sequence[Example], model: ModelSpec
) -> pd.DataFrame:
    """Measure pictures of edits of single blocks by everything that is compared.

    Args:
        edit: name of the edit.
        pictures: block -> uint8 [examples, H, W, 3].
        examples: what was edited.
        model: the model, for its scorers.

    Returns:
        One row a picture and metric with `category`, `example`, `block`, `edit`, `metric` and `value`; a score that has
        no value, such as the direction of no change, is 0.
    """
    judge = judge_for(model)
    networks = Networks(scorer_for(model), second=second_scorer_for(model), judge=judge)
    sources, targets = np.stack([one.source for one in examples]), np.stack([one.target for one in examples])
    lpips, before = LpipsModel(), target_probability(sources, examples, judge)
    whole = np.maximum(lpips.distance(sources, targets), 1e-9)
    rows: list[dict[str, object]] = []
    for block, images in pictures.items():
        samples = [
            Sample(image, one.source, np.ones(image.shape[:2], bool), *one.prompts, category=one.category)
            for image, one in zip(images, examples, strict=True)
        ]
        values: dict[str, Sequence[object]] = {name: METRICS.get(name)(samples, networks) for name in SCORES}
        values[PIXELS] = list(picture_progress(images, sources, targets))
        values[LPIPS_WAY] = list(1 - lpips.distance(images, targets) / whole)
        values[JUDGED] = list(target_probability(images, examples, judge) - before)
        rows += [
            {"category": one.category, "example": one.name, "block": block, "edit": edit, "metric": metric,
             "value": float(value) if isinstance(value, float) else 0.0}
            for metric, found in values.items() for one, value in zip(examples, found, strict=True)
        ]  # fmt: skip
    return pd.DataFrame(rows)


def target_probability(images: Images, examples: Sequence[Example], judge: str) -> NDArray[np.float64]:
    """Return a judge's probability of the value that each target has, float [N].

    Args:
        images: uint8 [N, H, W, 3].
        examples: what each is an edit of.
        judge: name of the judge.
    """
    read, found, values = Judge.load(judge).probabilities(images), [], JUDGES[judge]
    for place, one in enumerate(examples):
        name = CATEGORY_ATTRIBUTE[one.category]
        target = getattr(parse(one.prompts[1], values), name)
        found.append(float(read[name][place, values[name].index(target)]))
    return np.array(found)


def picture_progress(edited: Images, sources: Images, targets: Images) -> NDArray[np.float64]:
    """Compute how far pictures have gone from their sources towards their targets.

    Args:
        edited: uint8 [N, H, W, 3].
        sources: likewise.
        targets: likewise.

    Returns:
        float [N], 0 at the source and 1 at the target; 0 where these are the same.
    """
    start, end, here = (x.astype(float).reshape(len(x), -1) for x in (sources, targets, edited))
    way = end - start
    length: NDArray[np.float64] = (way**2).sum(1)
    return ((here - start) * way).sum(1) / np.maximum(length, 1)
