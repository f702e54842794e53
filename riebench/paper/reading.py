"""Text of reading.md: what the stored artefacts say together.

The words are written in a template; every number is read from the artefacts' data.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from riebench.analysis.configurations import EVERYTHING
from riebench.paper.artefact import Artefact, Row, Scalar, load_artefact, select_rows, values_of
from riebench.paper.recipes import share
from riebench.scoring.profiles import DEFAULT
from riebench.utils.markup import code_span, escape_markdown

READING = "reading.md"
HEADING = "# What the numbers say"
"""First line of the document."""
UNCONDITIONAL = "unconditional"
"""Name of the table of the guidance half that edits do not read."""
NEEDED = ("explained-variance-steps", "trade-off", "feature-share", "blocks")
"""Artefacts that the document needs."""
CARRIES, PARTLY = 0.9, 0.5
"""Least share of the one-step explained variance at which SAEs carry over, and carry over in part."""
Facts = dict[str, Any]


def reading(out: Path) -> str | None:
    """Render the document of the artefacts stored below a folder.

    Args:
        out: the artefacts' folder.

    Returns:
        Markdown; None if an artefact that it needs is not stored, or was made under another profile.

    Raises:
        RiebenchError: if a stored artefact is damaged.
    """
    found = {name: artefact for name in NEEDED if (artefact := load_artefact(out, name)) is not None}
    if len(found) < len(NEEDED) or any(not _has_default_profile(artefact) for artefact in found.values()):
        return None
    also = {name: load_artefact(out, name) for name in ("overlap", "block-effect")}
    settings = found["trade-off"].settings
    model = settings["model"]
    areas = found["trade-off"].table("areas").rows
    disagree = found["feature-share"].table("disagreement").rows
    facts = {
        "suite": settings["suite"],
        "model": model["name"] if isinstance(model, dict) else model,
        "carry": carry_over_facts(found["explained-variance-steps"]),
        "overlap": None if also["overlap"] is None else overlap_facts(also["overlap"]),
        "strongest": None if also["block-effect"] is None else strongest_facts(also["block-effect"]),
        "variants": [variant_facts(disagree, variant) for variant in values_of(disagree, "variant")],
        "equal": equal_facts(found["trade-off"]),
        "ranks": rank_facts(areas),
        "switches": switch_facts(found["trade-off"]),
        "examples": max((int(row["examples"] or 0) for row in select_rows(areas, category=EVERYTHING)), default=0),
        "seeds": sorted({int(row["seeds"] or 0) for row in areas}),
        "levels": found["blocks"].settings["levels"],
        "carries": CARRIES,
        "partly": PARTLY,
    }
    return template_environment().get_template("reading.md.j2").render(facts)


def template_environment() -> Environment:
    """Return the template environment for Markdown.

    Nothing is escaped, and a missing value is an error.
    """
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
        "join_words": _join_words,
        "signed": _signed,
        "plain": escape_markdown,
        "code": code_span,
        "code_list": _code_list,
    }
    return made


def _has_default_profile(artefact: Artefact) -> bool:
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


def _join_words(values: Sequence[object]) -> str:
    return ", ".join(str(value).replace("_", " ") for value in values) or "none"


def _code_list(values: Sequence[str]) -> str:
    """Return names in code marks, the last one after "and"."""
    marked = [code_span(value) for value in values]
    return " and ".join([", ".join(marked[:-1]), marked[-1]] if len(marked) > 1 else marked)


def _float(value: object) -> float:
    if not isinstance(value, int | float):
        raise TypeError(f"{value!r} is no number")
    return float(value)


def carry_over_facts(artefact: Artefact) -> list[Facts]:
    """Compute, for each run, the share of one-step explained variance that is left.

    Explained variance is pooled and averaged over steps, block by block. The run of fewest steps is the one that others
    are compared with. Blocks without a number there are left out.
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
    before = {block: _mean(select_rows(rows, run=base, block=block)) for block in values_of(rows, "block")}
    found = []
    for run in values_of(rows, "run"):
        run_rows = select_rows(rows, run=run)
        blocks = []
        for block in values_of(run_rows, "block"):
            block_rows, first = select_rows(run_rows, block=block), before[block]
            least = min(block_rows, key=lambda row: _float(row["ev_pooled"]))
            kept = _mean(block_rows) / first if first else None
            blocks.append(
                {
                    "block": block,
                    "mean": _mean(block_rows),
                    "least": least["ev_pooled"],
                    "step": least["step"],
                    "kept": kept,
                }
            )
        shares = [_float(one["kept"]) for one in blocks if one["kept"] is not None]
        least_kept = min(shares, default=0.0)
        verdict = "carry over" if least_kept >= CARRIES else "carry over in part" if least_kept >= PARTLY else "do not"
        found.append({"run": run, "base": run == base, "blocks": blocks, "kept": least_kept, "verdict": verdict})
    return found


