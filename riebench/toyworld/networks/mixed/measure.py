"""The measurement of toy-mixed: what edits of single blocks move.

It patches whole updates, and reads the benchmark's own runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from riebench.analysis.compare.blocks import MEASURES
from riebench.analysis.configurations import configurations
from riebench.errors import RiebenchError
from riebench.features.inspect import usual_suite
from riebench.models.families.sdxl.names import BLOCKS
from riebench.models.loading import LoadedModel, load_model
from riebench.models.presets import judge_for, scorer_for, second_scorer_for
from riebench.scoring.metrics.judge_network import JUDGES
from riebench.store.folder import RunFolder, find_run_folders
from riebench.toyworld.evaluate import Sizes, accuracy_figures, clip_figures, judge_figures
from riebench.toyworld.networks.mixed.agreement import agreement_figures, example_figures
from riebench.toyworld.networks.mixed.figures import PATCHING, recovery_figures
from riebench.toyworld.networks.mixed.pictures import measure_pictures, patch_examples, stored_pictures
from riebench.toyworld.networks.text import BLOCK_ROLES
from riebench.toyworld.scenes import CATEGORY_ATTRIBUTE

MODEL, FIRST_WORLD = "toy-mixed", "toy-turbo"
SETTINGS = ("activation_patch", "sae")
"""Settings of whose runs the table of blocks is read."""
PRINTED = tuple(dict.fromkeys(metric for metrics in MEASURES.values() for metric in metrics))
"""Metrics that the benchmark's own shares of blocks are made of."""


def measure_shares(results: Path, *, limit: int | None = None, first_world: Path | None = None) -> dict[str, Any]:
    """Measure all figures of toy-mixed.

    Args:
        results: a results folder that holds the scored runs of `SETTINGS` on toy-mixed's suite, with their pictures.
        limit: at most so many examples a category, and pictures for the accuracy, for a quick look.
        first_world: such a folder with runs of toy-turbo on its suite, where no measure was chosen; None leaves it out.

    Returns:
        Those of `riebench.toyworld.networks.mixed.figures.recovery_figures` and of
        `riebench.toyworld.networks.mixed.agreement`, the accuracy of pictures without an edit, figures of the judge and
        the CLIPs, and the number of examples.

    Raises:
        RiebenchError: if a run is missing, or was scored in part only.
    """
    model = load_model(MODEL)
    frame = measure_edits(results, model, limit=limit)
    figures = {
        "examples": int(frame["example"].nunique()),
        **accuracy_figures("mixed", model, Sizes.limited(limit)),
        "scorers": scorer_figures(model, Sizes.limited(limit)),
        **recovery_figures(frame, SETTINGS),
        "agreement": agreement_figures(frame, SETTINGS),
        "means": example_figures(frame),
    }
    if first_world is not None:
        other = measure_edits(first_world, load_model(FIRST_WORLD), limit=limit)
        figures["first_world"] = first_world_figures(other)
    return figures


def scorer_figures(model: LoadedModel, sizes: Sizes) -> dict[str, Any]:
    """Measure the judge and both CLIPs of a toy model on renders of its world."""
    judge = judge_for(model.spec)
    found = judge_figures(sizes, judge)
    for key, name in (("clip", scorer_for(model.spec)), ("clip_2", second_scorer_for(model.spec))):
        found |= clip_figures(sizes, key, name, JUDGES[judge])
    return found


