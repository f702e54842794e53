"""Conclusions in words, made from the numbers of a study."""

from __future__ import annotations

from collections.abc import Sequence

from riebench.analysis.sae_score.effects import TOGETHER
from riebench.analysis.validity.units import Cell
from riebench.sae_validity.measures import AREA, PREFIXES, SCORED_COUNT
from riebench.sae_validity.study.bars import LEAST_TAU, Bars, MeasureStudy, Study, above_zero
from riebench.sae_validity.study.statistics import TRAINED
from riebench.utils.markup import code_span

BARS = {
    "order": f"order (Kendall's tau at least {LEAST_TAU:g})",
    "twins": "trained SAE above its frozen twins in every block",
    "noise": "noise at most a third of the gap between neighbouring rungs",
    "ranks": "no random or untrained rung in the first rank group",
}
"""Bar -> what it asks for."""
AREA_KEY = f"{PREFIXES['score']}{AREA}"


def words(names: Sequence[str]) -> str:
    """Join names as a sentence does."""
    shown = [*names]
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}" if shown else "none"


def code_words(names: Sequence[str]) -> str:
    """Join names in code type as a sentence does."""
    return words([code_span(name) for name in names])


def failures(one: MeasureStudy) -> list[str]:
    """Return in words which bars a measure does not pass."""
    found = []
    bars: Bars = one.bars
    if bars.order is not True:
        found.append("order: not measured" if bars.order is None else f"order: Kendall's tau is {one.order.text()}")
    if bars.twins is None:
        found.append("twins: not measured in single blocks")
    elif not bars.twins:
        found.append(f"twins: not above 0 for {_twin_words(one.failing_twins)}")
    if bars.noise is None:
        found.append("noise: not measured")
    elif not bars.noise:
        pairs = words([f"{code_span(c.worse)} to {code_span(c.better)}" for c in one.noisy])
        found.append(f"noise: more than a third of the gap, or no gap, from {pairs}")
    if bars.ranks is not True:
        names = code_words(one.untrained_first)
        found.append("ranks: not measured" if bars.ranks is None else f"ranks: {names} in the first rank group")
    return found


def _twin_words(failing: Sequence[tuple[str, str]]) -> str:
    blocks: dict[str, list[str]] = {}
    for twin, block in failing:
        blocks.setdefault(twin, []).append("all blocks together" if block == TOGETHER else code_span(block))
    return "; ".join(f"{code_span(twin)} ({words(names)})" for twin, names in blocks.items())


def official_sentences(study: Study) -> list[str]:
    """Say of each official measure whether it passes the bars."""
    if not study.official:
        return ["No measure is official, so no SAE is ranked."]
    found = []
    for one in study.official:
        name = f"{code_span(one.key)} ({one.measure.title})"
        missed = failures(one)
        found.append(
            f"{name} passes all four bars; its Kendall's tau with the known order is {one.order.text()}."
            if not missed
            else f"{name} **fails {len(missed)} of 4 bars**. {'. '.join(_capital(text) for text in missed)}."
        )
    return found


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def passing_sentence(study: Study) -> str:
    """Say which measures pass all bars, on any model and on the toy world alone."""
    everywhere = [one.key for one in study.passing if not one.measure.judge]
    judged = [one.key for one in study.passing if one.measure.judge]
    if not study.passing:
        return f"**None of the {len(study.measures)} measures passes all four bars.**"
    verb = "passes" if len(study.passing) == 1 else "pass"
    text = f"Of {len(study.measures)} measures {len(study.passing)} {verb} all four bars: "
    parts = []
    if everywhere:
        parts.append(f"{code_words(everywhere)} on any model")
    if judged:
        parts.append(f"{code_words(judged)} on the toy world alone, whose judge or truth they need")
    return text + "; ".join(parts) + "."


def present_score_sentence(study: Study) -> str:
    """Say how the mean gain of methods, at many features, ranks SAEs."""
    one = next((m for m in study.measures if m.key == AREA_KEY), None)
    if one is None:
        return f"The mean gain over LPIPS budgets with {SCORED_COUNT} features was not measured."
    verdict = "passes all four bars" if one.bars.passed else f"fails {len(failures(one))} of 4 bars as a score of SAEs"
    return (
        f"The mean gain over LPIPS budgets with {SCORED_COUNT} features, by which methods are ranked, {verdict}: "
        f"Kendall's tau with the known order is {one.order.text()}."
    )


