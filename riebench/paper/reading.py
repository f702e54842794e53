"""reading.md: what the stored artefacts say together. Written words around numbers that are read from their data."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from riebench.analysis.configurations import EVERYTHING
from riebench.paper.artefact import Artefact, Row, Scalar, picked, stored, values_of
from riebench.paper.recipes import share
from riebench.scoring.profiles import DEFAULT
from riebench.utils.markup import code, plain

READING = "reading.md"
HEADING = "# What the numbers say"
"""How it begins."""
UNCONDITIONAL = "unconditional"
"""The table of the half that edits do not read."""
NEEDED = ("explained-variance-steps", "trade-off", "feature-share", "blocks")
"""Artefacts without which there is no reading."""
CARRIES, PARTLY = 0.9, 0.5
"""Share of the one-step explained variance from which SAEs are said to carry over, and to carry over in part."""
Facts = dict[str, Any]


def reading(out: Path) -> str | None:
    """The document of the artefacts stored below a folder; None if one that it needs is not there.

    Args:
        out: the artefacts' folder.

    Raises:
        RiebenchError: if a stored artefact is damaged.
    """
    found = {name: artefact for name in NEEDED if (artefact := stored(out, name)) is not None}
    if len(found) < len(NEEDED) or any(not _default(artefact) for artefact in found.values()):
        return None
    also = {name: stored(out, name) for name in ("overlap", "block-effect")}
    settings = found["trade-off"].settings
    model = settings["model"]
    areas = found["trade-off"].table("areas").rows
    disagree = found["feature-share"].table("disagreement").rows
    facts = {
        "suite": settings["suite"],
        "model": model["name"] if isinstance(model, dict) else model,
        "carry": carry_over(found["explained-variance-steps"]),
        "overlap": None if also["overlap"] is None else overlaps(also["overlap"]),
        "strongest": None if also["block-effect"] is None else strongest(also["block-effect"]),
        "variants": [variant_facts(disagree, variant) for variant in values_of(disagree, "variant")],
        "equal": equal_facts(found["trade-off"]),
        "ranks": rank_facts(areas),
        "switches": switch_facts(found["trade-off"]),
        "examples": max((int(row["examples"] or 0) for row in picked(areas, category=EVERYTHING)), default=0),
        "seeds": sorted({int(row["seeds"] or 0) for row in areas}),
        "levels": found["blocks"].settings["levels"],
        "carries": CARRIES,
        "partly": PARTLY,
    }
    return environment().get_template("reading.md.j2").render(facts)


def environment() -> Environment:
    """Markdown for people who read it as it is: nothing is escaped, nothing may be missing."""
    made = Environment(
        loader=PackageLoader("riebench.paper"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.filters |= {
        "sentence": SENTENCES.__getitem__,
        "x100": _x100,
        "percent": _percent,
        "three": _three,
        "listed": _listed,
        "signed": _signed,
        "plain": plain,
        "code": code,
    }
    return made


def _default(artefact: Artefact) -> bool:
    return artefact.settings.get("profile", DEFAULT) == DEFAULT


def _x100(value: object) -> str:
    return "–" if value is None else f"{round(100 * _float(value), 2) + 0.0:.2f}"


def _signed(value: object) -> str:
    if value is None:
        return "–"
    rounded = round(100 * _float(value), 2) + 0.0
    return f"{rounded:+.2f}" if rounded else "0.00"


def _percent(value: object) -> str:
    return "–" if value is None else f"{round(100 * _float(value)) + 0.0:.0f} %"


def _three(value: object) -> str:
    return "–" if value is None else f"{_float(value):.3f}"


def _listed(values: Sequence[object]) -> str:
    return ", ".join(str(value).replace("_", " ") for value in values) or "none"


def _float(value: object) -> float:
    if not isinstance(value, int | float):
        raise TypeError(f"{value!r} is no number")
    return float(value)


def carry_over(artefact: Artefact) -> list[Facts]:
    """For each run, how much of the one-step explained variance is left, block by block: pooled, mean over steps.

    The run that the others are compared with is the one of fewest steps. Blocks without a number there are left out.
    """
    halves = {table.name: table.rows for table in artefact.tables}
    everything = [
        *halves[""],
        *({**row, "run": f"{row['run']}, {UNCONDITIONAL} half"} for row in halves.get(UNCONDITIONAL, ())),
    ]
    rows = [row for row in everything if isinstance(row["ev_pooled"], float)]
    if not rows:
        return []
    fewest = min(int(row["steps"] or 0) for row in rows)
    base = next(row["run"] for row in rows if row["steps"] == fewest)
    before = {block: _mean(picked(rows, run=base, block=block)) for block in values_of(rows, "block")}
    found = []
    for run in values_of(rows, "run"):
        mine = picked(rows, run=run)
        blocks = []
        for block in values_of(mine, "block"):
            some, first = picked(mine, block=block), before[block]
            least = min(some, key=lambda row: _float(row["ev_pooled"]))
            kept = _mean(some) / first if first else None
            blocks.append(
                {"block": block, "mean": _mean(some), "least": least["ev_pooled"], "step": least["step"], "kept": kept}
            )
        shares = [_float(one["kept"]) for one in blocks if one["kept"] is not None]
        least_kept = min(shares, default=0.0)
        verdict = "carry over" if least_kept >= CARRIES else "carry over in part" if least_kept >= PARTLY else "do not"
        found.append({"run": run, "base": run == base, "blocks": blocks, "kept": least_kept, "verdict": verdict})
    return found


def _mean(rows: Sequence[Row]) -> float:
    numbers = [_float(row["ev_pooled"]) for row in rows]
    return sum(numbers) / len(numbers) if numbers else 0.0


def overlaps(artefact: Artefact) -> list[Facts]:
    """For each run, the pair of adjacent steps and the block with least and with most overlap."""
    rows = [row for row in artefact.table().rows if isinstance(row["cosine"], float)]
    return [
        {
            "run": run,
            "least": min(picked(rows, run=run), key=lambda row: _float(row["cosine"])),
            "most": max(picked(rows, run=run), key=lambda row: _float(row["cosine"])),
        }
        for run in values_of(rows, "run")
    ]


def strongest(artefact: Artefact) -> list[Facts]:
    """For each step count, the three blocks whose loss changes the picture most."""
    rows = [row for row in artefact.table().rows if isinstance(row["lpips"], float)]
    return [
        {"steps": steps, "blocks": sorted(picked(rows, steps=steps), key=lambda row: -_float(row["lpips"]))[:3]}
        for steps in values_of(rows, "steps")
    ]


def variant_facts(rows: Sequence[Row], variant: Scalar) -> Facts:
    """How share and effect agree under one way to rank."""
    mine = picked(rows, variant=variant)
    judged = any(row.get("same_true") is not None for row in mine)
    facts: Facts = {"variant": variant, "setting": mine[0]["setting"], "rows": mine, "judged": judged}
    for key in ("area", "true") if judged else ("area",):
        told = [row for row in mine if row.get(f"same_{key}") is not None]
        idle = [_float(row[f"idle_{key}"]) for row in told if row.get(f"idle_{key}") is not None]
        facts[key] = {
            "told": len(told),
            "odd": [row["category"] for row in told if not row[f"same_{key}"]],
            "open": [row["category"] for row in mine if row not in told],
            "idle": sum(idle) / len(idle) if idle else None,
            "most_idle": max(told, key=lambda row: _float(row.get(f"idle_{key}") or 0), default=None),
        }
    return facts


def equal_facts(artefact: Artefact) -> list[Facts]:
    """At each equal share: both areas, who is better beyond doubt, and in how many categories."""
    rows = next((table.rows for table in artefact.tables if table.name == "equal-share"), ())
    found = []
    for row in (row for row in rows if row["category"] == EVERYTHING and row["difference"] is not None):
        split = [r for r in picked(rows, share=row["share"], seeds=row["seeds"]) if r["category"] != EVERYTHING]
        known = [r for r in split if r["difference_low"] is not None and r["difference_high"] is not None]
        found.append(
            {
                "row": row,
                "verdict": _verdict(row["difference_low"], row["difference_high"]),
                "truth": None if row.get("true_difference") is None
                else _verdict(row["true_difference_low"], row["true_difference_high"]),
                "features_better": [r["category"] for r in known if _float(r["difference_low"]) > 0],
                "neurons_better": [r["category"] for r in known if _float(r["difference_high"]) < 0],
                "categories": len(known),
            }
        )  # fmt: skip
    return found


SENTENCES = {
    "SAE features": "SAE features are better",
    "neurons": "neurons are better",
    "neither beyond doubt": "neither is better beyond doubt",
    "not known": "the difference has no interval",
}


def _verdict(low: object, high: object) -> str:
    if low is None or high is None:
        return "not known"
    return "SAE features" if _float(low) > 0 else "neurons" if _float(high) < 0 else "neither beyond doubt"


def rank_facts(rows: Sequence[Row]) -> list[Facts]:
    """Methods with equally many seeds in the order of the score, their order by the truth beside it."""
    found = []
    for seeds in values_of(rows, "seeds"):
        mine = [r for r in picked(rows, seeds=seeds, category=EVERYTHING) if isinstance(r["area"], float)]
        by_score = sorted(mine, key=lambda row: -_float(row["area"]))
        judged = [row for row in by_score if row.get("true_area") is not None]
        by_truth = sorted(judged, key=lambda row: -_float(row["true_area"]))
        orders = [{str(row["settings"]): _float(row[key]) for row in judged} for key in ("area", "true_area")]
        found.append(
            {
                "seeds": seeds,
                "rows": by_score,
                "judged": len(judged) == len(by_score) and bool(judged),
                "truth": [row["settings"] for row in by_truth],
                "score": [row["settings"] for row in by_score],
                "same": [row["settings"] for row in by_truth] == [row["settings"] for row in judged],
                "tau": share.tau(*orders) if judged else None,
                "gaps": [r for r in picked(rows, seeds=seeds, category=EVERYTHING) if r["area"] is None],
            }
        )
    return [one for one in found if one["rows"]]


def switch_facts(artefact: Artefact) -> list[Row]:
    """The switches of published scripts, over all categories and where an object is deleted."""
    return list(next((table.rows for table in artefact.tables if table.name == "switches"), ()))
