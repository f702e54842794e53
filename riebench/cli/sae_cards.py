"""Verbs that write down what is known of SAEs: card and stability."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from riebench.cli.common import (
    DeviceOption,
    DtypeOption,
    GuidanceOption,
    OfflineOption,
    PicturesOption,
    PromptsOption,
    ResultsOption,
    StepsOption,
    friendly,
    parse_numbers,
    results_to_read,
    say,
    split_names,
)
from riebench.cli.names import completing, known_models
from riebench.utils.terminal import add_row, print_line, print_table

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from riebench.features.cards.card import SaeCard
    from riebench.features.cards.stability import StoredSae

PromptCountOption = Annotated[int, typer.Option(min=1, help="How many prompts to measure on.")]
BlocksOption = Annotated[str | None, typer.Option(help="Block names with commas between. [default: all]")]


@friendly
def sae_card(
    models: Annotated[
        str,
        typer.Option(
            "--model",
            help="Measure on this model, or on several with commas between: presets, folders or hub ids.",
            autocompletion=completing(known_models, several=True),
        ),
    ],
    source: Annotated[
        str | None, typer.Argument(help="SAEs, as for `riebench sae inspect`. [default: the first model's own]")
    ] = None,
    blocks: BlocksOption = None,
    seeds_of: Annotated[
        list[str] | None, typer.Option(help="SAEs of another training seed, to compare with; repeatable.")
    ] = None,
    suite: Annotated[str | None, typer.Option(help="Whose prompts to measure on. [default: by model]")] = None,
    prompts: PromptsOption = None,
    limit: PromptCountOption = 64,
    steps: Annotated[
        str | None,
        typer.Option(help="Step counts with commas between. [default: those of 1,4,20 that a model is made for]"),
    ] = None,
    guidance: GuidanceOption = None,
    results: ResultsOption = None,
    licence: Annotated[str | None, typer.Option(help="Name of the SAEs' licence, such as mit.")] = None,
    batch_size: PicturesOption = 4,
    device: DeviceOption = "auto",
    dtype: DtypeOption = None,
    out: Annotated[Path, typer.Option(help="Folder of the card; nothing else is written.")] = Path("card"),
    offline: OfflineOption = False,
) -> None:
    """Write a model card of SAEs, as the hub reads it."""
    from riebench.errors import RiebenchError
    from riebench.features.cards.card import CardJob
    from riebench.features.cards.output import card_files, check_card_folder, write_files
    from riebench.features.inspect import prompts_from, usual_suite
    from riebench.tasks.schema import MAX_STEPS
    from riebench.utils.machine import pick_device

    names = tuple(dict.fromkeys(split_names(models)))
    counts = None if steps is None else parse_numbers(steps, "--steps", "step counts such as 1,4", MAX_STEPS)
    if counts is not None and min(counts) < 1:
        raise RiebenchError(f"--steps {steps}: step counts go from 1 on")
    runs = results_to_read(results, offline=offline)
    if results is not None and not runs.is_dir():
        raise RiebenchError(f"--results {results}: there is no such folder")
    check_card_folder(out)
    named = suite or usual_suite(names[0])
    job = CardJob(
        source=source, models=names, prompts=tuple(prompts_from(named, prompts, limit)),
        prompts_source=f"suite {named}" if prompts is None else prompts.name, blocks=split_names(blocks),
        seeds=tuple(seeds_of or ()), steps=None if counts is None else tuple(dict.fromkeys(counts)), guidance=guidance,
        results=runs, licence=licence, batch_size=batch_size,
        device=pick_device(device), dtype=dtype, offline=offline,
    )  # fmt: skip
    card = job.run(say)
    write_files(out, card_files(card))
    show_card(card)
    say(f"written to {out}")


def show_card(card: SaeCard) -> None:
    """Print the figures of a card as a table, and what is missing below it."""
    from riebench.features.cards.card import condition_text
    from riebench.models.sae_quality import variance_text

    rows = (
        (
            card.saes[one.sae].block or "not stated", one.signal, one.model, condition_text(one.steps, one.guidance),
            variance_text(one.figures.explained_variance, 4), f"{one.figures.l0:.4g}", f"{one.figures.dead_share:.2%}",
        )
        for one in sorted(card.measurements, key=lambda one: one.sae)
    )  # fmt: skip
    _print_rows(("block", "signal", "model", "condition", "EV", "L0", "dead"), rows)
    for one in card.saes:
        for warning in one.warnings:
            print_line(f"WARNING {one.block or one.path}: {warning}")
    for missing in card.not_measured:
        print_line(f"not measured, {missing.condition}: {missing.reason}; {missing.remedy} measures it")
    scores = f"{len(card.scores)} benchmark scores" if card.scores else f"no benchmark score in {card.results or '.'}"
    print_line(f"{scores}; licence {card.licence.name or card.licence.identifier or 'not stated'}")


@friendly
def stability(
    places: Annotated[
        list[str], typer.Argument(help="SAEs of two training seeds or more, each as for `riebench sae inspect`.")
    ],
    blocks: BlocksOption = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="Measure on this model which features are active, and how often. [default: as stored with the SAEs]",
            autocompletion=completing(known_models),
        ),
    ] = None,
    suite: Annotated[str | None, typer.Option(help="Whose prompts to measure on. [default: by model]")] = None,
    prompts: PromptsOption = None,
    limit: PromptCountOption = 64,
    steps: StepsOption = None,
    guidance: GuidanceOption = None,
    batch_size: PicturesOption = 4,
    device: DeviceOption = "auto",
    dtype: DtypeOption = None,
    out: Annotated[Path | None, typer.Option(help="Folder for table, numbers and plot. [default: none]")] = None,
    offline: OfflineOption = False,
) -> None:
    """Compare the features of SAEs of several training seeds."""
    from riebench.errors import RiebenchError
    from riebench.features.cards.card import condition_text, this_invocation
    from riebench.features.cards.output import check_stability_folder, stability_files, write_files
    from riebench.features.cards.stability import (
        StabilityReport,
        block_stability,
        measured_rates,
        seed_groups,
        stored_saes,
    )
    from riebench.features.cards.stability_text import PAIR_HEADER, pair_rows
    from riebench.features.inspect import prompts_from, usual_suite
    from riebench.models.loading import load_model
    from riebench.utils.machine import pick_device

    if len(places) < 2:
        raise RiebenchError("stability takes two places or more; name SAEs of several training seeds")
    if out is not None:
        check_stability_folder(out)
    found = [stored_saes(place, split_names(blocks), offline=offline) for place in places]
    groups, left_out = seed_groups(found[0], found[1:])
    if not groups:
        raise RiebenchError(f"these places have no block in common: {_blocks_of(found)}")
    rates, measured, where = None, "", pick_device(device)
    if model is not None:
        texts = prompts_from(suite or usual_suite(model), prompts, limit)
        say(f"loading {model} on {where}")
        loaded = load_model(model, steps=steps, guidance=guidance, dtype=dtype, device=where, offline=offline)
        rates = measured_rates([one for group in groups for one in group], loaded, texts, batch_size=batch_size)
        measured = f"{model}, {condition_text(loaded.spec.steps, loaded.spec.guidance)}"
    report = StabilityReport(
        blocks=tuple(block_stability(group, rates, measured) for group in groups), left_out=tuple(left_out),
        invocation=this_invocation(where),
    )  # fmt: skip
    _print_rows(PAIR_HEADER, [row for one in report.blocks for row in pair_rows(one)])
    print_line("in brackets: random directions in equal numbers")
    for number, place in enumerate(places, 1):
        print_line(f"SAE {number}: {place}")
    for line in left_out:
        print_line(f"not compared: {line}")
    if out is not None:
        write_files(out, stability_files(report))
        say(f"written to {out}")


def _blocks_of(found: Sequence[Sequence[StoredSae]]) -> str:
    return "; ".join(f"{saes[0].place}: {', '.join(dict.fromkeys(one.title for one in saes))}" for saes in found)


def _print_rows(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in header:
        table.add_column(name, overflow="fold")
    for row in rows:
        add_row(table, *row)
    print_table(table)
