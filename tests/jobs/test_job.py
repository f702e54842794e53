"""The main job from files to tables on a tiny random SDXL; only the scoring networks are stood in for."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_jobs import TASK, UNITS, last_line, records_by_setting, run_command
from typer.testing import CliRunner

from riebench.analysis.stats import estimate
from riebench.cli.main import app
from riebench.errors import NothingMadeError
from riebench.generation.generator import GenerationResult, Generator
from riebench.jobs.request import RunRequest
from riebench.jobs.run import run_job, say_failures
from riebench.models.families.sdxl.names import BLOCKS
from riebench.saes.formats import save_sdxl_unbox
from riebench.scoring.profiles import metric_format
from riebench.store.folder import RunFolder, find_run_folders
from riebench.utils.machine import pick_device


def no_generation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets every generation fail the test."""

    def refuse(*_: Any, **__: Any) -> None:
        pytest.fail("something was generated")

    monkeypatch.setattr(Generator, "generate", refuse)


def test_from_files_to_tables_and_nothing_twice(job: RunRequest, capsys: pytest.CaptureFixture[str]) -> None:
    lines: list[str] = []
    run_job(job, lines.append)
    assert {name: len(found) for name, found in records_by_setting(job).items()} == {"no_edit": 2, "features": 10}
    assert {record.status for found in records_by_setting(job).values() for record in found} == {"ok"}
    printed = capsys.readouterr().out
    assert all(block in printed for block in (*BLOCKS, "all"))
    folder = next(folder for folder in find_run_folders(job.results) if folder.spec.setting.name == "features")
    whole = {record.key.example_id: record.key.digest for record in folder.records() if record.key.block_set == "all"}
    gains = {name: [folder.scores()[digest, "clip_gain", "fake-clip"].value or 0.0] for name, digest in whole.items()}
    found = estimate({"change_color": gains})
    assert found.mean == pytest.approx(sum(gain for (gain,) in gains.values()) / 2)
    low, mean, high = (metric_format("clip_gain").number(end or 0.0) for end in (found.low, found.mean, found.high))
    assert low != high
    cell = f"{mean} [{low}, {high}] 2/2"
    tables = folder.path.parent / "tables"
    row = next(line for line in (tables / "per_block.md").read_text().splitlines() if "| features | all |" in line)
    assert row == f"| features | all | {cell} | {cell} |"
    assert f"| features | prompt + target activations + masks | {cell} | " in (tables / "per_method.md").read_text()
    assert "| features | " in job.leaderboard.read_text() and job.leaderboard.with_suffix(".csv").is_file()
    shares = (tables / "feature_share.csv").read_text().splitlines()[1:]
    assert sum(float(line.split(",")[4]) for line in shares if ",add," in line) == pytest.approx(1)
    # Every number of a cell has its line: unedited pictures score 0 and the background is measured where there is one.
    unedited = find_run_folders(job.results)[1]
    assert unedited.spec.setting.name == "no_edit"
    stored = {(unit, metric): score for (unit, metric, _), score in unedited.scores().items()}
    first, second = (record.key.digest for record in unedited.records())
    assert stored[first, "clip_gain"].value == stored[first, "lpips"].value == stored[second, "mse_bg"].value == 0
    assert stored[first, "mse_bg"].reason == "no_background"
    assert folder.provenance["device"] == "cpu"
    assert any(str(job.leaderboard) in line for line in lines)

    before = {path: path.read_bytes() for path in job.results.rglob("*.jsonl")}
    run_job(job, lines.append)
    assert {path: path.read_bytes() for path in job.results.rglob("*.jsonl")} == before


def test_no_edit_is_the_source_picture(job: RunRequest) -> None:
    run_job(replace(job, settings=("no_edit",)), lambda _: None)
    (folder,) = find_run_folders(job.results)
    for record in folder.records():
        edited = folder.read_image(record.image or "")
        assert (edited == folder.shared.read_image(record.source_image or "")).all()


