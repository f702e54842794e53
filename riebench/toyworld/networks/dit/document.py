"""Sentences of the model card on the transformer, made from its figures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from riebench.toyworld.networks.dit.measure import ACCURACY_BAR, PATCH_BAR, TOP1_DISTANCE, VARIANCE_BAR

NARROW = 0.01
"""A bar that is cleared by less than this is cleared by a little only."""
EDITS = 12
"""Held-out edits a category that were patched."""


def transformer_bars(dit: dict[str, Any]) -> dict[str, tuple[float, float, int]]:
    """Return figure -> what was measured, its bar, and the digits of the bar."""
    return {
        "attributes shown as captioned, 4 steps": (dit["accuracy"], ACCURACY_BAR, 2),
        "caption found by toy-clip among 100": (dit["clip_top1"], round(dit["turbo_clip_top1"] - TOP1_DISTANCE, 3), 3),
        "target reached by patching all blocks": (dit["patch_reach"], PATCH_BAR, 2),
        "variance that SAEs explain, mean over blocks": (dit["sae_ev"], VARIANCE_BAR, 2),
    }


def bars_sentence(figures: dict[str, Any]) -> str:
    """Return the paragraph on which bars the transformer clears."""
    dit = figures["dit"]
    bars = transformer_bars(dit)
    missed = [name for name, (value, bar, _) in bars.items() if value < bar]
    narrow = [name for name, (value, bar, _) in bars.items() if 0 <= value - bar < NARROW]
    verdict = f"misses {len(missed)} of its {len(bars)} bars** ({'; '.join(missed)})" if missed else "clears its bars**"
    by_little = f" ({'; '.join(narrow)}: by a little only)" if narrow else ""
    whole = dit["reached"]["toy-dit"]["whole"]["all"]
    reached = round(sum(share * EDITS for share in whole.values()))
    weakest, other = (min(dit[key], key=dit[key].get) for key in ("by_attribute", "turbo_by_attribute"))
    both = f"{weakest} is the weakest of both" if weakest == other else f"{weakest} is its weakest"
    return (
        f"**It {verdict}{by_little}. Patching all blocks reaches {reached} of {EDITS * len(whole)} edits. It shows "
        f"{100 * dit['accuracy']:.1f} % of the attributes as captioned, toy-turbo "
        f"{100 * _mean(dit['turbo_by_attribute']):.1f} %; "
        f"{both}.\n"
    )


def carried_sentence(figures: dict[str, Any]) -> str:
    """Return the paragraph on what SAEs keep of what whole updates do."""
    reached = figures["dit"]["reached"]
    whole, kept = ({key: _mean(some) for key, some in reached["toy-dit"][kind].items()} for kind in ("whole", "sae"))
    turbo = [
        _mean(reached["toy-turbo"]["whole"][key]) - _mean(some) for key, some in reached["toy-turbo"]["sae"].items()
    ]
    blocks = [key for key in whole if key not in ("target", "all")]
    first, found = max(blocks, key=whole.__getitem__), max(blocks, key=kept.__getitem__)
    verdict = "is found by SAEs as by whole updates" if first == found else "is another by SAEs than by whole updates"
    second = sorted(blocks, key=whole.__getitem__)[-2]
    style = [reached["toy-dit"][kind]["all"]["change_style"] for kind in ("whole", "sae")]
    return (
        f"**The block that matters {verdict}** ({first}): its SAE keeps {kept[first]:.2f} of {whole[first]:.2f}. What "
        f"does not carry over is how complete the SAEs are. Those of toy-turbo lose {max(turbo):.2f} at most; those of "
        f"toy-dit lose {100 - 100 * kept[second] / whole[second]:.0f} % of what {second} does, and of the styles that "
        f"all blocks together turn, {style[1]:.2f} of {style[0]:.2f} are left.\n"
    )


def _mean(shares: dict[str, float]) -> float:
    return float(np.mean(list(shares.values())))


DIT_SENTENCES: dict[str, Callable[[dict[str, Any]], str]] = {
    "transformer_verdict": bars_sentence, "carried_verdict": carried_sentence,
}  # fmt: skip
"""Mark of a part of the card -> what fills it."""
