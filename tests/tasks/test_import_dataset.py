"""Tests of importing data sets of prompt pairs from files and folders.

They are read through the `datasets` library, without the network.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from riebench.cli.main import app
from riebench.errors import RiebenchError
from riebench.tasks.importers.datasets import choose_columns, import_dataset, parse_columns
from riebench.tasks.importers.examples import PIE_SIDE, ImportCollector, category_of, parse_words
from riebench.tasks.importers.rows import DatasetSource, open_rows
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
        "ids with characters that ids lack, which became dashes; as stated they are under `provenance`: 2, a/1 first",
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


TABLE = """id,source,target,category,source_region
000000000001,a cat,a dog,1,NA
1,a house,a boat,1,None
,a NA,null,1,null
1e3,"a, b",007,1,nan
True,a bus,a van,01,inf
"""


@pytest.mark.parametrize("place", ["pairs.csv", "pairs.tsv", "folder"])
def test_every_cell_of_a_table_is_text(place: str, tmp_path: Path) -> None:
    path = tmp_path / ("folder/train.csv" if place == "folder" else place)
    path.parent.mkdir(exist_ok=True)
    table = TABLE.replace('"a, b"', "a b")
    path.write_text(table.replace(",", "\t") if path.suffix == ".tsv" else table)
    collector = new_collector()
    import_dataset(DatasetSource(str(tmp_path / place)), collector, columns=["source_region=source_region"])
    found = {example["id"]: example for example in collector.examples["change_object"]}
    (unnamed,) = set(found) - {"000000000001", "1", "1e3"}
    assert {name: example["source_region"] for name, example in found.items()} == {
        "000000000001": "seen: NA", "1": "seen: None", unnamed: "seen: null", "1e3": "seen: nan",
    }  # fmt: skip
    assert (found[unnamed]["source"], found[unnamed]["target"], found["1e3"]["target"]) == ("a NA", "null", "007")
    assert "rows without an id, called by a hash of their content: 1, row 2 first" in collector.notes
    # "01" is no category, and nothing made it a 1.
    assert [name for name, _ in collector.skipped] == ["True"]


def test_an_open_quotation_mark_is_told(tmp_path: Path) -> None:
    (tmp_path / "pairs.csv").write_text('id,source,target\n1,"a cat,b\n2,c",d\n')
    collector = new_collector()
    import_dataset(DatasetSource(str(tmp_path / "pairs.csv")), collector, category="1")
    assert "prompts with a line break, as an open quotation mark in a table makes them: 1, 1 first" in collector.notes


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("id,source,target\n1,a,b,x\n2,c,d,y\n", "rows have more cells than the header has names"),
        ("id,source,target\n1,a,b\n2,c,d,e\n", "Expected 3 fields"),
        ("id,source,source,target\n1,a,b,c\n", "two columns 'source'"),
    ],
)
def test_tables_of_another_shape_are_refused(table: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "pairs.csv").write_text(table)
    with pytest.raises(RiebenchError, match=message):
        import_dataset(DatasetSource(str(tmp_path / "pairs.csv")), new_collector(), category="1")


def test_tables_that_were_guessed_before_are_not_read_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    class Builder:
        info = datasets.DatasetInfo(builder_name="csv")

    monkeypatch.setattr(datasets, "load_dataset_builder", lambda *arguments, **options: Builder())
    with pytest.raises(RiebenchError, match="hf download --repo-type dataset some/pairs"):
        open_rows(DatasetSource("some/pairs", offline=True))


JSON_CELLS = ["000000000001", 1, "2026-01-01", "2026-01-01 00:00:00", "NA", "None", "1e3", "a-7", "true"]


@pytest.mark.parametrize("name", ["pairs.jsonl", "pairs.json", "lines.json"])
def test_text_in_json_is_text(name: str, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"id": cell, "source": f"a {cell}", "target": cell} for cell in JSON_CELLS]
    rows[3]["later"] = "a column that the first row lacks"
    text = json.dumps(rows, indent=1) if name == "pairs.json" else "".join(f"{json.dumps(row)}\n" for row in rows)
    (tmp_path / name).write_text(text, encoding="utf-8-sig")
    collector = new_collector()
    import_dataset(DatasetSource(str(tmp_path / name)), collector, columns=["instruction=later"], category="1")
    found = collector.examples["change_object"]
    assert [example["target"] for example in found] == [str(cell) for cell in JSON_CELLS]
    ids = ["2026-01-01-00-00-00" if cell == JSON_CELLS[3] else str(cell) for cell in JSON_CELLS]
    assert [example["id"] for example in found] == ids
    assert found[3]["provenance"]["instruction"] == rows[3]["later"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"source": "a"}\n["b"]\n', "line 2 is no record but list"),
        ('[{"source": "a"}, 7]', "entry 1 of the list is no record but int"),
        ('{\n"data": []}', "line 1: damaged JSON .*; write one record a line"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_json_that_holds_no_records_is_one_clear_line(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "pairs.json").write_text(text)
    with pytest.raises(RiebenchError, match=rf"pairs\.json: cannot be read: {message}"):
        import_dataset(DatasetSource(str(tmp_path / "pairs.json")), new_collector())


def rows_of(path: Path, rows: list[dict[str, Any]]) -> str:
    """Write rows as a Parquet file, which keeps the types of cells."""
    datasets.Dataset.from_list(rows).to_parquet(path)
    return str(path)


@pytest.mark.parametrize(
    ("cells", "reason"),
    [
        ([1.0, 2.5], "id is no text but '1.0' (float); store the column as text, in quotes"),
        ([True, False], "id is no text but 'True' (bool)"),
        ([datetime(2026, 1, 1), datetime(2026, 1, 2)], "id is no text but '2026-01-01 00:00:00' (datetime)"),
    ],
)
def test_a_stated_id_is_not_replaced(cells: list[Any], reason: str, tmp_path: Path) -> None:
    rows = [{"id": cell, "source": f"a cat {i}", "target": f"a dog {i}"} for i, cell in enumerate(cells)]
    collector = new_collector()
    import_dataset(DatasetSource(rows_of(tmp_path / "p.parquet", rows)), collector, category="1")
    assert collector.examples == {} and reason in collector.skipped[0][1]


def test_ids_that_become_one_are_refused_and_changed_ones_told(tmp_path: Path) -> None:
    rows = [{"id": name, "source": f"a cat {name}", "target": f"a dog {name}"} for name in ("a/1", "a-1", "a-1", "b")]
    collector = new_collector()
    import_dataset(DatasetSource(rows_of(tmp_path / "p.parquet", rows)), collector, category="1")
    first, second = collector.examples["change_object"]
    assert (first["id"], first["provenance"], second["id"]) == ("a-1", {"stated_id": "a/1"}, "b")
    assert "provenance" not in second
    assert [reason for _, reason in collector.skipped] == [
        "the id 'a-1' is used already; give each record an id of its own"
    ] * 2


INSTRUCT = {"original_prompt": "a cat", "edit_prompt": "make it a dog", "edited_prompt": "a dog"}
HQ_EDIT = {"input": "a cat", "edit": "make it a dog", "inverse_edit": "make it a cat", "output": "a dog"}
EMU = {"instruction": "make it a dog", "input_caption": "a cat", "output_caption": "a dog", "task": "local"}


@pytest.mark.parametrize("row", [INSTRUCT, HQ_EDIT, EMU])
def test_columns_of_data_sets_that_people_have(row: dict[str, str], tmp_path: Path) -> None:
    collector = new_collector()
    place = DatasetSource(rows_of(tmp_path / "p.parquet", [row]))
    import_dataset(place, collector, category=None if "task" in row else "random", words=["local=change_object"])
    ((example,),) = collector.examples.values()
    assert (example["source"], example["target"]) == ("a cat", "a dog")
    assert example["provenance"] == {"instruction": "make it a dog"}
    assert any(note.startswith("columns found by their names: ") for note in collector.notes)


@pytest.mark.parametrize(
    "row", [INSTRUCT, HQ_EDIT, EMU, {"source": "a cat", "edit_instruction": "x", "target_text": "y"}]
)
def test_no_instruction_is_suggested_as_a_prompt(row: dict[str, str]) -> None:
    instructions = ["edit_prompt", "edit", "inverse_edit", "instruction", "edit_instruction"]
    columns = [name for name in row if name not in ("edited_prompt", "output", "output_caption")]
    with pytest.raises(RiebenchError, match=r"--column (source|target)=COLUMN; '.*' is the instruction") as caught:
        choose_columns("x", columns, {})
    with pytest.raises(RiebenchError, match="has no column 'edit_promt'") as misspelt:
        choose_columns("x", list(row), {"target": "edit_promt"})
    assert not set(re.findall(r"\w+", str(misspelt.value))) & set(instructions)
    question = str(caught.value).partition("? write")[0]
    assert not set(re.findall(r"\w+", question)) & set(instructions)


def test_pictures_and_single_columns_are_no_prompts(tmp_path: Path) -> None:
    with pytest.raises(RiebenchError, match="holds the source prompt"):
        choose_columns("x", ["input", "output", "instruction"], {}, ["input", "output"])
    with pytest.raises(RiebenchError, match="holds the target prompt"):
        choose_columns("x", ["source", "output", "instruction"], {})
    picture = Image.new("RGB", (4, 4))
    path = rows_of(tmp_path / "p.parquet", [{"source": picture, "target": "a dog", "caption": "a cat"}])
    collector = new_collector()
    import_dataset(DatasetSource(path), collector, columns=["source=caption"], category="1")
    assert collector.n_examples == 1


@pytest.mark.parametrize(
    ("word", "category"),
    [
        ("add", "add_object"), ("Remove", "delete_object"), ("background", "change_background"),
        ("Colour", "change_color"), ("style", "change_style"), ("object replacement", "change_object"),
        ("texture", "change_material"), ("action", "change_pose"), ("local", "change_content"),
    ],
)  # fmt: skip
def test_words_for_tasks(word: str, category: str) -> None:
    assert category_of(word, parse_words(["LOCAL=change content"])) == category


def test_words_that_may_mean_several_kinds_ask_for_a_map(tmp_path: Path) -> None:
    path = rows_of(tmp_path / "p.parquet", [{**EMU, "task": task} for task in ("local", "global", "text", "1")])
    collector = new_collector()
    words = ["gloabl=change_style", "1=change_pose"]
    import_dataset(DatasetSource(path), collector, words=words)
    assert list(collector.examples) == ["change_pose"]
    assert [reason.partition("; ")[2] for _, reason in collector.skipped] == [
        f"say which it is: --map {word}=CATEGORY" for word in ("local", "global", "text")
    ]
    assert collector.notes[-1] == "--map gloabl=...: no row says 'gloabl' (did you mean 'global'?)"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["local"], "write WORD=CATEGORY"),
        (["=change_pose"], "write WORD=CATEGORY"),
        (["local=change_psoe"], r"did you mean 'change_pose'\?"),
        (["local=1", "Local=2"], "'Local' is given twice"),
    ],
)
def test_maps_that_cannot_be_read(words: list[str], message: str) -> None:
    with pytest.raises(RiebenchError, match=message):
        parse_words(words)


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
