"""Draws the README's picture: one edit of each category, made in each block alone by SAE features of the toy world.

    python -m benchmarks.overview                    makes the edits in a temporary folder and draws them
    python -m benchmarks.overview --results DIR      draws what a run in DIR has made already

Columns are edit categories, each with the first example and seed 0. Rows are the source picture, the edit in each
block, and the target picture. A frame says that the toy world's judge sees the target's attribute in the edited
picture. The file notes what it shows, and a test compares that with the stored results.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from riebench.blocks import default_blocks
from riebench.store.folder import RunFolder, run_path
from riebench.store.records import EditRecord
from riebench.store.shared import SHARED_NAME, SharedFolder
from riebench.tasks.schema import ALL_CATEGORIES

ROOT = Path(__file__).resolve().parents[1]
FILE = ROOT / "docs" / "images" / "overview.png"
SUITE, MODEL, CONFIGURATION = "toy", "toy-turbo", "sae"
NOTE = "riebench-overview"
"""Text chunk of the PNG file that holds what it shows."""
CELL, GAP, FRAME, LEFT, TOP = 96, 10, 3, 88, 24
"""Side of a picture, space between pictures, width of a frame, and margins, in pixels."""
COLORS = 256
FRAME_COLOR = "#1a7f37"


@dataclass(frozen=True)
class Column:
    """One example of a category.

    Attributes:
        example: its id.
        reached: blocks whose edit the judge takes for the target.
    """

    example: str
    reached: tuple[str, ...]


def make(results: Path) -> None:
    """Make the edits: the first example of each category in each block alone, scored."""
    command = [
        sys.executable, "-m", "riebench", "run", str(ROOT / "baselines" / SUITE / f"{CONFIGURATION}.yaml"),
        "--suite", SUITE, "--model", MODEL, "--blocks", "each", "--limit", "1", "--seeds", "0", "--no-report",
        "--results", str(results),
    ]  # fmt: skip
    subprocess.run(command, check=True)


def first_records(folder: RunFolder) -> dict[str, dict[str, EditRecord]]:
    """Return the records of the first example of each category with seed 0.

    Returns:
        Category -> block -> record; the examples are the first by their ids.
    """
    found: dict[str, dict[str, EditRecord]] = {}
    for record in sorted(folder.records(), key=lambda one: one.key.example_id):
        key = record.key
        if key.seed or key.block_set not in default_blocks():
            continue
        column = found.setdefault(key.category, {})
        if all(one.key.example_id == key.example_id for one in column.values()):
            column[key.block_set] = record
    return {category: found[category] for category in ALL_CATEGORIES if category in found}


def columns(folder: RunFolder, records: dict[str, dict[str, EditRecord]]) -> dict[str, Column]:
    """Return what each column shows, from the judge's stored verdicts."""
    reached = {one.unit for one in folder.scores().values() if one.metric == "judge_target" and one.value == 1}
    return {
        category: Column(
            next(iter(of_blocks.values())).key.example_id,
            tuple(block for block in default_blocks() if of_blocks[block].key.digest in reached),
        )
        for category, of_blocks in records.items()
    }


def draw(folder: RunFolder, shared: SharedFolder) -> Image.Image:
    """Draw the picture of a run whose pictures are there."""
    records = first_records(folder)
    shown = columns(folder, records)
    rows = ("source", *default_blocks(), "target")
    canvas = Image.new("RGB", (LEFT + len(shown) * (CELL + GAP), TOP + len(rows) * (CELL + GAP)), "white")
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(size=13)
    for j, row in enumerate(rows):
        pen.text((LEFT - 12, TOP + j * (CELL + GAP) + CELL // 2), row, fill="black", font=font, anchor="rm")
    for i, (category, column) in enumerate(shown.items()):
        left = LEFT + i * (CELL + GAP)
        heading = category.removeprefix("change_").replace("_", " ")
        pen.text((left + CELL // 2, 4), heading, fill="black", font=font, anchor="ma")
        one = next(iter(records[category].values()))
        for j, row in enumerate(rows):
            ends = {"source": one.source_image, "target": one.target_image}
            pixels = (
                shared.read_image(str(ends[row])) if row in ends
                else folder.read_image(str(records[category][row].image))
            )  # fmt: skip
            place = (left, TOP + j * (CELL + GAP))
            if row in column.reached:
                pen.rectangle(
                    (place[0] - FRAME, place[1] - FRAME, place[0] + CELL + FRAME - 1, place[1] + CELL + FRAME - 1),
                    fill=FRAME_COLOR,
                )
            canvas.paste(Image.fromarray(pixels).resize((CELL, CELL), Image.Resampling.BICUBIC), place)
    return canvas


def save(picture: Image.Image, shown: dict[str, Column], file: Path) -> None:
    """Write the picture with few colours, and what it shows."""
    note = PngInfo()
    note.add_text(NOTE, json.dumps({category: asdict(column) for category, column in shown.items()}))
    # Rare colours must stay what they are: other palettes lose the purple of one small crown.
    few = picture.quantize(COLORS, method=Image.Quantize.MAXCOVERAGE, kmeans=4, dither=Image.Dither.NONE)
    few.save(file, optimize=True, pnginfo=note)


def noted(file: Path) -> dict[str, Column]:
    """Return what a saved picture says that it shows."""
    with Image.open(file) as picture:
        stored = json.loads(picture.info[NOTE])
    return {category: Column(one["example"], tuple(one["reached"])) for category, one in stored.items()}


def main() -> None:
    """Read the command line and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, help="results of a run that is there; by default one is made")
    parser.add_argument("--out", type=Path, default=FILE, help="the picture's file")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="riebench-overview-") as temporary:
        results = options.results or Path(temporary)
        if options.results is None:
            make(results)
        folder = RunFolder(run_path(results, SUITE, MODEL, CONFIGURATION))
        picture = draw(folder, SharedFolder(folder.path.parent / SHARED_NAME))
        save(picture, columns(folder, first_records(folder)), options.out)


if __name__ == "__main__":
    main()
