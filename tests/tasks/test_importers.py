"""Tests of importing the published benchmarks' files as task files.

They check what arrives, what is left out and why, and what is never overwritten.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from shared_files import SHARED, needs
from typer.testing import CliRunner

from riebench.cli.main import app
from riebench.errors import RiebenchError
from riebench.generation.regions.masks import View, find_region
from riebench.tasks.importers.examples import (
    PIE_SIDE,
    ImportCollector,
    category_of,
    column_region,
    decode_mask,
    published_region,
    read_json,
)
from riebench.tasks.importers.published import _riebench_draft, import_piebench, import_riebench
from riebench.tasks.importers.writer import store_suite, suite_files
from riebench.tasks.masks import run_lengths
from riebench.tasks.schema import ALL_CATEGORIES, CATEGORIES, MIXED_CATEGORY
from riebench.tasks.suites import load_suite

RECORD = {
    "id": "111000000000", "editing_type_id": "1", "original_prompt": "[fishes] in the  ocean",
    "editing_prompt": "[sharks] in the ocean", "editing_instruction": "change the fishes to sharks",
    "original_gsam_prompt": "fishes", "editing_gsam_prompt": "sharks",
}  # fmt: skip
HALF = [0, PIE_SIDE * PIE_SIDE // 2]


def new_collector() -> ImportCollector:
    """Return an empty collector that counts words."""
    return ImportCollector(lambda prompt: len(prompt.split()) + 2, 12)


def pie(number: int, **changes: Any) -> dict[str, Any]:
    """Return one record of a mapping file, of category `number`."""
    values = {
        "image_path": f"{number}_x/a.png", "original_prompt": f"a [cat] {number}",
        "editing_prompt": f"a [dog] {number}", "editing_instruction": "change it", "editing_type_id": str(number),
        "blended_word": "cat dog", "mask": HALF,
    }  # fmt: skip
    return {**values, **changes}


def write_json(path: Path, value: Any) -> Path:
    """Write a JSON file and return its path."""
    path.write_text(json.dumps(value))
    return path


# --- run lengths


@given(st.integers(1, 7), st.integers(1, 9), st.data())
def test_run_lengths_round_trip(height: int, width: int, data: st.DataObject) -> None:
    cells = data.draw(st.lists(st.booleans(), min_size=height * width, max_size=height * width))
    mask = np.array(cells).reshape(height, width)
    runs = run_lengths(mask)
    assert np.array_equal(decode_mask(runs, height, width), mask)
    for separator in (" ", ",", ", ", " ,\n"):
        assert np.array_equal(decode_mask(separator.join(map(str, runs)), height, width), mask)
    assert np.array_equal(decode_mask(str(runs), height, width), mask)


def test_run_lengths_are_row_major_clipped_and_have_no_border() -> None:
    assert np.flatnonzero(decode_mask([0, 3, 10, 2], 4, 4)).tolist() == [0, 1, 2, 10, 11]
    assert np.flatnonzero(decode_mask([14, 9], 4, 4)).tolist() == [14, 15]
    middle = decode_mask([5, 1], 4, 4)
    assert not middle[0].any() and not middle[:, 0].any()


@pytest.mark.parametrize(
    ("runs", "message"),
    [
        ([1, 2, 3], "pairs of start and length"),
        ([-1, 2], "is negative"),
        ([0, 1.5], "1.5 is none"),
        ([0, True], "True is none"),
        ("0 x", "numbers with spaces or commas"),
        ("0,,9", "numbers with spaces or commas"),
        ("0;9", "numbers with spaces or commas"),
        ("0, 9, 16, 1", r"run 16\+1 begins behind a picture of 4 x 4 pixels"),
        ({"a": 1}, "not dict"),
    ],
)
def test_bad_run_lengths(runs: Any, message: str) -> None:
    with pytest.raises(RiebenchError, match=message):
        decode_mask(runs, 4, 4)


# --- words


@pytest.mark.parametrize(
    ("phrase", "prompt", "region"),
    [
        ("#everything", "[a sketch of] a cat", "whole"),
        ("background", "a cat on a [white] background", "background"),
        ("white background", "a cat on a [white] background", "background"),
        ("~cat", "a [cat] on a mat", "not: cat"),
        ("red  cat", "a [red] cat", "red cat"),
        ("face", "a [serious] man", "seen: face"),
        ("~face", "a man", "not: seen: face"),
        ("table", "a checkered tablecloth", "seen: table"),
    ],
)
def test_published_phrases(phrase: str, prompt: str, region: str) -> None:
    assert published_region(phrase, prompt) == region


def test_stated_regions_keep_our_own_forms() -> None:
    assert [column_region(text, "a cat") for text in ("whole", "not: background", "cat", "not: hat", "seen: hat")] == [
        "whole", "not: background", "cat", "not: seen: hat", "seen: hat",
    ]  # fmt: skip
    with pytest.raises(RiebenchError, match="names a file"):
        column_region("not: file:x.png", "a cat")


def test_categories_by_name_and_number() -> None:
    assert [category_of(number) for number in range(10)] == list(ALL_CATEGORIES)
    assert category_of("6_change_attribute_color_40") == category_of("change colour") == "change_color"
    assert category_of("Add-Object") == "add_object"
    for unknown, message in (("change_objekt", "did you mean 'change_object'"), ("10", "unknown category '10'")):
        with pytest.raises(RiebenchError, match=message):
            category_of(unknown)


def test_the_mixed_category_stands_beside_the_nine() -> None:
    assert ALL_CATEGORIES == {MIXED_CATEGORY: 0, **CATEGORIES}
    assert MIXED_CATEGORY not in CATEGORIES


# --- RIEBench


def test_brackets_stay_in_the_file_and_leave_the_generated_prompt(tmp_path: Path) -> None:
    collector = new_collector()
    origin = import_riebench(write_json(tmp_path / "r.json", [RECORD]), collector)
    store_suite(suite_files(collector, origin), tmp_path / "suite")
    (task,) = load_suite(str(tmp_path / "suite"))
    (example,) = task.examples
    assert example.source == "[fishes] in the  ocean"
    assert (example.plain.source, example.plain.target) == ("fishes in the ocean", "sharks in the ocean")
    assert (example.source_region, example.target_region) == ("fishes", "sharks")
    assert example.provenance == {"instruction": "change the fishes to sharks"}
    assert task.provenance == {**origin, "left_out": 0}
    assert (origin["file"], len(str(origin["sha256"]))) == ("r.json", 64)
    # Provenance changes no number.
    assert example.model_copy(update={"provenance": {}}).content_hash == example.content_hash


@pytest.mark.parametrize(
    ("kind", "stated", "absent"),
    [("2", "target_region", "source_region"), ("3", "source_region", "target_region")],
)
def test_added_and_deleted_objects_have_one_region(tmp_path: Path, kind: str, stated: str, absent: str) -> None:
    collector = new_collector()
    import_riebench(write_json(tmp_path / "r.json", [{**RECORD, "editing_type_id": kind}]), collector)
    ((values,),) = collector.examples.values()
    assert stated in values and absent not in values


def test_records_that_cannot_be_used_are_named_with_their_reason(tmp_path: Path) -> None:
    bad: dict[str, dict[str, Any]] = {
        "no-prompt": {"original_prompt": 3.5},
        "same": {"editing_prompt": "FISHES in the [ocean]"},
        "empty": {"original_prompt": "[ ]"},
        "long": {"editing_prompt": "sharks " * 11},
        "kind": {"editing_type_id": "12"},
        "no words": {"original_gsam_prompt": " "},
        "a/b": {"editing_prompt": "a whale"},
        "again": {},
    }
    records: list[Any] = [RECORD, *({**RECORD, "id": name, **changes} for name, changes in bad.items()), "text"]
    renamed = {("gone" if key == "editing_prompt" else key): value for key, value in RECORD.items()}
    collector = new_collector()
    origin = import_riebench(write_json(tmp_path / "r.json", [*records, {**renamed, "id": "renamed"}]), collector)
    reasons = dict(collector.skipped)
    for name, reason in {
        "no-prompt": "original_prompt is no text: '3.5'",
        "same": "source and target are the same prompt",
        "empty": "source: the prompt is empty",
        "long": "target has 13 tokens, of which the model reads 12",
        "kind": "unknown category '12'",
        "no words": "a region has no words",
        "a/b": "id: String should match pattern",
        "again": "the same edit as 111000000000",
        "record 9": "expected a record with keys, not str",
        "renamed": "editing_prompt is missing (did you mean",
    }.items():
        assert reasons.pop(name).startswith(reason), name
    assert not reasons
    assert collector.n_examples == 1 and origin["records"] == 11


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"id": 1},', r"r.json, line 1: damaged JSON"),
        ('{"a": 1, "a": 2}', "'a' is given twice"),
        ("[" * 100_000, "r.json: "),
        (b"\xff\xfe", "r.json: "),
        ("{}", "expected a list of records"),
        ("[]", "expected a list of records"),
    ],
)
def test_damaged_files_are_one_line(tmp_path: Path, text: str | bytes, message: str) -> None:
    path = tmp_path / "r.json"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(RiebenchError, match=message) as caught:
        import_riebench(path, new_collector())
    assert "\n" not in str(caught.value)
    with pytest.raises(RiebenchError, match=r"absent\.json: no such file"):
        read_json(tmp_path / "absent.json")


# --- PIE-Bench


def test_ten_categories_with_masks_arrive(tmp_path: Path) -> None:
    collector = new_collector()
    path = write_json(tmp_path / "mapping_file.json", {f"{n}11000000000": pie(n) for n in range(10)})
    store_suite(suite_files(collector, import_piebench(path, None, tmp_path / "pie", collector)), tmp_path / "pie")
    tasks = load_suite(str(tmp_path / "pie"))
    assert [task.category for task in tasks] == list(ALL_CATEGORIES)
    assert [task.region_rule for task in tasks[:4]] == ["edit", "edit", "add", "delete"]
    assert [task.name for task in load_suite(str(tmp_path / "pie"), categories=["random"])] == ["random"]
    example = tasks[0].examples[0]
    assert example.source_region == example.target_region == "file:masks/011000000000.png"
    assert example.provenance["blended_word"] == "cat dog"
    view = View("a cat", np.zeros((64, 64, 3), np.uint8), None, (1, 1), lambda words: [])
    mask = find_region(example.source_region, view, lambda words, view: np.zeros((64, 64), bool), tmp_path / "pie")
    assert mask[:32].all() and not mask[32:].any()  # and no border
    assert tasks[2].examples[0].source_region == "whole" and not (tmp_path / "pie" / "masks" / "x").exists()


def test_equal_prompts_with_other_masks_are_two_edits_of_one_cluster(tmp_path: Path) -> None:
    other = pie(1, mask=[5, 9])
    collector = new_collector()
    path = write_json(
        tmp_path / "m.json", {"a": pie(1), "b": other, "c": pie(1), "d": pie(4, mask=[0, PIE_SIDE * PIE_SIDE])}
    )
    store_suite(suite_files(collector, import_piebench(path, None, tmp_path, collector)), tmp_path / "pie")
    first, second = load_suite(str(tmp_path / "pie"))[0].examples
    assert (first.id, second.id, first.cluster, second.cluster) == ("a", "b", "a", "a")
    assert first.content_hash != second.content_hash
    assert collector.skipped == [("c", "the same edit as a")]
    assert collector.notes == ["masks that cover the whole picture: 1, d first"]


def test_pictures_are_noted_or_named_as_missing(tmp_path: Path) -> None:
    images = tmp_path / "images"
    (images / "1_x").mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(images / "1_x" / "a.png")
    (images / "2_x").mkdir()
    (images / "2_x" / "a.png").write_text("not a picture")
    records = {"a": pie(1), "b": pie(2), "c": pie(3), "d": pie(4, image_path="../a.png"), "e": pie(5, mask=[0, 0])}
    del records["c"]["mask"]
    path = write_json(tmp_path / "m.json", {**records, "f": pie(6)})
    collector = new_collector()
    import_piebench(path, images, tmp_path / "suites" / "pie", collector)
    ((values,),) = collector.examples.values()
    assert values["provenance"]["image"] == "../../images/1_x/a.png"
    assert len(values["provenance"]["image_sha256"]) == 64
    assert dict(collector.skipped) == {
        "b": f"image_path '2_x/a.png': no picture that can be read in {images}",
        "c": "mask is missing",
        "d": "image_path '../a.png' leaves the folder of pictures",
        "e": f"image_path '5_x/a.png': no such file in {images}",
        "f": f"image_path '6_x/a.png': no such file in {images}",
    }
    collector = new_collector()
    import_piebench(path, None, tmp_path, collector)
    assert ("e", "the mask is empty") in collector.skipped
    with pytest.raises(RiebenchError, match="no such folder of pictures"):
        import_piebench(path, tmp_path / "absent", tmp_path, collector)


# --- folders


def test_nothing_is_overwritten_silently(tmp_path: Path) -> None:
    collector = new_collector()
    files = suite_files(collector, import_riebench(write_json(tmp_path / "r.json", [RECORD]), collector))
    out = tmp_path / "deep" / "suite"
    assert store_suite(files, out).written == ("change_object.yaml",)
    assert store_suite(files, out).unchanged == ("change_object.yaml",)
    (out / "change_object.yaml").write_text("mine")
    with pytest.raises(RiebenchError, match=r"change_object.yaml has other content .*use --force"):
        store_suite(files, out)
    assert (out / "change_object.yaml").read_text() == "mine"
    store_suite(files, out, force=True)
    assert len(load_suite(str(out))) == 1
    assert [path.name for path in out.parent.iterdir()] == ["suite"]


def test_other_task_files_of_the_folder_stay_and_share_no_id(tmp_path: Path) -> None:
    out = tmp_path / "suite"
    collector = new_collector()
    store_suite(suite_files(collector, import_riebench(write_json(tmp_path / "r.json", [RECORD]), collector)), out)
    collector = new_collector()
    more = write_json(tmp_path / "m.json", [{**RECORD, "editing_type_id": "6"}])
    with pytest.raises(RiebenchError, match="has an example '111000000000' already"):
        store_suite(suite_files(collector, import_riebench(more, collector)), out)
    assert [path.name for path in out.iterdir()] == ["change_object.yaml"]


def test_a_failed_import_leaves_nothing(tmp_path: Path) -> None:
    bad = {"change_object.yaml": b"category: change_object\nversion: 0\n"}
    with pytest.raises(RiebenchError, match=r"change_object\.yaml: .* \(and 1 more\)"):
        store_suite(bad, tmp_path / "new" / "suite")
    assert list((tmp_path / "new").iterdir()) == []
    with pytest.raises(RiebenchError, match="'my suite' is no name for records"):
        store_suite(bad, tmp_path / "my suite")
    (tmp_path / "file").write_text("")
    with pytest.raises(RiebenchError, match=r"cannot be written \(.*\); name another folder"):
        store_suite(bad, tmp_path / "file" / "suite")
    with pytest.raises(RiebenchError, match="is a file"):
        store_suite(bad, tmp_path / "file")
    with pytest.raises(RiebenchError, match="nothing to import: 0 records"):
        suite_files(new_collector(), {"format": "riebench"})


@given(st.text(min_size=1, max_size=40))
def test_any_prompt_survives_the_file(text: str) -> None:
    collector = new_collector()
    collector.examples["change_style"] = [{"id": "1", "source": text, "target": f"{text}!"}]
    data = suite_files(collector, {"format": "riebench"})["change_style.yaml"]
    assert yaml.safe_load(data)["examples"][0]["source"] == text
    assert b"\t" not in data


# --- through the command line


def test_what_is_left_out_is_reported_and_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("riebench.methods.check.token_counter", lambda model: (len, 77))
    write_json(
        tmp_path / "m.json", {"a": pie(0), "b": pie(1, mask=[1]), **{f"c{n}": pie(2, mask=[]) for n in range(20)}}
    )
    made = CliRunner().invoke(app, ["tasks", "import", "piebench", "m.json"])
    assert made.exit_code == 0, made.output
    assert made.stdout.split() == ["random", "1", "examples", "suites/piebench/random.yaml"]
    lines = made.stderr.splitlines()
    assert lines[0] == "left out  b: a mask is pairs of start and length, but this one has 1 numbers"
    assert "left out  1 more" in lines and "1 of 22 records imported, 21 left out" in lines
    assert load_suite("suites/piebench")[0].provenance["left_out"] == 21
    monkeypatch.setattr("riebench.methods.check.token_counter", lambda model: (len, 3))
    refused = CliRunner().invoke(app, ["tasks", "import", "piebench", "m.json", "--out", "other"])
    assert refused.exit_code == 2 and not (tmp_path / "other").exists()
    last = refused.stderr.splitlines()[-1]
    assert last.startswith("riebench: nothing to import: 22 records were left out; the first, a: source has")


@needs("data/riebench.json")
def test_all_296_examples_arrive_and_pass_the_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    published = SHARED / "data" / "riebench.json"
    command = ["tasks", "import", "riebench", str(published)]
    made = CliRunner().invoke(app, command)
    assert made.exit_code == 0, made.output
    assert "296 of 296 records imported, 0 left out" in made.stderr
    again = CliRunner().invoke(app, command)
    assert again.exit_code == 0 and "9 files as they were" in again.stderr
    records = {record["id"]: record for record in json.loads(published.read_text())}
    tasks = load_suite("suites/riebench")
    assert [task.category for task in tasks] == list(CATEGORIES)
    examples = {example.id: (task, example) for task in tasks for example in task.examples}
    assert examples.keys() == records.keys()
    for name, (task, example) in examples.items():
        record = records[name]
        assert (example.source, example.target) == (record["original_prompt"], record["editing_prompt"])
        assert CATEGORIES[task.category] == int(record["editing_type_id"])
        assert not {"[", "]"} & set(example.plain.source + example.plain.target)
    seen = [e for _, e in examples.values() if "seen:" in e.source_region + e.target_region]
    assert len(seen) == 8
    checked = CliRunner().invoke(app, ["tasks", "check", "suites/riebench"])
    assert checked.exit_code == 0, checked.output
    assert "9 tasks, 296 examples" in checked.stderr and "8 examples have 'seen:' regions" in checked.stderr
    listed = CliRunner().invoke(app, ["tasks", "list", "suites/riebench"])
    assert "change_style@1  47 examples" in listed.stdout


def test_a_record_that_no_file_can_hold_is_left_out_alone(tmp_path: Path) -> None:
    """Check that a tab, half a character or an endless text loses one record only."""
    odd = {
        "tab": {"editing_prompt": "a\tdog"}, "bell": {"blended_word": "\x07"}, "half": {"original_prompt": "a \ud800"},
        "long": {"editing_instruction": "x" * 200_000},
    }  # fmt: skip
    records = {"whole": pie(1), **{name: pie(1, **changes) for name, changes in odd.items()}}
    collector = new_collector()
    origin = import_piebench(write_json(tmp_path / "in.json", records), None, tmp_path / "suite", collector)
    store_suite(suite_files(collector, origin), tmp_path / "suite")
    (task,) = load_suite(str(tmp_path / "suite"))
    assert [example.id for example in task.examples] == ["whole"]
    assert [name for name, _ in collector.skipped] == list(odd)
    assert all("control character" in why or "200000 characters" in why for _, why in collector.skipped)


def test_names_of_records_that_are_left_out_are_one_printable_line(tmp_path: Path) -> None:
    collector = new_collector()
    deep: Any = 1
    for _ in range(5000):
        deep = [deep]
    import_riebench(write_json(tmp_path / "in.json", [{"id": "a\x1b[2J\nb" + "x" * 9000}, {"id": [[]]}]), collector)
    assert [name[:12] for name, _ in collector.skipped] == ["a\\x1b[2J bxx", "record 1"] and len(
        collector.skipped[0][0]
    ) < 250
    collector = new_collector()
    collector.add_record("deep", lambda: _riebench_draft({**RECORD, "editing_type_id": deep}))
    assert collector.skipped == [("deep", "nested too deeply")]
