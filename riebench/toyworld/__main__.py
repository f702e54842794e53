"""The toy world's command line: `python -m riebench.toyworld`."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Annotated

import typer

from riebench.errors import RiebenchError, near_match

app = typer.Typer(help="Makes and measures the toy world.", no_args_is_help=True, pretty_exceptions_enable=False)

STAGES = (
    "vae", "base", "turbo", "clip", "clip-2", "saes", "judge", "mixed-base", "mixed-teacher", "mixed-start", "mixed",
    "mixed-clip", "mixed-clip-2", "mixed-judge", "dit", "dit-saes",
)  # fmt: skip
"""Stages of what ships, in order."""


@app.command()
def train(
    what: Annotated[str, typer.Argument(help=f"{', '.join(STAGES)}, or all of these")],
    work: Annotated[Path, typer.Option(help="folder for pictures, checkpoints and logs")] = Path("toywork"),
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cpu",
    compile: Annotated[bool, typer.Option(help="compile the network: minutes to start, then faster")] = False,
    assets: Annotated[Path | None, typer.Option(help="where finished models go; the package's own by default")] = None,
    edited: Annotated[Path | None, typer.Option(help="results with edited pictures, for the judge")] = None,
    leave_out: Annotated[Path | None, typer.Option(help="CSV of examples and seeds not to learn from")] = None,
    labelled: Annotated[Path | None, typer.Option(help="folder of pictures labelled by eye, for the judge")] = None,
) -> None:
    """Train one model or all that ship; repeat the command to resume."""
    if what not in (*STAGES, "all"):
        raise RiebenchError(f"unknown stage {what!r}; known: {', '.join(STAGES)}, all")
    from riebench.toyworld.make import make

    origins: set[tuple[str, int]] = set()
    if leave_out is not None:
        with leave_out.open(newline="", encoding="utf-8") as file:
            origins = {(row["example"], int(row["seed"])) for row in csv.DictReader(file)}
    for stage in STAGES if what == "all" else (what,):
        make(
            stage, work, device=device, compiled=compile, assets=assets, edited=edited, leave_out=origins,
            labelled=labelled,
        )  # fmt: skip


@app.command()
def evaluate(
    limit: Annotated[int | None, typer.Option(help="at most so many pictures of each kind")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="writes the figures there")] = None,
) -> None:
    """Measure every figure of the model card and compare it with its bar."""
    from riebench.toyworld.evaluate import BARS, verdicts
    from riebench.toyworld.evaluate import evaluate as measure

    figures = measure(limit)
    if json_file is not None:
        json_file.write_text(json.dumps(figures, indent=2) + "\n")
    for key, passed in verdicts(figures).items():
        typer.echo(f"{key:18} {figures[key]:.4f}  (bar {BARS[key]:.2f}, {'cleared' if passed else 'MISSED'})")
    if not all(verdicts(figures).values()):
        raise typer.Exit(1)


@app.command()
def transformer(
    work: Annotated[Path, typer.Argument(help="folder of `train dit`, with its last checkpoint")],
    assets: Annotated[Path | None, typer.Option(help="holds toy-dit and saes-dit, to measure them")] = None,
    limit: Annotated[int | None, typer.Option(help="at most so many pictures")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="writes the figures there")] = None,
) -> None:
    """Measure the toy transformer beside toy-turbo.

    It is that of the last checkpoint, or the exported one where its folder is named.
    """
    from riebench.toyworld.networks.dit.measure import load_checkpoint, load_exported, measure, measure_blocks

    pipe, steps = load_checkpoint(work)
    if assets is not None:
        pipe = load_exported(assets)
    figures = {"trained_steps": steps, **measure(pipe, limit)}
    typer.echo(
        f"after {steps} steps: attributes right {figures['accuracy']:.3f} (renders through the autoencoder "
        f"{figures['autoencoder_accuracy']:.3f}); caption found by CLIP "
        f"{figures['clip_top1']:.3f} (toy-turbo {figures['turbo_clip_top1']:.3f}); "
        f"bars {'cleared' if figures['cleared'] else 'missed'}"
    )
    typer.echo(", ".join(f"{name} {share:.2f}" for name, share in figures["by_attribute"].items()))
    if assets is not None:
        figures |= measure_blocks(assets, limit)
        typer.echo(
            f"target reached by patching all blocks {figures['patch_reach']:.3f}; variance that SAEs explain "
            f"{figures['sae_ev']:.3f}; bars {'cleared' if figures['blocks_cleared'] else 'missed'}"
        )
    if json_file is not None:
        json_file.write_text(json.dumps(figures, indent=2) + "\n")


@app.command()
def shares(
    results: Annotated[Path, typer.Argument(help="results folder with scored runs of toy-mixed on the toy suite")],
    limit: Annotated[int | None, typer.Option(help="at most so many examples a category")] = None,
    first_world: Annotated[
        Path | None, typer.Option(help="results folder with such runs of toy-turbo, to compare")
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="writes the figures there")] = None,
) -> None:
    """Hold toy-mixed's table of blocks against the planted shares.

    The folder holds runs of `no_edit`, `activation_patch` and `sae`.
    """
    from riebench.toyworld.networks.mixed.figures import BAR, PATCHING
    from riebench.toyworld.networks.mixed.measure import measure_shares

    figures = measure_shares(results, limit=limit, first_world=first_world)
    if json_file is not None:
        json_file.write_text(json.dumps(figures, indent=2) + "\n")
    typer.echo(f"attributes right without an edit: {figures['mixed_accuracy']:.3f}")
    for measure, found in figures["recovery"].items():
        verdict = "" if measure == PATCHING else " (cleared)" if found["patching"] >= BAR else f" (MISSED {BAR})"
        typer.echo(
            f"{measure:26} Spearman with planted shares {found['planted']:.2f}, with patching "
            f"{found['patching']:.2f}{verdict}; significant in {found['null']['significant']:.1%} of null worlds"
        )


@app.command()
def tasks(
    folder: Annotated[Path | None, typer.Argument(help="where the nine files go; tasks/SUITE by default")] = None,
    suite: Annotated[str, typer.Option(help="toy or toy-mixed")] = "toy",
) -> None:
    """Make the task files of a toy suite anew."""
    from riebench.toyworld.tasks import SUITES, write_tasks

    if suite not in SUITES:
        raise RiebenchError(f"unknown toy suite {suite!r}{near_match(suite, SUITES)}; known: {', '.join(SUITES)}")
    for path in write_tasks(folder or Path("tasks") / suite, suite):
        typer.echo(path)


@app.command()
def card(
    check: Annotated[bool, typer.Option(help="only looks, and fails if the card is out of date")] = False,
    pictures: Annotated[bool, typer.Option(help="draws its pictures anew too")] = False,
    file: Annotated[Path, typer.Option(help="the card")] = Path("docs/toyworld.md"),
) -> None:
    """Bring the model card's figures up to date with the stored ones.

    The stored figures are those of `evaluate --json docs/toyworld.json`.
    """
    from riebench.toyworld.card import write_card, write_pictures

    write_card(file, file.with_suffix(".json"), check=check)
    if pictures and not check:
        for path in write_pictures(file.parent / "images"):
            typer.echo(path)


def main() -> None:
    """Run the command line; report a user's mistake in one line, exit code 2."""
    try:
        app()
    except RiebenchError as error:
        typer.echo(f"riebench.toyworld: {error}", err=True)
        raise SystemExit(2) from error


if __name__ == "__main__":
    main()
