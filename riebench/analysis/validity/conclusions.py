"""Conclusions about scores of methods in words, made from the numbers of a study."""

from __future__ import annotations

from riebench.analysis.configurations import EVERYTHING
from riebench.analysis.standings import GAIN
from riebench.analysis.validity.agreement import sign_rates
from riebench.analysis.validity.findings import Findings
from riebench.analysis.validity.ranking import AREA, AREA_SUCCESS, CONFIRMED
from riebench.analysis.validity.units import SUCCESS, TARGET, Cell
from riebench.utils.markup import code_span

LEAST_TAU = 0.8
"""Bar: Kendall's tau between the ranks of methods by score and by truth, as for SAEs."""
CHANCE = 0.5
"""Share of pairs that a score without any information orders rightly."""


def conclusions(findings: Findings) -> list[str]:
    """Return sentences about ranks of methods, pairs of pictures and signs of gains."""
    return [_rank_sentence(findings), _pair_sentence(findings), _sign_sentence(findings)]


def _rank_sentence(findings: Findings) -> str:
    ranking = findings.ranking
    tau = ranking.agreement(AREA, AREA_SUCCESS)
    opening = f"**Ranks of {len(ranking.methods)} methods**: "
    if tau.value is None:
        return f"{opening}nothing can be said ({tau.reason})."
    both = ranking.agreement(CONFIRMED, AREA_SUCCESS)
    if both.value is None:
        return (
            f"{opening}the mean gain over LPIPS budgets {_bar(tau)}: Kendall's tau with the share of edits that truly "
            f"succeed is {tau.text()}."
        )
    return (
        f"{opening}what both scorers confirm, by which the leaderboard ranks, {_bar(both)}: Kendall's tau with the "
        f"share of edits that truly succeed is {both.text()}. By the first scorer's mean gain alone it is {tau.text()}."
    )


def _bar(tau: Cell) -> str:
    if tau.value is None or tau.value < LEAST_TAU:
        return f"fails the bar of {LEAST_TAU:g}"
    sure = tau.low is not None and tau.low >= LEAST_TAU
    return f"passes the bar of {LEAST_TAU:g}" + ("" if sure else ", though its interval reaches below")


def _pair_sentence(findings: Findings) -> str:
    found = findings.preference(SUCCESS)[EVERYTHING][GAIN]
    opening = f"**Which of two pictures succeeded**: by {code_span(GAIN)} "
    if found.value is None:
        return f"{opening}nothing can be said ({found.reason})."
    if found.low is None or found.low <= CHANCE:
        return f"{opening}no better than chance ({found.text(100, 0)} % of pairs in the right order)."
    return f"{opening}{found.text(100, 0)} % of pairs are in the right order; chance is 50 %."


def _sign_sentence(findings: Findings) -> str:
    row = sign_rates(findings.judged.units, GAIN)[EVERYTHING]
    opening = "**Whether a single edit worked**: "
    if row.false.value is None:
        return f"{opening}nothing can be said ({row.false.reason})."
    reached = findings.preference(TARGET)[EVERYTHING][GAIN]
    return (
        f"{opening}a {code_span(GAIN)} above zero does not say so, since {row.false.text(100, 0)} % of the pictures "
        f"without the target have one; only comparisons count (of two pictures the one with the target has the higher "
        f"gain in {reached.text(100, 0)} %)."
    )
