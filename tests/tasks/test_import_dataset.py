"""Tests of importing data sets of prompt pairs from files and folders.

They are read through the `datasets` library, without the network.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from riebench.cli.main import app
from riebench.errors import RiebenchError
from riebench.tasks.importers.datasets import DatasetSource, choose_columns, import_dataset, open_rows, parse_columns
from riebench.tasks.importers.examples import PIE_SIDE, ImportCollector
from riebench.tasks.importers.writer import store_suite, suite_files
from riebench.tasks.suites import load_suite

ROWS: list[dict[str, Any]] = [
    {"name": "a/1", "caption": "a [red] cat", "edited": "a blue cat", "kind": "change color", "where": "cat"},
    {"name": "a 2", "caption": "a cat", "edited": "a cat in a hat", "kind": "2", "where": "hat"},
    {"name": "a-3", "caption": "a dog", "edited": "a dog", "kind": "1", "where": ""},
    {"name": "a-4", "caption": "a dog", "edited": "a fox", "kind": "change_objct", "where": ""},
    {"name": "a-5", "caption": "an oil painting", "edited": "a photo", "kind": "9", "where": None},
]
COLUMNS = ("id=name", "source=caption", "target=edited", "category=kind", "source_region=where")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def new_collector() -> ImportCollector:
    """Return an empty collector that counts words."""
    return ImportCollector(lambda prompt: len(prompt.split()) + 2, 77)


def as_jsonl(folder: Path) -> Path:
    """Write the rows as JSON lines."""
    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def as_parquet(folder: Path) -> Path:
    """Write the rows as a Parquet file."""
    datasets.Dataset.from_list(ROWS).to_parquet(folder / "pairs.parquet")
    return folder / "pairs.parquet"


def as_csv(folder: Path) -> Path:
    """Write the rows as a CSV table."""
    datasets.Dataset.from_list(ROWS).to_csv(folder / "pairs.csv", index=False)
    return folder / "pairs.csv"


def as_folder(folder: Path) -> Path:
    """Write the rows in the layout of a data set on the hub."""
    (folder / "pairs" / "data").mkdir(parents=True)
    datasets.Dataset.from_list(ROWS).to_parquet(folder / "pairs" / "data" / "train-00000-of-00001.parquet")
    return folder / "pairs"


def as_saved(folder: Path) -> Path:
    """Write the rows with `save_to_disk`."""
    datasets.DatasetDict({"train": datasets.Dataset.from_list(ROWS)}).save_to_disk(str(folder / "pairs"))
    return folder / "pairs"


@pytest.mark.parametrize("make", [as_jsonl, as_parquet, as_csv, as_folder, as_saved])
def test_every_local_form_gives_the_same_suite(make: Callable[[Path], Path], tmp_path: Path) -> None:
    collector = new_collector()
    origin = import_dataset(DatasetSource(str(make(tmp_path)), offline=True), collector, columns=COLUMNS)
    assert origin["records"] == 5 and origin["split"] == "train"
    assert origin["dataset"] in ("pairs", "pairs.jsonl", "pairs.parquet", "pairs.csv")
    assert dict(collector.skipped) == {
        "a-3": "source and target are the same prompt",
        "a-4": "unknown category 'change_objct' (did you mean 'change_object'?)",
    }
    store_suite(suite_files(collector, origin), tmp_path / "suite")
    color, added, style = (task.examples[0] for task in sorted(load_suite(str(tmp_path / "suite")), key=by_id))
    assert (color.id, color.source, color.source_region, color.target_region) == ("a-1", "a [red] cat", "cat", "whole")
    # The added thing's region is the target's; nobody named one.
    assert (added.id, added.target_region) == ("a-2", "whole")
    assert (style.id, style.source_region) == ("a-5", "whole")


def by_id(task: Any) -> str:
    """Return the id of a task's first example, as a key for sorting."""
    return str(task.examples[0].id)


def test_hash_and_ids_come_from_the_content(tmp_path: Path) -> None:
    without_id = [column for column in COLUMNS if not column.startswith("id=")]
    digests, ids = [], []
    for make in (as_jsonl, as_parquet):
        collector = new_collector()
        digests.append(import_dataset(DatasetSource(str(make(tmp_path))), collector, columns=without_id)["sha256"])
        ids.append([example["id"] for some in collector.examples.values() for example in some])
    assert digests[0] == digests[1] and ids[0] == ids[1]
    assert all(name.startswith("pairs-") for name in ids[0])
    turned_rows = tmp_path / "turned.jsonl"
    turned_rows.write_text("".join(json.dumps(row) + "\n" for row in reversed(ROWS)))
    collector = new_collector()
    import_dataset(DatasetSource(str(turned_rows)), collector, columns=without_id)
    turned = {example["id"].split("-")[1] for some in collector.examples.values() for example in some}
    assert turned == {name.split("-")[1] for name in ids[0]}


