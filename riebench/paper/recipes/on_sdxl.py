"""Cost of every artefact on SDXL: commands, U-Net evaluations, GPU hours, disk.

Everything is counted or estimated; nothing is measured and no model is loaded.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from riebench.features.random_features.random_baseline import EDITED
from riebench.jobs.forecast import ASSUMED_RATES
from riebench.models.families.sdxl.names import BLOCKS, SDXL_BLOCKS
from riebench.models.families.sdxl.shape import DECODER_TERAFLOP, UNET_TERAFLOP
from riebench.paper.artefact import Artefact, Column, Row, Table
from riebench.paper.drawing import number
from riebench.paper.job import PROMPTS, STEP_COUNTS, PaperJob
from riebench.paper.recipes.features import FEATURES
from riebench.paper.recipes.features import PROMPTS as FEATURE_PROMPTS
from riebench.tasks.settings import load_settings

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAME = "sdxl"
SUITE, TURBO, BASE = "sdxl", "sdxl-turbo", "sdxl-base"
BASE_STEPS, HALVES = 20, 2
FAST_RATES = (150.0, 40.0)
"""TFLOP a second in half precision and in float32 of a data-centre GPU; the slower GPU has `ASSUMED_RATES`."""
CHANNELS, POSITIONS, HALF_BYTES = 1280, 256, 2
"""Size of one block's update at 512 px: channels, positions, bytes of a number in 16 bits."""
TRAINING_PROMPTS = 100_000
SPARSITIES, WIDTHS = (10, 20, 40, 80, 160), (640, 2560, 5120)
PRODUCTS = 6
"""Matrix products of a training step: two forward, four backward."""
SETS = ("sweep", "paper")
GIGA = 1e9
COLUMNS = (
    Column(name="step"), Column(name="command"), Column(name="evaluations", title="U-Net evaluations, 512 px"),
    Column(name="evaluations_1024", title="1024 px"), Column(name="pictures", title="pictures decoded"),
    Column(name="pflop", title="PFLOP", decimals=1), Column(name="hours", title="GPU hours, slower", decimals=2),
    Column(name="hours_fast", title="GPU hours, faster", decimals=2), Column(name="disk", title="disk, GB", decimals=1),
)  # fmt: skip
SHOWS = (
    "The commands that make every artefact on SDXL, in the order in which they build on each other, for those who have "
    "the weights; `riebench paper all --suite sdxl --sweep saes --out paper-sdxl` makes all of them in one go. Nothing "
    "in this table was measured: evaluations and pictures are counted from what the commands generate, work and hours "
    "follow from the assumptions below. Runs that are stopped go on with the same command."
)


@dataclass(frozen=True)
class Step:
    """One command and its cost.

    Attributes:
        step: its result.
        command: as it is typed.
        evaluations: of the U-Net on one picture of 512 px.
        large: evaluations at 1024 px.
        pictures: decoded at 512 px.
        trained: TFLOP of training, in float32.
        disk: bytes that it leaves, reports and tables not counted.
    """

    step: str
    command: str
    evaluations: int = 0
    large: int = 0
    pictures: int = 0
    trained: float = 0.0
    disk: int = 0

    def row(self) -> Row:
        """Return the command as a row, with its work and hours."""
        quarter = (512 / 1024) ** 2
        unet = UNET_TERAFLOP * (quarter * self.evaluations + self.large)
        full = DECODER_TERAFLOP * quarter * self.pictures + self.trained
        hours = [(unet / half + full / whole) / 3600 for half, whole in (ASSUMED_RATES["cuda"], FAST_RATES)]
        return {
            "step": self.step, "command": self.command, "evaluations": self.evaluations,
            "evaluations_1024": self.large, "pictures": self.pictures, "pflop": (unet + full) / 1000,
            "hours": hours[0], "hours_fast": hours[1], "disk": self.disk / GIGA,
        }  # fmt: skip


def planned_steps(forecasts: dict[str, Row]) -> list[Step]:
    """Return all commands in the order in which they are run.

    Args:
        forecasts: set of configurations -> evaluations, pictures and disk of its run.
    """
    few = sum(STEP_COUNTS)
    sizes = len(SPARSITIES) * len(WIDTHS)
    positions = TRAINING_PROMPTS * POSITIONS
    work = PRODUCTS * 2 * CHANNELS * sum(WIDTHS) * len(SPARSITIES) * len(BLOCKS) * positions / 1e12
    ks, widths = (",".join(map(str, numbers)) for numbers in (SPARSITIES, WIDTHS))
    small = 4 * CHANNELS * sum(WIDTHS) * 2 * len(SPARSITIES) * len(BLOCKS)
    sets = len(BLOCKS) * sizes + sizes
    # Added and removed, along the feature's direction and a random one.
    edited = len(BLOCKS) * FEATURES * 4 * EDITED
    found = [
        Step("updates to train on", f"riebench sae collect --model {TURBO} --dataset guangyil/laion-coco-aesthetic "
             f"--column caption --limit {TRAINING_PROMPTS} --out updates", TRAINING_PROMPTS,
             disk=positions * CHANNELS * HALF_BYTES * len(BLOCKS)),
        Step(f"{sizes} SAEs of each block", f"riebench sae train updates --k {ks} --width {widths} --out saes",
             trained=work, disk=small),
        Step("explained variance over k and width", _paper_command("explained-variance", " --sweep saes"), PROMPTS),
        Step("explained variance over steps, feature overlap", _paper_command("explained-variance-steps overlap"),
             PROMPTS * few, PROMPTS * BASE_STEPS * HALVES),
        Step("block effect", _paper_command("block-effect"), PROMPTS * few * (len(SDXL_BLOCKS) + 1),
             pictures=PROMPTS * len(STEP_COUNTS) * (len(SDXL_BLOCKS) + 1)),
        Step("reconstruction", _paper_command("reconstruction", " --sweep saes"), PROMPTS * few * (sets + 2),
             pictures=PROMPTS * len(STEP_COUNTS) * (sets + 1)),
        Step("single features", _paper_command("features"), (2 * FEATURE_PROMPTS + edited) * few,
             pictures=(FEATURE_PROMPTS + edited) * len(STEP_COUNTS)),
    ]  # fmt: skip
    for name, forecast in forecasts.items():
        counts = {key: int(number(forecast, key)) for key in ("evaluations", "pictures", "disk")}
        found.append(
            Step(f"results of the set {name}", f"riebench run --suite {SUITE} --settings-set {name}", **counts)
        )
    return [*found, Step("trade-off, feature share, blocks", _paper_command("trade-off feature-share blocks"))]


