"""Limits of a large run: one writer, the stored text, and the reading of it.

    python -m benchmarks.scale --units 1000000

Records are made up. Writing is done as the process behind `--engine ray` does it: one picture and one record at a
time, both brought to the disk. Reading is done as `riebench leaderboard` and `riebench tables` do it, in a process of
its own for each number of units, so that its peak of memory is its own. Seconds of computing are the processor's, which
a busy machine does not lengthen; those of writing are the clock's, since it waits for the disk.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from riebench.analysis.leaderboard import write_leaderboard
from riebench.analysis.tables import write_tables
from riebench.blocks import block_set_name
from riebench.models.families.sdxl.names import BLOCKS
from riebench.models.spec import ModelSpec
from riebench.store.folder import RunFolder, find_run_folders, run_path
from riebench.store.invocations import package_versions
from riebench.store.records import BlockFeatures, EditRecord, RunSpec, ScoreRecord, UnitKey
from riebench.store.run_file import write_seal
from riebench.tasks.masks import MaskShare
from riebench.tasks.schema import Setting
from riebench.utils.files import append_lines, write_atomic
from riebench.utils.machine import peak_ram

SIDES = (64, 512, 1024)
PNG_SHARE = 0.7
"""Size of a stored picture as a share of its three bytes per pixel."""
STRENGTHS = (1.0, 2.0, 4.0, 8.0)
METRICS = ("clip_gain", "clip_gain_2", "lpips", "psnr_background", "ssim_background", "structure_distance")
FEATURES = 20
LINES_AT_ONCE = 10_000


def model(size: int = 512) -> ModelSpec:
    """Return the description of a made-up model."""
    return ModelSpec(name="made-up", source="made/up", revision="0", steps=4, guidance=0.0, size=size, dtype="bfloat16")


def keys(count: int) -> Iterator[UnitKey]:
    """Yield units of one setting.

    Each example has five block sets at four strengths.
    """
    places = [(blocks, strength) for blocks in (*((b,) for b in BLOCKS), BLOCKS) for strength in STRENGTHS]
    for index in range(count):
        example, place = divmod(index, len(places))
        blocks, strength = places[place]
        yield UnitKey(
            task="change_object", task_version=1, category="change_object", example_id=f"made-up-{example:06d}",
            example_hash="0" * 16, block_set=block_set_name(blocks), strength=strength, seed=0,
        )  # fmt: skip


def record(key: UnitKey) -> EditRecord:
    """Return the record of a finished unit of the method `sae`."""
    unit = key.digest
    digest = hashlib.sha256(unit.encode()).hexdigest()
    blocks = BLOCKS if key.block_set == "all" else (key.block_set,)
    chosen = tuple(range(1000, 1000 + FEATURES // len(blocks)))
    return EditRecord(
        key=key, status="ok", image=f"images/{unit}.png", image_sha256=digest,
        source_image=f"images/{key.example_id}.00000000.0.source.png",
        target_image=f"images/{key.example_id}.00000000.0.target.png",
        features={block: BlockFeatures(add=chosen, remove=chosen) for block in blocks},
        mask_share=MaskShare(source=0.25, target=0.25), seconds=0.123456789, batch_size=4,
    )  # fmt: skip


def writing(root: Path, side: int, count: int) -> dict[str, float]:
    """Measure the pictures with records that one process stores in a second.

    Args:
        root: folder for the results.
        side: of the pictures, in pixels.
        count: of the pictures.
    """
    folder = RunFolder(run_path(root, "made-up", f"at-{side}", "sae"), _spec(side, "sae"))
    data = os.urandom(int(side * side * 3 * PNG_SHARE))
    with folder.open_for_writing():
        start, computing = time.perf_counter(), time.process_time()
        for key in keys(count):
            one = record(key)
            hashlib.sha256(data).hexdigest()
            write_atomic(folder.path / str(one.image), data)
            folder.append(one)
        seconds, computed = time.perf_counter() - start, time.process_time() - computing
    return {
        "side": side, "picture_bytes": len(data), "units": count, "units_a_second": count / seconds,
        "megabytes_a_second": count * len(data) / seconds / 1e6, "processor_ms_a_unit": 1e3 * computed / count,
    }  # fmt: skip


def _spec(side: int, name: str) -> RunSpec:
    setting = Setting(name=name, method="sae", params={"n_features": FEATURES}, block_mode="both", strengths=STRENGTHS)
    return RunSpec(suite="made-up", model=model(side), setting=setting, sae_sha256={"mid.0": name})


def fill(root: Path, units: int, settings: int) -> dict[str, float]:
    """Store records and scores without pictures, and return their sizes.

    Args:
        root: folder for the results.
        units: in all; each setting gets the same number.
        settings: how many.

    Returns:
        Bytes of the records and of the scores for each unit.
    """
    per_setting, sizes = units // settings, [0, 0]
    for number in range(settings):
        folder = RunFolder(run_path(root, "made-up", "made-up", f"sae_{number:02d}"), _spec(512, f"sae_{number:02d}"))
        with folder.open_for_writing(plan=keys(per_setting)):
            pass
        files = [folder.path / "records.jsonl", folder.path / "scores.jsonl"]
        waiting: tuple[list[str], list[str]] = ([], [])
        for index, key in enumerate(keys(per_setting), start=1):
            one = record(key)
            waiting[0].append(one.model_dump_json(exclude_defaults=True))
            waiting[1].extend(_scores(one, index))
            if index % LINES_AT_ONCE == 0 or index == per_setting:
                for file, lines in zip(files, waiting, strict=True):
                    append_lines(file, lines)
                    lines.clear()
        write_seal(folder.path)
        sizes = [size + file.stat().st_size for size, file in zip(sizes, files, strict=True)]
    return {"record_bytes_a_unit": sizes[0] / units, "score_bytes_a_unit": sizes[1] / units}


def _scores(one: EditRecord, index: int) -> list[str]:
    unit = one.key.digest
    return [
        ScoreRecord(
            unit=unit, metric=metric, version=1, backbone="made-up@0123456789ab", picture=one.picture_id,
            value=(index * 7919 % 10007) / 10007,
        ).model_dump_json(exclude_defaults=True)
        for metric in METRICS
    ]  # fmt: skip


def reading(root: Path) -> dict[str, float]:
    """Measure processor seconds of all that reads everything, and peak memory."""
    figures: dict[str, float] = {}
    mark = time.process_time()

    def lap(name: str) -> None:
        nonlocal mark
        figures[name], mark = round(time.process_time() - mark, 2), time.process_time()

    folders = find_run_folders(root)
    figures["done_units_of_one_setting"] = len(folders[0].records())
    lap("records_of_one_setting")
    folders[0].scores()
    lap("scores_of_one_setting")
    write_leaderboard(root, root / "leaderboard.md")
    lap("leaderboard")
    write_tables(folders)
    lap("tables")
    figures["peak_memory_mb"] = peak_ram() / 2**20
    return figures


def main() -> int:
    """Measure, print and store the figures, and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--units", type=int, nargs="+", default=[10_000, 100_000], help="numbers of units to read")
    parser.add_argument("--settings", type=int, default=32, help="settings that these units are parted among")
    parser.add_argument("--pictures", type=int, default=200, help="pictures to write of each size")
    parser.add_argument("--work", type=Path, help="folder on the disk to measure; emptied afterwards")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "scale.json")
    parser.add_argument("--read", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.read is not None:
        print(json.dumps(reading(chosen.read)))
        return 0
    with tempfile.TemporaryDirectory(prefix="riebench-scale-", dir=chosen.work) as place:
        figures: dict[str, Any] = {"writing": [writing(Path(place) / "w", side, chosen.pictures) for side in SIDES]}
        figures["reading"] = []
        for units in chosen.units:
            root = Path(place) / str(units)
            sizes = fill(root, units, chosen.settings)
            line = [sys.executable, "-m", "benchmarks.scale", "--read", str(root)]
            done = subprocess.run(line, capture_output=True, text=True, check=True)
            figures["reading"].append({"units": units, "settings": chosen.settings, **sizes, **json.loads(done.stdout)})
            print(figures["reading"][-1], file=sys.stderr)
    figures["versions"] = package_versions()
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    chosen.out.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(figures, indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