def test_limits_and_missing_regions_are_reported(tmp_path: Path) -> None:
    collector = new_collector()
    columns = [column for column in COLUMNS if not column.startswith(("source_region", "category"))]
    import_dataset(DatasetSource(str(as_jsonl(tmp_path))), collector, columns=columns, category="1", limit=2)
    assert len(collector.examples["change_object"]) == 2
    assert collector.notes == [
        "--limit 2 leaves out the rows after the first 2",
        "no column names regions: each region is the whole picture",
        "2 ids with characters that ids lack, which became dashes; as stated they are under `provenance`: a/1 first",
    ]
    collector = new_collector()
    import_dataset(
        DatasetSource(str(as_jsonl(tmp_path))), collector, columns=columns, category="change_object", limit=5
    )
    assert not any("--limit" in note for note in collector.notes)


def test_masks_as_text_and_as_pictures(tmp_path: Path) -> None:
    half = np.zeros((8, 8), np.uint8)
    half[:4] = 255
    runs = [{"source_prompt": "a cat", "target_prompt": "a dog", "mask": f"0 {PIE_SIDE}", "category": 0}]
    pictures = [{"source_prompt": "a cat", "target_prompt": "a dog", "mask": Image.fromarray(half), "category": 0}]
    for name, rows, share in (("runs", runs, 1 / PIE_SIDE), ("pictures", pictures, 0.5)):
        datasets.Dataset.from_list(rows).to_parquet(tmp_path / f"{name}.parquet")
        collector = new_collector()
        origin = import_dataset(DatasetSource(str(tmp_path / f"{name}.parquet")), collector)
        store_suite(suite_files(collector, origin), tmp_path / name)
        (task,) = load_suite(str(tmp_path / name))
        with Image.open(tmp_path / name / task.examples[0].source_region.removeprefix("file:")) as picture:
            assert np.asarray(picture).mean() == pytest.approx(share)
        assert task.category == "random"


@pytest.mark.parametrize(
    ("place", "options", "message"),
    [
        ({"name": "./pairs.jsnol"}, {}, r"no such file or folder \(did you mean 'pairs.jsonl'\?\)"),
        ({"name": "./elsewhere"}, {}, "no such file or folder$"),
        ({"name": "pairs.jsonl", "split": "trian"}, {}, r"no split 'trian' \(did you mean 'train'\?\)"),
        ({"name": "pairs.jsonl"}, {"columns": ["source=captoin"]}, r"'captoin' for source \(did you mean 'caption'"),
        ({"name": "pairs.jsonl"}, {}, r"which column of pairs.jsonl holds the source prompt .*--column source=COLUMN"),
        ({"name": "pairs.jsonl"}, {"columns": COLUMNS[:3]}, "no column of pairs.jsonl says the edits' category"),
        ({"name": "pairs.jsonl"}, {"category": "chnage_pose"}, "did you mean 'change_pose'"),
        ({"name": "damaged.jsonl"}, {}, "damaged.jsonl: "),
        ({"name": "empty.jsonl"}, {}, "empty.jsonl"),
        ({"name": "two"}, {}, "several splits; choose one with --split: test, train"),
        ({"name": "notes.md"}, {}, "cannot tell what it is"),
        ({"name": "empty"}, {}, "empty: "),
    ],
)
def test_what_cannot_be_read_is_one_clear_line(
    place: dict[str, Any], options: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    as_jsonl(tmp_path)
    (tmp_path / "damaged.jsonl").write_text('{"source": "a cat", \n{{{')
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "notes.md").write_text("# a cat")
    (tmp_path / "empty").mkdir()
    (tmp_path / "two").mkdir()
    for split in ("train", "test"):
        (tmp_path / "two" / f"{split}.jsonl").write_text(json.dumps(ROWS[0]))
    with pytest.raises(RiebenchError, match=message) as caught:
        import_dataset(DatasetSource(**place), new_collector(), **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        ("source", "write FIELD=COLUMN"),
        ("=x", "write FIELD=COLUMN"),
        ("sorce=x", "unknown field 'sorce' (did you mean 'source'?)"),
    ],
)
def test_column_options(pair: str, message: str) -> None:
    with pytest.raises(RiebenchError) as caught:
        parse_columns([pair])
    assert message in str(caught.value)
    with pytest.raises(RiebenchError, match="given twice"):
        parse_columns(["id=a", "id=b"])
    assert choose_columns("x", ["source", "target", "mask", "other"], {"id": "other"}) == {
        "id": "other", "source": "source", "target": "target", "mask": "mask",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("error", "offline", "message"),
    [
        (datasets.exceptions.DatasetNotFoundError("x"), False, "the hub has no data set nobody/nothing"),
        (ConnectionError("x"), False, "check the network or HTTPS_PROXY, or name a local file"),
        (ConnectionError("x"), True, "leave --offline out, or name a local file"),
        (ValueError("BuilderConfig 'a' not found.\nmore"), False, "nobody/nothing: BuilderConfig 'a' not found."),
    ],
)
def test_what_the_hub_refuses(error: Exception, offline: bool, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any, **options: Any) -> None:
        assert arguments[0] == "nobody/nothing"
        raise error

    monkeypatch.setattr(datasets, "load_dataset_builder", refuse)
    with pytest.raises(RiebenchError, match=message):
        open_rows(DatasetSource("nobody/nothing", offline=offline))


def test_an_unknown_id_without_a_network_ends_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["tasks", "import", "dataset", "nobody/nothing", "--offline"])
    assert result.exit_code == 2
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("riebench: nobody/nothing is not on this machine and the hub cannot be reached: leave")
    assert list(tmp_path.iterdir()) == []
