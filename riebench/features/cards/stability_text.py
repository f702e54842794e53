"""Markdown of a comparison of training seeds, and parts that it shares with cards."""

from __future__ import annotations

from collections.abc import Sequence

from riebench.analysis.leaderboard.rows import NO_RANK as NONE
from riebench.features.cards.plots import STABILITY_PLOT
from riebench.features.cards.stability import (
    FOUND,
    FOUND_CLOSE,
    BlockStability,
    PairStability,
    StabilityReport,
    block_title,
)
from riebench.store.invocations import Invocation
from riebench.utils.markup import Block, BulletList, Code, Document, Heading, MarkupTable, Name, Paragraph, Piece

STABILITY_COMMAND = "riebench sae stability"
MARK = "made by `{}`; do not edit, run it again"
"""Comment at the top of a Markdown file that the command in it may replace."""


def stability_text(report: StabilityReport) -> str:
    """Return a comparison of training seeds as Markdown."""
    blocks: list[Block] = [Heading(1, ("Stability over training seeds",)), *stability_blocks(report.blocks)]
    if report.left_out:
        blocks += [Paragraph(("Not compared:",)), BulletList(tuple((Name(line),) for line in report.left_out))]
    blocks += [Heading(2, ("How this was made",)), *made_by(report.invocation)]
    return Document(tuple(blocks), MARK.format(STABILITY_COMMAND)).markdown()


def stability_blocks(found: Sequence[BlockStability]) -> list[Block]:
    """Return conclusion, tables and definitions of a comparison of training seeds."""
    return [
        *(Paragraph(_conclusion(one)) for one in found),
        Paragraph((f"![Shares of features found again, and cosines of matched features]({STABILITY_PLOT}.png)",)),
        MarkupTable.of(PAIR_HEADER, [row for one in found for row in pair_rows(one)]),
        MarkupTable.of(
            ("block", "SAE", "place", "features", "compared", "activity", "SHA-256"),
            [row for one in found for row in _seed_rows(one)],
        ),
        BulletList(_DEFINITIONS),
    ]


PAIR_HEADER = (
    "block", "SAEs", f"found, {FOUND:g}", f"found, {FOUND_CLOSE:g}", "both sides", "mutual", "mean cosine", "subspace",
    "directions",
)  # fmt: skip
_DEFINITIONS: tuple[tuple[Piece, ...], ...] = (
    (
        f"Found, {FOUND:g} and {FOUND_CLOSE:g}: share of the features that have a partner with a cosine of decoder "
        "rows of at least that, when features are matched one to one so that the sum of cosines is largest.",
    ),
    (
        f"Both sides: matched with the same partner by decoder rows and, apart, by encoder rows, both with {FOUND:g} "
        "or more: the rule of Paulo and Belrose 2025 (arXiv 2501.16615).",
    ),
    (f"Mutual: each the nearest of the other by decoder rows, with {FOUND:g} or more.",),
    (
        "Subspace: mean squared cosine of the principal angles between the first principal directions of the decoder "
        "rows, as many as the last column says.",
    ),
    ("In brackets: the same of random directions in equal numbers. Shares are of the SAE with fewer features.",),
    ("Compared: features that are ever active, on the model or by what is stored; all where that is not known.",),
)


def _conclusion(found: BlockStability) -> tuple[Piece, ...]:
    mean, least, most = found.range_of("share_found")
    chance = found.range_of("share_found", random=True)[0]
    spread = "" if len(found.pairs) == 1 else f" (over {len(found.pairs)} pairs {least:.1%} to {most:.1%})"
    subspace, random = found.range_of("subspace")[0], found.range_of("subspace", random=True)[0]
    warning = _same_weights(found)
    pieces: list[Piece] = [
        Name(block_title(found)), f": {mean:.1%} of the features are found again with another seed{spread}; of random "
        f"directions {chance:.1%} are. The subspaces agree by {subspace:.2f}, random ones by {random:.2f}.",
    ]  # fmt: skip
    return (*pieces, " ", warning) if warning else tuple(pieces)


def _same_weights(found: BlockStability) -> str:
    """Return a warning if two of the SAEs are one and the same; "" otherwise."""
    first: dict[str, int] = {}
    for number, one in enumerate(found.saes, 1):
        if one.sha256 and one.sha256 in first:
            return f"SAE {first[one.sha256]} and SAE {number} have the same weights: they are not two seeds."
        first[one.sha256] = number
    return ""


def pair_rows(found: BlockStability) -> list[tuple[str, ...]]:
    """Return the cells of every pair, in the order of `PAIR_HEADER`."""
    return [
        (
            block_title(found), f"{one.first} and {one.second}", *(_share(one, name) for name in _SHARES),
            *(_number(one, name) for name in ("mean_cosine", "subspace")),
            str(one.directions),
        )
        for one in found.pairs
    ]  # fmt: skip


_SHARES = ("share_found", "share_close", "share_strict", "share_mutual")


def _share(pair: PairStability, name: str) -> str:
    return f"{getattr(pair.figures, name):.1%} ({getattr(pair.random, name):.1%})"


def _number(pair: PairStability, name: str) -> str:
    return f"{getattr(pair.figures, name):.3f} ({getattr(pair.random, name):.3f})"


def _seed_rows(found: BlockStability) -> list[tuple[str, ...]]:
    activity = {"measured": found.measured, "stored": "stored with the SAE", "not known": "not known"}
    return [
        (
            block_title(found), str(number), one.place, str(one.features), str(one.alive), activity[one.activity],
            one.sha256[:12] or NONE,
        )
        for number, one in enumerate(found.saes, 1)
    ]  # fmt: skip


def made_by(invocation: Invocation) -> list[Block]:
    """Return the list that says which command made something, with what and where."""
    versions = ", ".join(f"{name} {version}" for name, version in invocation.versions.items())
    machine = ", ".join(f"{name} {value}" for name, value in invocation.machine.items())
    commit = () if invocation.commit is None else (", commit ", Code(invocation.commit[:12]))
    return [
        BulletList(
            (
                ("Command: ", Code(invocation.command)),
                ("Versions: ", Name(versions), *commit),
                ("Machine: ", Name(machine)),
            )
        )
    ]
