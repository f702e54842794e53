"""The trade-off plot names at most eight lines, and the gallery says what a picture shows."""

from __future__ import annotations

import re
from importlib.resources import files
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from report_runs import make_block_results, make_run, read_data, tasks

from riebench.report import write_report
from riebench.report.data import Group, read_groups
from riebench.report.examples import VERDICTS
from riebench.report.feature_choice import FeatureCell, FeatureCount
from riebench.report.plots import MARKERS, MOST_NAMED, Line, choose_named, group_lines, trade_off
from riebench.utils.markup import Document

# Machado, Oliveira and Fernandes 2009, complete deficiency, on linear RGB.
VISION = {
    "usual": np.eye(3),
    "protanopia": np.array([[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]]),
    "deuteranopia": np.array([[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]]),
    "tritanopia": np.array([[1.256, -0.077, -0.179], [-0.078, 0.931, 0.148], [0.005, 0.691, 0.304]]),
}


def line(name: str, method: str, access: str, strengths: int = 6) -> Line:
    """Return a line of a single method configuration."""
    return Line(name, method, access, (name,), strengths)


def test_named_lines_are_the_sae_method_the_best_of_each_kind_and_controls() -> None:
    lines = [
        line("sae", "sae", "PAM", 1), line("sae_sweep", "sae", "PAM"), line("patch", "activation_patch", "PAM"),
        line("steering", "mean_steering", "PAM"), line("wrong", "wrong_example", "PAM"),
        line("random", "random_features", "PAM"), line("lerp", "embed_lerp", "P"), line("p2p", "p2p", "P"),
        line("masked", "masked_target", "PM"), line("led", "ledits_pp", "PV"),
        line("trained", "concept_steering", "PAT"),
    ]  # fmt: skip
    areas = {"patch": 0.2, "steering": 0.3, "lerp": 0.2, "p2p": 0.1, "masked": 0.1, "sae_sweep": 0.05, "wrong": 0.01}
    named = {found.name: found.color for found in choose_named(lines, areas)}
    assert named["sae_sweep"] == 0 and named["steering"] == 1
    kinds = ("steering", "lerp", "masked", "trained", "led")
    assert {*kinds, "sae_sweep", "random", "wrong"} == {name for name, color in named.items() if color is not None}
    # The control of chosen features comes before that of the choice of the example.
    assert (named["random"], named["wrong"]) == (6, 7)
    fewer = {found.name: found.color for found in choose_named(lines[:4], areas)}
    assert fewer == {"sae_sweep": 0, "steering": 1, "sae": 2, "patch": 3}


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Group:
    """Two settings of one method and fourteen methods of one kind."""
    results = tmp_path_factory.mktemp("made") / "results"
    make_run(results, "no_edit", "no_edit", ("none",), (1.0,), 2, pictures=False)
    make_run(results, "sae", "sae", ("mid.0", "all"), (1.0,), 2, pictures=False)
    make_run(results, "sae_strong", "sae", ("all",), (0.5, 2.0), 2, pictures=False)
    for number in range(14):
        access = ("P", "PM", "PA", "PAM", "PT", "PV", "PAT", "PMV", "M", "A")[number % 10]
        make_run(results, f"m{number:02d}", f"m{number}", ("none",), (0.5, 1.0), 2, pictures=False, access=access)
    (group,) = read_groups(results)
    return group


def test_configurations_that_differ_in_strengths_alone_are_one_line(many: Group) -> None:
    lines = {found.name: found for found in group_lines(many)}
    assert lines["sae_strong"].settings == ("sae", "sae_strong") and lines["sae_strong"].strengths == 3
    assert "no_edit" not in lines and len(lines) == 15
    plot = trade_off(many, "p", "Title")
    assert plot is not None
    (index,) = [index for index, found in plot.named if found.name == "sae_strong"]
    # One curve joins the three strengths.
    assert plot.svg.count(f'id="p-s{index}-0"') == 1 and f'id="p-s{index}-1"' not in plot.svg
    assert [p.strength for p in plot.points if f"<title>{p.words}</title>" in plot.svg and "sae" in p.setting] == [
        1.0, 0.5, 2.0
    ]  # fmt: skip


def test_the_drawing_has_at_most_eight_colors_and_names_the_rest(many: Group) -> None:
    plot = trade_off(many, "p", "Title")
    assert plot is not None and len(plot.named) == MOST_NAMED and len(plot.rest) == 7
    assert {*re.findall(r"var\(--(line-\d+|rest)\)", plot.svg)} == {"rest", *(f"line-{i}" for i in range(MOST_NAMED))}
    assert not re.search(r"#0a0b", plot.svg)
    grey = re.findall(
        r'<g id="p-s\d+-\d+" class="rest" tabindex="0" role="img" aria-label="(m\d+), 2 strengths"', plot.svg
    )
    assert sorted(grey) == sorted(found.name for _, found in plot.rest)
    assert all(f">{name}</text>" in plot.svg for name in grey)
    assert len(MARKERS) == len(set(MARKERS)) == MOST_NAMED


