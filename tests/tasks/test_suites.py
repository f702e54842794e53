"""Tests of finding, reading and checking suites and settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from riebench.errors import RiebenchError, TaskFileError
from riebench.models.families.sdxl.names import BLOCKS
from riebench.models.presets import PRESETS
from riebench.tasks.schema import CATEGORIES
from riebench.tasks.settings import load_setting_file, load_settings, setting_names
from riebench.tasks.suites import (
    check_prompt_lengths,
    default_model,
    load_suite,
    load_task,
    shipped_suites,
    suite_name,
    suite_title,
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
        ("source: a red cat", "source: 7", r"examples\[0\]\.source: 7 is no text to YAML; put it in quotes: '7'"),
        ("id: one", "id: ../one", r"examples\[0\]\.id"),
        ("id: one", "id: 010", "line 4: YAML reads 010 as 8; put it in quotes if it is text, or write 8"),
        ("id: one", "id: 12:30", "line 4: YAML reads 12:30 as 750; put it in quotes"),
        ("version: 1", "version: 010", "line 2: YAML reads 010 as 8"),
        ("id: one", "id: no", "id: no is no text to YAML; put it in quotes: 'no'"),
        ("id: one", "id: 2026-01-01", "id: 2026-01-01 is no text to YAML; put it in quotes: '2026-01-01'"),
        ("id: one", "id: 0x1F", "id: 0x1F is no text to YAML; put it in quotes: '0x1F'"),
        ("id: one", "id: ~", "id: ~ is no text to YAML; put it in quotes: '~'"),
        (
            "id: one",
            "id: one\n    provenance: {5: a}",
            r"provenance\[5\]\.\[key\]: 5 is no text to YAML; put it in quotes: '5'",
        ),
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


@pytest.mark.parametrize(
    ("region", "message"),
    [
        ("red, cat", "'red, cat' does not occur"),  # found word by word, but not by the search that makes the mask
        ('"not: not: cow"', "'cow' does not occur"),
        ('"not: background"', None),
        ("Red  cat", None),
        ("' '", "'' does not occur"),
        ('"seen: whiskers"', None),
        ('"seen: "', "'seen:' needs words"),
        ('"file:absent.png"', "source_region: mask file .*absent.png: No such file"),
        ('"not: file:mask.png"', None),
    ],
)
def test_regions_are_looked_for_as_when_masks_are_made(tmp_path: Path, region: str, message: str | None) -> None:
    (tmp_path / "mask.png").write_bytes(b"first")
    path = write(tmp_path, GOOD.replace("source_region: cat", f"source_region: {region}"))
    if message is not None:
        with pytest.raises(TaskFileError, match=message):
            load_task(path)
        return
    before = load_task(path).examples[0].content_hash
    (tmp_path / "mask.png").write_bytes(b"second")
    assert (load_task(path).examples[0].content_hash != before) == ("file:" in region)


def test_files_that_only_break_when_they_are_built_are_named(tmp_path: Path) -> None:
    for text in ("version: 2024-99-99\n", "? [a, b]\n: c\n", "a: &loop [*loop]\n", "- a\n", ""):
        path = write(tmp_path, text)
        with pytest.raises(TaskFileError) as caught:
            load_task(path)
        assert str(path) in str(caught.value)


def test_attributes_that_nobody_could_judge_are_refused(tmp_path: Path) -> None:
    stated = "    target_region: dog\n    attributes:\n      source: {color: red}\n      target: "
    good = GOOD.replace("    target_region: dog\n", stated + "{color: blue}\n")
    assert load_task(write(tmp_path, good)).examples[0].attributes is not None
    for target, message in (("{colour: blue}", "only one states color, colour"), ("{color: red}", "are the same")):
        with pytest.raises(TaskFileError, match=rf"examples\[0\]\.attributes: .*{message}"):
            load_task(write(tmp_path, GOOD.replace("    target_region: dog\n", f"{stated}{target}\n")))


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
    assert {"toy", "sdxl"} <= set(shipped_suites())
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


def test_brackets_mark_words_and_are_no_part_of_the_prompt(tmp_path: Path) -> None:
    marked = GOOD.replace("source: a red cat", 'source: "a [red  cat]"').replace("region: cat", "region: red cat")
    example = load_task(write(tmp_path, marked)).examples[0]
    assert (example.source, example.plain.source) == ("a [red  cat]", "a red cat")
    check_prompt_lengths(load_suite(str(tmp_path)), len, len("a blue fox on a mat"))
    for target, message in (("'[a] red cat'", "the same prompt"), ("'[]'", "target: the prompt is empty")):
        with pytest.raises(TaskFileError, match=message):
            load_task(write(tmp_path, marked.replace("target: a red dog", f"target: {target}")))


def test_mixed_edits_are_a_category_of_their_own(tmp_path: Path) -> None:
    task = load_task(write(tmp_path, GOOD.replace("change_object", "random"), "random.yaml"))
    assert (task.category, task.region_rule) == ("random", "edit")


@pytest.mark.parametrize("suite", ["toy", "sdxl"])
def test_shipped_prompts_are_generated_from_as_they_are(suite: str) -> None:
    assert all(example.plain == example for task in load_suite(suite) for example in task.examples)


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


def test_the_sdxl_settings_are_the_published_sweep() -> None:
    sweep: dict[tuple[str, Any, str], tuple[float, ...]] = {
        **{("sae", n, "first"): (1.0, 2.0) for n in (80, 160, 320, 640)},
        # Units are ranked in both ways: on the first step, and on the mean over steps.
        **{
            ("neurons", n, rank): (1.0, 2.0)
            for n in (5_000, 10_000, 20_000, 40_000, 80_000) for rank in ("first", "mean")
        },
        ("activation_patch", None, "first"): tuple(quarter / 4 for quarter in range(1, 9)),
    }  # fmt: skip
    settings = [s for s in load_settings("sdxl") if s.method in ("sae", "neurons", "activation_patch")]
    static = [s for s in settings if not s.params.get("adaptive")]
    counts = {"sae": "n_features", "neurons": "n_units"}
    found = {
        (s.method, s.params.get(counts.get(s.method, "")), str(s.params.get("rank", "first"))): s.strengths
        for s in static
    }
    assert found == sweep
    assert len(static) == len(sweep)
    assert all(set(s.blocks) == set(BLOCKS) for s in static)
    # The publication divides by the units' signed sum.
    assert {s.params.get("shares") for s in static if s.method == "neurons"} == {"published"}


def test_suites_without_settings_of_their_own_take_those_for_sdxl(tmp_path: Path) -> None:
    assert default_model("toy") == default_model("./anywhere/toy") == "toy-turbo"
    assert default_model("sdxl") == default_model(str(tmp_path)) == "sdxl-turbo"
    assert setting_names(str(tmp_path)) == setting_names("sdxl") != setting_names("toy")
    assert {default_model(suite) for suite in shipped_suites()} <= set(PRESETS)


def test_the_suite_of_photographs_has_two_names_and_one_identity(tmp_path: Path) -> None:
    assert load_suite("photos") == load_suite("sdxl") and load_suite("photos")[0].suite == "sdxl"
    assert load_settings("photos") == load_settings("sdxl") and default_model("photos") == "sdxl-turbo"
    assert suite_title("sdxl") == "photos (sdxl)" and suite_title("toy") == "toy"
    # A folder of that name is another suite.
    (tmp_path / "photos").mkdir()
    assert suite_name(str(tmp_path / "photos")) == "photos"
    with pytest.raises(RiebenchError, match=r"did you mean 'photos'"):
        load_suite("photo")


def test_settings_are_found_and_slips_named(tmp_path: Path) -> None:
    name = setting_names("toy")[0]
    assert load_settings("toy", [name])[0].name == name
    with pytest.raises(RiebenchError, match=r"unknown configuration 'no_edti' \(did you mean 'no_edit'\?\)"):
        load_settings("toy", ["no_edti"])
    with pytest.raises(RiebenchError, match=r"there is no file nowhere/mine.yaml"):
        load_settings("toy", ["nowhere/mine.yaml"])
    with pytest.raises(RiebenchError, match="given twice"):
        load_settings("toy", [name, name])
    with pytest.raises(TaskFileError, match=r"unknown method 'sea' \(did you mean 'sae'\?\)"):
        load_setting_file(write(tmp_path, "method: sea\n", "mine.yaml"))
    with pytest.raises(TaskFileError, match=r"strength: unknown key \(did you mean 'strengths'\?\)"):
        load_setting_file(write(tmp_path, "method: sae\nstrength: 1\n", "mine.yaml"))
    with pytest.raises(TaskFileError, match=r"mine.yaml: blocks: unknown block 'mid.o' \(did you mean 'mid.0'\?\)"):
        load_setting_file(write(tmp_path, "method: sae\nblocks: [mid.o]\n", "mine.yaml"))
    spelt = write(tmp_path, "method: sae\nblocks: [unet.mid_block.attentions.0, up.0.1]\n", "mine.yaml")
    assert load_setting_file(spelt).blocks == ("mid.0", "up.0.1")
    mine = write(tmp_path, "method: sae\nstrengths: [1, 2]\n", "mine.yaml")
    assert load_settings("toy", [str(mine)])[0].strengths == (1.0, 2.0)
