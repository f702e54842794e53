"""Numbers without measure: each field and option of a setting has bounds, and what exceeds them is one line."""

from __future__ import annotations

import importlib
import pkgutil
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import annotated_types
import pytest
from pydantic import BaseModel, ValidationError
from typer.testing import CliRunner

import riebench
from riebench.cli.main import app
from riebench.errors import RiebenchError, TaskFileError
from riebench.generation.regions.options import parse_regions
from riebench.models.spec import ModelSpec
from riebench.store.records import UnitKey
from riebench.tasks.schema import MAX_STRENGTH, MAX_STRENGTHS, Setting
from riebench.tasks.settings import load_setting_file

ANY_JSON = {("Setting", "params"), ("Artefact", "settings"), ("Table", "rows")}
"""Fields that hold JSON values of any kind; those of settings have a check of their own."""
COMPUTED = {"TableRow"}
"""Types that are written and never read."""


def stored_types() -> Iterator[type[BaseModel]]:
    """Every stored type of the package."""
    for module in pkgutil.walk_packages(riebench.__path__, "riebench."):
        if not module.name.startswith("riebench.toyworld") and "__main__" not in module.name:
            importlib.import_module(module.name)
    left = [BaseModel]
    while left:
        for kind in left.pop().__subclasses__():
            left.append(kind)
            if kind.__module__.startswith("riebench."):
                yield kind


def parts_of(annotation: Any, metadata: list[Any]) -> Iterator[tuple[Any, list[Any]]]:
    """Yield each plain type in an annotation with the limits that hold for it."""
    if typing.get_origin(annotation) is typing.Annotated:
        inner, *more = typing.get_args(annotation)
        limits = [limit for one in more for limit in getattr(one, "metadata", [one])]
        yield from parts_of(inner, [*metadata, *limits])
        return
    arguments = typing.get_args(annotation)
    if not arguments:
        yield annotation, metadata
    for one in arguments:
        yield from parts_of(one, metadata)


def test_every_whole_number_of_every_stored_type_has_both_bounds() -> None:
    """A number of hundreds of digits is printed, hashed and drawn nowhere without harm."""
    seen, free = 0, []
    for kind in stored_types():
        for name, field in kind.model_fields.items():
            if (kind.__name__, name) in ANY_JSON or kind.__name__ in COMPUTED:
                continue
            for part, limits in parts_of(field.annotation, list(field.metadata)):
                if part is int:
                    seen += 1
                    low = any(isinstance(one, annotated_types.Ge | annotated_types.Gt) for one in limits)
                    high = any(isinstance(one, annotated_types.Le | annotated_types.Lt) for one in limits)
                    if not (low and high):
                        free.append(f"{kind.__name__}.{name}")
    assert seen > 30 and not free


@pytest.mark.parametrize(
    "text",
    [
        "strengths: [1.0e+308]",
        "strengths: [-1.0e+7]",
        f"strengths: [{', '.join(str(n / 100) for n in range(20_000))}]",
        f"strengths: [{', '.join(str(n / 100) for n in range(MAX_STRENGTHS + 1))}]",
        "params: {n_features: 1000000000000000000000000000000}",
        "params: {n_features: -10000000000}",
        "params: {n_features: 1.0e+300}",
        "params: {n_features: 99999999999999999999999999999999999999}",
        f"blocks: [{', '.join(['mid.0'] * 2000)}]",
        "edit_steps: [0, .inf]",
        "edit_steps: [.nan, 1]",
    ],
)
def test_settings_without_measure_are_one_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(f"method: sae\naccess: PAM\n{text}\n")
    with pytest.raises(TaskFileError, match=r"mine\.yaml: (strengths|params|blocks|edit_steps)") as refused:
        load_setting_file(path)
    assert len(str(refused.value)) < 400


def test_numbers_up_to_the_bounds_are_read(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        f"method: sae\naccess: PAM\nparams: {{n_features: 1000000000}}\n"
        f"strengths: [{MAX_STRENGTH:.1f}, {-MAX_STRENGTH:.1f}, 0]\n"
    )
    assert load_setting_file(path).strengths == (MAX_STRENGTH, -MAX_STRENGTH, 0)


@pytest.mark.parametrize(
    "options",
    [
        "--seeds 9007199254740992", "--seeds 0,99999999999999999999999", f"--seeds {','.join(map(str, range(1500)))}",
        "--steps 5000", "--steps 99999999999999999999999999", "--guidance 1e300", "--guidance inf", "--guidance nan",
        "--size 100000000000", "--limit 99999999999999999999999999", "--batch-size 99999999999999999999999",
        "--shard 1/99999999999999999999", "--edit-steps nan:1", "--seeds " + "9" * 5000,
        "--regions grounded-sam:widen=99999999999999999999999", "--workers 99999999999999",
    ],
)  # fmt: skip
def test_options_without_measure_are_one_line(tmp_path: Path, options: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("method: sae\naccess: PAM\nblocks: [up.0.1]\n")
    result = CliRunner().invoke(app, ["run", str(path), "--dry-run", *options.split(" ", 1)])
    assert result.exit_code == 2 and isinstance(result.exception, SystemExit), result.exception
    error = [line for line in result.stderr.splitlines() if line.startswith(("riebench:", "Error:", "Invalid"))]
    assert len(error) == 1 and options.split(" ")[0].lstrip("-") in error[0].replace(" ", "-").lower()
    assert len(result.stderr) < 1000


@pytest.mark.parametrize(
    "arguments",
    [
        ["sae", "feature", "up.0.1", "9" * 60],
        ["sae", "feature", "up.0.1", "1", "--strengths", "1e300"],
        ["sae", "train", "nowhere", "--out", "x", "--width", "9" * 30],
        ["sae", "train", "nowhere", "--out", "x", "--buffer", "9" * 30],
        ["sae", "collect", "toy-turbo", "x", "--limit", "9" * 30],
        ["paper", "sweep", "--steps", "9" * 30],
        ["paper", "sweep", "--limit", "9" * 30],
        ["report", "--features", "9" * 30],
        ["score", "--batch-size", "9" * 30],
    ],
)
def test_numbers_of_other_commands(arguments: list[str]) -> None:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2 and isinstance(result.exception, SystemExit), result.exception
    assert len(result.stderr) < 1000


def test_numbers_in_stored_files_and_in_a_models_own() -> None:
    key = {"task": "t", "task_version": 1, "category": "change_color", "example_id": "e", "example_hash": "0",
           "block_set": "all", "strength": 1.0, "seed": 0}  # fmt: skip
    for change in ({"strength": 1e300}, {"strength": -1e7}, {"seed": 2**53}, {"task_version": 10**40}):
        with pytest.raises(ValidationError):
            UnitKey.model_validate({**key, **change})
    spec = {"name": "m", "source": "m", "revision": None, "steps": 1, "guidance": 0.0, "size": 64, "dtype": "float32"}
    for name, value in (("steps", 10**30), ("steps", 1001), ("guidance", 1e300), ("size", 10**12)):
        with pytest.raises(RiebenchError, match=f"--{name} "):
            ModelSpec.checked(**{**spec, name: value})
    assert ModelSpec.checked(**spec).steps == 1
    with pytest.raises(RiebenchError, match="cell"):
        parse_regions("grounded-sam:cell=99999999999999999999")
    with pytest.raises(ValidationError):
        Setting(name="s", method="sae", params={"n_features": [1, 10**30]})
