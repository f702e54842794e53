"""The reading: its sentences follow from stored artefacts, and change with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from riebench.errors import RiebenchError
from riebench.paper.artefact import INDEX, Artefact, Column, Row, Table
from riebench.paper.output import check, index, text_files, write_index
from riebench.paper.reading import HEADING, READING, carry_over_facts, equal_facts, rank_facts, reading, variant_facts
from riebench.utils.plots import KINDS


def table(rows: list[Row], name: str = "") -> Table:
    """A table of these rows."""
    return Table(name=name, title="T", columns=tuple(Column(name=key) for key in rows[0]), rows=tuple(rows))


def made(name: str, *tables: Table, **settings: Any) -> Artefact:
    """An artefact of these tables."""
    return Artefact(name=name, title=name, shows="", tables=tables, settings=dict(settings), alt="")


def variance(block: str, steps: int, step: int, value: float | None) -> Row:
    return {"run": f"m, {steps} steps", "steps": steps, "block": block, "step": step, "ev_pooled": value}


STEPS = made(
    "explained-variance-steps",
    table(
        [
            variance("mid.0", 1, 1, 0.8), variance("up.0.1", 1, 1, 0.5), variance("mid.0", 4, 1, 0.8),
            variance("mid.0", 4, 2, 0.7), variance("up.0.1", 4, 1, 0.4), variance("up.0.1", 4, 2, 0.2),
        ]
    ),
    table([{**variance("mid.0", 4, 1, 0.1)}], "unconditional"),
)  # fmt: skip


def odd_one(variant: str = "pooled", same: bool = False) -> Row:
    return {
        "category": "change_object", "variant": variant, "setting": "sae", "by_share": "up.0.1", "share": 0.6,
        "by_area": "up.0.1" if same else "mid.0", "area": 0.04, "same_area": same, "idle_area": 0.6, "by_true": "mid.0",
        "true": 0.9, "same_true": False, "idle_true": 0.25,
    }  # fmt: skip


def at(share: str, low: float, high: float, category: str = "all", true: float | None = None) -> Row:
    return {
        "share": share, "features": 12, "units": 32, "category": category, "seeds": 1, "sae_area": 0.05,
        "neurons_area": 0.01, "difference": (low + high) / 2, "difference_low": low, "difference_high": high,
        "true_difference": true, "true_difference_low": true, "true_difference_high": true,
    }  # fmt: skip


def method(settings: str, area: float | None, true: float | None = None) -> Row:
    return {
        "method": "M", "settings": settings, "levels": 6, "seeds": 1, "category": "all", "examples": 9, "area": area,
        "area_low": area, "area_high": area, "true_area": true, "truth_at_choice": true,
        "note": "" if area is not None else "2 units failed",
    }  # fmt: skip


def everything(out: Path, difference: tuple[float, float] = (0.01, 0.03), same: bool = False) -> None:
    """Stores the four artefacts that a reading needs."""
    switch: Row = {
        "switch": "subtract_off: false", "category": "all", "lpips": 0.2, "clip_gain": 0.05, "judge_target": 0.5,
        "judge_kept": 0.9,
    }  # fmt: skip
    trade_off = made(
        "trade-off", table([{"method": "M"}]), table([method("a", 0.05, 0.4), method("b", 0.06, 0.3)], "areas"),
        table([at("1/128", *difference), at("1/128", -0.02, -0.01, "change_object")], "equal-share"),
        table([switch], "switches"), suite="toy", model={"name": "toy-turbo"}, profile="default",
    )  # fmt: skip
    share = made("feature-share", table([{"block": "mid.0"}]), table([odd_one(same=same)], "disagreement"))
    blocks = made("blocks", table([{"block": "mid.0", "area": 0.1}]), levels=[0.5, 1.0])
    (out / "data").mkdir(parents=True, exist_ok=True)
    for artefact in (STEPS, trade_off, share, blocks):
        (out / "data" / f"{artefact.name}.json").write_text(artefact.model_dump_json())


def test_sentences_say_what_the_data_say(tmp_path: Path) -> None:
    everything(tmp_path)
    text = " ".join((reading(tmp_path) or "").split())
    assert "Suite `toy` on `toy-turbo`, 9 examples, 1 seed of each" in text
    assert "To **m, 4 steps** the SAEs carry over in part: the block that keeps least keeps 60 %." in text
    assert "| m, 4 steps | up.0.1 | 0.300 | 0.200 | 2 | 60 % |" in text
    assert "To **m, 4 steps, unconditional half** the SAEs do not carry over" in text
    assert "in 0 of 1 categories; they disagree in change object." in text
    assert "25 % of the switched features lie in blocks that alone have no true effect" in text
    assert "At 1/128, by CLIP, SAE features are better. Categories" in text
    assert "better by CLIP beyond doubt: SAE features none; neurons change object." in text
    assert "The judge's order is another: a, b. Kendall's tau -1.00." in text
    assert "| subtract_off: false | all | 0.200 | +5.00 | 50 % | 90 % |" in text


def test_other_data_give_other_sentences(tmp_path: Path) -> None:
    everything(tmp_path, difference=(-0.01, 0.03), same=True)
    text = " ".join((reading(tmp_path) or "").split())
    assert "At 1/128, by CLIP, neither is better beyond doubt." in text
    assert "Share and CLIP effect name the same block in 1 of 1 categories." in text
    assert "Share and true effect name the same block in 0 of 1 categories; they disagree in change object." in text


def test_it_is_written_with_the_index_and_checked(tmp_path: Path) -> None:
    everything(tmp_path)
    write_index(tmp_path)
    assert "[reading.md](reading.md)" in (tmp_path / INDEX).read_text()
    before = (tmp_path / READING).read_bytes()
    write_index(tmp_path)
    assert (tmp_path / READING).read_bytes() == before
    (tmp_path / "data" / "blocks.json").unlink()
    assert reading(tmp_path) is None
    with pytest.raises(RiebenchError, match="out of date"):
        check(tmp_path, ["trade-off"])


def test_a_reading_of_data_that_have_gone_is_found_and_goes(tmp_path: Path) -> None:
    everything(tmp_path)
    for name, text in text_files(STEPS).items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "figures").mkdir()
    for kind in KINDS:
        (tmp_path / "figures" / f"{STEPS.name}.{kind}").write_text(STEPS.digest)
    write_index(tmp_path)
    assert (tmp_path / READING).read_text().startswith(HEADING)
    check(tmp_path, [STEPS.name])
    (tmp_path / "data" / "blocks.json").unlink()
    (tmp_path / INDEX).write_text(index(tmp_path))
    with pytest.raises(RiebenchError, match=r"reading\.md is out of date"):
        check(tmp_path, [STEPS.name])
    write_index(tmp_path)
    assert not (tmp_path / READING).exists() and READING not in (tmp_path / INDEX).read_text()
    check(tmp_path, [STEPS.name])
    (tmp_path / READING).write_text("somebody's own")
    write_index(tmp_path)
    check(tmp_path, [STEPS.name])
    assert (tmp_path / READING).read_text() == "somebody's own"


def test_without_a_judge_and_without_numbers_nothing_is_made_up() -> None:
    assert carry_over_facts(made("explained-variance-steps", table([variance("mid.0", 1, 1, None)]))) == []
    facts = variant_facts([{**odd_one(), "same_true": None, "same_area": None, "by_area": None}], "pooled")
    assert facts["judged"] is False and facts["area"]["compared"] == 0 and facts["area"]["open"] == ["change_object"]
    assert equal_facts(made("trade-off", table([{"method": "M"}]))) == []
    (ranks,) = rank_facts([method("a", 0.1), method("b", None)])
    assert ranks["judged"] is False and ranks["tau"] is None and [row["settings"] for row in ranks["gaps"]] == ["b"]
    assert rank_facts([method("b", None)]) == []
