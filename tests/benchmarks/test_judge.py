"""The judge against labels by eye: it is wrong less often than the earlier one, and what is stored is what it does."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.judge import FOLDER, PICTURES, compare, fill_document, measure, stored
from riebench.scoring.metrics.base import UNREADABLE
from riebench.scoring.metrics.judge_network import ATTRIBUTES, JUDGES
from riebench.toyworld.networks.judging.labelled import DOUBTFUL, read_labelled


def test_the_judge_is_less_often_wrong_than_the_earlier_one() -> None:
    found, before = stored("judge")["now"], stored("judge")["before"]
    for labels in ("agreed", "first"):
        assert found[labels]["errors"]["high"] < before[labels]["errors"]["low"] / 1.5
        assert found[labels]["read_of_readable"]["percent"] > 60, "a judge that reads nothing is never wrong"


@pytest.mark.parametrize("name", PICTURES)
def test_what_is_stored_is_what_a_judge_reads(name: str) -> None:
    assert measure(name) == stored(name)["now"], "run `python -m benchmarks.judge`"
    fill_document(check=True)


@pytest.mark.parametrize(("name", "count", "settings"), [("judge", 200, 25), ("judge-mixed", 102, 17)])
def test_labels_are_complete(name: str, count: int, settings: int) -> None:
    pictures = read_labelled(PICTURES[name], JUDGES[name])
    assert pictures.images.shape == (count, 64, 64, 3)
    assert len({picture.tobytes() for picture in pictures.images}) >= 0.95 * count
    for label in pictures.labels:
        assert all(label[attribute] in (*values, UNREADABLE) for attribute, values in JUDGES[name].items())
    assert len({one["setting"] for one in pictures.origins}) == settings
    second = pictures.second
    assert second is not None
    for label in second:
        assert all(label[attribute] in (*values, UNREADABLE, DOUBTFUL) for attribute, values in JUDGES[name].items())
    assert len(second) == count and second != pictures.labels


def test_what_two_labellers_do_not_agree_on_counts_for_neither_side() -> None:
    pictures = read_labelled(FOLDER)
    assert any(label["material"] == DOUBTFUL for label in pictures.second or ())
    label = {name: values[1] for name, values in ATTRIBUTES.items()}
    second = [label | {"object": UNREADABLE}, label | {"pose": DOUBTFUL}]
    agreed = replace(pictures, labels=[label, label], second=second).agreed()
    assert [sum(value == DOUBTFUL for value in one.values()) for one in agreed] == [1, 1]
    shares = compare(agreed, [label | {"color": "red"}, label])
    assert shares["errors"]["of"] == 14 and shares["errors"]["percent"] == pytest.approx(7.1)
    assert shares["read_of_readable"]["of"] == 14 and shares["unreadable_found"]["of"] == 0
    doubtful = sum(value == DOUBTFUL for one in pictures.agreed() for value in one.values())
    assert 100 < doubtful < 300


def test_shares_count_what_is_read() -> None:
    label = {name: values[1] for name, values in ATTRIBUTES.items()}
    unclear = label | {"object": UNREADABLE, "pose": UNREADABLE}
    shares = compare(
        [label, unclear],
        [label | {"color": "red", "style": UNREADABLE}, label | {"pose": UNREADABLE}],
    )
    # 14 of 16 attributes are read; a wrong color and an object that nobody could tell are errors.
    assert shares["read"]["of"] == 16 and shares["read"]["percent"] == pytest.approx(87.5)
    assert shares["errors"]["of"] == 14 and shares["errors"]["percent"] == pytest.approx(14.3)
    assert shares["unreadable_found"]["percent"] == 50 and shares["unreadable_found"]["of"] == 2
    assert shares["read_of_readable"]["percent"] == pytest.approx(92.9)
    assert shares["whole"]["percent"] == 0
    assert shares["errors_by_attribute"]["color"]["percent"] == 50
