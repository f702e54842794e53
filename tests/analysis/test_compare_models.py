"""Models side by side from stored results: best blocks, gains at equal LPIPS, cost, and what is refused."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from records import make_key, make_record, make_score, make_spec
from typer.testing import CliRunner

from riebench.analysis.compare.models import ModelComparison, denoiser_calls
from riebench.analysis.compare.side_by_side import CSV_COLUMNS, side_by_side
from riebench.analysis.standings import MethodComparison, entries
from riebench.analysis.stats import Estimate
from riebench.cli.main import app
from riebench.errors import RiebenchError
from riebench.models.presets import PRESETS
from riebench.store.folder import RunFolder, find_run_folders
from riebench.utils.images import decode_image
from riebench.utils.markup import csv_rows

EXAMPLES = {
    f"{category}-{i:02}": category for category in ("change_object", "change_color") for i in range(12)
}  # fmt: skip
BLOCKS = ("mid.0", "up.0.1", "up.0.0")
Gains = Mapping[tuple[str, str], float]
"""(Block set, category) -> gain at strength 1."""


def model_spec(name: str, **changes: Any) -> Any:
    preset = PRESETS[name]
    stated = {"name": name, "source": preset.spec_source, "steps": preset.steps, "guidance": preset.guidance}
    return make_spec().model.model_copy(update={**stated, **changes})


def store(
    results: Path, model: str, name: str, gains: Gains, *, method: str = "sae", suite: str = "toy", backbone: str = "c",
    blocks: tuple[str, ...] = BLOCKS, unscored: str | None = None, examples: Mapping[str, str] = EXAMPLES,
    content: str = "0" * 16, seconds: float = 0.5, params: Mapping[str, Any] | None = None,
) -> RunFolder:  # fmt: skip
    """Store a run at strength 1 on each block set that gains are given for, at LPIPS 0.1."""
    spec = make_spec(name=name, method=method, blocks=blocks, params={**(params or {"n_features": 20})})
    spec = spec.model_copy(update={"suite": suite, "model": model_spec(model)})
    folder = RunFolder(results / suite / model / name, spec)
    keys = [
        make_key(example_id=example, category=category, task=category, block_set=block_set,
                 example_hash=content)
        for example, category in examples.items() for block_set, its in gains if its == category
    ]  # fmt: skip
    with folder.open_for_writing({"device": "cpu"}, plan=keys) as run:
        for key in keys:
            noise = random.Random(f"{key.example_id}{key.block_set}").gauss(0, 0.002)
            record = make_record(key, f"images/{key.digest}.png", "0" * 64).model_copy(update={"seconds": seconds})
            run.append(record)
            if key.example_id != unscored:
                gain = make_score(record, gains[key.block_set, key.category] + noise, backbone)
                distance = gain.model_copy(update={"metric": "lpips", "value": 0.1, "backbone": "l"})
                run.append_scores([gain, distance])
    return folder


def both(gains: Mapping[str, tuple[float, float]]) -> Gains:
    """Block set -> gains in change_object and change_color, as `store` takes them."""
    return {(name, category): value for name, its in gains.items()
            for category, value in zip(("change_object", "change_color"), its, strict=True)}  # fmt: skip


TURBO = both({"mid.0": (0.05, 0.0), "up.0.1": (0.01, 0.04), "up.0.0": (0.0, 0.0), "mid.0+up.0.1+up.0.0": (0.05, 0.05)})
MIXED = both({"mid.0": (0.01, 0.05), "up.0.1": (0.04, 0.0), "up.0.0": (0.04, 0.0), "mid.0+up.0.1+up.0.0": (0.08, 0.08)})
WHOLE = {place: gain for place, gain in MIXED.items() if "+" in place[0]}


def numbers(value: Estimate | None) -> tuple[float, float, float]:
    """Mean and both ends of an interval that has to be there."""
    assert value is not None and value.mean is not None and value.low is not None and value.high is not None
    return value.mean, value.low, value.high


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The two models that ship, with a run on single blocks and a reference each."""
    place = tmp_path_factory.mktemp("models")
    for model, gains in (("toy-turbo", TURBO), ("toy-mixed", MIXED)):
        store(place, model, "sae", gains, seconds=0.5 if model == "toy-turbo" else 2.0)
        store(place, model, "no_edit", both({"none": (0.0, 0.0)}), method="no_edit", blocks=())
    store(place, "toy-turbo", "neurons", both({"mid.0": (0.02, 0.02)}), method="neurons", blocks=("mid.0",))
    return place