def _mean(rows: Sequence[Row]) -> float:
    numbers = [_float(row["ev_pooled"]) for row in rows]
    return sum(numbers) / len(numbers) if numbers else 0.0


def overlap_facts(artefact: Artefact) -> list[Facts]:
    """Find, for each run, the step pair and block with least and with most overlap."""
    rows = [row for row in artefact.table().rows if isinstance(row["cosine"], float)]
    return [
        {
            "run": run,
            "least": min(select_rows(rows, run=run), key=lambda row: _float(row["cosine"])),
            "most": max(select_rows(rows, run=run), key=lambda row: _float(row["cosine"])),
        }
        for run in values_of(rows, "run")
    ]


def strongest_facts(artefact: Artefact) -> list[Facts]:
    """Find, for each step count, the three blocks whose ablation has most effect."""
    rows = [row for row in artefact.table().rows if isinstance(row["lpips"], float)]
    return [
        {"steps": steps, "blocks": sorted(select_rows(rows, steps=steps), key=lambda row: -_float(row["lpips"]))[:3]}
        for steps in values_of(rows, "steps")
    ]


def variant_facts(rows: Sequence[Row], variant: Scalar) -> Facts:
    """Count where feature share and effect agree under one way to rank."""
    variant_rows = select_rows(rows, variant=variant)
    judged = any(row.get("same_true") is not None for row in variant_rows)
    facts: Facts = {"variant": variant, "setting": variant_rows[0]["setting"], "rows": variant_rows, "judged": judged}
    for key in ("area", "true") if judged else ("area",):
        compared = [row for row in variant_rows if row.get(f"same_{key}") is not None]
        idle = [_float(row[f"idle_{key}"]) for row in compared if row.get(f"idle_{key}") is not None]
        facts[key] = {
            "compared": len(compared),
            "different": [row["category"] for row in compared if not row[f"same_{key}"]],
            "open": [row["category"] for row in variant_rows if row not in compared],
            "idle": sum(idle) / len(idle) if idle else None,
            "most_idle": max(compared, key=lambda row: _float(row.get(f"idle_{key}") or 0), default=None),
        }
    return facts


def equal_facts(artefact: Artefact) -> list[Facts]:
    """Compare SAE features with neurons at each equal share.

    Returns:
        For each share its row, the side that is better beyond doubt by score and by truth, and the categories in which
        a side is better.
    """
    rows = next((table.rows for table in artefact.tables if table.name == "equal-share"), ())
    found = []
    for row in (row for row in rows if row["category"] == EVERYTHING and row["difference"] is not None):
        category_rows = [
            r for r in select_rows(rows, share=row["share"], seeds=row["seeds"]) if r["category"] != EVERYTHING
        ]
        known = [r for r in category_rows if r["difference_low"] is not None and r["difference_high"] is not None]
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
    """Rank methods with equally many seeds by score, with their order by truth."""
    found = []
    for seeds in values_of(rows, "seeds"):
        known_rows = [r for r in select_rows(rows, seeds=seeds, category=EVERYTHING) if isinstance(r["area"], float)]
        by_score = sorted(known_rows, key=lambda row: -_float(row["area"]))
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
                "tau": share.kendall_tau(*orders) if judged else None,
                "gaps": [r for r in select_rows(rows, seeds=seeds, category=EVERYTHING) if r["area"] is None],
            }
        )
    return [one for one in found if one["rows"]]


def switch_facts(artefact: Artefact) -> list[Row]:
    """Return the rows of the published scripts' switches; none if they are not stored."""
    return list(next((table.rows for table in artefact.tables if table.name == "switches"), ()))
