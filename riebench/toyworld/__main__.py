"""The toy world's command line: `python -m riebench.toyworld`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from riebench.errors import RiebenchError

app = typer.Typer(help="Makes and measures the toy world.", no_args_is_help=True, pretty_exceptions_enable=False)

STAGES = ("vae", "base", "turbo", "clip", "clip-2", "judge", "saes")
"""Stages of what ships, in order."""
OTHER_STAGES = ("mixed", "dit", "dit-saes")


@app.command()
def train(
    what: Annotated[
        str, typer.Argument(help="vae, base, turbo, clip, clip-2, judge, saes, all of these, mixed, dit, or dit-saes")
    ],
    work: Annotated[Path, typer.Option(help="folder for pictures, checkpoints and logs")] = Path("toywork"),
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cpu",
    compile: Annotated[bool, typer.Option(help="compile the network: minutes to start, then faster")] = False,
    assets: Annotated[Path | None, typer.Option(help="where finished models go; the package's own by default")] = None,
) -> None:
    """Train one model or all that ship; repeat the command to resume."""
    if what not in (*STAGES, *OTHER_STAGES, "all"):
        raise RiebenchError(f"unknown stage {what!r}; known: {', '.join((*STAGES, *OTHER_STAGES))}, all")
    from riebench.toyworld.make import make

    for stage in STAGES if what == "all" else (what,):
        make(stage, work, device=device, compiled=compile, assets=assets)


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
    work: Annotated[Path, typer.Argument(help="folder of `train dit`, whose last checkpoint is measured")],
    assets: Annotated[Path | None, typer.Option(help="holds toy-dit and saes-dit, whose blocks are measured")] = None,
    limit: Annotated[int | None, typer.Option(help="at most so many pictures")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="writes the figures there")] = None,
) -> None:
    """Measure the toy transformer at its last checkpoint, beside toy-turbo."""
    from riebench.toyworld.networks.dit.measure import load_checkpoint, measure, measure_blocks

    pipe, steps = load_checkpoint(work)
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
    folder: Annotated[Path, typer.Argument(help="holds toy-mixed and saes-mixed, as `train mixed --assets` makes it")],
    rounds: Annotated[int, typer.Option(help="twelve edits a category and world are drawn so often")] = 3,
    json_file: Annotated[Path | None, typer.Option("--json", help="writes the figures there")] = None,
) -> None:
    """Hold what single blocks move in the mixed world against the planted shares."""
    from riebench.toyworld.networks.mixed.measure import measure_shares

    figures = measure_shares(folder, rounds)
    if json_file is not None:
        json_file.write_text(json.dumps(figures, indent=2) + "\n")
    typer.echo(f"attributes right without an edit: {figures['accuracy']['mixed_accuracy']:.3f}")
    for method, found in figures["spearman"].items():
        typer.echo(
            f"{method:8} Spearman with planted shares {found['planted']:.2f}, with patching {found['patch']:.2f}; "
            f"null world: p = {figures['null_p'][method]:.4f}"
        )


@app.command()
def tasks(
    folder: Annotated[Path, typer.Argument(help="where the nine files go")] = Path("tasks/toy"),
    suite: Annotated[str, typer.Option(help="toy, toy-mixed or toy-mixed-null")] = "toy",
) -> None:
    """Make a toy suite's task files anew."""
    from riebench.toyworld.networks.mixed.edits import SUITES
    from riebench.toyworld.tasks import TOY, write_tasks

    recipes = {recipe.name: recipe for recipe in (TOY, *SUITES)}
    if suite not in recipes:
        raise RiebenchError(f"unknown suite {suite!r}; known: {', '.join(recipes)}")
    for path in write_tasks(folder, recipes[suite]):
        typer.echo(path)


@app.command()
def card(
    check: Annotated[bool, typer.Option(help="only looks, and fails if the card is out of date")] = False,
    pictures: Annotated[bool, typer.Option(help="draws its picture anew too")] = False,
    file: Annotated[Path, typer.Option(help="the card")] = Path("docs/toyworld.md"),
) -> None:
    """Bring the model card's figures up to date with the stored ones.

    The stored figures are those of `evaluate --json docs/toyworld.json`.
    """
    from riebench.toyworld.card import write_card, write_pictures

    write_card(file, file.with_suffix(".json"), check=check)
    if pictures and not check:
        typer.echo(write_pictures(file.parent / "images"))


def main() -> None:
    """Run the command line; report a user's mistake in one line, exit code 2."""
    try:
        app()
    except RiebenchError as error:
        typer.echo(f"riebench.toyworld: {error}", err=True)
        raise SystemExit(2) from error


if __name__ == "__main__":
    main()