def measure_edits(results: Path, model: LoadedModel, *, limit: int | None = None) -> pd.DataFrame:
    """Measure patching and the benchmark's own edits of single blocks.

    Args:
        results: see `measure_shares`.
        model: whose runs are measured.
        limit: at most so many examples a category.

    Returns:
        Rows as those of `riebench.toyworld.networks.mixed.pictures.measure_pictures`, of `PATCHING` and each setting.

    Raises:
        RiebenchError: if a run is missing, or was scored in part only.
    """
    folders = block_runs(results, model.spec.name)
    scores = block_scores(results, folders)
    examples = patch_examples(model, usual_suite(model.spec.name), limit=limit)
    patched = {block: np.stack([one.patched[block] for one in examples]) for block in BLOCKS}
    parts = [measure_pictures(PATCHING, patched, examples, model.spec)]
    for setting, folder in folders.items():
        measured = measure_pictures(setting, stored_pictures(folder, examples), examples, model.spec)
        # What the benchmark prints is compared, not what would be measured anew.
        parts += [measured[~measured["metric"].isin(PRINTED)], scores[scores["edit"] == setting]]
    frame = pd.concat(parts, ignore_index=True)
    return frame[frame["example"].isin({one.name for one in examples})]


def first_world_figures(frame: pd.DataFrame) -> dict[str, Any]:
    """Compare the measures where each block has a role of its own.

    None of them was chosen there.

    Args:
        frame: as `measure_edits` returns it, of toy-turbo.

    Returns:
        `agreement` as in `measure_shares`, and `planted`: name of a table -> mean share of the block that a category's
        attribute was planted in.
    """
    found = recovery_figures(frame, SETTINGS)["shares"]
    roles = {attribute: role.block for role in BLOCK_ROLES for attribute in role.attributes}
    return {
        "agreement": agreement_figures(frame, SETTINGS),
        "planted": {
            name: round(sum(table[c][roles[a]] for c, a in CATEGORY_ATTRIBUTE.items()) / len(CATEGORY_ATTRIBUTE), 4)
            for name, table in found.items()
        },
    }


def _again(results: Path, model: str) -> str:
    named = " ".join(SETTINGS)
    return f"run `riebench run no_edit {named} --suite {usual_suite(model)} --model {model} --results {results}`"


def block_runs(results: Path, model: str = MODEL) -> dict[str, RunFolder]:
    """Return the runs of `SETTINGS` that edit single blocks.

    Args:
        results: the results folder.
        model: name of the model.

    Raises:
        RiebenchError: if one is missing, or does not edit each of the four blocks.
    """
    folders: dict[str, RunFolder] = {}
    for folder in find_run_folders(results):
        spec = folder.spec
        single = {block for _, block, strength in folder.expected if strength == 1} & {*BLOCKS}
        if (
            (spec.suite, spec.model.name) == (usual_suite(model), model)
            and spec.setting.name in SETTINGS
            and len(single) == 4
        ):
            folders[spec.setting.name] = folder
    for setting in SETTINGS:
        if setting not in folders:
            raise RiebenchError(
                f"{results} holds no run of {setting} on {model} in each of its four blocks: {_again(results, model)}"
            )
    return {setting: folders[setting] for setting in SETTINGS}


def block_scores(results: Path, folders: Mapping[str, RunFolder]) -> pd.DataFrame:
    """Read the scores of edits of single blocks from stored runs.

    Args:
        results: the results folder, to be named in errors.
        folders: see `block_runs`.

    Returns:
        One row an edited picture and metric of `PRINTED`; columns as those of
        `riebench.toyworld.networks.mixed.pictures.measure_pictures`.

    Raises:
        RiebenchError: if a run was scored in part only.
    """
    rows: list[dict[str, object]] = []
    for setting, folder in folders.items():
        for one in configurations(folder, extra=PRINTED, features=False):
            if one.block_set not in BLOCKS or one.strength != 1:
                continue
            for metric in PRINTED:
                values = one.values.get(metric, {})
                if sum(len(seeds) for some in values.values() for seeds in some.values()) < sum(one.expected.values()):
                    raise RiebenchError(
                        f"{results}: {setting} in {one.block_set} is not scored to the end: {metric} is missing; "
                        f"{_again(results, folder.spec.model.name)}"
                    )
                rows += [
                    {"category": category, "example": example, "block": one.block_set, "edit": setting,
                     "metric": metric, "value": value}
                    for category, examples in values.items() for example, seeds in examples.items() for value in seeds
                ]  # fmt: skip
    return pd.DataFrame(rows)
