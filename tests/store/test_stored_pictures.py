"""Pictures that records name: each reader opens them in their folder only, and only where they are pictures."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL.PngImagePlugin import PngImageFile
from scored_runs import TASKS, noise, stored_run

from riebench.analysis.export import save_dataset, to_dataset
from riebench.errors import RiebenchError, StoreError
from riebench.report import write_report
from riebench.report.gallery import write_galleries
from riebench.scoring.score import score
from riebench.scoring.verify import verify
from riebench.store.folder import RunFolder
from riebench.utils.images import encode_png, read_image, stored_picture

SECRET = encode_png(noise(7))
"""A picture of the user's that no reader may copy, show or hash."""


def link_to_picture(path: Path, outside: Path) -> None:
    path.symlink_to(outside / "secret.png")


def link_to_text(path: Path, outside: Path) -> None:
    path.symlink_to(outside / "secret.txt")


def link_of_folder(path: Path, outside: Path) -> None:
    (outside / path.name).write_bytes(SECRET)
    path.parent.rename(path.parent.with_name("before"))
    path.parent.symlink_to(outside)


def text(path: Path, outside: Path) -> None:
    path.write_text("no picture")


def pipe(path: Path, outside: Path) -> None:
    os.mkfifo(path)


FAULTS = {"link": link_to_picture, "link to text": link_to_text, "link of folder": link_of_folder,
          "text": text, "pipe": pipe}  # fmt: skip


def dataset(folder: RunFolder, out: Path) -> None:
    save_dataset(to_dataset([folder], TASKS), out / "dataset")


def page(folder: RunFolder, out: Path) -> None:
    write_report(folder.path.parents[2], out / "report", TASKS)


def gallery(folder: RunFolder, out: Path) -> None:
    write_galleries(folder.path.parent, [folder])


def scores(folder: RunFolder, out: Path) -> None:
    score([folder], TASKS, metrics=["mse_bg", "lpips_target"], progress=False)


def verification(folder: RunFolder, out: Path) -> None:
    findings = verify(folder.path, TASKS).findings
    if any("picture" in one for one in findings):
        raise RiebenchError("; ".join(findings))


def next_run(folder: RunFolder, out: Path) -> None:
    if len(folder.finished_units()) < 2:
        raise RiebenchError("a unit is made again")


READERS: dict[str, Callable[[RunFolder, Path], None]] = {
    "data set": dataset, "page": page, "gallery": gallery, "scores": scores, "verification": verification,
    "next run": next_run,
}  # fmt: skip


@pytest.mark.parametrize("role", ["image", "source_image", "target_image"])
@pytest.mark.parametrize("fault", FAULTS)
def test_every_reader_refuses_what_is_elsewhere_or_no_picture(tmp_path: Path, fault: str, role: str) -> None:
    (tmp_path / "secret.png").write_bytes(SECRET)
    (tmp_path / "secret.txt").write_text("years of work")
    folder = stored_run(tmp_path / "results")
    record = folder.records()[0]
    path = (folder.path if role == "image" else folder.shared.path) / str(getattr(record, role))
    path.unlink()
    FAULTS[fault](path, tmp_path)
    for name, reader in READERS.items():
        out = tmp_path / f"out {name}"
        try:
            reader(folder, out)
        except (RiebenchError, OSError) as error:
            assert len(str(error).splitlines()) == 1
        else:
            # A page and a gallery do without a picture, but never show another file.
            assert name in ("page", "gallery"), name
        written = [file.read_bytes() for file in [*out.rglob("*"), *folder.path.parent.glob("gallery/*")]
                   if file.is_file()]  # fmt: skip
        assert not any(SECRET in data or b"years of work" in data for data in written), name


def test_a_record_that_names_another_file_of_its_folder_shows_nothing(tmp_path: Path) -> None:
    """Whatever lies beside pictures, such as the command in run.json, goes into no data set and onto no page."""
    folder = stored_run(tmp_path / "results")
    lines = [json.loads(line) for line in (folder.path / "records.jsonl").read_text().splitlines()]
    for line in lines:
        line |= {"image": "run.json", "source_image": lines[0]["source_image"]}
    (folder.path / "records.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(RiebenchError, match=r"run\.json is no whole picture"):
        dataset(folder, tmp_path / "out")
    page(folder, tmp_path / "out")
    assert not any(b"spec_version" in file.read_bytes() for file in (tmp_path / "out").rglob("*.png"))


@pytest.mark.parametrize("name", ["../secret.png", "{root}/secret.png", "a/../../secret.png", "", "a\x00b", "x" * 300])
def test_names_that_are_no_names(tmp_path: Path, name: str) -> None:
    place = tmp_path / "run"
    place.mkdir()
    (tmp_path / "secret.png").write_bytes(SECRET)
    with pytest.raises(RiebenchError, match=r"names a picture outside itself|no whole picture"):
        stored_picture(place, name.format(root=tmp_path))


def test_checksums_are_computed_only_where_no_hash_states_the_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = encode_png(noise(1))
    (tmp_path / "a.png").write_bytes(data)
    verified, verify_file = [], PngImageFile.verify

    def counting(self: PngImageFile) -> None:
        verified.append(self)
        verify_file(self)

    monkeypatch.setattr(PngImageFile, "verify", counting)
    known = read_image(tmp_path, "a.png", hashlib.sha256(data).hexdigest())
    assert not verified
    assert np.array_equal(known, read_image(tmp_path, "a.png"))
    assert len(verified) == 1
    with pytest.raises(StoreError, match="not the picture that was recorded"):
        read_image(tmp_path, "a.png", "0" * 64)
    flipped = bytearray(data)
    flipped[len(data) // 2] ^= 1
    (tmp_path / "a.png").write_bytes(flipped)
    for sha256 in (None, hashlib.sha256(data).hexdigest()):
        with pytest.raises(StoreError, match="cannot be read"):
            read_image(tmp_path, "a.png", sha256)


def test_nothing_is_written_through_a_link(tmp_path: Path) -> None:
    folder = stored_run(tmp_path / "results")
    record: Any = folder.records()[0]
    (tmp_path / "home").mkdir()
    for place in (folder.path / "images", folder.shared.path / "images"):
        place.rename(place.with_name("before"))
        place.symlink_to(tmp_path / "home")
    with pytest.raises(RiebenchError, match="outside itself"):
        folder.write_image(record.key, noise(1))
    with pytest.raises(RiebenchError, match="outside itself"):
        folder.shared.write_image(record.source_image, noise(1))
    assert not [*(tmp_path / "home").iterdir()]


def test_pipes_among_the_texts_of_a_run_are_not_waited_for(tmp_path: Path) -> None:
    for name in ("run.json", "records.jsonl", "scores.jsonl", "seal.json"):
        folder = stored_run(tmp_path / name)
        (folder.path / name).unlink(missing_ok=True)
        os.mkfifo(folder.path / name)
        if name == "seal.json":
            assert "seal.json is damaged" in verify(folder.path, TASKS).findings
            continue
        with pytest.raises(OSError, match="no regular file"):
            again = RunFolder(folder.path)
            again.records()
            again.scores()