def test_more_examples_continue_and_other_parameters_are_refused(
    job: RunRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    features = Path(job.settings[1])
    less = replace(job, settings=(str(features),), blocks="mid.0")
    run_job(replace(less, limit=1), lambda _: None)
    run_job(less, lambda _: None)
    lines: list[str] = []
    run_job(replace(less, limit=1), lines.append)
    (folder,) = find_run_folders(job.results)
    assert [record.key.example_id for record in folder.records()] == ["one", "two"]
    assert not any("changed since" in line for line in lines)
    features.write_text(features.read_text().replace("n_features: 3", "n_features: 4"))
    no_generation(monkeypatch)
    refused = run_command(less, "--blocks", "mid.0")
    assert refused.exit_code == 2
    assert "params.n_features is 3 there and 4 here; use another --results folder" in last_line(refused)


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (KeyboardInterrupt(), 130, "riebench: stopped; everything finished so far is kept, and the same command"),
        (OSError(errno.ENOSPC, "No space left on device"), 2, "riebench: the disk is full; everything finished so far"),
    ],
)
@pytest.mark.parametrize("when", [3, 12, 31])
def test_what_was_finished_before_a_stop_is_kept(
    job: RunRequest, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, words: str, when: int
) -> None:
    sync, calls = os.fsync, 0

    def stop(file: int) -> None:
        nonlocal calls
        calls += 1
        if calls >= when:
            raise error
        sync(file)

    monkeypatch.setattr(os, "fsync", stop)
    stopped = run_command(job)
    assert (stopped.exit_code, calls >= when) == (code, True)
    assert last_line(stopped).startswith(words)
    assert not list(job.results.rglob("*.tmp"))
    kept = {path: path.read_bytes() for path in job.results.rglob("*.jsonl")}
    monkeypatch.setattr(os, "fsync", sync)
    assert run_command(job).exit_code == 0
    for path, data in kept.items():
        assert path.read_bytes().startswith(data)
    lines = [line for path in job.results.rglob("records.jsonl") for line in path.read_text().splitlines()]
    assert len(lines) == UNITS


def test_a_stop_while_generating_is_no_failed_unit(job: RunRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    generate, calls = Generator.generate, 0

    def stop(self: Generator, *args: Any, **options: Any) -> GenerationResult:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise KeyboardInterrupt
        return generate(self, *args, **options)

    monkeypatch.setattr(Generator, "generate", stop)
    assert run_command(job).exit_code == 130
    assert {record.status for found in records_by_setting(job).values() for record in found} == {"ok"}
    assert 0 < sum(map(len, records_by_setting(job).values())) < UNITS
    assert run_command(job).exit_code == 0
    assert sum(map(len, records_by_setting(job).values())) == UNITS


def test_a_long_prompt_is_reported_before_generating(job: RunRequest) -> None:
    file = Path(job.suite) / "change_color.yaml"
    file.write_text(TASK.replace("a grey dog", "a dog " + "and a cat " * 20))
    refused = run_command(job)
    assert refused.exit_code == 2
    first, only = refused.stderr.strip().splitlines()
    assert first.startswith("loading ")
    assert re.search(r"two: target has \d+ tokens, of which the model reads 77; shorten it", only)
    assert not job.results.exists()


def test_saes_of_another_width_are_refused_before_generating(
    job: RunRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for block in BLOCKS:
        save_sdxl_unbox(
            tmp_path / "narrow" / block, encoder=torch.ones(6, 5), decoder=torch.ones(5, 6),
            pre_bias=torch.zeros(5), latent_bias=torch.zeros(6), k=2,
        )  # fmt: skip
    no_generation(monkeypatch)
    refused = run_command(job, "--sae", str(tmp_path / "narrow"))
    assert refused.exit_code == 2
    assert "has width 5, but tiny-steps2-guidance0 has 64 channels there" in last_line(refused)
    assert not job.results.exists()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("block_mode: both", "blocks: [mid.res.0]", "'sae' works on attention blocks, not on mid.res.0"),
        ("block_mode: both", "blocks: [up.7.0]", "has no block up.7.0"),
        ("block_mode: both", "blocks: [mid_block.attentions.0, mid.0]", "repeats in"),
        ("n_features", "n_feature", "(did you mean 'n_features'?)"),
        ("access: PAM", "access: P", "but method 'sae' uses 'PAM'"),
    ],
)
def test_settings_that_do_not_fit_are_one_line(
    job: RunRequest, monkeypatch: pytest.MonkeyPatch, old: str, new: str, message: str
) -> None:
    no_generation(monkeypatch)
    file = Path(job.settings[1])
    file.write_text(file.read_text().replace(old, new))
    refused = run_command(job)
    assert refused.exit_code == 2
    assert message in last_line(refused)
    assert not job.results.exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--blocks", "mid.0,mid.0"), "repeats in ['mid.0', 'mid.0']"),
        (("--device", "abacus"), "--device 'abacus' (known: auto, cpu, cuda, mps)"),
        (("--results", __file__), "test_job.py"),
    ],
)
def test_options_that_do_not_fit_are_one_line(job: RunRequest, options: tuple[str, ...], message: str) -> None:
    refused = run_command(job, *options)
    assert refused.exit_code == 2
    assert message in last_line(refused)


