"""Scoring of run folders: only what is missing, one value or reason per unit and metric, nothing stale."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock

from riebench.errors import FolderInUseError, MetricError, RiebenchError
from riebench.models.clip import ClipSpec
from riebench.models.presets import PRESETS, scorer_for
from riebench.models.spec import ModelSpec
from riebench.registry import METRICS
from riebench.scoring.metrics.base import UNREADABLE, Metric, Reason, Sample, Value, metric
from riebench.scoring.metrics.clip import ClipScorer
from riebench.scoring.metrics.judge import (
    JudgeReader,
    edited_attributes,
    judge_artifact,
    judge_kept,
    judge_target,
)
from riebench.scoring.metrics.networks import Networks
from riebench.scoring.score import SCORING_FILE, ScoreReport, score
from riebench.store.folder import RunFolder
from riebench.store.records import EditRecord, RunSpec, ScoreRecord, UnitKey
from riebench.tasks.masks import RegionMasks
from riebench.tasks.schema import Attributes, EditExample, EditTask, Setting
from riebench.utils.files import file_sha256
from riebench.utils.images import read_image

SIDE = 64
COLORS = {"red": 200, "blue": 40}
CLIP_AND_PIXEL = ("clip_gain", "clip_direction", "mse_bg", "psnr_bg")


def picture(value: int, corner: int = 0) -> np.ndarray:
    """One grey value everywhere, another in the first pixel."""
    result = np.full((SIDE, SIDE, 3), value, np.uint8)
    result[0, 0] = corner
    return result


def example(name: str, attributes: bool = True) -> EditExample:
    truth = Attributes(source={"color": "blue", "pose": "upright"}, target={"color": "red", "pose": "upright"})
    return EditExample(
        id=name, source=f"a blue car {name}", target="a [red] car", attributes=truth if attributes else None
    )


EXAMPLES = tuple(example(f"e{index}") for index in range(3))


def task(*examples: EditExample) -> EditTask:
    return EditTask(name="change_color", version=1, category="change_color", suite="toy", examples=examples)


def make_networks(calls: list[int] | None = None) -> Networks:
    """Encoders that need no weights; `calls` collects how many pictures CLIP was asked to embed."""

    def pictures(batch: list[np.ndarray]) -> np.ndarray:
        if calls is not None:
            calls.append(len(batch))
        return np.stack([[p.mean() / 255, 1 - p.mean() / 255, 0.5] for p in batch])

    def texts(batch: list[str]) -> np.ndarray:
        return np.stack([[1.0 if "red" in text else 0.1, 0.3, len(text) / 50] for text in batch])

    def read(batch: np.ndarray) -> list[dict[str, str]]:
        return [
            {"color": "red" if p.mean() > 100 else "blue", "pose": "tilted" if p[0, 0, 0] > 128 else "upright"}
            for p in batch
        ]

    return Networks(
        ready={"clip": ClipScorer(pictures, texts, backbone="fake-clip"), "judge": JudgeReader(read, "fake-judge")}
    )


def run_spec(setting: str = "sae") -> RunSpec:
    model = ModelSpec(
        name="toy-turbo", source="riebench/toy-turbo", revision="0", steps=1, guidance=0, size=SIDE, dtype="float32"
    )
    return RunSpec(suite="toy", model=model, setting=Setting(name=setting, method="sae"))


def unit_key(one: EditExample) -> UnitKey:
    return UnitKey(
        task="change_color", task_version=1, category="change_color", example_id=one.id, example_hash=one.content_hash,
        block_set="all", strength=1.0, seed=0,
    )  # fmt: skip


def store_unit(folder: RunFolder, one: EditExample, edited: np.ndarray) -> EditRecord:
    """A finished unit with its shared source picture and a mask over the left half."""
    key = unit_key(one)
    name = folder.shared.image_name(key, "source")
    folder.shared.write_image(name, picture(COLORS["blue"]))
    mask = np.zeros((SIDE, SIDE), bool)
    mask[:, : SIDE // 2] = True
    folder.shared.write_json(folder.shared.mask_name(key), RegionMasks(mask, mask).to_json("test"))
    path, digest = folder.write_image(key, edited)
    record = EditRecord(key=key, status="ok", image=path, image_sha256=digest, source_image=name, target_image=name)
    folder.append(record)
    return record


def store_failure(folder: RunFolder, one: EditExample, status: str = "error") -> None:
    folder.append(EditRecord.model_validate({"key": unit_key(one), "status": status, "reason": "out of memory"}))


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """Three units: an edit, an untouched picture, a failure."""
    run = RunFolder(tmp_path / "toy" / "toy-turbo" / "sae", run_spec())
    with run.open_for_writing():
        store_unit(run, EXAMPLES[0], picture(COLORS["red"]))
        store_unit(run, EXAMPLES[1], picture(COLORS["blue"]))
        store_failure(run, EXAMPLES[2])
    return run


def run_scores(
    folder: RunFolder, networks: Networks | None = None, names: tuple[str, ...] = CLIP_AND_PIXEL
) -> ScoreReport:
    return score([folder], [task(*EXAMPLES)], metrics=names, networks=networks or make_networks(), progress=False)


BACKBONES = {"clip": "fake-clip", "judge": "fake-judge", "": ""}


def line(folder: RunFolder, one: EditExample, name: str) -> ScoreRecord:
    """A stored score."""
    return folder.scores()[unit_key(one).digest, name, BACKBONES[METRICS.get(name).backbone]]


def value(folder: RunFolder, one: EditExample, name: str) -> float:
    """A stored value that must be there."""
    number = line(folder, one, name).value
    assert number is not None
    return number


def test_every_unit_gets_a_value_or_a_reason_per_metric(folder: RunFolder) -> None:
    report = run_scores(folder)
    scores = folder.scores()
    digests = [unit_key(one).digest for one in EXAMPLES]
    names = {name: BACKBONES[METRICS.get(name).backbone] for name in CLIP_AND_PIXEL}
    assert set(scores) == {(digest, name, names[name]) for digest in digests for name in names}
    assert value(folder, EXAMPLES[0], "clip_gain") > 0.05
    assert value(folder, EXAMPLES[0], "mse_bg") == pytest.approx((160 / 255) ** 2, rel=1e-6)
    assert value(folder, EXAMPLES[1], "clip_gain") == 0
    assert line(folder, EXAMPLES[1], "clip_direction").reason == Reason.ZERO_EDIT
    assert line(folder, EXAMPLES[1], "psnr_bg").reason == Reason.IDENTICAL
    assert {line(folder, EXAMPLES[2], name).reason for name in CLIP_AND_PIXEL} == {"not_run"}
    assert report.units == 3
    assert report.computed == dict.fromkeys(CLIP_AND_PIXEL, 3)
    assert report.missing == {"not_run": 4, "zero_edit": 1, "identical": 1}
    text = (folder.path / "scores.jsonl").read_text()
    assert "NaN" not in text and "Infinity" not in text


def test_repeating_does_nothing_and_opens_no_picture(folder: RunFolder) -> None:
    run_scores(folder)
    before = (folder.path / "scores.jsonl").read_bytes(), (folder.path / SCORING_FILE).read_bytes()
    for file in folder.path.parent.rglob("*.png"):
        file.unlink()
    calls: list[int] = []
    report = run_scores(folder, make_networks(calls))
    assert not report.computed and not calls
    assert ((folder.path / "scores.jsonl").read_bytes(), (folder.path / SCORING_FILE).read_bytes()) == before


def test_only_the_new_metric_is_computed(folder: RunFolder) -> None:
    run_scores(folder, names=("mse_bg",))
    report = run_scores(folder)
    assert set(report.computed) == {"clip_gain", "clip_direction", "psnr_bg"}


def test_a_wrong_stored_value_stays_and_a_new_version_replaces_it(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_scores(folder, names=("mse_bg",))
    folder.append_scores([line(folder, EXAMPLES[0], "mse_bg").model_copy(update={"value": 0.125})])
    run_scores(folder, names=("mse_bg",))
    assert value(folder, EXAMPLES[0], "mse_bg") == 0.125
    newer: Metric = replace(METRICS.get("mse_bg"), version=2)
    monkeypatch.setitem(METRICS._objects, "mse_bg", newer)
    report = run_scores(folder, names=("mse_bg",))
    assert report.computed == {"mse_bg": 3}
    assert value(folder, EXAMPLES[0], "mse_bg") == pytest.approx((160 / 255) ** 2, rel=1e-6)


def test_another_scorer_measures_beside_the_first(folder: RunFolder) -> None:
    run_scores(folder, names=("clip_gain", "mse_bg"))
    before = folder.scores()
    other = make_networks()
    other.get("clip").backbone = "another-clip"
    assert run_scores(folder, other, ("clip_gain", "mse_bg")).computed == {"clip_gain": 3}
    assert before.items() < folder.scores().items()
    # Neither has to measure again because the other did.
    assert not run_scores(folder, names=("clip_gain", "mse_bg")).computed
    assert not run_scores(folder, other, ("clip_gain", "mse_bg")).computed


def test_a_unit_made_again_is_scored_again(folder: RunFolder) -> None:
    run_scores(folder)
    with folder.open_for_writing():
        store_unit(folder, EXAMPLES[1], picture(COLORS["red"]))
        store_unit(folder, EXAMPLES[2], picture(COLORS["red"]))
    report = run_scores(folder)
    assert report.computed == dict.fromkeys(CLIP_AND_PIXEL, 2)
    values = {value(folder, one, "clip_gain") for one in EXAMPLES}
    assert len(values) == 1 and values.pop() > 0.05
    with folder.open_for_writing():
        store_failure(folder, EXAMPLES[0])
    run_scores(folder)
    assert line(folder, EXAMPLES[0], "clip_gain").reason == "not_run"


def test_a_unit_made_again_is_scored_again_also_metric_by_metric(folder: RunFolder) -> None:
    run_scores(folder)
    with folder.open_for_writing():
        store_unit(folder, EXAMPLES[1], picture(COLORS["red"]))
    assert run_scores(folder, names=("mse_bg",)).computed == {"mse_bg": 1}
    # The other scores of that unit still belong to the picture it had before.
    assert run_scores(folder).computed == dict.fromkeys(set(CLIP_AND_PIXEL) - {"mse_bg"}, 1)


def test_a_damaged_list_of_networks_is_written_anew(folder: RunFolder) -> None:
    run_scores(folder)
    before = (folder.path / SCORING_FILE).read_text()
    assert "fake-clip" in before
    (folder.path / SCORING_FILE).write_text('{"networks": ')
    assert not run_scores(folder).computed
    assert (folder.path / SCORING_FILE).read_text() == before


def test_settings_share_pictures_and_batches(tmp_path: Path) -> None:
    folders = []
    for name in ("sae", "steering"):
        run = RunFolder(tmp_path / "toy" / "toy-turbo" / name, run_spec(name))
        with run.open_for_writing():
            for index, one in enumerate(EXAMPLES):
                store_unit(run, one, picture(100 + 10 * index + 50 * (name == "sae")))
        folders.append(run)
    calls: list[int] = []
    score(
        folders, [task(*EXAMPLES)], metrics=["clip_gain"], networks=make_networks(calls), progress=False, batch_size=4
    )
    assert sum(calls) == 7, "six edited pictures and one source picture, each embedded once"
    single = RunFolder(folders[0].path)
    (single.path / "scores.jsonl").rename(tmp_path / "batched.jsonl")
    score([single], [task(*EXAMPLES)], metrics=["clip_gain"], networks=make_networks(), progress=False, batch_size=1)
    lines = {tuple(sorted(json.loads(line).items())) for line in (tmp_path / "batched.jsonl").read_text().splitlines()}
    assert {
        tuple(sorted(json.loads(x).items())) for x in (single.path / "scores.jsonl").read_text().splitlines()
    } == lines


def test_source_pictures_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[Path] = []

    def counting(folder: Path, name: str, sha256: str | None = None) -> np.ndarray:
        reads.append(folder / name)
        return read_image(folder, name, sha256)

    monkeypatch.setattr("riebench.scoring.score.read_image", counting)
    folders = []
    for name in ("sae", "steering", "neurons"):
        run = RunFolder(tmp_path / "toy" / "toy-turbo" / name, run_spec(name))
        with run.open_for_writing():
            store_unit(run, EXAMPLES[0], picture(90))
        folders.append(run)
    score(folders, [task(*EXAMPLES)], metrics=["mse_bg"], networks=make_networks(), progress=False, batch_size=1)
    assert sum("source" in path.name for path in reads) == 1
    assert len(reads) == 4


def test_what_is_hashed_is_what_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunFolder(tmp_path / "toy" / "toy-turbo" / "sae", run_spec("sae"))
    with run.open_for_writing():
        store_unit(run, EXAMPLES[0], picture(90))
    opened: list[Path] = []
    plain = Path.read_bytes

    def reading(path: Path) -> bytes:
        opened.append(path)
        return plain(path)

    monkeypatch.setattr(Path, "read_bytes", reading)
    score([run], [task(*EXAMPLES)], metrics=["mse_bg", "ssim_bg"], networks=make_networks(), progress=False)
    pngs = [path for path in opened if path.suffix == ".png"]
    assert len(pngs) == len(set(pngs)) == 2


def test_scores_computed_before_an_error_are_stored_whenever_it_comes(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("riebench.scoring.score.STORE_EVERY", 1e9)
    path = folder.path / str(folder.records()[1].image)
    path.write_bytes(b"no picture")
    with pytest.raises(RiebenchError, match="cannot be read"):
        score([folder], [task(*EXAMPLES)], metrics=["mse_bg"], networks=make_networks(), progress=False, batch_size=1)
    assert 1 <= len(folder.scores()) < 3


def test_a_changed_picture_is_refused_and_earlier_scores_are_kept(folder: RunFolder) -> None:
    record = folder.records()[1]
    path = folder.path / str(record.image)
    path.write_bytes((folder.path / str(folder.records()[0].image)).read_bytes())
    assert file_sha256(path) != record.image_sha256
    with pytest.raises(RiebenchError, match="not the picture that was recorded"):
        score([folder], [task(*EXAMPLES)], metrics=["mse_bg"], networks=make_networks(), progress=False, batch_size=1)
    kept = len(folder.scores())
    assert kept >= 1
    with folder.open_for_writing():
        store_unit(folder, EXAMPLES[1], picture(COLORS["blue"]))
    assert run_scores(folder, names=("mse_bg",)).computed == {"mse_bg": 3 - kept}


def remove_mask(folder: RunFolder) -> None:
    (folder.shared.path / folder.shared.mask_name(unit_key(EXAMPLES[0]))).unlink()


def remove_source(folder: RunFolder) -> None:
    (folder.shared.path / folder.shared.image_name(unit_key(EXAMPLES[0]), "source")).unlink()


@pytest.mark.parametrize("remove", [remove_mask, remove_source])
def test_a_missing_file_is_named(folder: RunFolder, remove: Callable[[RunFolder], None]) -> None:
    remove(folder)
    with pytest.raises(RiebenchError, match="is missing; make it again"):
        run_scores(folder)


def test_examples_that_changed_are_counted_not_scored(folder: RunFolder) -> None:
    changed = EXAMPLES[0].model_copy(update={"target": "a yellow car"})
    report = score(
        [folder], [task(changed, *EXAMPLES[1:])], metrics=["mse_bg"], networks=make_networks(), progress=False
    )
    assert report.stale == 1
    assert report.computed == {"mse_bg": 2}
    assert "changed since" in report.summary


def test_a_folder_in_use_is_refused(folder: RunFolder) -> None:
    with FileLock(str(folder.path / ".lock")), pytest.raises(FolderInUseError):
        run_scores(folder)


def test_scoring_keeps_the_expected_counts(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "toy" / "toy-turbo" / "sae", run_spec())
    with run.open_for_writing(plan=[unit_key(one) for one in EXAMPLES]):
        store_unit(run, EXAMPLES[0], picture(9))
    before = RunFolder(run.path).expected
    run_scores(run, names=("mse_bg",))
    assert RunFolder(run.path).expected == before == {("change_color", "all", 1.0): 3}


def test_runs_of_shipped_suites_and_of_own_ones_are_scored_together(folder: RunFolder, tmp_path: Path) -> None:
    own = RunFolder(tmp_path / "mine" / "toy-turbo" / "sae", run_spec().model_copy(update={"suite": "mine"}))
    with own.open_for_writing():
        store_unit(own, EXAMPLES[0], picture(COLORS["red"]))
    with pytest.raises(RiebenchError, match="a suite of your own, 'mine'; name its folder: --suite FOLDER"):
        score([folder, own], metrics=["mse_bg"], networks=make_networks(), progress=False)
    mine = task(*EXAMPLES).model_copy(update={"suite": "mine"})
    report = score([folder, own], [mine], metrics=["mse_bg"], networks=make_networks(), progress=False)
    # The shipped suite is read from its files, which do not hold these examples.
    assert (report.units, report.stale, report.computed) == (4, 3, {"mse_bg": 1})


def test_unknown_metric(folder: RunFolder) -> None:
    with pytest.raises(RiebenchError, match="did you mean 'clip_gain'"):
        run_scores(folder, names=("clip_gian",))


def test_scorer_of_a_model() -> None:
    toy = run_spec().model
    assert toy.source == PRESETS["toy-turbo"].spec_source
    assert scorer_for(toy) == "toy-clip"
    assert scorer_for(toy.model_copy(update={"name": "toy-turbo-steps1", "steps": 1})) == "toy-clip"
    turbo = toy.model_copy(update={"name": "sdxl-turbo", "source": "stabilityai/sdxl-turbo"})
    assert scorer_for(turbo) == "clip-l14" and ClipSpec.parse("clip-l14").label == "ViT-L-14-quickgelu/openai"
    assert scorer_for(toy.model_copy(update={"name": "own", "source": "own"})) == "clip-l14"


# --- the judge ---------------------------------------------------------------------------------------------------


def test_judge_verdicts(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "toy" / "toy-turbo" / "sae", run_spec())
    edits = (picture(COLORS["red"]), picture(COLORS["red"], corner=255), picture(COLORS["blue"], corner=255))
    with run.open_for_writing():
        for one, edited in zip(EXAMPLES, edits, strict=True):
            store_unit(run, one, edited)
    run_scores(run, names=("judge_target", "judge_kept"))
    verdicts = [(value(run, one, "judge_target"), value(run, one, "judge_kept")) for one in EXAMPLES]
    assert verdicts == [(1, 1), (1, 0), (0, 0)]


def test_judge_is_for_examples_with_attributes_only(tmp_path: Path) -> None:
    plain = example("plain", attributes=False)
    run = RunFolder(tmp_path / "toy" / "toy-turbo" / "sae", run_spec())
    with run.open_for_writing():
        store_unit(run, plain, picture(9))
    report = score([run], [task(plain)], metrics=["judge_target", "mse_bg"], networks=make_networks(), progress=False)
    assert report.computed == {"mse_bg": 1}


def test_judge_compares_with_what_the_source_shows() -> None:
    truth = EXAMPLES[0].attributes
    assert truth is not None
    mask = np.ones((SIDE, SIDE), bool)
    # Both pictures are tilted although the prompt says upright: the edit kept what was there.
    one = Sample(picture(COLORS["red"], 255), picture(COLORS["blue"], 255), mask, "a", "b", truth.source, truth.target)
    assert edited_attributes(one) == ("color",)
    assert judge_kept([one], make_networks()) == [1.0]
    assert judge_target([one], make_networks()) == [1.0]
    same = replace(one, target_attributes=truth.source)
    assert judge_target([same], make_networks()) == [Reason.SAME_PROMPTS]


def test_attributes_that_the_judge_does_not_know_are_refused() -> None:
    truth = Attributes(source={"colour": "blue"}, target={"colour": "red"})
    mask = np.ones((SIDE, SIDE), bool)
    one = Sample(picture(1), picture(2), mask, "a", "b", truth.source, truth.target)
    for verdict in (judge_target, judge_kept):
        with pytest.raises(MetricError, match=r"knows no attribute 'colour' \(did you mean 'color'\?\)"):
            verdict([one], make_networks())


# --- what every metric must say of itself ------------------------------------------------------------------------


@pytest.mark.parametrize("name", METRICS.names())
def test_registered_metrics_declare_themselves(name: str) -> None:
    found: Metric = METRICS.get(name)
    assert isinstance(found, Metric)
    assert found.name == name
    assert found.direction in ("higher", "lower")
    assert found.high is None or found.low < found.high
    assert found.version >= 1
    assert (found.compute.__doc__ or "").strip()
    assert found([], make_networks()) == []


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), 1.5, -0.1])
def test_a_value_out_of_range_is_an_error(wrong: float) -> None:
    @metric(direction="lower", low=0, high=1)
    def broken(samples: Sequence[Sample], networks: Networks) -> list[Value]:
        return [wrong] * len(samples)

    one = Sample(picture(1), picture(2), np.ones((SIDE, SIDE), bool), "a", "b")
    with pytest.raises(MetricError, match="outside 0 to 1"):
        broken([one], make_networks())


def fixed_judge(source: dict[str, str], edited: dict[str, str]) -> tuple[Sample, Networks]:
    """A sample of color red to blue, and a judge with given readings of its two pictures."""

    def read(batch: np.ndarray) -> list[dict[str, str]]:
        return [source if p.mean() < 100 else edited for p in batch]

    before = {"color": "red", "pose": "upright", "style": "pencil"}
    mask = np.ones((SIDE, SIDE), bool)
    sample = Sample(picture(200), picture(10), mask, "a", "b", before, before | {"color": "blue"})
    return sample, Networks(ready={"judge": JudgeReader(read, "fake-judge")})


@pytest.mark.parametrize(
    ("source", "edited", "expected"),
    [
        ({}, {"color": "blue"}, (1.0, 1.0, 0.0)),
        ({}, {"color": UNREADABLE}, (0.0, 1.0, 1 / 3)),
        ({}, {"color": "blue", "pose": UNREADABLE}, (1.0, 0.5, 1 / 3)),
        # What the source picture did not show either is not the edit's fault, nor does it count as kept.
        ({"pose": UNREADABLE}, {"color": "blue", "pose": UNREADABLE}, (1.0, 1.0, 0.0)),
        ({"pose": UNREADABLE}, {"color": "blue", "style": "pixel"}, (1.0, 0.0, 0.0)),
        ({"pose": UNREADABLE, "style": UNREADABLE}, {"color": "blue"}, (1.0, Reason.UNREADABLE, 0.0)),
        ({"pose": UNREADABLE}, {"color": UNREADABLE}, (0.0, 1.0, 0.5)),
        (
            dict.fromkeys(("color", "pose", "style"), UNREADABLE),
            {"color": "blue"},
            (1.0, Reason.UNREADABLE, Reason.UNREADABLE),
        ),
    ],
)
def test_what_cannot_be_read_is_neither_reached_nor_kept(
    source: dict[str, str], edited: dict[str, str], expected: tuple[float, float | Reason, float | Reason]
) -> None:
    shown = {"color": "red", "pose": "upright", "style": "pencil"}
    sample, networks = fixed_judge(shown | source, shown | edited)
    found = tuple(metric([sample], networks)[0] for metric in (judge_target, judge_kept, judge_artifact))
    assert found == expected


def test_an_untouched_picture_is_no_artifact() -> None:
    shown = {"color": UNREADABLE, "pose": "upright", "style": "pencil"}
    sample, networks = fixed_judge(shown, shown)
    same = replace(sample, edited=sample.source)
    assert judge_artifact([same], networks) == [0.0] and judge_kept([same], networks) == [1.0]
