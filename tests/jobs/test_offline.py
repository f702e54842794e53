"""Offline: nothing asks the network, whatever was imported before, and everything is as before afterwards."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import constants
from paths import ROOT
from sdxl_files import REPO, hub_cache
from tiny import tiny_folder

from riebench.errors import RiebenchError
from riebench.jobs.request import RunRequest
from riebench.jobs.run import run_job
from riebench.utils.hub import OFFLINE_VARIABLES, fetch, is_offline, offline_mode, split_revision


@pytest.fixture(autouse=True)
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    """Starts every test as on a machine where nobody asked for offline."""
    for name in OFFLINE_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


def test_variables_and_imported_libraries_follow_and_are_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets.config
    import diffusers.utils.hub_utils as diffusers_hub
    from transformers.utils.hub import is_offline_mode

    monkeypatch.setenv(OFFLINE_VARIABLES[2], "0")
    before = (datasets.config.HF_HUB_OFFLINE, diffusers_hub.HF_HUB_OFFLINE)
    assert not is_offline()
    with offline_mode(), offline_mode(False):
        assert [os.environ[name] for name in OFFLINE_VARIABLES] == ["1", "1", "1"]
        assert is_offline() and constants.is_offline_mode() and is_offline_mode()
        assert datasets.config.HF_HUB_OFFLINE and diffusers_hub.HF_HUB_OFFLINE
    assert not is_offline() and not constants.is_offline_mode()
    assert before == (datasets.config.HF_HUB_OFFLINE, diffusers_hub.HF_HUB_OFFLINE)
    assert os.environ[OFFLINE_VARIABLES[2]] == "0" and OFFLINE_VARIABLES[0] not in os.environ


def test_the_users_own_variable_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "yes")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        RiebenchError,
        match=r"HF_HUB_OFFLINE=yes keeps .*; unset HF_HUB_OFFLINE, or fetch it first with `hf",
    ):
        fetch("a/b", patterns=["*"])
    with offline_mode(), pytest.raises(RiebenchError, match="unset HF_HUB_OFFLINE and leave --offline out, or fetch"):
        fetch("a/b", patterns=["*"])
    monkeypatch.delenv("HF_HUB_OFFLINE")
    with (
        offline_mode(),
        pytest.raises(RiebenchError, match="a/b is not on this machine: leave --offline out, or fetch"),
    ):
        fetch("a/b", patterns=["*"])


def test_the_state_is_put_back_after_an_error() -> None:
    with pytest.raises(KeyError), offline_mode():
        raise KeyError
    assert not is_offline() and not constants.is_offline_mode()


def test_a_job_says_offline_to_every_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []

    def generate(*_: object) -> None:
        seen.append(is_offline())
        raise RiebenchError("that is all")

    monkeypatch.setattr("riebench.jobs.run.generate", generate)
    for offline in (True, False):
        with pytest.raises(RiebenchError, match="that is all"):
            run_job(RunRequest(offline=offline, results=tmp_path), lambda _: None)
    assert seen == [True, False]


NO_NETWORK = """
import json, socket, sys
def refuse(self, address, *more):
    sys.exit(f"NETWORK {address}")
socket.socket.connect = socket.socket.connect_ex = refuse
socket.getaddrinfo = lambda host, *more, **options: sys.exit(f"NETWORK {host}")
from riebench.cli.main import main
for line in json.loads(sys.argv[1]):
    sys.argv = ["riebench", *line]
    try:
        main()
    except SystemExit as end:
        print("exit", end.code, file=sys.stderr)
"""


def test_the_command_line_offline_asks_no_network(tmp_path: Path) -> None:
    # A process of its own: libraries read their settings when they are imported.
    suite = tmp_path / "mine"
    suite.mkdir()
    example = "  - id: one\n    source: a red cat\n    target: a blue cat\n    source_region: whole\n"
    (suite / "change_color.yaml").write_text(
        f"category: change_color\nversion: 1\nexamples:\n{example}    target_region: whole\n"
    )
    environment = {name: value for name, value in os.environ.items() if name not in OFFLINE_VARIABLES}
    environment |= {"HF_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = str(ROOT)
    line = ["run", "no_edit", "--suite", str(suite), "--offline", "--results", str(tmp_path / "out"), "--model"]
    # The first model is here, but not the CLIP that scores it; the second is not here.
    lines = [[*line, str(tiny_folder()), "--steps", "1"], [*line, "sdxl-turbo"]]
    done = subprocess.run(
        [sys.executable, "-c", NO_NETWORK, json.dumps(lines)], capture_output=True, text=True, env=environment,
        check=False,
    )  # fmt: skip
    assert "NETWORK" not in done.stderr and done.stderr.count("exit 2") == 2, done.stderr
    # Nothing was generated that could not have been scored.
    assert not list((tmp_path / "out").rglob("records.jsonl"))
    messages = [line for line in done.stderr.splitlines() if line.startswith("riebench: ")]
    assert len(messages) == 2
    assert (
        "not on this machine: model sdxl-turbo (6.9 GB), scorer clip-l14 (1.7 GB); leave --offline out" in messages[1]
    )


def test_cached_snapshots_are_found_by_any_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = hub_cache(tmp_path, monkeypatch)
    for name in (None, "main", snapshot.name):
        assert fetch(REPO, name, patterns=["model_index.json"], offline=True) == snapshot
    with pytest.raises(RiebenchError, match="is not on this machine"):
        fetch(REPO, "v2", patterns=["model_index.json"], offline=True)


def test_revisions_are_parted_from_names() -> None:
    assert split_revision("a/b@main") == ("a/b", "main")
    assert split_revision("a/b") == split_revision("a/b@") == ("a/b", None)
