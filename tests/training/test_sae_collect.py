"""Collecting block updates: what is in the shards, going on after an interruption, and every refusal."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from safetensors.torch import load_file, save_file
from tiny import CHANNELS, GRID, tiny_folder, tiny_model
from typer.testing import CliRunner

from riebench.cli.main import app
from riebench.errors import RiebenchError
from riebench.generation.generator import Capture, Generator
from riebench.tasks.importers.rows import DatasetSource
from riebench.toyworld.captions import training_captions
from riebench.training import collect as collecting
from riebench.training import collection
from riebench.training.collect import CollectOptions, collect, sizes
from riebench.training.collection import Collection
from riebench.training.prompts import PromptSource, ToyCaptions
from riebench.utils.files import temporary_path, write_atomic

PROMPTS = [f"a picture of number {number}" for number in range(7)]
WHAT = CollectOptions(blocks=("mid.0", "up.0.1"), batch_size=2, pictures_per_shard=3)
ROWS = GRID * GRID


def collected(folder: Path, prompts: list[str] | None = None, what: CollectOptions = WHAT) -> Collection:
    return collect(tiny_model(1), PROMPTS if prompts is None else prompts, folder, what, progress=False)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a collection but its lock."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*")) if path.is_file() and path.name != ".lock"
    }  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven pictures in one go: shards of 3, 3 and 1."""
    folder = tmp_path_factory.mktemp("whole")
    collected(folder)
    return folder


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    """The same in a folder that may be damaged."""
    for name, data in contents(whole).items():
        path = tmp_path / "copy" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return tmp_path / "copy"


def test_shards_hold_what_the_blocks_add(whole: Path) -> None:
    there = Collection.open(whole)
    assert [there.shards[number].pictures for number in range(3)] == [3, 3, 1]
    assert there.pictures == 7 and not there.damaged()
    data = there.data("mid.0")
    assert (len(data), data.width, data.rows_per_picture) == (7 * ROWS, CHANNELS, ROWS)
    trace = Generator(tiny_model(1)).generate(PROMPTS[3:5], [3, 4], capture=Capture(("mid.0",))).trace
    expected = trace.get("mid.0").movedim(2, -1).flatten(0, 3).half()
    assert torch.equal(data.read(3 * ROWS, 5 * ROWS), expected)
    assert data.read(2 * ROWS, 7 * ROWS).dtype == torch.float16
    stored = load_file(there.path("mid.0", 1))[collection.TENSOR]
    assert torch.equal(stored[: 2 * ROWS], expected)
    assert there.index.model.steps == 1 and "1000003" in there.index.seed_rule


def test_pictures_with_several_steps_lie_step_after_step(tmp_path: Path) -> None:
    what = CollectOptions(blocks=("mid.0",), batch_size=2)
    data = collect(tiny_model(2, 3.0), PROMPTS[:2], tmp_path, what, progress=False).data("mid.0")
    trace = Generator(tiny_model(2, 3.0)).generate(PROMPTS[:2], [0, 1], capture=Capture(("mid.0",))).trace
    assert len(data) == 2 * 2 * ROWS and data.rows_per_picture == 2 * ROWS
    second = trace.get("mid.0")[1, 1].movedim(0, -1).flatten(0, 1).half()
    assert torch.equal(data.read(3 * ROWS, 4 * ROWS), second)


def test_nothing_is_decoded_and_nothing_runs_after_the_last_wanted_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def decode(*_: Any) -> None:
        raise AssertionError("a picture was decoded")

    monkeypatch.setattr(Generator, "decode", decode)
    ran: list[str] = []
    unet: Any = tiny_model(1).denoiser
    handles = [
        part.register_forward_hook(lambda *_, name=name: ran.append(name))
        for name, part in (("mid", unet.mid_block), ("up", unet.up_blocks[0].attentions[0]))
    ]
    try:
        collected(tmp_path, PROMPTS[:2], CollectOptions(blocks=("down.2.1", "mid.0")))
    finally:
        for handle in handles:
            handle.remove()
    assert ran == []
    # Hooks are gone too: the model generates as before.
    assert not any(module._forward_hooks for module in unet.modules())


@pytest.mark.parametrize("at", [1, 3, 4])
def test_an_interruption_changes_no_bit(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:  # fmt: skip
    real, calls = Generator.generate, iter(range(100))

    def stopped(*arguments: Any, **options: Any) -> Any:
        if next(calls) == at:
            raise KeyboardInterrupt
        return real(*arguments, **options)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Generator, "generate", stopped)
        collected(tmp_path)
    assert len(Collection.open(tmp_path).shards) == at // 2
    # What was half written when the power went: a file without its line, and a torn line.
    torn = tmp_path / "mid.0" / f"{at // 2:05d}.safetensors"
    torn.parent.mkdir(exist_ok=True)
    torn.write_bytes(b"half")
    with (tmp_path / collection.SHARDS).open("ab") as file:
        file.write(b'{"number": 2, "pict')
    collected(tmp_path)
    assert contents(tmp_path) == contents(whole)


