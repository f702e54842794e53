"""Figures of the SAEs that the methods of a section use, as a table and as notes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from riebench.analysis.configurations import block_places
from riebench.analysis.leaderboard.rows import NO_RANK
from riebench.models.sae_quality import variance_text
from riebench.store.folder import RunFolder
from riebench.store.sae_figures import MeasuredSae
from riebench.utils.markup import Block, BulletList, Code, Heading, MarkupTable, Piece

HEADER = ("SAE", "explained variance", "L0", "dead features", "mean distance", "size ratio", "used by", "notes")
NOT_MEASURED = "not measured"
MOST_USERS = 4
"""Methods that are named; of more the table gives the number."""


@dataclass
class _UsedSae:
    """One SAE with all that use it.

    Attributes:
        label: where it comes from, and the beginning of its hash.
        block: its block.
        measured: its figures, of most examples; None if no run has some.
        accepted: True if a run accepted it though it explains nothing.
        methods: names of the methods that use it, as the section's tables show them.
    """

    label: str
    block: str
    measured: MeasuredSae | None = None
    accepted: bool = False
    methods: dict[str, None] = field(default_factory=dict)

    def add(self, method: str, one: MeasuredSae | None) -> None:
        """Add a run that uses it."""
        self.methods[method] = None
        if one is not None:
            self.accepted = self.accepted or one.accepted
            if self.measured is None or len(self.measured.examples) < len(one.examples):
                self.measured = one

    @property
    def cells(self) -> tuple[str, ...]:
        """Its row, in the order of `HEADER`."""
        one, name, users = self.measured, f"{self.block}: {self.label}", _named(list(self.methods))
        if one is None:
            return (name, NOT_MEASURED, *[NO_RANK] * 4, users, "")
        figures = one.figures
        active = f"{figures.l0:.4g}" + ("" if one.k is None else f" (k {one.k})")
        ratios = (NO_RANK if value is None else f"{value:.2f}" for value in (figures.mean_distance, figures.size_ratio))
        notes = verdict(one, self.accepted)
        return (
            name, variance_text(figures.explained_variance, 3), active, f"{figures.dead_share:.0%}", *ratios, users,
            notes,
        )  # fmt: skip


def _named(methods: list[str]) -> str:
    if len(methods) <= MOST_USERS:
        return ", ".join(methods)
    return f"{', '.join(methods[: MOST_USERS - 1])} and {len(methods) - MOST_USERS + 1} others"


def verdict(one: MeasuredSae, accepted: bool) -> str:
    """Return what is poor about an SAE in a few words; "" for nothing."""
    if one.figures.useless:
        return "SAE accepted though it explains nothing" if accepted else "SAE explains nothing"
    return f"poor SAE: {'; '.join(one.faults)}" if one.faults else ""


def sae_blocks(folders: Iterable[RunFolder]) -> list[Block]:
    """Return the heading, table and definitions of the SAEs of some runs.

    There is nothing if none uses any.

    Args:
        folders: run folders of one suite and model.
    """
    found: dict[tuple[str, str], _UsedSae] = {}
    for folder in folders:
        setting, figures = folder.spec.setting, folder.sae_figures()
        for block, sha in folder.spec.sae_sha256.items():
            used = found.setdefault((block, sha), _UsedSae(f"{setting.sae or 'model'} {sha[:6]}", block))
            used.add(setting.group or setting.name, figures.get(block))
    if not found:
        return []
    places = block_places(one.block for one in found.values())
    rows = sorted(found.values(), key=lambda one: (places[one.block], one.label))
    return [Heading(3, ("SAEs",)), MarkupTable.of(HEADER, (one.cells for one in rows)), _definitions()]


def sae_notes(folders: Iterable[RunFolder]) -> dict[str, list[str]]:
    """Return what is to be noted of the SAEs of each run: id of the run -> notes.

    Args:
        folders: any run folders.
    """
    found: dict[str, list[str]] = {}
    for folder in folders:
        words: dict[str, list[str]] = {}
        for block, one in folder.sae_figures().items():
            said = verdict(one, one.accepted).partition(":")[0]
            if said:
                words.setdefault(said, []).append(block)
        found[folder.spec.run_id] = [f"{said} ({', '.join(blocks)})" for said, blocks in words.items()]
    return found


def _definitions() -> Block:
    columns: Mapping[str, tuple[Piece, ...]] = {
        "SAE": ("its block, where it comes from, and the beginning of its hash.",),
        "explained variance": (
            "of the block's activations in the runs' own source pictures, at every step: 1 is perfect, 0 is no better "
            "than their mean, below 0 nothing is explained. ", Code("riebench run"), " measures it before the first "
            "edit; runs from before it did show \"not measured\".",
        ),
        "L0": ("features active at a position; in brackets the k that the SAE states.",),
        "dead features": ("share that is active at no position of these pictures.",),
        "mean distance": (
            "of the activations' mean from the mean that the SAE subtracts, in spreads of the activations; a dash "
            "where it subtracts none.",
        ),
        "size ratio": ("spread of the reconstructions over that of the activations.",),
        "used by": ("method configurations, or groups of them.",),
        "notes": ("what is poor about it.",),
    }  # fmt: skip
    return BulletList(tuple((Code(name), ": ", *text) for name, text in columns.items()))
