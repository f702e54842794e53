"""The table of what supervised methods cost to train."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from statistics import mean

from riebench.store.folder import RunFolder
from riebench.store.records import Training
from riebench.utils.markup import Code, Document, Heading, MarkupTable, Paragraph, csv_text


@dataclass(frozen=True)
class TrainingCost:
    """Cost of learning the edits of one configuration, each number a mean over edits.

    Attributes:
        setting: its name.
        examples: training examples that an edit was learned from.
        folds: number of folds.
        run_evaluations: evaluations of the denoiser for one picture that made the training examples' runs.
        fit_evaluations: those while fitting, most of them with a gradient.
        seconds: wall time of fitting.
        edits: examples with a seed; all strengths of one share what was learned.
    """

    setting: str
    examples: float
    folds: int
    run_evaluations: float
    fit_evaluations: float
    seconds: float
    edits: int


def training_costs(folders: Iterable[RunFolder]) -> list[TrainingCost]:
    """Collect the costs of all configurations that were learned from other examples."""
    found = []
    for folder in folders:
        edits: dict[tuple[str, int, str], Training] = {}
        for record in folder.records():
            if record.training is not None:
                edits[record.key.example_id, record.key.seed, record.key.block_set] = record.training
        if edits:
            found.append(_cost(folder.spec.setting.name, [*edits.values()]))
    return found


def _cost(setting: str, trainings: Sequence[Training]) -> TrainingCost:
    return TrainingCost(
        setting,
        mean(one.examples for one in trainings),
        trainings[0].folds,
        mean(one.evaluations for one in trainings),
        mean(one.gradients for one in trainings),
        mean(one.seconds for one in trainings),
        len(trainings),
    )


def training_table(costs: Iterable[TrainingCost]) -> tuple[Document, str] | None:
    """Tabulate what supervised methods cost to train; None if nothing was learned.

    Returns:
        The table for people, and its CSV file.
    """
    costs = sorted(costs, key=lambda one: one.setting)
    if not costs:
        return None
    note = (
        "What an edit's training cost, mean over edits. One training serves all examples of its fold that show the "
        "same concept, and all edit strengths, so that a run trains less often than it edits. ", Code("runs"),
        ": evaluations of the denoiser for one picture that made the training examples' source and target runs; ",
        Code("fitting"), ": those while fitting, most of them with a gradient; ", Code("seconds"),
        ": wall time of fitting on the machine of the run, as busy as it was.",
    )  # fmt: skip
    header = ["configuration", "training examples", "folds", "runs", "fitting", "seconds", "edits"]
    rows = [
        [one.setting, f"{one.examples:.1f}", str(one.folds), f"{one.run_evaluations:.0f}", f"{one.fit_evaluations:.0f}",
         f"{one.seconds:.1f}", str(one.edits)]
        for one in costs
    ]  # fmt: skip
    names = [field.name for field in fields(TrainingCost)]
    document = Document((Heading(1, ("Cost of training",)), Paragraph(note), MarkupTable.of(header, rows)))
    return document, csv_text(names, ([getattr(one, name) for name in names] for one in costs))