def test_repeating_makes_nothing(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def generate(*_: Any, **__: Any) -> None:
        raise AssertionError("a picture was generated")

    monkeypatch.setattr(Generator, "generate", generate)
    before = contents(copy)
    collected(copy)
    collected(copy, what=CollectOptions(blocks=WHAT.blocks, batch_size=2, pictures_per_shard=3, limit=2))
    assert contents(copy) == before


def test_more_prompts_go_on_where_fewer_ended(whole: Path, tmp_path: Path) -> None:
    collected(tmp_path, PROMPTS[:5])
    collected(tmp_path)
    assert contents(tmp_path) == contents(whole)


def test_a_damaged_shard_is_named_and_made_again_alone(copy: Path, whole: Path) -> None:
    cut, flipped = copy / "mid.0" / "00001.safetensors", copy / "up.0.1" / "00002.safetensors"
    cut.write_bytes(cut.read_bytes()[:-5])
    with pytest.raises(RiebenchError, match=r"mid.0/00001.safetensors is cut off: \d+ bytes instead of"):
        Collection.open(copy).data("mid.0")
    data = bytearray(flipped.read_bytes())
    data[-1] ^= 1
    flipped.write_bytes(data)
    untouched = (copy / "mid.0" / "00000.safetensors").stat().st_mtime_ns
    with pytest.raises(RiebenchError, match=r"00001.safetensors is cut off.*1 more shards.*--redo-damaged") as raised:
        collected(copy)
    assert "\n" not in str(raised.value)
    assert Collection.open(copy).damaged(["up.0.1"]) == {2: f"{flipped} has changed since it was written"}
    collected(copy, what=CollectOptions(WHAT.blocks, None, 0, 2, 3, redo_damaged=True))
    assert {name: data for name, data in contents(copy).items() if name != collection.SHARDS} == {
        name: data for name, data in contents(whole).items() if name != collection.SHARDS
    }
    assert Collection.open(copy).shards == Collection.open(whole).shards
    assert (copy / "mid.0" / "00000.safetensors").stat().st_mtime_ns == untouched


def test_a_shard_is_not_made_again_of_fewer_pictures(copy: Path) -> None:
    (copy / "mid.0" / "00001.safetensors").write_bytes(b"half")
    before = contents(copy)
    with pytest.raises(RiebenchError, match="holds 7 pictures; to make what is damaged again, ask for as many or more"):
        collected(copy, what=CollectOptions(WHAT.blocks, 4, 0, 2, 3, redo_damaged=True))
    assert contents(copy) == before


def test_a_full_disk_loses_nothing(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = write_atomic, iter(range(100))

    def full(path: Path, data: bytes) -> None:
        if next(calls) == 4:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        real(path, data)

    out = tmp_path / "out"
    file = tmp_path / "prompts.txt"
    file.write_text("\n".join(PROMPTS))
    command = [
        "sae", "collect", "--model", str(tiny_folder()), "--guidance", "0", "--prompts", str(file), "--out", str(out),
        "--blocks", "mid.0,up.0.1", "--batch-size", "2", "--shard-pictures", "3", "--device", "cpu",
    ]  # fmt: skip
    with monkeypatch.context() as patch:
        patch.setattr(collection, "write_atomic", full)
        result = CliRunner().invoke(app, command)
    assert result.exit_code == 2
    assert "riebench: the disk is full; everything finished so far is kept" in result.stderr.splitlines()[-1]
    assert list(Collection.open(out).shards) == [0] and not list(out.rglob("*.tmp"))
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert (
        "mid.0: width 64, 16 positions a picture, 128 MB a million positions; 112 positions, 14.34 kB" in result.stderr
    )
    assert contents(out) == contents(whole)


def test_half_a_shard_of_a_killed_process_goes(copy: Path) -> None:
    before = contents(copy)
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    half = temporary_path(copy / "mid.0" / "00002.safetensors")
    half.with_name(half.name.replace(f"-{os.getpid()}-", f"-{ended.pid}-")).write_bytes(b"half")
    collected(copy)
    assert contents(copy) == before


def test_a_disk_that_is_too_small_is_reported_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collecting, "free_disk", lambda _: 1000)
    with pytest.raises(RiebenchError, match=r"8\.192 kB are still to be written, but .* has 1 kB free"):
        collected(tmp_path, what=CollectOptions(("mid.0",), limit=4))
    assert not Collection.open(tmp_path).shards


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seed": 1}, "seed is 0, not 1"),
        ({"blocks": ("mid.0",)}, r"blocks is mid.0\+up.0.1, not mid.0"),
        ({"batch_size": 4}, "batch_size is 2, not 4"),
    ],
)
def test_a_folder_holds_one_collection(copy: Path, changes: dict[str, Any], words: str) -> None:
    options = {"blocks": WHAT.blocks, "batch_size": 2, "pictures_per_shard": 3, **changes}
    before = contents(copy)
    with pytest.raises(RiebenchError, match=f"holds other updates: {words}; use another folder"):
        collected(copy, what=CollectOptions(**options))
    assert contents(copy) == before


