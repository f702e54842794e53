"""The plan of the ladder's pictures, and the table of values that is read from run folders with planted scores."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from ladders import levels
from records import make_key, make_record, make_spec

from riebench.errors import RiebenchError
from riebench.models.lookup import look_up
from riebench.runs.plan import plan
from riebench.sae_validity import pictures
from riebench.sae_validity.job import collect_results, distinct_rungs, run_ladder
from riebench.sae_validity.measures import all_measures
from riebench.sae_validity.pictures import METRICS, LadderRequest, Part, is_done, ladder_folders, plan_parts
from riebench.sae_validity.results import LadderResults
from riebench.sae_validity.rungs import BlockQuality, RungQuality
from riebench.sae_validity.study.bars import Study
from riebench.store.folder import RunFolder
from riebench.store.records import ScoreRecord, UnitKey
from riebench.tasks.schema import Setting
from riebench.tasks.settings import load_settings
from riebench.tasks.suites import load_suite

NAMES = ("random_init", "full", "frozen_decoder", "k_4")
EXAMPLES = {f"{category}-{i}": category for category in ("change_color", "change_object") for i in range(2)}
BLOCKS = ("down.2.1", "mid.0", "up.0.0", "up.0.1")


def quality(rung: str, seed: int) -> RungQuality:
    block = BlockQuality(explained_variance=0.5, l0=16, dead_share=0.1, truth=None, area=None, cosine=None)
    truth = levels()[rung] / 10
    return RungQuality(
        rung=rung, training_seed=seed, blocks=dict.fromkeys(BLOCKS, block), truth=truth, area=truth, cosine=truth,
        values=[],
    )  # fmt: skip


def made_saes(work: Path, names: Sequence[str] = NAMES, seeds: Sequence[int] = (0, 1)) -> dict[tuple[str, int], Path]:
    saes = {(name, seed): work / "saes" / name / f"seed-{seed}" for name in names for seed in seeds}
    for (name, seed), folder in saes.items():
        folder.mkdir(parents=True)
        (folder / "quality.json").write_text(quality(name, seed).model_dump_json())
    return saes


def write_run(request: LadderRequest, setting: Setting, seeds: Sequence[int], keys: Sequence[UnitKey] = ()) -> None:
    """Store a run whose gains are the rung's level by the number of features."""
    rung, _, rest = setting.name.partition(".")
    level = levels().get(rung, 8.0) + 0.01 * int(rest[0])
    spec = make_spec(name="x").model_copy(update={"setting": setting, "sae_sha256": {}})
    sets = {"together": ("all",), "each": BLOCKS, "both": (*BLOCKS, "all")}[setting.block_mode]
    planned = list(keys) or [
        make_key(example_id=example, category=category, task=category, seed=seed, block_set=blocks)
        for example, category in EXAMPLES.items() for seed in seeds for blocks in sets
    ]  # fmt: skip
    count = setting.params.get("n_features", 20)
    assert isinstance(count, int)
    gain = 0.01 * level * min(count, 5)
    values = {"clip_gain": gain, "lpips": 0.04, "judge_target": float(level > 2), "judge_kept": 1.0}
    values |= {name: gain for name in METRICS if name not in values}
    folder = RunFolder(request.runs / "toy" / "toy-turbo" / setting.name, spec)
    with folder.open_for_writing(plan=planned) as run:
        for key in planned:
            record = make_record(key, f"images/{key.digest}.png", "0" * 64)
            run.append(record)
            run.append_scores(
                ScoreRecord(unit=key.digest, metric=m, version=1, picture=record.picture_id, value=v)
                for m, v in values.items()
            )


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A work folder with all SAEs and pictures."""
    work = tmp_path_factory.mktemp("ladder")
    request = LadderRequest(work, rungs=NAMES)
    parts = plan_parts(request, distinct_rungs(NAMES), made_saes(work))
    seeds = {setting.name: part.seeds for part in parts for setting in part.settings}
    for setting in {setting.name: setting for part in parts for setting in part.settings}.values():
        write_run(request, setting, seeds[setting.name])
    return work


def saes_of(work: Path) -> dict[tuple[str, int], Path]:
    return {(name, seed): work / "saes" / name / f"seed-{seed}" for name in NAMES for seed in (0, 1)}


def folders_of(request: LadderRequest, saes: dict[tuple[str, int], Path]) -> list[RunFolder]:
    return ladder_folders(request, plan_parts(request, distinct_rungs(NAMES), saes))


def test_the_plan_has_what_the_bars_need_first_and_each_picture_once(tmp_path: Path) -> None:
    request = LadderRequest(tmp_path, rungs=NAMES, limit=3, block_limit=2, picture_seeds=(0, 7))
    parts = {part.name: part for part in plan_parts(request, distinct_rungs(NAMES), made_saes(tmp_path))}
    assert [*parts] == ["activation patch", "training", "controls", "single blocks", "fixed features",
                        "random features", "other rungs", "more picture seeds"]  # fmt: skip
    names = {name: [setting.name for setting in part.settings] for name, part in parts.items()}
    # Further seeds are of folders that have the first one already.
    more = names.pop("more picture seeds")
    assert len({one for some in names.values() for one in some}) == sum(map(len, names.values()))
    assert set(more) < set(names["training"]) and {name.partition(".")[0] for name in more} == {"full"}
    assert parts["more picture seeds"].seeds == parts["activation patch"].seeds == (0, 7)
    assert parts["training"].seeds == (0,) and parts["single blocks"].limit == 2
    assert names["activation patch"] == ["patch.0.activation_patch_once"]
    assert {name.partition(".")[0] for name in names["single blocks"]} == {"full", "frozen_decoder"}
    assert all(one.block_mode == "each" for one in parts["single blocks"].settings)
    assert {name.partition(".")[0] for name in names["other rungs"]} == {"k_4"}
    assert not any(name.startswith("k_4") for name in names["fixed features"] + names["random features"])
    assert {one.params["n_features"] for one in parts["fixed features"].settings} == {1, 2, 3, 5}
    (last,) = [one for one in parts["training"].settings if one.name == "full.1.sae_n20"]
    assert last.sae == str((tmp_path / "saes" / "full" / "seed-1").resolve())


def test_run_folders_become_values_of_every_kind(written: Path, tmp_path: Path) -> None:
    request, saes = LadderRequest(written, rungs=NAMES), saes_of(written)
    folders = folders_of(request, saes)
    results = collect_results(request, distinct_rungs(NAMES), saes, folders, "riebench validity saes --work w")
    about, frame = results.about, results.values
    assert about.missing == () and about.examples == len(EXAMPLES) and about.picture_seeds == (0, 1)
    assert [rung.name for rung in about.rungs] == ["random_init", "full", "k_4", "frozen_decoder"]
    assert about.pictures == sum(len(folder.records()) for folder in folders)
    assert set(frame["measure"]) <= set(all_measures())
    few = frame[(frame.measure == "gain_few") & (frame.rung == "full") & (frame.training_seed == 1)]
    assert set(few["block"]) == {"together", *BLOCKS}
    assert few["value"].to_numpy() == pytest.approx(0.01 * 5.01 * np.mean([1, 2, 3, 5]))
    scores = frame[(frame.measure == "at_20:judge_target") & (frame.block == "together")]
    assert scores.groupby("rung")["value"].mean().to_dict() == {name: float(levels()[name] > 2) for name in NAMES}
    truth = frame[frame.measure == "truth"]
    assert truth.groupby("rung")["value"].mean()["full"] == 0.5 and set(truth["block"]) == {"together"}
    study = Study(results, 100)
    good = next(one for one in study.measures if one.key == "gain_few")
    assert good.order.value == 1 and good.bars.twins is True and good.noise.pictures.value is not None
    # Both files hold all of it.
    results.write(tmp_path / "stored")
    assert len(LadderResults.read(tmp_path / "stored").values) == len(frame)


def test_rungs_without_all_pictures_are_left_out_by_name(written: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    shutil.copytree(written, work)
    request, saes = LadderRequest(work, rungs=NAMES), saes_of(work)
    shutil.rmtree(request.runs / "toy" / "toy-turbo" / "k_4.1.sae_n5")
    stopped = request.runs / "toy" / "toy-turbo" / "full.0.sae_n3" / "records.jsonl"
    stopped.write_text("\n".join(stopped.read_text().splitlines()[:-1]) + "\n")
    results = collect_results(request, distinct_rungs((*NAMES, "ica")), saes, folders_of(request, saes), "x")
    made = {rung.name: rung.training_seeds for rung in results.about.rungs}
    assert made == {"random_init": (0, 1), "full": (1,), "frozen_decoder": (0, 1), "k_4": (0,)}
    assert set(results.about.missing) == {"ica", "k_4", "full"}
    left_out = (results.values.rung == "full") & (results.values.training_seed == 0)
    assert not left_out.any()
    with pytest.raises(RiebenchError, match="holds no SAE with all pictures"):
        collect_results(request, distinct_rungs(NAMES), {}, folders_of(request, saes), "x")


def test_a_part_is_done_when_every_planned_picture_is_scored(tmp_path: Path) -> None:
    request = LadderRequest(tmp_path)
    setting = load_settings("toy", ("sae_n1",), "features")[0].model_copy(update={"name": "full.0.sae_n1"})
    small, larger = (Part("full", (setting,), limit, (0,)) for limit in (1, 2))
    assert not is_done(request, small)
    keys = [unit.key for unit in plan(load_suite("toy", limit=1), (setting,), (0,))]
    write_run(request, setting, (0,), keys)
    assert look_up(request.model).spec.name == "toy-turbo"
    assert is_done(request, small) and not is_done(request, larger)
    other = setting.model_copy(update={"sae": str(tmp_path / "nowhere")})
    with pytest.raises(RiebenchError):
        is_done(request, Part("full", (other,), 1, (0,)))


def test_the_job_makes_nothing_twice_and_measures_what_is_there(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    request = LadderRequest(written, rungs=NAMES, training_seeds=(0, 1))
    saes = saes_of(written)
    monkeypatch.setattr("riebench.sae_validity.job.score_pictures", lambda *_: "nothing to score")
    said: list[str] = []
    found = run_ladder(request, "x", said.append, only_measure=True)
    assert {rung.name for rung in found.about.rungs} == set(NAMES) and said == ["nothing to score"]

    def refuse(*_: object) -> None:
        raise AssertionError("made twice")

    monkeypatch.setattr("riebench.sae_validity.job.make_rungs", lambda *_, **__: saes)
    monkeypatch.setattr(pictures, "is_done", lambda *_: True)
    monkeypatch.setattr(pictures, "generate", refuse)
    assert len(run_ladder(request, "x", said.append).values) == len(found.values)
    # Pictures that are there get the numbers of scorers that came later.
    assert said == ["nothing to score"] * 2


def test_an_unknown_rung_is_refused() -> None:
    assert [rung.name for rung in distinct_rungs()].count("full") == 1
    with pytest.raises(RiebenchError, match="no rung 'ful'"):
        distinct_rungs(("ful",))
