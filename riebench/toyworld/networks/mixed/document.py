"""Parts of the model card on the mixed world, made from its figures.

They are tables, and the sentences that state numbers or verdicts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from riebench.analysis.compare.blocks import MEASURES
from riebench.models.families.sdxl.names import BLOCKS
from riebench.toyworld.networks.mixed.agreement import LEFT_OUT, SHOWN, TRIED
from riebench.toyworld.networks.mixed.figures import BAR, PATCHING, table_name
from riebench.toyworld.scenes import CATEGORY_ATTRIBUTE

Figures = Mapping[str, Any]
FIRST = "margin of the first scorer"
"""The measure that was named first, before any but the gain was looked at."""


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a Markdown table whose cells are Markdown."""
    lines = [header, ["---"] * len(header), *([str(cell) for cell in row] for row in rows)]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def _edits(mixed: Figures) -> list[str]:
    return [edit for edit in mixed["agreement"] if edit != PATCHING]


def _title(name: str) -> str:
    """Return a table's name with its edit as code."""
    edit, by, measure = name.partition(" by ")
    return name if edit == PATCHING else f"`{edit}`{by}{measure}"


def _with_interval(found: Mapping[str, float]) -> str:
    return f"{found['spearman']:.2f} [{found['low']:.2f}, {found['high']:.2f}]"


def _verdict(values: Sequence[float]) -> str:
    """Say whether all, some or none of some correlations reach the bar."""
    over = [value >= BAR for value in values]
    return "clears the bar" if all(over) else "clears the bar for some edits only" if any(over) else "misses the bar"


def shares_table(figures: dict[str, Any]) -> str:
    """Return the table of all shares."""
    mixed = figures["mixed"]
    columns = [mixed["planted"], *mixed["shares"].values()]
    rows = [
        [category.replace("_", " "), block, *(f"{one[category][block]:.2f}" for one in columns)]
        for category in CATEGORY_ATTRIBUTE for block in BLOCKS
    ]  # fmt: skip
    return table(["category", "block", "planted", *map(_title, mixed["shares"])], rows)


def recovery_table(figures: dict[str, Any]) -> str:
    """Return the table of what shares recover, in this world and in null worlds."""
    rows = []
    for name, found in figures["mixed"]["recovery"].items():
        null = found["null"]
        low, middle, high = null["planted"]
        rows.append(
            [_title(name), f"{found['planted']:.2f}", f"{found['patching']:.2f}", f"{found['evidence']:.4f}",
             f"{middle:.2f} [{low:.2f}, {high:.2f}]", f"{null['significant']:.1%}", f"{null['evidence']:.1%}"]
        )  # fmt: skip
    header = [
        "shares by", "with planted shares", "with patching", "p of \"no roles\"", "null: with planted shares",
        "null: correlation significant", "null: roles significant",
    ]  # fmt: skip
    return table(header, rows)


def recovery_verdict(figures: dict[str, Any]) -> str:
    """Return the paragraph on whether the benchmark's shares clear their bar."""
    mixed = figures["mixed"]
    parts: list[str] = []
    doubtful: list[str] = []
    for measure in MEASURES:
        found = {edit: mixed["agreement"][edit][measure] for edit in _edits(mixed)}
        first = [mixed["recovery"][table_name(edit, measure)]["first"] for edit in found]
        stated = " and ".join(f"{_with_interval(one)} (`{edit}`)" for edit, one in found.items())
        named = " and ".join(str(count) for count in first)
        doubtful += [f"`{edit}` by {measure}" for edit, one in found.items() if one["low"] < BAR <= one["high"]]
        parts.append(
            f"**By {measure} the table {_verdict([one['spearman'] for one in found.values()])}**: {stated}; the first "
            f"block is that of patching in {named} of {len(CATEGORY_ATTRIBUTE)} categories."
        )
    null = [100 * found["null"]["significant"] for found in mixed["recovery"].values()]
    by_attribute: dict[str, float] = mixed["mixed_by_attribute"]
    least = min(by_attribute, key=by_attribute.__getitem__)
    doubt = f" The intervals of {', '.join(doubtful)} hold the bar, so other examples might say otherwise."
    return (
        f"A table was to agree with patching by a rank correlation of at least {BAR:g}. {' '.join(reversed(parts))}"
        f"{doubt if doubtful else ''} In "
        f"null worlds a table's correlation with the planted shares is significant in {min(null):.1f} to "
        f"{max(null):.1f} %. Without an edit, {100 * mixed['mixed_accuracy']:.1f} % of the attributes are right, "
        f"least of them the {least}, {100 * by_attribute[least]:.1f} %.\n"
    )


