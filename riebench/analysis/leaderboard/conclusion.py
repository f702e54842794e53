"""Sentences on what the leaderboard found, made from its statistics.

The first says which method has the largest mean gain, the second how the SAE does against its controls and against
activation patching. Of a difference they speak only where its corrected test has p < 0.05.
"""

from __future__ import annotations

from collections.abc import Sequence

from riebench.analysis.leaderboard.rows import interval_text, joined, number_text
from riebench.analysis.multiple import ALPHA
from riebench.analysis.standings import ENDS, Entry, MethodComparison, Standing
from riebench.tasks.schema import inputs_in_words
from riebench.utils.markup import Code, Name, Piece

SUBJECT = "sae"
"""The method whose results are held against its controls."""
UPPER = "activation_patch"
"""The method that hands over everything that the SAE's features stand for a part of."""
MOST_NAMES = 3
"""Methods that a sentence names; of more it gives the number."""

Pieces = tuple[Piece, ...]


def method_conclusion(comparison: MethodComparison, standings: Sequence[Standing]) -> Pieces:
    """Return what a comparison of methods found, in a few sentences.

    Args:
        comparison: of the methods.
        standings: of all of them.
    """
    ranked = [one for one in standings if one.group is not None]
    methods = [one for one in ranked if not one.entry.control_of]
    if not methods:
        return _nothing_ranked(standings, controls=bool(ranked))
    scorers = sorted({one.entry.scorer for one in methods})
    pieces: list[Piece] = []
    for scorer in scorers:
        if len(scorers) > 1:
            pieces += ["Measured by ", Name(scorer or "an unnamed scorer"), ": "]
        pieces += [*_largest(comparison, [one for one in ranked if one.entry.scorer == scorer]), " "]
        pieces += [*_subject(comparison, [one for one in standings if one.entry.scorer == scorer]), " "]
    while pieces and pieces[-1] == " ":
        pieces.pop()
    return tuple(pieces)


def _nothing_ranked(standings: Sequence[Standing], controls: bool) -> Pieces:
    """Return the sentence where no method has a rank."""
    if controls:
        return ("Only controls are ranked so far, so nothing can be concluded about methods.",)
    candidates = [one for one in standings if one.entry.method not in ENDS]
    if not candidates:
        return ("No method has results yet, so nothing can be concluded.",)
    if all(one.area is None for one in candidates):
        return ("No method is complete yet, so nothing can be concluded; the notes say what is missing.",)
    return ("No method is ranked yet, so nothing can be concluded; the notes say what is missing.",)


def _largest(comparison: MethodComparison, ranked: Sequence[Standing]) -> Pieces:
    """Return the sentences on the largest mean gain by one scorer."""
    methods = sorted((one for one in ranked if not one.entry.control_of), key=_score, reverse=True)
    first = methods[0]
    others = [one.entry for one in ranked if one is not first]
    fooling = _fooling(comparison, first, ranked)
    number = f"{_number(first)}."
    largest = "largest mean gain" if first.confirmed is None else "largest mean gain that both scorers confirm"
    if len(methods) == 1:
        opening: Pieces = (
            Code(first.entry.name), f" is the only ranked method{' beside controls' if others else ''}: its mean gain "
            f"over LPIPS budgets is {number}",
        )  # fmt: skip
        return (*opening, " ", *_lead(comparison, first.entry, others), *fooling) if others else opening
    level = [one for one in methods if _printed(one) == _printed(first)]
    among = f"over LPIPS budgets of the {len(methods)} ranked methods: {number}"
    if len(level) > 1:
        return (*joined([Code(one.entry.name) for one in level]), f" tie for the {largest} {among}", *fooling)
    opening = (Code(first.entry.name), f" ({inputs_in_words(first.entry.access)}) has the {largest} {among}")
    return (*opening, " ", *_lead(comparison, first.entry, others), *fooling)


def _number(standing: Standing) -> str:
    """Return a method's mean gain by each scorer, with their intervals."""
    first = f"{interval_text(standing.area, 2)} (x100)"
    return first if standing.second is None else f"{first}, {interval_text(standing.second, 2)} by the second scorer"


def _fooling(comparison: MethodComparison, first: Standing, ranked: Sequence[Standing]) -> Pieces:
    """Return the sentence on controls that gain more by the first scorer alone."""
    if not comparison.has_second:
        return ()
    names = [
        Code(one.entry.name)
        for one in ranked
        if one.entry.control_of and one.entry.scorer == first.entry.scorer and _gain(one) > _gain(first)
        and _score(one) <= _score(first)
    ]  # fmt: skip
    if not names:
        return ()
    has = "A control gains" if len(names) == 1 else "Controls gain"
    return (f" {has} more by the first scorer, and less by what both confirm: ", *joined(names), ".")


def _test(comparison: MethodComparison) -> str:
    """Return the test that sentences on differences stand for."""
    return f"p < {ALPHA:g}, corrected{', by what both scorers confirm' if comparison.has_second else ''}"


