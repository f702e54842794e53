"""Switches of the published scripts, and the document that describes them.

What the scripts do is stated once, in `SWITCHES`. Defaults are read from the methods, and what official configurations
set otherwise from their files, so that the document cannot say anything else than the code does.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from riebench.methods.base import get_method
from riebench.paper.reading import template_environment
from riebench.paper.recipes.tradeoff import SWITCHES as PAPER_SETTINGS
from riebench.scoring.profiles import DEFAULT, PROFILES
from riebench.tasks.schema import Setting
from riebench.tasks.settings import load_settings, settings_folder, settings_sets

SUITES = ("sdxl", "toy")
"""Suites with official configurations of their own."""
SAME = ("sae", "neurons", "activation_patch")
"""Methods that share `add_only` and `delete_uses_target`."""


@dataclass(frozen=True)
class Switch:
    """One thing that published scripts decide, and the parameter that decides it here.

    Attributes:
        published: what it is called there, and what it does.
        methods: methods that have the parameter.
        parameter: its name here.
        newer: its value for what the scripts do since October 2025, unless they are told otherwise.
        older: its value for what they did before; None if the same.
        turned: its value for what they do if they are told otherwise; None if they cannot be.
        note: what tells the values apart.
    """

    published: str
    methods: tuple[str, ...]
    parameter: str
    newer: bool | str
    older: bool | str | None = None
    turned: bool | str | None = None
    note: str = ""

    @property
    def default(self) -> bool | str:
        """The parameter's default, read from the methods."""
        found = {inspect.signature(get_method(one).function).parameters[self.parameter].default for one in self.methods}
        assert len(found) == 1, f"{self.parameter} has several defaults"
        value: bool | str = found.pop()
        return value

    @property
    def follows(self) -> bool:
        """True if the default is what the newer scripts do."""
        return self.default == self.newer


SWITCHES: tuple[Switch, ...] = (
    Switch(
        "the features chosen to be switched off are subtracted", ("sae",), "add_only", False, older=True,
        note="before, the mode `sae` never subtracted anything.",
    ),
    Switch(
        "`only_add`: nothing is subtracted", SAME, "add_only", False, turned="published",
        note="the notebook does not pass `only_add` on where an object is deleted: there it still subtracts. `true` "
        "subtracts nowhere.",
    ),
    Switch(
        "deletions read the target run", SAME, "delete_uses_target", True, older=False,
        note="before, they read the source run twice, so that nothing told the two apart.",
    ),
    Switch(
        "mode `sae_adaptive`: what is switched off is computed from the edited run", ("sae",), "adaptive", False,
        turned="published",
        note="theirs multiplies the removed part by the number of features on over the number off in the block. `true` "
        "does not. The mode does not read `only_add`; here `add_only` holds for it too.",
    ),
    Switch(
        "`aggregate_timesteps`: ranked on the first step, or on the mean over steps", ("sae", "neurons"), "rank",
        "first", older="mean", turned="mean",
    ),
    Switch(
        "activations of all blocks are pooled before ranking", ("sae",), "shares", "pooled",
        note="`per_block`: each block's activations are shared out by themselves, then all are ranked together.",
    ),
    Switch(
        "shares of signed unit sums", ("neurons",), "shares", "published",
        note="with `published` the order turns round where the sum is negative; `magnitude` keeps it.",
    ),
)  # fmt: skip


def profile_text() -> str:
    """Return the document of the published scripts' switches as Markdown."""
    return template_environment().get_template("profile.md.j2").render(profile_facts())


def profile_facts() -> dict[str, Any]:
    """Return all that the document states, read from code and configurations."""
    paper, default = PROFILES["paper"], PROFILES[DEFAULT]
    assert paper.regions != default.regions and paper.fixed_seed != default.fixed_seed
    official = official_settings()
    values = {one: official_values(one, official) for one in SWITCHES}
    return {
        "switches": [
            {
                "published": one.published, "parameter": one.parameter, "methods": one.methods,
                "newer": yaml_word(one.newer), "older": None if one.older is None else yaml_word(one.older),
                "turned": None if one.turned is None else yaml_word(one.turned), "default": yaml_word(one.default),
                "follows": one.follows, "note": one.note, "elsewhere": set_otherwise(one, values[one]),
                "theirs": _folders_with(values[one], one.newer), "ours": _folders_with(values[one], one.default),
            }
            for one in SWITCHES
        ],
        "paper_settings": list(PAPER_SETTINGS),
        "seed": paper.fixed_seed,
        "regions": paper.regions,
    }  # fmt: skip


def yaml_word(value: bool | str) -> str:
    """Return a parameter's value as configuration files write it."""
    return str(value).lower() if isinstance(value, bool) else value


def official_settings() -> dict[str, tuple[Setting, ...]]:
    """Return all official configurations of these suites, by folder."""
    return {
        f"baselines/{settings_folder(suite, name).name}/": load_settings(suite, settings_set=name)
        for suite in SUITES
        for name in settings_sets(suite)
    }


def official_values(switch: Switch, official: Mapping[str, Sequence[Setting]]) -> dict[str, dict[str, Any]]:
    """Return the parameter's value in every official configuration that has it.

    It is folder -> configuration -> value.

    Args:
        switch: names the parameter and its methods.
        official: folder -> its configurations.
    """
    found: dict[str, dict[str, Any]] = {}
    for folder, settings in official.items():
        having = {
            one.name: one.params.get(switch.parameter, switch.default)
            for one in settings
            if one.method in switch.methods
        }
        if having:
            found[folder] = having
    return found


def set_otherwise(switch: Switch, official: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return where official configurations differ from a parameter's default.

    Args:
        switch: has the default.
        official: values of the official configurations, as `official_values` returns them.

    Returns:
        For each value: the value, the configurations' names, and the folders that have them; no names if all
        configurations of these methods in the folder have the value.
    """
    places: dict[tuple[Any, tuple[str, ...]], list[str]] = {}
    for folder, values in official.items():
        for value in dict.fromkeys(values.values()):
            names = tuple(name for name, its in values.items() if its == value)
            if value != switch.default:
                places.setdefault((value, () if len(names) == len(values) else names), []).append(folder)
    return [
        {"value": yaml_word(value), "names": list(names), "folders": folders}
        for (value, names), folders in places.items()
    ]  # fmt: skip


def _folders_with(official: Mapping[str, Mapping[str, Any]], wanted: object) -> list[str]:
    """Return the folders in which some configuration has a value."""
    return [folder for folder, values in official.items() if wanted in values.values()]