def groups(*places: Path) -> dict[str, list[RunFolder]]:
    found: dict[str, list[RunFolder]] = {}
    for place in places:
        for folder in find_run_folders(place):
            found.setdefault(folder.spec.model.name, []).append(folder)
    return dict(sorted(found.items(), reverse=True))


def compared(*places: Path) -> ModelComparison:
    return ModelComparison.of(groups(*places), replicates=400)


def test_each_category_has_its_best_block(results: Path) -> None:
    found = compared(results)
    assert [one.name for one in found.models] == ["toy-turbo", "toy-mixed"] and found.block_methods == ("sae",)
    turbo, mixed = (one.blocks["sae"] for one in found.models)
    best = {
        (one.model.name, category): blocks
        for one in (turbo, mixed) for category in found.categories if (blocks := one.best(category)) is not None
    }  # fmt: skip
    assert {place: (one.block, one.of) for place, one in best.items()} == {
        ("toy-turbo", "change_object"): ("mid.0", 3), ("toy-turbo", "change_color"): ("up.0.1", 3),
        ("toy-mixed", "change_object"): (best["toy-mixed", "change_object"].block, 3),
        ("toy-mixed", "change_color"): ("mid.0", 3),
    }  # fmt: skip
    # Two blocks of the mixed world gain alike in one category: neither is told apart.
    assert {place for place, one in best.items() if not one.clear} == {("toy-mixed", "change_object")}
    cell = best["toy-turbo", "change_object"].cell
    assert (cell.scored, cell.expected) == (12, 12)
    mean, low, high = numbers(cell.gain)
    assert low < mean < high


def test_gains_are_the_leaderboards_and_differences_are_paired(results: Path) -> None:
    found = compared(results)
    for model in found.models:
        everything = MethodComparison(tuple(entries(model.folders)), replicates=400)
        standing = next(one for one in everything.standings() if one.entry.name == "sae")
        cell = found.gain("sae", model)
        assert cell is not None and cell.gain == standing.area and cell.distance == standing.realised
    assert found.gain("neurons", found.models[1]) is None
    one = found.differences["sae", "toy-mixed"]
    first, second = (found.gain("sae", model) for model in found.models)
    assert first is not None and second is not None
    mean, low, high = numbers(one.difference)
    assert mean == pytest.approx(numbers(second.gain)[0] - numbers(first.gain)[0])
    # Examples share their noise here, so that paired differences vary far less than gains do.
    assert one.p < 0.05 and high - low < 1e-6
    assert ("neurons", "toy-mixed") not in found.differences


def test_cost_is_what_steps_guidance_and_records_say(results: Path) -> None:
    costs = [one.cost for one in compared(results).models]
    assert [one.calls for one in costs] == [PRESETS["toy-turbo"].steps, PRESETS["toy-mixed"].steps]
    assert [one.seconds["sae"] for one in costs] == [(0.5, 96), (2.0, 96)] and costs[0].devices == ("cpu",)
    assert denoiser_calls(model_spec("toy-base", guidance=5.0, steps=20)) == 40
    assert denoiser_calls(model_spec("toy-turbo", source="elsewhere")) is None


def test_a_unit_without_a_number_leaves_its_cell_open(results: Path, tmp_path: Path) -> None:
    other = store(tmp_path, "toy-mixed", "sae", WHOLE, unscored="change_color-03")
    turbo = groups(results)["toy-turbo"]
    found = ModelComparison.of({"toy-turbo": turbo, "toy-mixed": [other]}, replicates=100)
    cell = found.gain("sae", found.models[1])
    assert cell is not None and cell.gain is None and (cell.scored, cell.expected) == (23, 24)
    assert "1 of 24 units of sae have no clip_gain" in cell.note
    text = side_by_side(found).markdown()
    assert "| sae | " in text and "– 23/24 (" in text and found.differences == {}