def reasons(figures: dict[str, Any]) -> str:
    """Return the list of what the gain's disagreement comes from."""
    mixed = figures["mixed"]
    agreement, means, edits = mixed["agreement"], mixed["means"], _edits(mixed)
    whole = means[PATCHING]["pixels"]
    label, block = LEFT_OUT.removeprefix("change_"), max(whole, key=whole.__getitem__)

    def each(measure: str, number: str) -> str:
        return " and ".join(f"{agreement[edit][measure][number]:.2f} (`{edit}`)" for edit in edits)

    def at(edit: str) -> str:
        found = {name: means[edit][name][block] for name in SHOWN}
        return (
            f"{found['pixels']:.2f} of the way in pixels, the judge's probability of the target {found['judge']:+.2f}, "
            f"gain x100 {100 * found['gain']:+.1f}, margin x100 {100 * found['margin']:+.1f}"
        )

    by_margin = " and ".join(
        f"{mixed['shares'][table_name(edit, 'margin')][LEFT_OUT][block]:.2f} (`{edit}`)" for edit in edits
    )
    lines = [
        f"It is the {label}. Without that category the gain agrees by {each('gain', 'without_pose')}.",
        f"The edits stop half way there. With its whole update replaced, {block} turns the object: {at(PATCHING)}. The "
        f"benchmark's edits reach the regions of words only: "
        + "; ".join(f"`{edit}` {at(edit)}" for edit in edits)
        + ".",
        f"Neither the score nor the edit does it alone. On the patched pictures themselves the gain agrees by "
        f"{_with_interval(agreement[PATCHING]['gain'])}. In pixels, the benchmark's own pictures agree by "
        f"{each('pixels', 'spearman')}.",
        f"The margin does not mend the edit. It gives {block} a share of {by_margin} in the {label}, where patching "
        f"gives it {mixed['shares'][PATCHING][LEFT_OUT][block]:.2f}; but what moved a little now ranks above what did "
        f"not.",
        f"It is not noise alone. The noise of both sides allows {each('gain', 'ceiling')} by gain and "
        f"{each('margin', 'ceiling')} by margin.",
    ]
    return "".join(f"- {line}\n" for line in lines)


def tried_table(figures: dict[str, Any]) -> str:
    """Return the table of every measure that was tried."""
    mixed = figures["mixed"]
    agreement, other, edits = mixed["agreement"], mixed["first_world"]["agreement"], _edits(mixed)
    rows = [
        [measure, *(_with_interval(found[measure]) if measure in found else "1" for found in agreement.values()),
         *(f"{agreement[edit][measure]['without_pose']:.2f}" for edit in edits),
         *(f"{agreement[edit][measure]['within']:.2f}" for edit in edits),
         *(_with_interval(other[edit][measure]) for edit in edits)]
        for measure in TRIED
    ]  # fmt: skip
    header = [
        "shares by", "patched pictures", *(f"`{edit}`" for edit in edits),
        *(f"`{edit}`, {what}" for what in ("without pose", "within categories", "toy-turbo") for edit in edits),
    ]  # fmt: skip
    return table(header, rows)


def order_sentence(figures: dict[str, Any]) -> str:
    """Return the paragraph on the measures that were named beforehand."""
    agreement = figures["mixed"]["agreement"]
    edits = _edits(figures["mixed"])
    stated = {
        measure: " and ".join(f"{agreement[edit][measure]['spearman']:.2f} (`{edit}`)" for edit in edits)
        for measure in (FIRST, "margin")
    }

    def within(measure: str) -> str:
        return " and ".join(f"{agreement[edit][measure]['within']:.2f} (`{edit}`)" for edit in edits)

    first, second = (_verdict([agreement[edit][one]["spearman"] for edit in edits]) for one in (FIRST, "margin"))
    return (
        f"Two measures had been named before any but the gain was looked at, in this order: the first scorer's margin, "
        f"which {first}, {stated[FIRST]}; and the mean of both scorers', which {second}, {stated['margin']}. "
        f"Within categories, where a correlation has four blocks only, it is {within('margin')}, and the gain's "
        f"{within('gain')}.\n"
    )


def first_world(figures: dict[str, Any]) -> str:
    """Return the paragraph on both measures in the first world, where none was chosen."""
    world, edits = figures["mixed"]["first_world"], _edits(figures["mixed"])
    stated = "; ".join(
        f"by {measure} "
        + " and ".join(f"{_with_interval(world['agreement'][edit][measure])} (`{edit}`)" for edit in edits)
        for measure in MEASURES
    )
    better = [world["agreement"][e]["margin"]["spearman"] > world["agreement"][e]["gain"]["spearman"] for e in edits]
    verdict = "the better one there too" if all(better) else "not always the better one there"
    planted = ", ".join(f"{_title(name)} {share:.2f}" for name, share in world["planted"].items() if name != PATCHING)
    return (
        f"toy-turbo was looked at after the choice. The margin is {verdict}: its shares agree with patching {stated}. "
        f"Even there patching does not give a block everything that was planted in it: its mean share is "
        f"{world['planted'][PATCHING]:.2f} ({planted}).\n"
    )


def scorers_sentence(figures: dict[str, Any]) -> str:
    """Return the sentence on the judge and the CLIPs of the second world."""
    found = figures["mixed"]["scorers"]
    read = sum(found["judge_renders_read"].values()) / len(found["judge_renders_read"])
    return (
        f"The judge of the second world reads {100 * read:.0f} % of the attributes of its renders, "
        f"{100 * found['judge_renders']:.1f} % of these correctly. Its CLIPs find the right caption of a render among "
        f"100 in {100 * found['clip_top1']:.1f} % (toy-mixed-clip) and {100 * found['clip_2_top1']:.1f} % "
        f"(toy-mixed-clip-2).\n"
    )


MIXED_PARTS: dict[str, Callable[[dict[str, Any]], str]] = {
    "shares": shares_table, "recovery": recovery_table, "recovery_verdict": recovery_verdict, "reasons": reasons,
    "tried": tried_table, "order": order_sentence, "first_world": first_world, "mixed_scorers": scorers_sentence,
}  # fmt: skip
"""Mark of a part of the card -> what fills it."""
