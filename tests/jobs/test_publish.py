"""Publishing: compact, complete, checked, and nothing published is lost by it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from records import add_record, make_key, make_score, make_spec
from typer.testing import CliRunner

from riebench.cli.main import app
from riebench.errors import IdentityError, RiebenchError, StoreError
from riebench.jobs.publish import find_runs, publish, publish_all
from riebench.store.folder import RunFolder, run_path
from riebench.store.records import RECORDS_FILE, RECORDS_TABLE, RUN_FILE, SCORES_FILE, SCORES_TABLE
from riebench.store.run_file import SEAL_FILE, broken_seals


def make_run(root: Path, seeds: int = 2, name: str = "sae", **changes: Any) -> RunFolder:
    """A run with some scored units of one example each."""
    folder = RunFolder(run_path(root, "toy", "toy-turbo", name), make_spec(name=name, **changes))
    keys = [make_key(seed=seed) for seed in range(seeds)]
    with folder.open_for_writing({"command": "riebench run", "started": "now"}, keys):
        for seed in range(seeds):
            add_record(folder, seed=seed)
        folder.append_scores([make_score(record, 0.25 * record.key.seed) for record in folder.records()])
    return folder


def test_a_published_run_says_the_same_in_fewer_bytes_and_without_pictures(tmp_path: Path) -> None:
    run = make_run(tmp_path / "runs", seeds=40)
    made = publish(run.path, tmp_path / "results")
    assert {file.name for file in made.path.iterdir()} == {RUN_FILE, RECORDS_TABLE, SCORES_TABLE, SEAL_FILE}
    there = RunFolder(made.path)
    assert there.records() == run.records() and there.scores() == run.scores() and there.spec == run.spec
    assert there.expected == run.expected and there.invocations == run.invocations
    lines = sum((run.path / name).stat().st_size for name in (RECORDS_FILE, SCORES_FILE))
    assert made.bytes < lines / 2 and not broken_seals(made.path)
    assert made.missing == 0 and "40 records, 40 scores" in made.summary


def test_a_run_is_made_compact_where_it_lies(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    records, scores = run.records(), run.scores()
    publish(run.path, tmp_path)
    assert not (run.path / RECORDS_FILE).exists() and (run.path / "images").is_dir()
    again = RunFolder(run.path)
    assert (again.records(), again.scores()) == (records, scores) and not broken_seals(run.path)
    publish(run.path, tmp_path)
    assert RunFolder(run.path).records() == records


def test_what_is_published_is_replaced_on_request_only(tmp_path: Path) -> None:
    results = tmp_path / "results"
    publish(make_run(tmp_path / "long", seeds=3).path, results)
    short, other = make_run(tmp_path / "short", seeds=1), make_run(tmp_path / "other", params={"n_features": 7})
    with pytest.raises(RiebenchError, match=r"has 2 units that .* lacks, e.g. e1; finish the run, or --replace"):
        publish(short.path, results)
    with pytest.raises(IdentityError, match=r"holds another run: params.n_features is 20 there and 7 here; --replace"):
        publish(other.path, results)
    place = run_path(results, "toy", "toy-turbo", "sae")
    assert len(RunFolder(place).records()) == 3
    publish(other.path, results, replace=True)
    assert RunFolder(place).spec.setting.params == {"n_features": 7} and not broken_seals(place)


def test_copies_and_runs_changed_by_hand_are_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path / "runs")
    copy = run.path.parent / "mine"
    shutil.copytree(run.path, copy)
    with pytest.raises(RiebenchError, match=r"mine is a copy: its run.json is of toy/toy-turbo/sae"):
        publish(copy, tmp_path / "results")
    file = run.path / SCORES_FILE
    file.write_text(file.read_text().replace("0.25", "9.25"))
    with pytest.raises(StoreError, match=r"scores.jsonl is not as riebench wrote it"):
        publish(run.path, tmp_path / "results")
    assert not (tmp_path / "results").exists()


def test_folders_above_runs_stand_for_all_of_them(tmp_path: Path) -> None:
    for name in ("sae", "sae_two"):
        make_run(tmp_path / "runs", name=name)
    for above in (tmp_path / "runs", tmp_path / "runs/toy", tmp_path / "runs/toy/toy-turbo"):
        assert [path.name for path in find_runs([above])] == ["sae", "sae_two"]
    with pytest.raises(RiebenchError, match="holds no run"):
        find_runs([tmp_path / "nothing"])


def test_nothing_is_written_before_all_runs_were_checked(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / "runs", name=name).path for name in ("sae", "sae_two")]

    def check(run: Path) -> None:
        if run.name == "sae_two":
            raise RiebenchError("does not hold")

    with pytest.raises(RiebenchError, match="does not hold"):
        publish_all(runs, tmp_path / "results", tmp_path / "board.md", lambda _: None, check=check)
    assert not (tmp_path / "results").exists()


def test_the_command_makes_results_tables_and_leaderboard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "runs")
    done = CliRunner().invoke(app, ["publish", "runs"])
    assert done.exit_code == 0, done.output
    assert (tmp_path / "results/toy/toy-turbo/tables/per_block.md").is_file()
    assert "sae" in (tmp_path / "leaderboard.md").read_text()
    for command in (["tables", "--check"], ["leaderboard", "--check"]):
        assert CliRunner().invoke(app, command).exit_code == 0
    refused = CliRunner().invoke(app, ["publish", "runs", "--verify"])
    assert refused.exit_code == 1 and "does not hold" in refused.output


class Hub:
    """A stand-in for the hub's client that keeps what is uploaded in a folder."""

    place: Path

    def create_repo(self, name: str, **options: Any) -> None:
        assert options == {"repo_type": "dataset", "private": True, "exist_ok": True} and name == "me/results"

    def file_exists(self, name: str, file: str, **_: Any) -> bool:
        return (self.place / file).exists()

    def upload_file(self, *, path_or_fileobj: bytes, path_in_repo: str, **_: Any) -> None:
        (self.place / path_in_repo).write_bytes(path_or_fileobj)

    def upload_folder(self, *, folder_path: Path, allow_patterns: list[str], **_: Any) -> None:
        for name in allow_patterns:
            if (folder_path / name).exists():
                (self.place / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(folder_path / name, self.place / name)


def test_uploaded_results_are_read_from_their_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Hub.place = tmp_path / "hub"
    Hub.place.mkdir()
    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    asked: list[Any] = []

    def download(repo: str, **options: Any) -> str:
        asked.append((repo, options["revision"], options["repo_type"]))
        return str(Hub.place)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    run = make_run(tmp_path / "runs", seeds=3)
    run.shared.write_json("model.json", {})
    done = CliRunner().invoke(app, ["publish", str(run.path), "--push-to", "me/results"])
    assert done.exit_code == 0 and "https://huggingface.co/datasets/me/results" in done.output
    files = {file.relative_to(Hub.place).as_posix() for file in Hub.place.rglob("*") if file.is_file()}
    names = {f"toy/toy-turbo/sae/{name}" for name in (RUN_FILE, RECORDS_TABLE, SCORES_TABLE, SEAL_FILE)}
    assert files == {"README.md", "toy/toy-turbo/shared/model.json", *names}
    exported = CliRunner().invoke(
        app, ["export", "--results", "hf://datasets/me/results@main", "--out", "out", "--format", "csv"]
    )
    assert exported.exit_code == 0, exported.output
    assert asked == [("me/results", "main", "dataset")]
    assert len((tmp_path / "out/units.csv").read_text().splitlines()) == 1 + 3


@pytest.mark.parametrize("address", ["hf://", "hf://me", "hf://datasets/me/", "hf://datasets/me/results/x/y?"])
def test_addresses_that_are_none_are_refused(address: str) -> None:
    done = CliRunner().invoke(app, ["tables", "--results", address])
    assert done.exit_code == 2 and "write hf://datasets/OWNER/NAME" in done.output


def test_remote_results_are_not_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for command in (["tables"], ["leaderboard"], ["score"], ["run", "--limit", "1"], ["publish", "runs"]):
        done = CliRunner().invoke(app, [*command, "--results", "hf://datasets/me/results"])
        assert done.exit_code == 2 and "can only be read" in done.output, (command, done.output)
    assert not any(tmp_path.iterdir())