def test_methods_that_are_not_the_same_have_no_difference(results: Path, tmp_path: Path) -> None:
    turbo = groups(results)["toy-turbo"]
    few = {name: category for name, category in EXAMPLES.items() if name[-2:] < "06"}
    for mixed, why in (
        (store(tmp_path / "a", "toy-mixed", "sae", WHOLE, params={"n_features": 3}), "its parameters differ"),
        (store(tmp_path / "b", "toy-mixed", "sae", WHOLE, examples=few), "its examples differ between the models (24"),
    ):
        found = ModelComparison.of({"toy-turbo": turbo, "toy-mixed": [mixed]}, replicates=50)
        assert why in found.unlike["sae"] and found.differences == {}
        assert f"`sae`: no difference, {why}" in side_by_side(found).markdown()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"suite": "other"}, r"results of several suites \(other, toy\) cannot be compared; choose with --suite"),
        ({"backbone": "siglip"}, r"scorers differ, .* \(clip_gain: toy-turbo by c, toy-mixed by siglip\)"),
        ({"content": "1" * 16}, r"suites differ: change_.* is of .* on toy-turbo and of .* on toy-mixed"),
        ({"unscored": "change_object-00", "examples": {"change_object-00": "change_object"}}, "has a clip_gain; `rieb"),
    ],
    ids=["suites", "scorers", "examples", "no scores"],
)
def test_what_cannot_be_compared_is_refused(
    results: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    mixed = store(tmp_path, "toy-mixed", "sae", WHOLE, **changes)
    with pytest.raises(RiebenchError, match=message):
        ModelComparison.of({"toy-turbo": groups(results)["toy-turbo"], "toy-mixed": [mixed]})


def command(*words: object) -> Any:
    return CliRunner().invoke(app, ["compare-models", *map(str, words)])


def test_the_command_writes_a_document_its_numbers_and_a_picture(results: Path, tmp_path: Path) -> None:
    made = command(results, "--models", "toy-mixed,toy-turbo", "--out", tmp_path / "out")
    assert made.exit_code == 0, made.stderr
    document, table, picture = (Path(line) for line in made.stdout.splitlines())
    text = document.read_text()
    assert "# toy: toy-mixed and toy-turbo" in text and "| toy-turbo minus toy-mixed |" in text
    assert "| change_color | mid.0 (3)* " in text and "](models.png)" in text
    rows = csv_rows(table.read_text().splitlines())
    assert [*rows[0]] == [*CSV_COLUMNS]
    # What one model alone has run is named, and in the CSV file.
    assert "- toy-turbo: `neurons`." in text and "| neurons |" not in text and "### `neurons`" not in text
    assert [row["model"] for row in rows if row["method"] == "neurons"]
    best = {(row["model"], row["category"]): row["blocks"] for row in rows if row["best"] == "yes"}
    assert best["toy-mixed", "change_color"] == "mid.0" and best["toy-turbo", "change_color"] == "up.0.1"
    with decode_image(picture.read_bytes(), ("PNG",)) as image:
        assert min(image.size) > 300
    before = [path.read_bytes() for path in (document, table, picture)]
    again = ("--models", "toy-mixed,toy-turbo", "--out", tmp_path / "out")
    command(results, *again)
    assert before == [path.read_bytes() for path in (document, table, picture)]
    assert "3 files are up to date" in command(results, *again, "--check").output
    table.write_text(table.read_text().replace("mid.0", "mid.1"))
    stale = command(results, *again, "--check")
    assert stale.exit_code == 2 and "models.csv is out of date; run `riebench compare-models --out" in stale.stderr


def test_conclusions_come_first(results: Path, tmp_path: Path) -> None:
    text = side_by_side(compared(results)).markdown()
    lines = text[: text.index("Gains are")].splitlines()
    assert "- By `sae`, of 2 categories the best single block of toy-turbo is mid.0 in 1, up.0.1 in 1." in lines
    assert any(line.startswith("- `sae` gains more on toy-mixed than on toy-turbo: +") for line in lines)
    # Where no method has run on both, nothing is left out.
    for model, name, gains in (("toy-turbo", "sae", TURBO), ("toy-mixed", "neurons", MIXED)):
        store(tmp_path, model, name, gains, method=name, params={} if name == "neurons" else None)
    apart = compared(tmp_path)
    assert apart.run_once == {} and "| neurons |" in side_by_side(apart).markdown()


def test_the_command_refuses_in_one_line(results: Path, tmp_path: Path) -> None:
    copy = store(tmp_path / "again", "toy-turbo", "sae", WHOLE)
    for words, message in (
        (["--models", "toy-turbo"], "models are compared from two on, and there is toy-turbo"),
        (["--models", "toy-turbo,toy-mixd"], "no results of it (did you mean 'toy-mixed'?)"),
        (["--suite", "photos"], "--suite 'photos': no results of it"),
        ([str(copy.path.parents[2])], "are runs of one name; leave one of the results folders out"),
        (["hf://datasets/a/b"], "can only be read"),
    ):
        found = command(results, *words, "--out", tmp_path / "out")
        last = found.stderr.strip().splitlines()
        assert found.exit_code == 2 and len(last) == 1 and message in last[0], found.stderr
    assert not (tmp_path / "out").exists()
