"""The job behind `riebench validity saes`: SAEs, pictures, and a table of values.

Every step goes on where it was stopped; SAEs, pictures and scores lie in the work folder, the table in the results.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from riebench._version import __version__
from riebench.analysis.sae_score import FEATURE_COUNTS
from riebench.analysis.sae_score.effects import TOGETHER, counted
from riebench.errors import RiebenchError
from riebench.sae_validity.measures import TRUTH, measure_sae
from riebench.sae_validity.pictures import (
    PATCH_OWNER,
    SAES,
    LadderRequest,
    SaeFolders,
    by_sae,
    ladder_folders,
    make_pictures,
    parse_run_name,
    plan_parts,
    score_pictures,
    total_seconds,
)
from riebench.sae_validity.results import COLUMNS, About, LadderResults, StoredRung
from riebench.sae_validity.rungs import RUNGS, Rung, RungQuality, make_rungs, read_quality
from riebench.store.folder import RunFolder
from riebench.store.sae_figures import model_digest

if TYPE_CHECKING:
    import pandas as pd

FIGURES = ("explained_variance", "l0", "dead_share", TRUTH)
"""Figures of an SAE's blocks, as rungs have them."""

Say = Callable[[str], None]


def distinct_rungs(names: Iterable[str] = ()) -> tuple[Rung, ...]:
    """Return rungs by name, each once with its first family; all without names.

    Raises:
        RiebenchError: if there is no rung of a name.
    """
    known = {rung.name: rung for rung in reversed(RUNGS)}
    ordered = list(dict.fromkeys(rung.name for rung in RUNGS))
    chosen = [*names] or ordered
    unknown = [name for name in chosen if name not in known]
    if unknown:
        raise RiebenchError(f"there is no rung {unknown[0]!r}; known: {', '.join(ordered)}")
    return tuple(known[name] for name in ordered if name in chosen)


def run_ladder(request: LadderRequest, command: str, say: Say, *, only_measure: bool = False) -> LadderResults:
    """Make what is missing of SAEs and pictures, and measure everything.

    Args:
        request: the options.
        command: what the user typed, for the document.
        say: function that prints a line for people.
        only_measure: measure what the work folder holds, and make nothing.

    Raises:
        RiebenchError: as `riebench.jobs.run.run_job`. What is finished is kept.
    """
    rungs = distinct_rungs(request.rungs)
    saes = _finished_saes(request, rungs) if only_measure else make_rungs(
        request.work / SAES, request.model, seeds=request.training_seeds, rungs=[rung.name for rung in rungs]
    )  # fmt: skip
    parts = plan_parts(request, rungs, saes)
    folders = ladder_folders(request, parts) if only_measure else make_pictures(request, parts, say)
    if folders:
        # Parts that were scored before a scorer changed or was added count as made, and lack its numbers.
        say(score_pictures(request, folders))
    return collect_results(request, rungs, saes, folders, command)


def _finished_saes(request: LadderRequest, rungs: Sequence[Rung]) -> dict[tuple[str, int], Path]:
    """Return the SAEs that are made already."""
    places = {
        (rung.name, seed): request.work / SAES / rung.name / f"seed-{seed}"
        for rung in rungs
        for seed in (request.training_seeds[:1] if rung.seeds == 1 else request.training_seeds)
    }
    return {sae: folder for sae, folder in places.items() if _is_finished(folder)}


def _is_finished(folder: Path) -> bool:
    try:
        read_quality(folder)
    except RiebenchError:
        return False
    return True


def collect_results(
    request: LadderRequest, rungs: Sequence[Rung], saes: SaeFolders, folders: Sequence[RunFolder], command: str
) -> LadderResults:
    """Measure the SAEs whose pictures are complete.

    Args:
        request: the options.
        rungs: what was asked for.
        saes: rung and training seed -> folder.
        folders: run folders; those that lack pictures are left out.
        command: for the document.

    Raises:
        RiebenchError: if no SAE is complete.
    """
    import pandas as pd

    complete = [folder for folder in folders if _is_complete(folder)]
    patch = [f for f in complete if parse_run_name(f.spec.setting.name)[0] == PATCH_OWNER]
    frames: list[pd.DataFrame] = []
    measured: dict[str, list[int]] = {}
    for (rung, seed), own in by_sae(complete):
        if (rung, seed) in saes and _tested_counts(own) == set(FEATURE_COUNTS):
            frame = measure_sae(own, patch, figures_of(read_quality(saes[rung, seed])))
            frames.append(frame.assign(rung=rung, training_seed=seed)[[*COLUMNS]])
            measured.setdefault(rung, []).append(seed)
    if not frames:
        raise RiebenchError(
            f"{request.runs} holds no SAE with all pictures; repeat the command without --only-measure to go on"
        )
    about = _about(request, rungs, saes, complete, measured, command)
    return LadderResults(about, pd.concat(frames, ignore_index=True))


def figures_of(quality: RungQuality) -> Mapping[str, Mapping[str, float]]:
    """Return an SAE's figures by block.

    Those of all blocks together are means over blocks; the truth has a mean of its own.
    """
    blocks = {
        block: {name: value for name in FIGURES if (value := getattr(one, name)) is not None}
        for block, one in quality.blocks.items()
    }
    whole = {name: fmean(getattr(one, name) for one in quality.blocks.values()) for name in FIGURES if name != TRUTH}
    return {**blocks, TOGETHER: {**whole, TRUTH: quality.truth}}


def _is_complete(folder: RunFolder) -> bool:
    """Return whether every planned unit has been tried."""
    return len(folder.records(features=False)) >= folder.n_expected


def _tested_counts(folders: Sequence[RunFolder]) -> set[int]:
    """Return the numbers of features that were tested with all blocks together."""
    found = set()
    for folder in folders:
        kind, count = counted(folder.spec.setting)
        if kind == "sae" and folder.spec.setting.block_mode == "together":
            found.add(count)
    return found


def _about(
    request: LadderRequest, rungs: Sequence[Rung], saes: SaeFolders, folders: Sequence[RunFolder],
    measured: Mapping[str, Sequence[int]], command: str,
) -> About:  # fmt: skip
    examples: dict[str, set[str]] = {"together": set(), "each": set()}
    pictures = 0
    seeds: set[int] = set()
    for folder in folders:
        mode = folder.spec.setting.block_mode
        for record in folder.records(features=False):
            pictures += record.status == "ok"
            seeds.add(record.key.seed)
            if mode in examples:
                examples[mode].add(record.key.example_id)
    wanted = {rung: sorted(seed for name, seed in saes if name == rung) for rung in measured}
    short = [name for name, seeds_made in measured.items() if sorted(seeds_made) != wanted[name]]
    absent = [rung.name for rung in rungs if rung.name not in measured]
    spec = folders[0].spec
    return About(
        suite=spec.suite, model=spec.model.name, model_sha256=model_digest(spec), version=__version__,
        rungs=tuple(
            StoredRung(name=r.name, family=r.family, order=r.order, training_seeds=tuple(sorted(measured[r.name])))
            for r in rungs if r.name in measured
        ),
        missing=(*absent, *short), pictures=pictures, examples=len(examples["together"]),
        block_examples=len(examples["each"]), picture_seeds=tuple(sorted(seeds)), command=command,
        seconds=round(total_seconds(request), 1),
    )  # fmt: skip
