from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from riebench.scoring.metrics.judge_network import ATTRIBUTES
from riebench.tasks.schema import EditExample, EditTask
from riebench.tasks.suites import data_root, load_suite
from riebench.toyworld.captions import parse
from riebench.toyworld.scenes import CATEGORY_ATTRIBUTE, Scene, is_held_out
from riebench.toyworld.tasks import task_text, without_attribute

TASKS = {task.category: task for task in load_suite("toy")}


def scenes(example: EditExample) -> tuple[Scene, Scene]:
    assert example.attributes is not None
    return Scene(**example.attributes.source), Scene(**example.attributes.target)


@pytest.mark.parametrize("category", ["change_content", "change_style"])
def test_files_are_what_the_script_makes(category: str) -> None:
    file: Path = data_root() / "tasks" / "toy" / f"{category}.yaml"
    assert file.read_text() == task_text(category)


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_prompts_say_the_stated_scenes_and_differ_in_the_edit_alone(task: EditTask) -> None:
    attribute = CATEGORY_ATTRIBUTE[task.category]
    for example in task.examples:
        source, target = scenes(example)
        assert parse(example.source) == source
        assert parse(example.target) == target
        assert target == source.with_value(attribute, getattr(target, attribute)) != source
        assert is_held_out(source) and is_held_out(target)
        assert without_attribute(example.source, attribute) == without_attribute(example.target, attribute)


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_values_are_balanced(task: EditTask) -> None:
    attribute = CATEGORY_ATTRIBUTE[task.category]
    for side in (0, 1):
        counts = Counter(getattr(scenes(example)[side], attribute) for example in task.examples)
        assert len(set(counts.values())) == 1, counts
        if task.category not in ("add_object", "delete_object"):
            assert set(counts) == set(ATTRIBUTES[attribute])