def test_runs_of_an_own_suite_are_scored_again_by_its_folder(job: RunRequest) -> None:
    run_job(replace(job, settings=("no_edit",)), lambda _: None)
    file = next(job.results.rglob("scores.jsonl"))
    before = sorted(file.read_text().splitlines())
    file.unlink()
    score = ["score", "--results", str(job.results), "--device", "cpu"]
    refused = CliRunner().invoke(app, score)
    assert refused.exit_code == 2
    assert "a suite of your own, 'mine'; name its folder: --suite FOLDER" in last_line(refused)
    assert CliRunner().invoke(app, [*score, "--suite", job.suite]).exit_code == 0
    assert sorted(file.read_text().splitlines()) == before


def test_failed_units_are_reported_with_their_reason(job: RunRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    file = Path(job.settings[1])
    file.write_text(file.read_text().replace("n_features: 3", "n_features: 1000"))
    with pytest.raises(NothingMadeError, match=r"^5 of 6 configurations have no edited picture, e.g. features x40 on"):
        run_job(job, lambda _: None)
    lines, quiet = list[str](), list[str]()
    say_failures(find_run_folders(job.results), lines.append)
    assert "10 units failed" in " ".join(lines) and "`--redo errors` tries them again" in " ".join(lines)
    say_failures(
        [folder for folder in find_run_folders(job.results) if folder.spec.setting.name == "no_edit"], quiet.append
    )
    assert quiet == []


def test_a_failure_looks_like_one_at_the_command_line(job: RunRequest) -> None:
    file = Path(job.settings[1])
    file.write_text(file.read_text().replace("n_features: 3", "n_features: 1000"))
    done = run_command(job)
    assert done.exit_code == 3
    line = last_line(done)
    assert line.startswith("riebench: 5 of 6 configurations have no edited picture") and "--redo errors" in line
    # Pictures, tables and page are there all the same, and no cell of the failed setting has a number.
    shown = [row for row in done.stdout.splitlines() if "features" in row]
    assert len(shown) == 5
    for row in shown:
        cells = [cell.strip() for cell in row.strip("│ ").split("│")]
        assert [cell for cell in cells[2:] if cell != "–"] == ["0/2"], row
    assert run_command(job, "--no-report").exit_code == 3, "the same command finds the same failures"
    stopped = run_command(replace(job, settings=(job.settings[1],)), "--redo", "errors", "--stop-after", "3")
    assert stopped.exit_code == 3 and "stopped: the first " in last_line(stopped) and "scoring" not in stopped.stderr
    file.write_text(file.read_text().replace("n_features: 1000", "n_features: 3"))
    assert run_command(replace(job, results=job.results.with_name("mended"))).exit_code == 0


def test_memory_does_not_grow_with_the_number_of_examples(job: RunRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    example = TASK.split("examples:\n")[1].split("  - id: two")[0]
    many = "".join(example.replace("one", f"e{i}").replace("red cat", f"red cat {i}") for i in range(9))
    (Path(job.suite) / "change_color.yaml").write_text(TASK.split("  - id")[0] + many)
    alive: set[int] = set()
    most = 0
    generate: Callable[..., GenerationResult] = Generator.generate

    class Tracked(tuple[Any, ...]):
        """Traces that say when they are gone."""

        def __del__(self) -> None:
            alive.discard(id(self))

    def watched(self: Generator, prompts: Sequence[str], *args: Any, **options: Any) -> GenerationResult:
        nonlocal most
        made = generate(self, prompts, *args, **options)
        if not options.get("capture"):
            return made
        traces = Tracked(made.traces)
        alive.add(id(traces))
        most = max(most, len(alive))
        return replace(made, traces=traces)

    monkeypatch.setattr(Generator, "generate", watched)
    run_job(replace(job, settings=(job.settings[1],), blocks="mid.0"), lambda _: None)
    assert most <= 2


def test_device_words() -> None:
    assert pick_device("cpu") == "cpu"
    assert pick_device("auto") in ("cpu", "cuda")


def test_a_run_folder_alone_says_what_it_holds(job: RunRequest) -> None:
    run_job(replace(job, settings=("no_edit",)), lambda _: None)
    (folder,) = find_run_folders(job.results)
    again = RunFolder(folder.path)
    assert again.spec.suite == "mine"
    assert str(job.suite) not in again.spec.model_dump_json()


def test_a_scorer_that_is_not_here_stops_before_anything_is_generated(job: RunRequest, tmp_path: Path) -> None:
    """Hours of pictures should not end with a missing file."""
    line = ["run", *job.settings, "--suite", job.suite, "--model", str(job.model), "--results", str(job.results)]
    result = CliRunner().invoke(app, [*line, "--offline", "--scorer", "clip-l14"])
    assert result.exit_code == 2
    assert "clip-l14" in result.stderr or "ViT-L-14" in result.stderr
    assert not list(job.results.rglob("*.png"))
