"""The compact form of records and scores says exactly what the lines say, and refuses everything else."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from records import add_record, make_key, make_record, make_score, make_spec

from riebench.errors import StoreError
from riebench.store.folder import RunFolder, run_path
from riebench.store.parquet import read_records, read_score_table, write_records, write_scores
from riebench.store.records import (
    RECORDS_FILE,
    RECORDS_TABLE,
    SCORES_TABLE,
    BlockDistribution,
    BlockFeatures,
    EditRecord,
    ScoreRecord,
)
from riebench.store.records import UnitKey as Key
from riebench.store.scores import ScoreColumns, ScoreLines
from riebench.tasks.masks import MaskShare
from riebench.utils.files import content_digest

WORDS = st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9._+-]{0,12}\Z")
WHOLE = st.integers(0, 2**53 - 1)
NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
KEYS = st.builds(
    Key, task=WORDS, task_version=WHOLE, category=st.sampled_from(["change_color", "add_object"]), example_id=WORDS,
    example_hash=WORDS, block_set=WORDS, strength=st.floats(-1e6, 1e6), seed=WHOLE,
)  # fmt: skip
FEATURES = st.dictionaries(
    WORDS, st.builds(BlockFeatures, add=st.lists(WHOLE).map(tuple), remove=st.lists(WHOLE).map(tuple)), max_size=3
)
SHARES = st.builds(MaskShare, source=st.floats(0, 1), target=st.floats(0, 1))
DISTRIBUTIONS = st.dictionaries(
    WORDS,
    st.builds(
        BlockDistribution, reference=st.just("0123abcd"), steps=st.just((0, 3)), norm=st.just((0.5, 1.0)),
        distance=st.tuples(st.floats(0, 1e6), st.floats(0, 1e6)), far=st.just((0.0, 0.25)),
        far_before=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    ), min_size=1, max_size=3,
)  # fmt: skip
RECORDS = st.builds(
    EditRecord, key=KEYS, status=st.just("error"), reason=st.text(min_size=1).filter(lambda text: text.isprintable()),
    features=FEATURES, neurons=st.none() | WHOLE, cluster=st.none() | WORDS, mask_share=st.none() | SHARES,
    seconds=st.floats(0, 1e9), batch_size=st.integers(1, 1000), invocation=st.none() | st.integers(0, 9),
    distribution=st.none() | DISTRIBUTIONS,
)  # fmt: skip
SCORES = st.builds(
    ScoreRecord, unit=WORDS, metric=st.sampled_from("abc"), version=st.integers(1, 9),
    backbone=st.sampled_from(["", "x"]), picture=WORDS, value=st.none() | NUMBERS, reason=WORDS,
    invocation=st.none() | st.integers(0, 9),
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(records=st.lists(RECORDS, max_size=5))
def test_records_come_back_as_they_were(records: list[EditRecord], tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("records") / RECORDS_TABLE
    write_records(path, records)
    assert read_records(path) == records
    assert [one.model_dump_json() for one in read_records(path)] == [one.model_dump_json() for one in records]


@settings(max_examples=60, deadline=None)
@given(scores=st.lists(SCORES, max_size=8, unique_by=lambda one: (one.unit, one.metric, one.backbone)))
def test_score_columns_say_what_the_scores_say(
    scores: list[ScoreRecord], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("scores") / SCORES_TABLE
    write_scores(path, scores)
    stored, lines = ScoreColumns(read_score_table(path)), ScoreLines(scores)
    assert list(stored.scores()) == sorted(scores, key=lambda one: one.metric)
    # In the order of the last score of each, which is what tells whose numbers are shown.
    pairs = [(one.metric, one.backbone) for one in scores]
    assert lines.measured == tuple(sorted(set(pairs), key=lambda pair: len(pairs) - 1 - pairs[::-1].index(pair)))
    for table in (stored, lines):
        assert set(table.measured) == set(pairs)
        for metric, backbone in pairs:
            some = [one for one in scores if (one.metric, one.backbone) == (metric, backbone)]
            series = table.series(metric, backbone)
            assert series.units == [one.unit for one in some] and series.values == [one.value for one in some]
            assert series.rows == {one.unit: row for row, one in enumerate(some)}
            assert table.has_values(metric, backbone) == any(one.value is not None for one in some)
            for reason in ("no_weights", some[-1].reason or ""):
                counted = [place for place, one in zip(series.places, some, strict=True) if one.reason != reason]
                assert table.last_place(metric, backbone, reason) == (counted[-1] if counted else -1)
        assert table.last_place("another", "", "") == -1


@given(key=KEYS)
def test_a_digest_is_that_of_the_canonical_fields(key: Key) -> None:
    assert key.digest == content_digest(key.model_dump(mode="json"))[:20]


def published(root: Path) -> RunFolder:
    """A run of two scored units in compact form."""
    from riebench.jobs.publish import publish

    spec = make_spec()
    folder = RunFolder(run_path(root / "runs", "toy", "toy-turbo", "sae"), spec)
    with folder.open_for_writing({"command": "riebench run", "started": "now"}, [make_key(), make_key(seed=1)]):
        add_record(folder)
        add_record(folder, seed=1)
        folder.append_scores([make_score(record, 0.5 + record.key.seed) for record in folder.records()])
    return RunFolder(publish(folder.path, root / "results").path)


def test_later_lines_count_on_top_of_a_published_run(tmp_path: Path) -> None:
    folder = published(tmp_path)
    assert not (folder.path / RECORDS_FILE).exists() and (folder.path / RECORDS_TABLE).exists()
    changed = make_record(make_key(seed=1), "images/x.png", "f" * 64)
    with folder.open_for_writing({"command": "riebench run again", "started": "later"}):
        folder.append(changed)
        folder.append_scores([make_score(changed, 9.0)])
    again = RunFolder(folder.path)
    assert [record.invocation for record in again.records()] == [0, 1]
    assert [one.command for one in again.invocations] == ["riebench run", "riebench run again"]
    assert again.scores()[changed.key.digest, "clip_gain", ""].value == 9.0
    series = again.score_table().series("clip_gain", "")
    assert dict(zip(series.units, series.values, strict=True))[changed.key.digest] == 9.0
    assert [record.key.seed for record in again.every_record()] == [0, 1, 1]


def _table(path: Path) -> Any:
    return pq.read_table(path)


def _replaced(name: str, values: list[Any], kind: Any) -> Any:
    def change(table: Any) -> Any:
        return table.set_column(table.column_names.index(name), pa.field(name, kind), pa.array(values, kind))

    return change


DAMAGE: dict[str, tuple[str, Any, str]] = {
    "no Parquet": (RECORDS_TABLE, lambda _: b"PAR1 nothing", "is damaged"),
    "cut off": (SCORES_TABLE, "cut", "is damaged"),
    "another column": (
        RECORDS_TABLE, lambda t: t.append_column("strenght", pa.array([1, 2])), "unknown column 'strenght'",
    ),
    "a column less": (SCORES_TABLE, lambda t: t.drop_columns(["picture"]), "'picture' is missing"),
    "another type": (SCORES_TABLE, _replaced("value", ["1", "2"], pa.string()), "'value' holds string, not double"),
    "not a number": (SCORES_TABLE, _replaced("value", [float("nan"), 1.0], pa.float64()), "no finite number"),
    "no value and no reason": (SCORES_TABLE, _replaced("value", [None, 1.0], pa.float64()), "neither value nor reason"),
    "version 0": (SCORES_TABLE, _replaced("version", [0, 1], pa.int64()), "version is below 1"),
    "negative invocation": (SCORES_TABLE, _replaced("invocation", [-1, 0], pa.int64()), "no place in a list"),
    "a picture outside": (
        RECORDS_TABLE, _replaced("image", ["../../secret.png", "b.png"], pa.string()), "row 1: image",
    ),
    "no status": (RECORDS_TABLE, _replaced("status", [None, "ok"], pa.string()), "status is missing in a row"),
    "unknown status": (RECORDS_TABLE, _replaced("status", ["fine", "ok"], pa.string()), "row 1: status"),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_and_foreign_files_are_refused_in_one_line(damage: str, tmp_path: Path) -> None:
    name, change, words = DAMAGE[damage]
    path = published(tmp_path).path / name
    if change == "cut":
        path.write_bytes(path.read_bytes()[:-20])
    else:
        made = change(_table(path))
        if isinstance(made, bytes):
            path.write_bytes(made)
        else:
            pq.write_table(made, path, store_schema=False)
    folder = RunFolder(path.parent)
    with pytest.raises(StoreError, match=words) as error:
        folder.records()
        folder.score_table()
    assert "\n" not in str(error.value) and str(path) in str(error.value)


def test_a_file_that_unpacks_to_more_than_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = published(tmp_path).path / SCORES_TABLE
    monkeypatch.setattr("riebench.store.parquet.MOST_BYTES", 100)
    with pytest.raises(StoreError, match=r"would need .* GiB of memory"):
        read_score_table(path)


def test_pipes_are_not_waited_for(tmp_path: Path) -> None:
    path = published(tmp_path).path / RECORDS_TABLE
    path.unlink()
    os.mkfifo(path)
    with pytest.raises((OSError, StoreError), match="no regular file"):
        RunFolder(path.parent).records()


def test_files_without_distances_have_no_column_for_them_and_damaged_ones_are_refused(tmp_path: Path) -> None:
    plain = make_record(make_key(), "images/a.png", "0" * 64)
    one = BlockDistribution(reference="0123abcd", steps=(0,), norm=(0.5,), distance=(1.2,), far=(0.1,), far_before=(0,))
    measured = plain.model_copy(update={"key": make_key(seed=1), "distribution": {"mid.0": one}})
    without, both = tmp_path / "a" / RECORDS_TABLE, tmp_path / "b" / RECORDS_TABLE
    write_records(without, [plain])
    write_records(both, [plain, measured])
    assert "distribution" not in pq.read_schema(without).names
    assert read_records(without) == [plain] and read_records(both) == [plain, measured]
    assert read_records(both, features=False)[1].distribution == {"mid.0": one}
    table = pq.read_table(both)
    place = table.column_names.index("distribution")
    for text, words in (
        ("[1", r"is damaged: '\[1' is no JSON object"),
        ("[" * 10_000, "is no JSON object"),
        ("[1]", "row 2: distribution: Input should be a valid dictionary"),
        ('{"mid.0": {"steps": [0]}}', "row 2: distribution"),
    ):
        changed = pa.array([None, text], pa.string())
        pq.write_table(table.set_column(place, table.schema.field(place), changed), both, store_schema=False)
        with pytest.raises(StoreError, match=words):
            read_records(both)
