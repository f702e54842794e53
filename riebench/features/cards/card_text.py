"""Markdown of a card with the header of metadata that the hub reads."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite

from riebench.analysis.leaderboard.rows import NO_RANK as NONE
from riebench.analysis.leaderboard.rows import joined, number_text
from riebench.errors import RiebenchError
from riebench.features.cards.card import DENSE, SaeCard, condition_text
from riebench.features.cards.evidence import OTHER, BenchmarkScore
from riebench.features.cards.plots import DENSITY_PLOT
from riebench.features.cards.stability_text import MARK, made_by, stability_blocks
from riebench.features.inspect import SaeReport
from riebench.models.sae_quality import variance_text
from riebench.saes.sae import COUNTING
from riebench.utils.markup import Block, BulletList, Code, Document, Heading, MarkupTable, Name, Paragraph, Piece

CARD_COMMAND = "riebench sae card"
LIBRARY, OTHER_LIBRARIES = "riebench", {"SAELens": "saelens"}
"""Library that the hub is told to load SAEs with; by format where that has one of its own."""
TAGS = ("sparse-autoencoder", "sae", "interpretability", "text-to-image", "riebench")


def card_text(card: SaeCard) -> str:
    """Return the card as the hub reads it: a header of metadata, then Markdown."""
    from huggingface_hub import ModelCard

    blocks = [
        Heading(1, (Name(card.name),)), _opening(card), *_kinds(card), *_reconstruction(card), *_densities(card),
        *_stability_of(card), *_benchmark(card), *_licence(card), Heading(2, ("How this card was made",)),
        _prompts(card), *made_by(card.invocation),
    ]  # fmt: skip
    body = Document(tuple(blocks), MARK.format(CARD_COMMAND)).markdown()
    header = card_header(card)
    text = f"---\n{header}\n---\n{body}"
    # What the hub's own class reads back must be what was meant, whatever names from files stand in it.
    if ModelCard(text).data.to_yaml() != header:
        raise RiebenchError("the card's header cannot be read back; rename the folder of the SAEs to a plain word")
    return text


def card_header(card: SaeCard) -> str:
    """Return a card's metadata as YAML, as the hub's model cards have it."""
    from huggingface_hub import EvalResult, ModelCardData

    formats = {one.format for one in card.saes}
    library = OTHER_LIBRARIES.get(next(iter(formats)), LIBRARY) if len(formats) == 1 else LIBRARY
    results = [
        EvalResult(
            task_type="text-to-image",
            task_name="Editing of generated pictures",
            dataset_type="riebench",
            dataset_name=f"riebench suite {one.suite} on {one.model}",
            dataset_config=f"{one.suite}/{one.model}",
            metric_type="mean_gain",
            metric_name=f"mean CLIP gain over LPIPS budgets of {one.method}, x100",
            metric_value=_times_100(one.score),
            metric_args={"interval_95": [_times_100(end) for end in (one.low, one.high) if end is not None]},
        )
        for one in card.scores
        # A control is no result of these SAEs.
        if one.score is not None and not one.control_of
    ]
    bases = list(dict.fromkeys(one.source for one in card.models if one.on_hub))
    named = card.licence.identifier == OTHER
    data = ModelCardData(
        library_name=library, tags=[*TAGS, *sorted({_tag(one.activation) for one in card.saes})],
        license=card.licence.identifier or None, license_name=(card.licence.name or None) if named else None,
        license_link=card.licence.link or None, base_model=bases or None,
        model_name=card.name if results else None, eval_results=results or None,
    )  # fmt: skip
    return data.to_yaml()


def _times_100(value: float) -> float:
    # Adding zero takes the minus from what is rounded to zero.
    return round(100 * value, 2) + 0.0


def _tag(activation: str) -> str:
    return f"sae-{activation}"


def _opening(card: SaeCard) -> Block:
    """Return what a reader should know first."""
    count = len(card.saes)
    names = dict.fromkeys(one.block or "not stated" for one in card.saes)
    what = "1 sparse autoencoder" if count == 1 else f"{count} sparse autoencoders"
    blocks = "block" if len(names) == 1 else "blocks"
    pieces: list[Piece] = [f"{what} of the {blocks} ", *joined([Name(name) for name in names]), "."]
    for model in card.models:
        measured = [one for one in card.measurements if one.model == model.name]
        last = (measured[-1].steps, measured[-1].guidance) if measured else (0, 0.0)
        mine = [one.figures for one in measured if (one.steps, one.guidance) == last]
        if mine:
            values = [one.explained_variance for one in mine]
            explained = _range(values, ".4f") if all(map(isfinite, values)) else variance_text(min(values))
            dead = _range([one.dead_share for one in mine], ".2%")
            pieces += [
                " On ", Name(model.name), f" ({condition_text(*last)}) explained variance is {explained}, L0 "
                f"{_range([one.l0 for one in mine], '.4g')} and the share of dead features {dead}.",
            ]  # fmt: skip
    return Paragraph((*pieces, *_best_score(card)))


def _best_score(card: SaeCard) -> tuple[Piece, ...]:
    """Return the sentence on the best method that is ranked and no control."""
    ranked = [one for one in card.scores if one.rank is not None and not one.control_of]
    if not card.scores:
        return (" No benchmark score is stored.",)
    if not ranked:
        return (" None of the stored benchmark scores is ranked.",)
    best = max(ranked, key=lambda one: one.score or 0.0)
    _, _, _, _, score, ends, rank, _, _ = _score_row(best)
    return (
        " On the benchmark (suite ", Name(best.suite), ") ", Code(best.method), " gains ", f"{score} {ends} on ",
        Name(best.model), f", rank {rank} among methods that use the same inputs.",
    )  # fmt: skip


def _range(values: Sequence[float], form: str) -> str:
    low, high = f"{min(values):{form}}", f"{max(values):{form}}"
    return low if low == high else f"{low} to {high}"


def _kinds(card: SaeCard) -> list[Block]:
    header = ("SAE", "block", "reads", "signal", "layout", "architecture", "features", "width", "SHA-256")
    rows = [
        (
            str(number), one.block or "not stated", one.reads or "not stated", one.signal or "not stated", one.format,
            _architecture(one), str(one.features), str(one.width), one.sha256[:12] or NONE,
        )
        for number, one in enumerate(card.saes, 1)
    ]  # fmt: skip
    paths = [(f"{number}: ", Code(one.path)) for number, one in enumerate(card.saes, 1)]
    return [
        Heading(2, ("What they are",)),
        MarkupTable.of(header, rows),
        Paragraph(
            (
                "Reads: what the encoder is given. Signal: what is reconstructed, a block's update (what it adds to "
                "the image stream) or its output. "
                "Layout: the file format. Files:",
            )
        ),
        BulletList(tuple(paths)),
    ]


def _architecture(one: SaeReport) -> str:
    counted = f"{one.activation}, k = {one.k}" if one.k is not None and one.activation in COUNTING else one.activation
    return counted if one.input_norm == "none" else f"{counted}, {one.input_norm} norm of inputs"


def _reconstruction(card: SaeCard) -> list[Block]:
    header = ("SAE", "block", "signal", "model", "condition", "explained variance", "L0", "dead features")
    ordered = sorted(card.measurements, key=lambda one: one.sae)
    rows: list[tuple[str, ...]] = [
        (
            str(one.sae + 1), card.saes[one.sae].block or "not stated", one.signal, one.model,
            condition_text(one.steps, one.guidance), variance_text(one.figures.explained_variance, 4),
            f"{one.figures.l0:.4g}", f"{one.figures.dead_share:.2%}",
        )
        for one in ordered
    ]  # fmt: skip
    rows += [("all", NONE, NONE, NONE, one.condition, NONE, NONE, NONE) for one in card.not_measured]
    blocks: list[Block] = [
        Heading(2, ("Reconstruction",)),
        MarkupTable.of(header, rows),
        Paragraph(
            (
                "Explained variance: 1 minus summed squared error over summed squared distance to the mean, all "
                "channels pooled. L0: features that are not zero at a position. Dead: never active at the measured "
                "positions; with few prompts many rare features count as dead. Under guidance the conditional half is "
                "measured.",
            )
        ),
    ]
    warnings = [(number, text) for number, one in enumerate(card.saes, 1) for text in one.warnings]
    if warnings:
        blocks.append(BulletList(tuple((f"Warning, SAE {number}: ", Name(text), ".") for number, text in warnings)))
    if card.not_measured:
        reasons = tuple(
            (f"Not measured, {one.condition}: ", Name(one.reason), "; ", Code(one.remedy), " measures it.")
            for one in card.not_measured
        )
        blocks.append(BulletList(reasons))
    return blocks


def _densities(card: SaeCard) -> list[Block]:
    header = ("SAE", "block", "signal", "model", "condition", "dead", "median density", f"density above {DENSE:.0%}")
    rows = [
        (
            str(one.sae + 1), card.saes[one.sae].block or "not stated", one.signal, one.model,
            condition_text(one.steps, one.guidance), str(one.densities.dead),
            NONE if one.densities.median is None else f"{one.densities.median:.2g}", str(one.densities.dense),
        )
        for one in sorted(card.measurements, key=lambda one: one.sae)
    ]  # fmt: skip
    return [
        Heading(2, ("Activation densities",)),
        Paragraph((f"![Histograms of activation densities, one for each SAE and condition]({DENSITY_PLOT}.png)",)),
        MarkupTable.of(header, rows),
        Paragraph(
            (
                "Density: the share of positions at which a feature is active. Dead and dense columns count features; "
                "the median is of features that are active at all.",
            )
        ),
    ]


def _stability_of(card: SaeCard) -> list[Block]:
    if not card.stability:
        return [
            Heading(2, ("Stability",)),
            Paragraph(
                (
                    "Not known: SAEs of other training seeds were not given. ",
                    Code(f"{CARD_COMMAND} PLACE --seeds-of OTHER"),
                    " compares them.",
                )
            ),
        ]
    return [Heading(2, ("Stability",)), *stability_blocks(card.stability)]


def _benchmark(card: SaeCard) -> list[Block]:
    title = Heading(2, ("Benchmark",))
    if not card.scores:
        command = "riebench run sae_sweep --sae PLACE --settings-set sweep --results FOLDER"
        return [
            title,
            Paragraph(
                (
                    "No score: none of the runs in ", Code(card.results or "."), " was made with these SAEs (by the "
                    "hash of their weights). ", Code(command), " makes one; then repeat the card's command with ",
                    Code("--results FOLDER"), ".",
                )
            ),
        ]  # fmt: skip
    header = ("suite", "model", "method", "blocks", "mean gain", "95 % interval", "rank", "LPIPS", "notes")
    rows = [_score_row(one) for one in card.scores]
    return [
        title,
        MarkupTable.of(header, rows),
        Paragraph(
            (
                "Mean gain: mean CLIP alignment gain x100 over LPIPS budgets, as the leaderboard of the results states "
                "it, with its rank among methods that use the same inputs. Runs are those in ",
                Code(card.results or "."),
                " whose SAEs have the hashes above.",
            )
        ),
    ]


def _score_row(one: BenchmarkScore) -> tuple[str, ...]:
    low, high = number_text(one.low, 2), number_text(one.high, 2)
    ends = NONE if NONE in (low, high) else f"[{low}, {high}]"
    others = f"edited together with other SAEs of {', '.join(one.other_blocks)}" if one.other_blocks else ""
    rank, lpips = NONE if one.rank is None else str(one.rank), NONE if one.lpips is None else f"{one.lpips:.3f}"
    notes = "; ".join(text for text in (one.notes, others) if text)
    return one.suite, one.model, one.method, ", ".join(one.blocks), number_text(one.score, 2), ends, rank, lpips, notes


def _licence(card: SaeCard) -> list[Block]:
    stated = card.licence
    if not stated.identifier:
        text: tuple[Piece, ...] = (
            "Not stated: neither a README.md, a configuration nor a licence file of the SAEs names one.",
        )
    else:
        name = stated.name if stated.identifier == OTHER and stated.name else stated.identifier
        text = (Name(name), ", as ", Code(stated.stated_in), " states it.")
    return [Heading(2, ("Licence",)), Paragraph(text)]


def _prompts(card: SaeCard) -> Block:
    models: list[Piece] = []
    for one in card.models:
        models += ["; " if models else "", Name(one.name), f" ({one.dtype}"]
        models += [", revision ", Code(one.revision[:12]), ")"] if one.revision else [")"]
    return Paragraph(
        (
            "Measured on ", *models, f": {card.prompts} prompts of ", Name(card.prompts_source),
            ", one picture each, at every step and position.",
        )
    )  # fmt: skip