def best_without_judge(study: Study) -> MeasureStudy | None:
    """Return the picture measure without a judge that passes most bars.

    Among equals it is the one of the highest tau, then the one that tells most neighbouring rungs apart.
    """
    there = [m for m in study.measures if not m.measure.judge and m.measure.kind != "figure"]

    def merits(one: MeasureStudy) -> tuple[int, float, float]:
        apart = sum(comparison.separated.value or 0.0 for comparison in one.neighbours)
        return -len(failures(one)), -1.0 if one.order.value is None else one.order.value, apart

    return max(there, key=merits, default=None)


def can_sentences(study: Study) -> list[str]:
    """Say what can be concluded on a model without a judge."""
    passing = [one for one in study.passing if not one.measure.judge and one.measure.kind != "figure"]
    found = []
    if passing:
        found.append(
            f"Which of two SAEs of one model is better, by {code_words([one.key for one in passing])}: they need no "
            "judge, and here they pass all four bars."
        )
    figures = [one.key for one in study.passing if not one.measure.judge and one.measure.kind == "figure"]
    if figures:
        found.append(f"How far training went, by {code_words(figures)}, which needs no edit and says nothing of edits.")
    best = best_without_judge(study)
    if best is not None and not passing:
        found.append(
            f"Whether an SAE is far better than another, with care: {code_span(best.key)} comes nearest "
            f"({4 - len(failures(best))} of 4 bars, Kendall's tau {best.order.text()})."
        )
    if best is not None and best.twins:
        twins = [place for place, cell in best.twins.items() if above_zero(cell)]
        found.append(
            f"Whether training did more than a frozen half would, if the twins are made as well (`riebench sae "
            f"baselines`): {code_span(best.key)} puts the trained SAE above its twin in {len(twins)} of "
            f"{len(best.twins)} comparisons."
        )
    return found


def cannot_sentences(study: Study) -> list[str]:
    """Say what cannot be concluded on a model without a judge."""
    found = []
    best = best_without_judge(study)
    if not any(not one.measure.judge and one.measure.kind != "figure" for one in study.passing):
        found.append(
            "The rank of SAEs by what their features do: no measure of edits that does without the judge passes all "
            "bars."
        )
    if best is not None:
        unclear = [one for one in best.neighbours if one.separated.value is not None and one.separated.value < 0.5]
        if unclear:
            pairs = words(
                [f"{code_span(one.worse)} and {code_span(one.better)} ({_percent(one.separated)})" for one in unclear]
            )
            found.append(
                f"Small differences in training: by {code_span(best.key)}, with {study.results.about.examples} "
                f"examples, fewer than half of the pairs of single SAEs are told apart between {pairs}."
            )
    judged = [one.key for one in study.measures if one.measure.judge]
    if judged:
        found.append(
            f"Anything that needs the toy world's judge or its known values ({len(judged)} of {len(study.measures)} "
            "measures), such as the share of edits that reach their target."
        )
    return found


def failed_sentences(study: Study) -> list[str]:
    """Name for each bar the official measures, and how many of all, that fail it."""
    found = []
    for name, meaning in BARS.items():
        failing = [one for one in study.measures if getattr(one.bars, name) is not True]
        official = [one.key for one in failing if one.measure.official]
        text = f"{_capital(meaning)}: {len(failing)} of {len(study.measures)} measures fail or lack it"
        found.append(f"{text}; of the official ones {code_words(official)}.")
    return found


def _percent(cell: Cell) -> str:
    return f"{cell.text(100, 0)} %"


def missing_sentence(study: Study) -> str:
    """Name the rungs that were not measured; empty if all were."""
    missing = study.results.about.missing
    return f"Not measured, or not completely: {code_words(missing)}." if missing else ""


__all__ = ["BARS", "TRAINED", "failures", "official_sentences"]