def test_a_folder_holds_one_model(copy: Path) -> None:
    with pytest.raises(RiebenchError, match=r"holds other updates: .*model steps is 1, not 2"):
        collect(tiny_model(2), PROMPTS, copy, WHAT, progress=False)


def test_other_prompts_are_refused(copy: Path) -> None:
    with pytest.raises(RiebenchError, match="prompts 4 to 6 are not those that"):
        collected(copy, [*PROMPTS[:3], "another one", *PROMPTS[4:]])


def test_prompts_that_end_too_soon(tmp_path: Path) -> None:
    with pytest.raises(RiebenchError, match="no data left: there are 7 prompts, 9 are asked for"):
        collect(tiny_model(1), PROMPTS, tmp_path, CollectOptions(limit=9), known=7, progress=False)
    what = CollectOptions(("mid.0",), limit=4, batch_size=2)
    with pytest.raises(RiebenchError, match="no data left: the prompts ended after 3, 4 are asked for"):
        collect(tiny_model(1), iter(PROMPTS[:3]), tmp_path, what, progress=False)
    assert Collection.open(tmp_path).pictures == 3
    assert collect(tiny_model(1), iter(PROMPTS), tmp_path, what, progress=False).pictures == 4


def test_a_block_that_is_not_there(whole: Path, tmp_path: Path) -> None:
    with pytest.raises(RiebenchError, match=r"has no block mid\.3 \(did you mean 'mid\.0'\?\)"):
        collected(tmp_path, what=CollectOptions(blocks=("mid.3",)))
    with pytest.raises(RiebenchError, match=r"mid\.0\.ff\.0 names units inside a block"):
        collected(tmp_path, what=CollectOptions(blocks=("mid.0.ff.0",)))
    with pytest.raises(RiebenchError, match=r"no updates of block up\.0\.0 \(did you mean 'up\.0\.1'\?\)"):
        Collection.open(whole).data("up.0.0")


def test_a_folder_in_use_is_left_alone(copy: Path) -> None:
    with FileLock(copy / ".lock"), pytest.raises(RiebenchError, match="being written by another riebench"):
        collected(copy)


def test_what_is_no_collection(tmp_path: Path, copy: Path) -> None:
    with pytest.raises(RiebenchError, match="holds no collected updates; `riebench sae collect` makes them"):
        Collection.open(tmp_path / "nowhere")
    index = json.loads((copy / collection.INDEX).read_text())
    index["blocks"] = {"../../mid.0": {"width": 64, "rows": 16}}
    (copy / collection.INDEX).write_text(json.dumps(index))
    with pytest.raises(RiebenchError):
        Collection.open(copy)


def changed(copy: Path, line: int, **changes: Any) -> None:
    """Rewrites a shard's line."""
    lines = (copy / collection.SHARDS).read_text().splitlines()
    lines[line] = json.dumps({**json.loads(lines[line]), **changes})
    (copy / collection.SHARDS).write_text("".join(f"{one}\n" for one in lines))


@pytest.mark.parametrize("changes", [{"pictures": 10**15}, {"files": {}}, {"number": -1}])
def test_lines_that_cannot_be_are_refused(copy: Path, changes: dict[str, Any]) -> None:
    changed(copy, 1, **changes)
    with pytest.raises(RiebenchError, match=r"shards\.jsonl, line 2 describes no shard; delete that line"):
        Collection.open(copy)


def test_a_number_far_beyond_all_others_is_a_gap(copy: Path) -> None:
    changed(copy, 2, number=10**15)
    with pytest.raises(RiebenchError, match="lacks shard 2, which is to be made again"):
        Collection.open(copy).data("mid.0")


