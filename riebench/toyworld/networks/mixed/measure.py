"""The measurement of the mixed world: edits of single blocks, read by the judge."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from riebench.errors import RiebenchError
from riebench.generation.edits import Edit, StaticEdit, Term
from riebench.generation.generator import Capture, Generator
from riebench.generation.trace import Trace
from riebench.methods.base import EditContext, ExampleRuns
from riebench.methods.features import sae as sae_method
from riebench.models.families.sdxl.names import BLOCKS
from riebench.models.loading import LoadedModel, load_model
from riebench.saes.formats import load_saes
from riebench.saes.sae import SparseAutoencoder
from riebench.scoring.metrics.judge_network import Judge
from riebench.tasks.masks import RegionMasks
from riebench.tasks.schema import EditExample
from riebench.toyworld.captions import caption
from riebench.toyworld.evaluate import SAE_K, Sizes, accuracy_figures
from riebench.toyworld.networks.mixed.edits import MIXED_COUNTS, NULL_COUNTS, MixedEdit, draw_edits
from riebench.toyworld.networks.mixed.figures import recovery_figures
from riebench.toyworld.scenes import CATEGORY_ATTRIBUTE
from riebench.utils.terminal import ProgressBar

ALL = "all"
"""All four blocks together, in place of a block's name."""
SEED = 79


FEATURES = (5, 20)
"""Numbers of SAE features that are switched each way."""


def measure_shares(folder: Path, rounds: int) -> dict[str, Any]:
    """Measure all figures of the mixed world.

    Args:
        folder: holds the model "toy-mixed" and its SAEs "saes-mixed".
        rounds: how often each category's twelve edits are drawn, in either world.

    Returns:
        Those of `recovery_figures`, with the accuracy of pictures without an edit.

    Raises:
        RiebenchError: if the folder holds no such model.
    """
    for name in ("toy-mixed", "saes-mixed"):
        if not (folder / name).is_dir():
            raise RiebenchError(f"{folder / name} is missing: run `riebench.toyworld train mixed --assets {folder}`")
    model = load_model(str(folder / "toy-mixed"), steps=1)
    saes = load_saes(folder / "saes-mixed", BLOCKS, k=SAE_K)
    mixed, null = (
        reached(model, counts, rounds=rounds, saes=saes, features=FEATURES) for counts in (MIXED_COUNTS, NULL_COUNTS)
    )
    return {
        "rounds": rounds,
        "accuracy": accuracy_figures("mixed", model, Sizes()),
        **recovery_figures(mixed, null, MIXED_COUNTS, [f"sae_{count}" for count in FEATURES]),
    }


@dataclass(frozen=True)
class _Pair:
    """One edit's two runs in a batch."""

    edit: MixedEdit
    trace: Trace
    rows: dict[str, int]


def reached(
    model: LoadedModel,
    counts: Sequence[int],
    *,
    rounds: int = 1,
    categories: Sequence[str] = tuple(CATEGORY_ATTRIBUTE),
    saes: Mapping[str, SparseAutoencoder] | None = None,
    features: Sequence[int] = (),
    batch: int = 24,
) -> pd.DataFrame:
    """Measure which edits reach their target when one block is edited.

    Args:
        model: toy-mixed.
        counts: edits of each category that its first, second, third and last block decide.
        rounds: how often so many edits are drawn.
        categories: the categories to measure.
        saes: block -> SAE; None measures activation patching alone.
        features: numbers of SAE features switched each way.
        batch: edits generated at a time.

    Returns:
        One row an edit, method and block with `category`, `decides` (a block), `method` ("target", "patch" or
        "sae_N"), `block` (one of the four or "all") and `reached` (whether the judge sees the target's value).
    """
    generator, rng = Generator(model, cached_prompts=2 * batch), random.Random(SEED)
    edits = [e for _ in range(rounds) for category in categories for e in draw_edits(category, counts, rng)]
    rows: list[dict[str, object]] = []
    for first in ProgressBar(range(0, len(edits), batch), title="edits of single blocks"):
        some = edits[first : first + batch]
        rows += _batch(generator, some, saes, features)
    return pd.DataFrame(rows)


def _batch(
    generator: Generator,
    edits: Sequence[MixedEdit],
    saes: Mapping[str, SparseAutoencoder] | None,
    features: Sequence[int],
) -> list[dict[str, object]]:
    seeds, sources = [edit.seed for edit in edits], [caption(edit.source) for edit in edits]
    both = generator.generate(
        [*sources, *(caption(edit.target) for edit in edits)], [*seeds, *seeds], capture=Capture(BLOCKS)
    )
    pairs = [_Pair(edit, both.trace, {"source": i, "target": len(edits) + i}) for i, edit in enumerate(edits)]
    rows = _rows(edits, both.images[len(edits) :], "target", ALL)
    for block, blocks in ((ALL, BLOCKS), *((block, (block,)) for block in BLOCKS)):
        patches = [_patch(pair, blocks) for pair in pairs]
        rows += _rows(edits, generator.generate(sources, seeds, edits=patches).images, "patch", block)
        for count in features if saes is not None else ():
            switched = [_switch(pair, blocks, saes or {}, count) for pair in pairs]
            rows += _rows(edits, generator.generate(sources, seeds, edits=switched).images, f"sae_{count}", block)
    return rows


def _rows(edits: Sequence[MixedEdit], images: NDArray[np.uint8], method: str, block: str) -> list[dict[str, object]]:
    return [
        {
            "category": edit.category,
            "decides": edit.block,
            "method": method,
            "block": block,
            "reached": found[edit.attribute] == getattr(edit.target, edit.attribute),
        }
        for edit, found in zip(edits, Judge.load().read(images), strict=True)
    ]


def _patch(pair: _Pair, blocks: Sequence[str]) -> Edit:
    """Return the edit that adds the two runs' difference at every position."""
    sites = {}
    for block in blocks:
        values = pair.trace.row(block, pair.rows["target"]) - pair.trace.row(block, pair.rows["source"])
        sites[block] = StaticEdit((Term(torch.arange(values.shape[1]), values),))
    return Edit(sites)


def _switch(pair: _Pair, blocks: tuple[str, ...], saes: Mapping[str, SparseAutoencoder], count: int) -> Edit:
    """Return the edit of the method `sae` with the whole picture as its region."""
    edit = pair.edit
    example = EditExample(id="mixed", source=caption(edit.source), target=caption(edit.target))
    whole = np.ones((64, 64), dtype=bool)
    runs = ExampleRuns(
        example, edit.seed, pair.trace, {"source": pair.rows["source"], "target": pair.rows["target"]},
        RegionMasks(whole, whole),
    )  # fmt: skip
    made: Edit = sae_method.function(EditContext(runs, blocks, saes), n_features=count)
    return made
