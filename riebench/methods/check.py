"""Checks of one suite for `riebench tasks check`.

Tasks, prompts' lengths, configurations, methods and blocks are checked.
"""

from __future__ import annotations

from riebench.blocks import module_path
from riebench.errors import RiebenchError, TaskFileError
from riebench.models.presets import PRESETS
from riebench.models.spec import ASSET
from riebench.registry import MODEL_FAMILIES
from riebench.tasks.mask_files import check_masks
from riebench.tasks.prompts import seen_words
from riebench.tasks.schema import Setting
from riebench.tasks.settings import load_settings, settings_folder, settings_sets
from riebench.tasks.suites import TokenCounter, check_prompt_lengths, default_model, load_suite


def check_suite(suite: str) -> str:
    """Load and check a suite and the official configurations that go with it.

    Args:
        suite: a shipped suite's name, or a folder.

    Returns:
        One line saying what was found.

    Raises:
        RiebenchError: for the first thing that is wrong; names file, key and nearest match.
    """
    tasks = load_suite(suite)
    count, limit = token_counter(default_model(suite))
    check_prompt_lengths(tasks, count, limit)
    remarks = check_masks(tasks)
    settings = []
    for name in settings_sets(suite):
        for setting in load_settings(suite, settings_set=name):
            check_setting(setting, f"{settings_folder(suite, name) / setting.name}.yaml")
            settings.append(setting)
    examples = [example for task in tasks for example in task.examples]
    seen = sum(seen_words(e.source_region) is not None or seen_words(e.target_region) is not None for e in examples)
    found = f"{suite}: {len(tasks)} tasks, {len(examples)} examples, {len(settings)} configurations: all good"
    if seen:
        # Text attention reads the prompt alone; who runs these with it should know beforehand what will be skipped.
        remarks.append(f"{seen} examples have 'seen:' regions, which text attention skips")
    return "; ".join([found, *remarks])


def check_setting(setting: Setting, where: str) -> None:
    """Check blocks, parameters and access letters against the method.

    Args:
        setting: what to check.
        where: its file, for messages.

    Raises:
        TaskFileError: naming the file and what is wrong.
    """
    from riebench.methods.base import get_method

    method = get_method(setting.method)
    try:
        for block in setting.blocks:
            module_path(block)
        method.check(setting.params)
        method.check_strengths(setting.strengths)
    except RiebenchError as error:
        raise TaskFileError(f"{where}: {error}") from error
    if setting.edit_steps is not None and not method.edits:
        raise TaskFileError(f"{where}: edit_steps: method {method.name!r} changes no step; leave the key out")
    if set(setting.access) != set(method.access):
        raise TaskFileError(f"{where}: access: {setting.access!r}, but method {method.name!r} uses {method.access!r}")


def token_counter(model: str) -> tuple[TokenCounter, int]:
    """Return the token counter of a preset's text encoders.

    The model is not loaded.

    Args:
        model: a preset's name.

    Returns:
        The counter (start and end tokens included), and how many tokens are read.
    """
    preset = PRESETS[model]
    folder = preset.folder
    if preset.source.startswith(ASSET):
        from riebench.models.assets import asset_folder

        folder = asset_folder(preset.source.removeprefix(ASSET))
    count: tuple[TokenCounter, int] = MODEL_FAMILIES.get(preset.family).token_counter(folder)
    return count