def test_a_file_of_another_shape_is_refused(copy: Path) -> None:
    path = copy / "mid.0" / "00001.safetensors"
    save_file({collection.TENSOR: torch.zeros(CHANNELS, 3 * ROWS, dtype=torch.float16)}, path)
    files = Collection.open(copy).shards[1].model_dump(mode="json")["files"]
    files["mid.0"]["bytes"] = path.stat().st_size
    changed(copy, 1, files=files)
    with pytest.raises(RiebenchError, match=r"00001\.safetensors holds .* where positions .* should be"):
        Collection.open(copy).data("mid.0").read(0, 7 * ROWS)


@pytest.mark.parametrize(
    ("extra", "words"),
    [(["--prompts", "EMPTY"], "holds no prompt"), (["--toy-captions", "2", "--seed", str(2**60)], "the seed must be")],
)
def test_what_cannot_be_collected_is_refused_before_a_model_is_loaded(
    tmp_path: Path, extra: list[str], words: str
) -> None:  # fmt: skip
    (tmp_path / "empty.txt").write_text("\n \n")
    extra = [str(tmp_path / "empty.txt") if one == "EMPTY" else one for one in extra]
    line = ["sae", "collect", "--model", "owner/nowhere", "--out", str(tmp_path / "out"), *extra]
    result = CliRunner().invoke(app, line)
    assert result.exit_code == 2 and len(result.stderr.splitlines()) == 1 and words in result.stderr
    assert not (tmp_path / "out").exists()


def test_numbers_too_large_for_16_bits_are_refused(tmp_path: Path) -> None:
    module: Any = tiny_model(1).denoiser.get_submodule("mid_block.attentions.0.proj_out")
    original = module.weight
    # Not by monkeypatch: it would delete the parameter afterwards, and other tests use the same model.
    module.weight = torch.nn.Parameter(original.detach() * 1e8)
    try:
        with pytest.raises(RiebenchError, match=r"an update of mid\.0 is too large for 16 bits"):
            collected(tmp_path, PROMPTS[:1])
    finally:
        module.weight = original


def test_sizes_are_given_per_million_positions(whole: Path) -> None:
    index = Collection.open(whole).index
    first, _, total = sizes(index, 1_000_000)
    assert first.startswith("mid.0: width 64, 16 positions a picture, 128 MB a million positions; 16,000,000 positions")
    assert total == "in all: 4.096 GB, in shards of 3 pictures"
    assert sizes(index, None)[-1] == "in all: 4.096 kB a picture, in shards of 3 pictures"


@pytest.fixture
def tables(tmp_path: Path) -> Iterator[dict[str, Path]]:
    """The same prompts as csv, parquet and in a folder."""
    import pandas as pd

    frame = pd.DataFrame({"id": [1, 2, 3, 4], "caption": ["a cat", " ", "a dog ", "a bird"]})
    places = {name: tmp_path / name for name in ("prompts.csv", "prompts.parquet", "folder")}
    frame.to_csv(places["prompts.csv"], index=False)
    frame.to_parquet(places["prompts.parquet"])
    places["folder"].mkdir()
    frame.to_parquet(places["folder"] / "train.parquet")
    yield places


def test_prompts_are_streamed_from_data_sets(tables: dict[str, Path]) -> None:
    for path in tables.values():
        for column in (None, "caption"):
            source = PromptSource(dataset=DatasetSource(str(path)), column=column)
            assert list(source.read()) == ["a cat", "a dog", "a bird"] and source.count() is None
    path = tables["prompts.csv"]
    for column, words in (("captoin", r"no column 'captoin' \(did you mean 'caption'\?\)"), ("id", "holds no text")):
        with pytest.raises(RiebenchError, match=words):
            list(PromptSource(dataset=DatasetSource(str(path)), column=column).read())
    with pytest.raises(RiebenchError, match="no split 'test'"):
        list(PromptSource(dataset=DatasetSource(str(path), split="test")).read())


def test_prompts_of_a_file_and_of_the_toy_world(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("a cat\n\n  a dog \n")
    source = PromptSource(file=file)
    assert source.count() == 2 and list(source.read()) == ["a cat", "a dog"]
    file.write_text("\n")
    with pytest.raises(RiebenchError, match=r"no data left: .* holds no prompt"):
        list(PromptSource(file=file).read())
    with pytest.raises(RiebenchError, match=r"nowhere\.txt: cannot be read"):
        PromptSource(file=tmp_path / "nowhere.txt").count()
    few, more = (PromptSource(captions=ToyCaptions(count, training_captions)) for count in (5, 9))
    toy = list(few.read())
    assert few.count() == len(toy) == 5 and toy == list(more.read())[:5]
    with pytest.raises(RiebenchError, match="one of --prompts FILE, --dataset ID and --toy-captions N"):
        PromptSource(file=file, captions=ToyCaptions(3, training_captions))
