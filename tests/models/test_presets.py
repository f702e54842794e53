"""Tests of presets from installed packages, and of the guide to them."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from installed_packages import install, install_document, run
from paths import ROOT
from tiny import tiny_folder, tiny_model

from riebench.errors import RiebenchError
from riebench.models.loading import load_model
from riebench.models.lookup import look_up
from riebench.models.presets import PRESETS, scorer_for
from riebench.models.spec import Preset

MINE = Preset("mine", "folder:/nowhere/mine", None, 3, 0.0, 32, "float32", "toy-clip", None, "")
RUN = """
import sys
import pytest
from riebench.cli.main import main
if pytest.main(["-q", "-p", "no:cacheprovider", "test_my_models.py"]):
    sys.exit("the guide's test fails")
sys.argv = ["riebench", "run", SETTING, "--suite", "toy", "--model", "my-turbo", "--limit", "1", "--categories",
            "change_background", "--blocks", "mid.0", "--results", "results", "--seeds", "0", "--no-report"]
main()
"""


@pytest.fixture
def mine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Preset:
    """Enter a preset for a copy of the tiny model among the others."""
    folder = shutil.copytree(tiny_folder(), tmp_path / "fine-tune")
    preset = replace(MINE, source=f"folder:{folder}")
    assert len(PRESETS) > 3
    monkeypatch.setitem(vars(PRESETS)["_found"], "mine", preset)
    return preset


def test_the_guide_is_a_preset_that_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site, home = tmp_path / "site", tmp_path / "home"
    monkeypatch.setenv("HOME", str(home))
    shutil.copytree(ROOT / "riebench/toyworld/assets/toy-turbo", home / "models/my-turbo")
    files = install_document(site, "new-model.md")
    assert set(files) == {"my_models.py", "pyproject.toml", "test_my_models.py"}
    (tmp_path / "test_my_models.py").write_text(files["test_my_models.py"])
    code = RUN.replace("SETTING", repr(str(ROOT / "baselines/toy/sae.yaml")))
    done = run(site, "-c", code, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    stored = json.loads((tmp_path / "results/toy/my-turbo/sae/run.json").read_text())
    model = stored["spec"]["model"]
    assert (model["name"], model["source"], model["steps"], model["size"]) == ("my-turbo", "my-turbo", 2, 64)
    assert str(home) not in json.dumps(stored["spec"])
    scores = (tmp_path / "results/toy/my-turbo/sae/scores.jsonl").read_text()
    assert "toy-clip" in scores


def test_a_folder_by_its_preset_is_the_model_that_the_folder_is(mine: Preset) -> None:
    folder = mine.folder
    assert folder is not None
    by_preset, by_folder = load_model("mine"), load_model(str(folder), steps=3)
    assert by_preset.spec.identity == by_folder.spec.identity
    assert by_preset.spec.name == "mine" and by_preset.preset == mine
    found = look_up("mine", guidance=2.0)
    assert found.folder == folder and found.repo is None
    assert (found.spec.name, found.spec.source, found.spec.steps) == ("mine-guidance2", "fine-tune", 3)
    assert scorer_for(by_preset.spec) == "toy-clip" != scorer_for(tiny_model().spec)


def test_a_folder_that_is_gone_is_named(mine: Preset) -> None:
    folder = mine.folder
    assert folder is not None
    shutil.rmtree(folder)
    for action in (look_up, load_model):
        with pytest.raises(RiebenchError, match=rf"preset mine: {folder} is no model folder: model_index\.json is"):
            action("mine")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "../mine"}, "preset name '../mine': use letters"),
        ({"source": "folder:models/mine"}, "is relative; write folder:/PATH or folder:~/PATH"),
        ({"revision": "abc"}, "a folder has no revision; its files are hashed instead"),
        ({"dtype": "float61"}, r"unknown dtype 'float61' \(did you mean 'float16'\?\)"),
    ],
)
def test_presets_that_cannot_be_used_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RiebenchError, match=message):
        replace(MINE, **changes)


def test_the_name_of_a_shipped_preset_cannot_be_taken(tmp_path: Path) -> None:
    code = (
        "from riebench.models.spec import Preset\n"
        "THEIRS = Preset('toy-turbo', 'OWNER/NAME', None, 1, 0.0, 64, 'float32', 'toy-clip', None, '')\n"
    )
    install(tmp_path / "site", "taker", {"taker": code}, {"model_presets": {"toy-turbo": "taker:THEIRS"}})
    look = "from riebench.models.presets import PRESETS\ntry: len(PRESETS)\nexcept Exception as e: print(repr(e))"
    done = run(tmp_path / "site", "-c", look)
    assert "the package taker 1.0 takes the name of the model preset 'toy-turbo', which is there already" in done.stdout