def _paper_command(names: str, options: str = "") -> str:
    """Return the command that makes some artefacts on SDXL."""
    return f"riebench paper {names} --suite {SUITE}{options} --out paper-sdxl"


def make(job: PaperJob) -> Artefact:
    """Count the cost of every command; nothing of SDXL is loaded."""
    forecasts = {}
    for name in SETS:
        settings = [setting.model_dump(mode="json") for setting in load_settings(SUITE, (), name)]
        (forecasts[name],) = job.cached_rows(
            NAME, {"count": 1, "set": name, "settings": settings}, partial(_forecast, name)
        )
    planned = planned_steps(forecasts)
    rows = [step.row() for step in planned]
    total: Row = {"step": "together", "command": ""}
    total |= {column.name: round(sum(number(row, column.name) for row in rows), 6) for column in COLUMNS[2:]}
    total |= {name: int(number(total, name)) for name in ("evaluations", "evaluations_1024", "pictures")}
    slow, fast = ASSUMED_RATES["cuda"], FAST_RATES
    return Artefact(
        name=NAME, title="The same on SDXL", shows=SHOWS,
        tables=(Table(title="Commands and what they take", columns=COLUMNS, rows=(*rows, total)),),
        settings={
            "slower GPU": f"{slow[0]:g} TFLOP/s in half precision, {slow[1]:g} in float32, assumed",
            "faster GPU": f"{fast[0]:g} and {fast[1]:g}, assumed",
            "one U-Net evaluation": f"{UNET_TERAFLOP:g} TFLOP at 1024 px, a quarter of it at 512 px, counted on the "
                                    "full architecture (`python -m benchmarks.sdxl --device meta`) and rounded",
            "one picture decoded": f"{DECODER_TERAFLOP:g} TFLOP at 1024 px in float32, a quarter of it at 512 px",
            "training": f"{PRODUCTS} products of positions x {CHANNELS} x width a step, dense, in float32; "
                        f"{POSITIONS} positions of each prompt and block, one pass",
            "updates on the disk": f"{CHANNELS * HALF_BYTES * 1_000_000 / GIGA:g} GB per million positions of a block",
            "prompts": f"{PROMPTS} of each measurement (--limit), one seed; {FEATURE_PROMPTS} for single features",
            "step counts": f"{', '.join(map(str, STEP_COUNTS))} of {TURBO}, {BASE_STEPS} of {BASE} under guidance, "
                           "whose two halves count twice",
            "weights": "6.9 GB for each model in float16, see docs/sdxl.md",
        },
        notes=_notes(rows), alt="Bars of GPU hours, one command each, for a slower and a faster GPU.",
    )  # fmt: skip


def _notes(rows: list[Row]) -> tuple[str, ...]:
    """Return sentences on the commands that take most time and disk."""
    most = max(rows, key=lambda row: number(row, "hours"))
    disk = max(rows, key=lambda row: number(row, "disk"))
    return (
        f"Most of the time goes to {most['step']}: {number(most, 'hours'):.1f} GPU hours on the slower GPU, "
        f"{number(most, 'hours_fast'):.1f} on the faster one.",
        f"Most of the disk goes to {disk['step']}: {number(disk, 'disk'):.0f} GB. Fewer prompts take proportionally "
        "less; the published SAEs (`--sweep hf://wendlerc/sdxl-turbo-saes`) need no training at all.",
        "Where one SAE a block is needed, `--sae` names it; without, it is the published one with k = 160.",
    )  # fmt: skip


def _forecast(settings_set: str) -> list[Row]:
    """Forecast evaluations, pictures and disk of the run of a set of settings."""
    from riebench.jobs.dry_run import forecast_job
    from riebench.jobs.request import RunRequest

    found = forecast_job(RunRequest(suite=SUITE, model=TURBO, settings_set=settings_set, device="cuda"))
    return [{"evaluations": found.evaluations, "pictures": found.generations, "disk": found.disk}]


def draw(figure: Figure, artefact: Artefact) -> None:
    """Draw the hours of each command on a logarithmic axis."""
    rows = [row for row in artefact.table().rows[:-1] if number(row, "hours") > 0]
    figure.set_size_inches(7.0, 1.2 + 0.36 * len(rows))
    axes = figure.add_subplot()
    for offset, (name, label) in enumerate((("hours", "slower GPU"), ("hours_fast", "faster GPU"))):
        places = [place + 0.36 * offset - 0.18 for place in range(len(rows))]
        axes.barh(places, [number(row, name) for row in rows], height=0.34, label=label)
    axes.set_xscale("log")
    axes.set_xlabel("estimated GPU hours")
    axes.set_yticks(range(len(rows)), [str(row["step"]) for row in rows])
    axes.invert_yaxis()
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8)
