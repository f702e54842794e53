"""The measurement of toy-mixed: what edits of single blocks move.

It patches whole updates, and reads the benchmark's own runs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from riebench.analysis.configurations import configurations
from riebench.errors import RiebenchError
from riebench.generation.edits import Edit, StaticEdit, Term
from riebench.generation.generator import Capture, Generator
from riebench.models.families.sdxl.names import BLOCKS
from riebench.models.loading import LoadedModel, load_model
from riebench.store.folder import find_run_folders
from riebench.store.records import noise_seed
from riebench.tasks.suites import load_suite
from riebench.toyworld.evaluate import Sizes, accuracy_figures
from riebench.toyworld.networks.mixed.figures import PATCHING, recovery_figures
from riebench.utils.terminal import ProgressBar

MODEL, SUITE = "toy-mixed", "toy"
SETTINGS = ("activation_patch", "sae")
"""Settings of whose runs the table of blocks is read."""
METRIC = "clip_gain"


def measure_shares(results: Path, *, limit: int | None = None) -> dict[str, Any]:
    """Measure all figures of toy-mixed.

    Args:
        results: a results folder that holds the scored runs of `SETTINGS` on the toy suite.
        limit: at most so many examples a category, and pictures for the accuracy, for a quick look.

    Returns:
        Those of `riebench.toyworld.networks.mixed.figures.recovery_figures`, the accuracy of pictures without an edit,
        and the number of examples.

    Raises:
        RiebenchError: if a run is missing, or was scored in part only.
    """
    gains = block_gains(results)
    model = load_model(MODEL)
    frame = pd.concat([patched_progress(model, limit=limit), gains], ignore_index=True)
    frame = frame[frame["example"].isin(set(frame.loc[frame["measure"] == PATCHING, "example"]))]
    return {
        "examples": int(frame["example"].nunique()),
        **accuracy_figures("mixed", model, Sizes.limited(limit)),
        **recovery_figures(frame, SETTINGS),
    }


def block_gains(results: Path) -> pd.DataFrame:
    """Read the CLIP gains of edits of single blocks from stored runs.

    Args:
        results: the results folder.

    Returns:
        One row an edited picture with `category`, `example`, `block`, `measure` (the setting's name) and `value`.

    Raises:
        RiebenchError: if a run is missing, or was scored in part only.
    """
    again = f"run `riebench run no_edit {' '.join(SETTINGS)} --suite {SUITE} --model {MODEL} --results {results}`"
    rows: list[dict[str, object]] = []
    for setting in SETTINGS:
        found = [
            one
            for folder in find_run_folders(results)
            if (folder.spec.suite, folder.spec.model.name, folder.spec.setting.name) == (SUITE, MODEL, setting)
            for one in configurations(folder, features=False)
            if one.block_set in BLOCKS and one.strength == 1
        ]
        if {one.block_set for one in found} != set(BLOCKS):
            raise RiebenchError(f"{results} holds no run of {setting} on {MODEL} in each of its four blocks: {again}")
        for one in found:
            values = one.values.get(METRIC, {})
            if sum(len(seeds) for some in values.values() for seeds in some.values()) < sum(one.expected.values()):
                raise RiebenchError(f"{results}: {setting} in {one.block_set} is not scored to the end: {again}")
            rows += [
                {"category": category, "example": example, "block": one.block_set, "measure": setting, "value": value}
                for category, examples in values.items() for example, seeds in examples.items() for value in seeds
            ]  # fmt: skip
    return pd.DataFrame(rows)


def patched_progress(model: LoadedModel, *, limit: int | None = None, batch: int = 24) -> pd.DataFrame:
    """Measure how far patching one block moves pictures towards their targets.

    The pictures are those of the toy suite.

    Patching adds the whole difference between the target's and the source's updates of the block, at all positions.

    Args:
        model: toy-mixed.
        limit: at most so many examples a category.
        batch: examples generated at a time.

    Returns:
        Rows as those of `block_gains`, of the measure `PATCHING`; values as those of `picture_progress`.
    """
    generator = Generator(model, cached_prompts=2 * batch)
    examples = [(task.category, one) for task in load_suite(SUITE, limit=limit) for one in task.examples]
    rows: list[dict[str, object]] = []
    for first in ProgressBar(range(0, len(examples), batch), title="patch single blocks"):
        some = examples[first : first + batch]
        sources, targets = [one.source for _, one in some], [one.target for _, one in some]
        seeds = [noise_seed(one.id, 0) for _, one in some]
        both = generator.generate([*sources, *targets], [*seeds, *seeds], capture=Capture(BLOCKS))
        before, after = both.images[: len(some)], both.images[len(some) :]
        for block in BLOCKS:
            edits = []
            for i in range(len(some)):
                values = both.trace.row(block, len(some) + i) - both.trace.row(block, i)
                edits.append(Edit({block: StaticEdit((Term(torch.arange(values.shape[1]), values),))}))
            way = picture_progress(generator.generate(sources, seeds, edits=edits).images, before, after)
            rows += [
                {"category": category, "example": one.id, "block": block, "measure": PATCHING, "value": float(value)}
                for (category, one), value in zip(some, way, strict=True)
            ]
    return pd.DataFrame(rows)


def picture_progress(
    edited: NDArray[np.uint8], sources: NDArray[np.uint8], targets: NDArray[np.uint8]
) -> NDArray[np.float64]:
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
