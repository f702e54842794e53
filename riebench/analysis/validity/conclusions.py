"""Conclusions about scores of methods in words, made from the numbers of a study."""

from __future__ import annotations

from riebench.analysis.configurations import EVERYTHING
from riebench.analysis.standings import BEST_STRENGTH, GAIN, Entry, MethodComparison, with_score_controls
from riebench.analysis.stats import Estimate
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
    """Return sentences about ranks, pairs of pictures, signs of gains and choices."""
    return [
        _rank_sentence(findings), _pair_sentence(findings), _sign_sentence(findings), *_choice_sentences(findings)
    ]  # fmt: skip


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


def _choice_sentences(findings: Findings) -> list[str]:
    """Say what choosing strengths by the scorer does, sweep by sweep."""
    judged = findings.judged
    comparison = MethodComparison(
        with_score_controls(judged.entries), judged.units.replicates, judged.units.generator_seed
    )
    places = {(one.name, one.sae, one.block_set): one for one in judged.entries}
    controls = [one for one in comparison.second_trade_offs if one.method == BEST_STRENGTH]
    pairs = [(places[one.name.removesuffix(f"_{BEST_STRENGTH}"), one.sae, one.block_set], one) for one in controls]
    return [
        _choice_sentence(sweep.name, comparison, sweep, control)
        for sweep, control in pairs
        if sweep in comparison.second_trade_offs and sweep.values(TARGET, comparison.examples) is not None
    ]


def _choice_sentence(name: str, comparison: MethodComparison, sweep: Entry, control: Entry) -> str:
    """Compare a sweep with the control that chooses by the scorer."""
    seen = [comparison.estimate(comparison.shares[entry].replicates) for entry in (sweep, control)]
    true = [_truth(comparison, entry) for entry in (sweep, control)]
    more_seen, more_true = (_mean(after) > _mean(before) for before, after in (seen, true))
    verdict = "do not see through it" if more_seen and not more_true else "see no more than is true"
    return (
        f"**Edit strengths chosen by a scorer**: two scorers {verdict}. Where those of {code_span(name)} are chosen "
        f"for each example by the first scorer's own number, what both scorers confirm goes from {_percent(seen[0])} "
        f"to {_percent(seen[1])} % of the target prompt's gain, and the share of edits that truly reach their target "
        f"from {_percent(true[0])} to {_percent(true[1])} %. A method that looks at a scorer gets no rank."
    )


def _truth(comparison: MethodComparison, entry: Entry) -> Estimate:
    """Return the share of targets reached at the strengths that were chosen."""
    found = comparison.trade_off(entry, TARGET)
    return Estimate(None, None, None, 0) if found is None else comparison.estimate(found.area.replicates)


def _mean(value: Estimate) -> float:
    return 0.0 if value.mean is None else value.mean


def _percent(value: Estimate) -> str:
    """Return a share in % with its interval."""
    if value.mean is None or value.low is None or value.high is None:
        return "–"
    return f"{100 * value.mean:.0f} [{100 * value.low:.0f}, {100 * value.high:.0f}]"
