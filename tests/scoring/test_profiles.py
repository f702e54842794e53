"""Profiles: what each sees, and that none touches another's numbers, tables or pictures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from records import make_spec
from scored_runs import TASKS, noise, stored_run
from tiny_clip import tiny_clip_folder

from riebench.analysis.configurations import configurations, scored_profiles
from riebench.analysis.leaderboard import leaderboard_text
from riebench.analysis.tables import check_tables, write_tables
from riebench.errors import RiebenchError
from riebench.jobs.request import RunRequest
from riebench.models.clip import ClipSpec, load_open_clip
from riebench.registry import METRICS
from riebench.runs.plan import plan, works_of
from riebench.scoring.metrics.base import Sample
from riebench.scoring.metrics.clip import (
    ClipScorer,
    HalfClipScorer,
    Prompts,
    clip_target,
    paper_image_target,
    paper_text_target,
)
from riebench.scoring.metrics.networks import Networks
from riebench.scoring.profiles import PROFILES, get_profile, profile_metrics, table_metrics
from riebench.scoring.score import score
from riebench.scoring.scorers import ON_REQUEST
from riebench.store.folder import RunFolder
from riebench.store.records import noise_seed
from riebench.tasks.schema import Setting

MASK = np.zeros((64, 64), bool)


def test_brackets_reach_the_paper_and_not_the_default() -> None:
    seen: dict[str, list[str]] = {"default": [], "paper": []}

    def scorer(profile: Prompts, kind: type[ClipScorer]) -> ClipScorer:
        def texts(batch: list[str]) -> np.ndarray:
            seen[profile] += batch
            return np.ones((len(batch), 2))

        return kind(lambda batch: np.ones((len(batch), 2)), texts, profile=profile)

    networks = Networks(ready={"clip": scorer("default", ClipScorer), "clip-half": scorer("paper", HalfClipScorer)})
    one = [Sample(noise(0), noise(1), MASK, "a dog", "a [red] car")]
    clip_target(one, networks)
    paper_text_target(one, networks)
    assert seen == {"default": ["a red car"], "paper": ["a [red] car"]}


def test_the_paper_runs_clip_in_half_precision(tmp_path: Path) -> None:
    loaded = load_open_clip(ClipSpec.parse(f"local-dir:{tiny_clip_folder(tmp_path)}"))
    whole, half = ClipScorer.from_loaded(loaded), HalfClipScorer.from_loaded(loaded)
    assert whole.backbone == loaded.backbone
    assert half.backbone == f"{loaded.backbone} (paper prompts, float16 autocast)"
    assert half.details["dtype"] == "float16 autocast"
    pictures = [noise(seed) for seed in range(3)]
    exact, rounded = whole.pictures(pictures), half.pictures(pictures)
    assert np.array_equal(rounded, rounded.astype(np.float16))
    assert rounded == pytest.approx(exact, abs=5e-3)
    assert not np.array_equal(rounded, exact)
    samples = [Sample(p, noise(9), MASK, "a car", "a boat", target=noise(8)) for p in pictures]
    networks = Networks(ready={"clip": whole, "clip-half": half})
    values = np.array(paper_text_target(samples, networks), dtype=np.float64)
    assert np.array_equal(values, values.astype(np.float16))
    assert values == pytest.approx(np.array(clip_target(samples, networks), dtype=np.float64), abs=5e-3)
    expected = (whole.pictures(pictures) * whole.pictures([noise(8)])).sum(axis=1)
    assert np.array(paper_image_target(samples, networks), dtype=np.float64) == pytest.approx(expected, abs=5e-3)


def test_every_metric_of_a_table_is_registered_and_printed() -> None:
    for name, profile in PROFILES.items():
        assert set(profile.table) <= set(METRICS.names())
        assert profile.rank in profile.own
        assert set(profile_metrics(name, METRICS.names())) >= set(profile.metrics)
    default = set(profile_metrics("default", METRICS.names()))
    assert default.isdisjoint({*PROFILES["paper"].own, *PROFILES["piebench"].own})
    assert default | set(table_metrics()) | set(ON_REQUEST) == set(METRICS.names())
    with pytest.raises(RiebenchError, match="did you mean 'piebench'"):
        get_profile("pibench")


def test_a_profiles_numbers_stay_out_of_the_default_tables(tmp_path: Path) -> None:
    folder = stored_run(tmp_path)
    score([folder], TASKS, scorer="toy-clip", metrics=["clip_gain", "lpips"], progress=False)
    paths = write_tables([RunFolder(folder.path)])
    before, board = {path: path.read_bytes() for path in paths}, leaderboard_text(tmp_path)
    report = score([folder], TASKS, scorer="toy-clip", profile="paper", progress=False)
    # LPIPS to the source picture is the same number in both profiles and is not computed twice.
    assert report.computed == {name: 2 for name in PROFILES["paper"].table if name != "lpips"}
    assert not score([folder], TASKS, scorer="toy-clip", profile="paper", progress=False).computed
    run = RunFolder(folder.path)
    assert scored_profiles([run]) == ["default", "paper"]
    written = write_tables([run])
    assert {path.parent.name for path in written} == {"tables", "paper"}
    assert {path: path.read_bytes() for path in paths} == before
    text = (folder.path.parent / "tables" / "paper" / "per_method.md").read_text()
    assert "| configuration | inputs used | paper_text_target | paper_text_source | paper_image_source |" in text
    assert "clip_gain" not in text and "Profile `paper`" in text
    assert "(paper prompts, float16 autocast)" in text
    after = leaderboard_text(tmp_path)
    # The sections before it stay as they were.
    assert board.split("\n## ")[1].rstrip() == after.split("\n## ")[1].rstrip()
    assert "## mine on m, profile `paper`\n\n### Inputs used: " in after and "paper_text_target" not in board
    check_tables([run])
    assert [path.parent.name for path in write_tables([run], "paper")] == ["paper"] * 3


def test_a_run_that_only_a_published_profile_has_scored_gets_no_default_tables(tmp_path: Path) -> None:
    folder = stored_run(tmp_path)
    score([folder], TASKS, scorer="toy-clip", profile="paper", progress=False)
    run = RunFolder(folder.path)
    assert scored_profiles([run]) == ["paper"]
    assert {path.name for path in write_tables([run]) if path.parent.name == "tables"} == {
        "feature_share.md",
        "switched.md",
    }
    (row,) = configurations(run, "paper")
    assert len(row.example_means("lpips_target")) == 2


def test_the_papers_seed_is_the_same_noise_for_all_examples() -> None:
    paper = RunRequest(profile="paper")
    assert (paper.seeds, paper.regions) == ((42,), "grounded-sam")
    assert (RunRequest().seeds, RunRequest().regions) == ((0,), None)
    assert RunRequest(profile="paper", seeds=(1, 2), regions="attention").seeds == (1, 2)
    assert RunRequest(profile="paper", regions="attention").regions == "attention"
    assert RunRequest(profile="piebench").seeds == (0,)
    units = plan(TASKS, [Setting(name="no_edit", method="no_edit", blocks=())], seeds=(42,))
    assert {work.noise for work in works_of(units, fixed_noise=True)} == {42}
    assert [work.noise for work in works_of(units)] == [noise_seed("e0", 42), noise_seed("e1", 42)]


def test_pictures_of_another_noise_are_another_run_in_another_folder() -> None:
    spec = make_spec()
    model = spec.model.with_fixed_noise(RunRequest(profile="paper").fixed_noise)
    assert model.name == "toy-turbo-paper"
    assert spec.model.with_fixed_noise(RunRequest(profile="piebench").fixed_noise) == spec.model
    assert RunRequest().fixed_noise == ""
    assert "fixed_noise" not in spec.model.identity
    assert spec.model_copy(update={"model": model}).run_id != spec.run_id
    assert replace(RunRequest(profile="paper"), batch_size=1).seeds == (42,)