def _palettes() -> dict[str, dict[str, str]]:
    """Return the page's colours in the light and in the dark."""
    css = (files("riebench.report") / "assets" / "report.css").read_text(encoding="utf-8")
    light, dark = re.findall(r":root \{(.*?)\}", css, re.DOTALL)[:2]
    return {name: dict(re.findall(r"--([\w-]+): (#\w{6})", text)) for name, text in (("light", light), ("dark", dark))}


def _linear(colour: str) -> np.ndarray:
    parts = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)


def _oklab(linear: np.ndarray) -> np.ndarray:
    cone = np.array([[0.4122, 0.5363, 0.0514], [0.2119, 0.6807, 0.1074], [0.0883, 0.2817, 0.6300]])
    lab = np.array([[0.2105, 0.7936, -0.0041], [1.9780, -2.4286, 0.4506], [0.0259, 0.7828, -0.8087]])
    return lab @ np.cbrt(cone @ np.clip(linear, 0, 1))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_line_colors_differ_for_every_kind_of_vision(scheme: str) -> None:
    palette = _palettes()[scheme]
    lines = [_linear(palette[f"line-{number}"]) for number in range(MOST_NAMED)]
    luminance = np.array([0.2126, 0.7152, 0.0722])
    ground = float(luminance @ _linear(palette["page"]))
    for colour in lines:
        low, high = sorted((float(luminance @ colour), ground))
        assert (high + 0.05) / (low + 0.05) >= 3
    for name, vision in VISION.items():
        apart = min(float(np.linalg.norm(_oklab(vision @ a) - _oklab(vision @ b))) for a, b in combinations(lines, 2))
        assert apart >= (0.14 if name == "usual" else 0.07), name


def test_verdicts_are_the_judges_or_compare_with_the_control(tmp_path: Path) -> None:
    write_report(make_block_results(tmp_path / "a", 3, judged=True), tmp_path / "x", tasks(), board=Document(()))
    units = read_data(tmp_path / "x", "mine.toy-turbo.change_object.sae")["units"]
    verdicts = {(row[2], VERDICTS[row[8]]) for row in units}
    assert verdicts == {
        ("mid.0", "target reached, the rest kept"), ("all", "target reached, the rest kept"),
        ("up.0.1", "target not reached, other attributes changed"),
    }  # fmt: skip
    means = {(block, "change_object"): 0.1 for block in ("all", "mid.0")}
    write_report(make_block_results(tmp_path / "b", 3, means=means), tmp_path / "y", tasks(), board=Document(()))
    found = {
        (category, row[2]): VERDICTS[row[8]]
        for category in ("change_object", "change_color")
        for row in read_data(tmp_path / "y", f"mine.toy-turbo.{category}.sae")["units"]
    }
    assert found["change_object", "all"] == "gain above its control"
    # The control has no edit of single blocks.
    assert found["change_object", "mid.0"] == "gain above 0"
    others = read_data(tmp_path / "y", "mine.toy-turbo.change_object.no_edit")["units"]
    assert {VERDICTS[row[8]] for row in others} == {"gain not above 0"}


def test_features_of_equally_many_edits_stand_together() -> None:
    counts = [FeatureCount(7, 40, None), *(FeatureCount(index, 36, None) for index in (0, 1, 5))]
    first, second = FeatureCell(tuple(counts), none=0, more=2).ties
    assert (first.words, first.more, second.words, second.more) == ("40 edits", 0, "36 edits each", 2)
    assert [one.index for one in second.features] == [0, 1, 5]
    assert FeatureCell((FeatureCount(3, 1, None),), none=0).ties[0].words == "1 edit"


def test_ties_are_printed_once_with_the_number_of_features_left_out(tmp_path: Path) -> None:
    page = write_report(make_block_results(tmp_path / "a", 3), tmp_path / "x", tasks(), board=Document(())).page
    text = re.sub(r"<[^>]+>", "", page.read_text(encoding="utf-8"))
    assert "1, 2, 3: 6 edits each" in text and "4: 6 edits" in text and not re.search(r"\d x6\b", text)


def test_results_without_pictures_say_so_once(tmp_path: Path) -> None:
    results = make_block_results(tmp_path / "a", 3)
    page = write_report(results, tmp_path / "x", tasks(), board=Document(())).page
    text = page.read_text(encoding="utf-8")
    assert text.count("No edited picture is in this results folder") == 1
    assert not any("results folder" in file.read_text() for file in (tmp_path / "x" / "data").iterdir())