def _lead(comparison: MethodComparison, first: Entry, others: Sequence[Entry]) -> Pieces:
    """Return the sentence on what the first method is better than.

    The first was chosen by the data; it is tested against all others together, which is the comparison with the best
    (Hsu 1984). Where two are ranked together their own test has to agree, so that ranks and sentence never differ.
    """
    both = {"confirmed": True} if comparison.has_second else {}
    found = comparison.differences(first, others, **both)
    # Only a control can have a larger gain than the first of the methods.
    above = [entry for entry, (mean, _, _) in found.items() if mean > 0]
    if above:
        names = joined([Code(entry.name) for entry in above])
        return (f"{'A control has' if len(above) == 1 else 'Controls have'} a larger one: ", *names, ".")
    tests = {entry: p for entry, (_, p, _) in found.items()}
    for (one, other), p in comparison.pair_tests.items():
        for entry in {one, other} - {first} if first in (one, other) else ():
            tests[entry] = max(p, tests.get(entry, 1.0))
    open_ = [entry for entry in others if not tests.get(entry, 1.0) < ALPHA]
    test = _test(comparison)
    rest = "all others that are ranked" if len(others) > 1 else "the other"
    if not open_:
        return (f"It is significantly better ({test}) than {rest}.",)
    if len(open_) == len(others):
        return (f"It is not significantly better ({test}) than {'any other' if len(others) > 1 else 'the other'}.",)
    if len(open_) > MOST_NAMES:
        return (f"It is significantly better ({test}) than {len(others) - len(open_)} of the {len(others)} others.",)
    return (f"It is significantly better ({test}) than {rest} but ", *joined([Code(e.name) for e in open_]), ".")


def _subject(comparison: MethodComparison, standings: Sequence[Standing]) -> Pieces:
    """Return the sentence on the SAE, its controls and activation patching."""
    of_subject = [one for one in standings if one.entry.method == SUBJECT]
    if not of_subject:
        return ()
    ranked = [one for one in of_subject if one.group is not None]
    if not ranked:
        return ("The SAE is unranked, so it is not compared with its controls.",)
    best = max(ranked, key=_score)
    opening: Pieces = ("The SAE (", Code(best.entry.name), f", {interval_text(best.area, 2)}) is ")
    controls = [one for one in standings if one.group is not None and one.entry.control_of == SUBJECT]
    patching = [one for one in standings if one.group is not None and one.entry.method == UPPER]
    upper = sorted(patching, key=_score)[-1:]
    parts = _verdicts(comparison, best, controls, ("its control ", "its controls "))
    parts += [
        (*part, f" ({interval_text(other.area, 2)})")
        for other in upper for part in _verdicts(comparison, best, [other], ("activation patching, ", ""))
    ]  # fmt: skip
    if not controls:
        parts.append(("ranked without a control",))
    if not upper:
        parts.append(("ranked without activation patching",))
    return (*opening, *_sentence(parts, _test(comparison)), ".")


def _sentence(parts: Sequence[Pieces], test: str) -> Pieces:
    """Join verdicts; the first that is of a test says which test."""
    found: list[Piece] = []
    tested = [index for index, part in enumerate(parts) if "significant" in str(part[0])]
    for index, part in enumerate(parts):
        if index:
            found.append(", and " if index == len(parts) - 1 else ", ")
        found += [part[0], *([f" ({test})"] if index in tested[:1] else []), *part[1:]]
    return tuple(found)


def _verdicts(
    comparison: MethodComparison, one: Standing, others: Sequence[Standing], roles: tuple[str, str]
) -> list[Pieces]:
    """Return how a method does against others: better, worse, or not told apart.

    Args:
        comparison: of all methods.
        one: a ranked method.
        others: ranked methods that it is held against.
        roles: what one of them is called, and several.
    """
    tests = {frozenset(pair): p for pair, p in comparison.pair_tests.items()}
    sorts: dict[tuple[str, str], list[Piece]] = {}
    for other in sorted(others, key=_score, reverse=True):
        p = tests.get(frozenset((one.entry, other.entry)))
        if p is None:
            words = ("not tested", " against ")
        elif p >= ALPHA:
            words = ("not significantly different", " from ")
        else:
            words = (f"significantly {'better' if _score(one) > _score(other) else 'worse'}", " than ")
        sorts.setdefault(words, []).append(Code(other.entry.name))
    return [(verdict, link + roles[len(names) > 1], *joined(names)) for (verdict, link), names in sorts.items()]


def _score(standing: Standing) -> float:
    """Return the number that a standing is ranked by."""
    mean = None if standing.confirmed is None else standing.confirmed.mean
    return _gain(standing) if mean is None else mean


def _gain(standing: Standing) -> float:
    return standing.area.mean if standing.area is not None and standing.area.mean is not None else float("-inf")


def _printed(standing: Standing) -> str:
    return number_text(_score(standing), 2)
