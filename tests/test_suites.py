from __future__ import annotations

from pathlib import Path

import pytest

from riebench.errors import RiebenchError, TaskFileError
from riebench.schema import CATEGORIES
from riebench.suites import (
    check_prompt_lengths,
    load_setting,
    load_settings,
    load_suite,
    load_task,
    setting_names,
    suite_names,
)

GOOD = """\
category: change_object
version: 1
examples:
  - id: one
    source: a red cat
    target: a red dog
    source_region: cat
    target_region: dog
  - id: two
    source: a blue cat on a mat
    target: a blue fox on a mat
    source_region: blue cat
    target_region: "not: mat"
"""


def write(folder: Path, text: str, name: str = "change_object.yaml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_a_good_file_loads(tmp_path: Path) -> None:
    task = load_task(write(tmp_path, GOOD))
    assert (task.name, task.category, task.region_rule, len(task.examples)) == (
        "change_object",
        "change_object",
        "edit",
        2,
    )


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("source: a red cat", "sorce: a red cat", r"examples\[0\].*sorce: unknown key \(did you mean 'source'\?\)"),
        ("version: 1", "vresion: 1", r"vresion: unknown key \(did you mean 'version'\?\)"),
        ("change_object", "change_objekt", "category: unknown category 'change_objekt'"),
        ("version: 1", "version: 0", "version: Input should be greater"),
        ("version: 1\n", "", "version: is missing"),
        ("    source_region: cat\n", "", "source_region is missing"),
        ("source_region: cat", "source_region: dog", "source_region: 'dog' does not occur in the source prompt"),
        (
            "target_region: dog",
            "target_region: dgo",
            r"'dgo' does not occur in the target prompt \(did you mean 'dog'\?\)",
        ),
        ("target: a red dog", "target: A  red cat", "the same prompt"),
        ("id: two", "id: one", "'one' is already used"),
        ("  - id: one", "\t- id: one", "line 4: a tab"),
        ("version: 1", "version: 1\nversion: 2", "line 3: key 'version' is given twice"),
        (
            "    source: a red cat",
            "    source: a red cat\n    source: a red cow",
            "line 6: key 'source' is given twice",
        ),
        ("source: a red cat", "source: [a red cat", "line"),
        ("source: a red cat", "source: 7", r"examples\[0\]\.source: Input should be a valid string, not 7"),
        ("id: one", "id: ../one", r"examples\[0\]\.id"),
    ],
)
def test_slips_are_errors_that_name_file_and_key(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in GOOD
    path = write(tmp_path, GOOD.replace(old, new, 1))
    with pytest.raises(TaskFileError, match=message) as caught:
        load_task(path)
        load_suite(str(tmp_path))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_equal_pairs_and_ids_across_files_are_refused(tmp_path: Path) -> None:
    doubled = GOOD.replace("a blue cat on a mat", "a red cat").replace("a blue fox on a mat", "a red dog")
    doubled = doubled.replace("blue cat", "cat").replace("not: mat", "dog")
    with pytest.raises(TaskFileError, match="the same prompts as one"):
        load_task(write(tmp_path, doubled))
    write(tmp_path, GOOD)
    write(tmp_path, GOOD.replace("change_object", "change_pose"), "change_pose.yaml")
    with pytest.raises(TaskFileError, match=r"'one' is already used in change_object\.yaml"):
        load_suite(str(tmp_path))


def test_add_and_delete_need_one_region(tmp_path: Path) -> None:
    text = GOOD.replace("change_object", "add_object").replace("    source_region: cat\n", "")
    assert load_task(write(tmp_path, text)).region_rule == "add"
    with pytest.raises(TaskFileError, match="source_region is missing"):
        load_task(write(tmp_path, text.replace("add_object", "delete_object")))


def test_suites_are_found_by_name_and_by_path(tmp_path: Path) -> None:
    assert {"toy", "sdxl"} <= set(suite_names())
    with pytest.raises(RiebenchError, match=r"unknown suite 'tyo' \(did you mean 'toy'\?\)"):
        load_suite("tyo")
    with pytest.raises(RiebenchError, match="is empty"):
        load_suite(str(tmp_path))
    write(tmp_path, GOOD)
    assert [len(task.examples) for task in load_suite(str(tmp_path), limit=1)] == [1]
    with pytest.raises(RiebenchError, match="unknown category"):
        load_suite(str(tmp_path), categories=["change_objects"])
    with pytest.raises(RiebenchError, match="no task of category"):
        load_suite(str(tmp_path), categories=["change_pose"])
    with pytest.raises(RiebenchError, match="at least 1"):
        load_suite(str(tmp_path), limit=0)


@pytest.mark.parametrize(("suite", "least"), [("toy", 12), ("sdxl", 40)])
def test_shipped_suites_hold_nine_categories(suite: str, least: int) -> None:
    tasks = load_suite(suite)
    assert [task.category for task in tasks] == list(CATEGORIES)
    assert [task.name for task in tasks] == [task.category for task in tasks]
    assert min(len(task.examples) for task in tasks) >= least
    pairs = {(e.source, e.target) for task in tasks for e in task.examples}
    assert len(pairs) == sum(len(task.examples) for task in tasks)


def test_content_hash_follows_the_content(tmp_path: Path) -> None:
    before = load_task(write(tmp_path, GOOD)).content_hash
    assert load_task(write(tmp_path, "# a comment\n" + GOOD)).content_hash == before
    assert load_task(write(tmp_path, GOOD.replace("a red dog", "a red, old dog"))).content_hash != before


def test_prompts_that_would_be_cut_are_refused() -> None:
    tasks = load_suite("toy", limit=1)
    check_prompt_lengths(tasks, lambda prompt: len(prompt.split()) + 2, 32)
    with pytest.raises(RiebenchError, match=r"has \d+ tokens, of which the model reads 5"):
        check_prompt_lengths(tasks, lambda prompt: len(prompt.split()) + 2, 5)


@pytest.mark.parametrize("suite", ["toy", "sdxl"])
def test_official_settings_load(suite: str) -> None:
    settings = load_settings(suite)
    assert {"no_edit", "target_prompt", "sae"} <= {setting.method for setting in settings}
    assert all(setting.description for setting in settings)


def test_settings_are_found_and_slips_named(tmp_path: Path) -> None:
    name = setting_names("toy")[0]
    assert load_settings("toy", [name])[0].name == name
    with pytest.raises(RiebenchError, match=r"unknown setting 'no_edti' \(did you mean 'no_edit'\?\)"):
        load_settings("toy", ["no_edti"])
    with pytest.raises(RiebenchError, match="given twice"):
        load_settings("toy", [name, name])
    with pytest.raises(TaskFileError, match=r"unknown method 'sea' \(did you mean 'sae'\?\)"):
        load_setting(write(tmp_path, "method: sea\n", "mine.yaml"))
    with pytest.raises(TaskFileError, match=r"strength: unknown key \(did you mean 'strengths'\?\)"):
        load_setting(write(tmp_path, "method: sae\nstrength: 1\n", "mine.yaml"))
    mine = write(tmp_path, "method: sae\nstrengths: [1, 2]\n", "mine.yaml")
    assert load_settings("toy", [str(mine)])[0].strengths == (1.0, 2.0)
