from __future__ import annotations

from pathlib import Path

import pytest
from helpers import make_key, make_record, make_score, make_spec

from riebench.errors import RiebenchError
from riebench.leaderboard import check_leaderboard, leaderboard_text, write_leaderboard
from riebench.store import RunFolder


def add_run(results: Path, name: str, gains: dict[str, float | None], access: str = "PAM", backbone: str = "") -> None:
    folder = RunFolder(results / "toy" / "toy-turbo" / name, make_spec(name=name, access=access, block_mode="together"))
    keys = {example: make_key(example_id=example) for example in gains}
    with folder.writing(plan=keys.values()) as run:
        for example, gain in gains.items():
            record = make_record(keys[example], f"images/{example}.png", "0" * 64)
            run.append(record)
            if gain is not None:
                run.append_scores([make_score(record, gain, backbone)])


def ranks(results: Path) -> dict[str, str]:
    cells = [line.split("|") for line in leaderboard_text(results).splitlines() if line.startswith("| ")]
    return {cell[2].strip(): cell[1].strip() for cell in cells if cell[2].strip() not in ("setting", "---")}


def test_first_line_says_how_it_was_made(tmp_path: Path) -> None:
    assert "riebench leaderboard" in leaderboard_text(tmp_path).splitlines()[0]
    assert "No results yet" in leaderboard_text(tmp_path)


def test_ranks_within_equal_access_and_none_for_gaps(tmp_path: Path) -> None:
    add_run(tmp_path, "good", {"e1": 0.02, "e2": 0.03})
    add_run(tmp_path, "fair", {"e1": 0.01, "e2": 0.02})
    add_run(tmp_path, "prompt", {"e1": 0.05, "e2": 0.05}, access="P")
    add_run(tmp_path, "gappy", {"e1": 0.9, "e2": None})
    add_run(tmp_path, "short", {"e1": 0.9})
    assert ranks(tmp_path) == {"good": "1", "fair": "2", "prompt": "1", "gappy": "–", "short": "–"}


def test_numbers_of_different_networks_are_not_ranked_together(tmp_path: Path) -> None:
    add_run(tmp_path, "one", {"e1": 0.02}, backbone="a-clip")
    add_run(tmp_path, "two", {"e1": 0.09}, backbone="b-clip")
    assert ranks(tmp_path) == {"one": "1", "two": "1"}


def test_equal_means_share_a_rank(tmp_path: Path) -> None:
    add_run(tmp_path, "one", {"e1": 0.02})
    add_run(tmp_path, "two", {"e1": 0.02})
    assert set(ranks(tmp_path).values()) == {"1"}


def test_check_finds_a_stale_file(tmp_path: Path) -> None:
    results, path = tmp_path / "results", tmp_path / "leaderboard.md"
    with pytest.raises(RiebenchError, match="missing"):
        check_leaderboard(results, path)
    add_run(results, "good", {"e1": 0.02})
    write_leaderboard(results, path)
    check_leaderboard(results, path)
    add_run(results, "fair", {"e1": 0.01})
    with pytest.raises(RiebenchError, match="stale from line"):
        check_leaderboard(results, path)
    write_leaderboard(results, path)
    path.write_text(path.read_text() + "an edit by hand\n")
    with pytest.raises(RiebenchError, match="stale"):
        check_leaderboard(results, path)
