"""The artefact on single features: tables, labels, repetition."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny import tiny_folder, tiny_saes
from typer.testing import CliRunner

from riebench.cli.main import app
from riebench.errors import RiebenchError
from riebench.features.random_features.random_baseline import FeatureMeasurement
from riebench.generation.generator import Generator
from riebench.paper.artefact import Artefact, load_artefact, select_rows
from riebench.paper.job import PaperJob
from riebench.paper.output import check, make_artefacts
from riebench.paper.recipes import features
from riebench.scoring.metrics.judge_network import ATTRIBUTES

PROMPTS = [f"a {color} {noun}" for color in ("red", "blue", "green") for noun in ("cat", "house", "boat", "car")]
BLOCKS = ("mid.0", "up.0.1")


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PaperJob:
    monkeypatch.setattr(features, "scorer_for", lambda _spec: "toy-clip")
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(PROMPTS))
    return PaperJob(
        out=tmp_path / "paper", work=tmp_path / "work", suite="sdxl", model=str(tiny_folder()), sae=str(tiny_saes()),
        prompts=prompts, steps=(1,), blocks=BLOCKS, features=2, batch_size=12, offline=True,
    )  # fmt: skip


def artefact(job: PaperJob) -> Artefact:
    found = load_artefact(job.out, "features")
    assert found is not None
    return found


def test_a_stopped_run_goes_on_and_a_whole_one_is_not_repeated(job: PaperJob, monkeypatch: pytest.MonkeyPatch) -> None:
    real = FeatureMeasurement._edited

    def stopped(self: FeatureMeasurement, block: str, chosen: Any) -> Any:
        if block == BLOCKS[1]:
            raise KeyboardInterrupt
        return real(self, block, chosen)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(FeatureMeasurement, "_edited", stopped)
        make_artefacts(job, ["features"])
    (stored,) = (job.out / "data" / "parts" / "features").iterdir()
    before = stored.read_bytes()
    make_artefacts(job, ["features"])
    assert stored.read_bytes() == before and len(list(stored.parent.iterdir())) == 2
    first = artefact(job)
    for table in first.tables[:2]:
        rows = list(table.rows)
        for name in [column.name for column in table.columns[3:]]:
            own, random, difference = (
                float(str(select_rows(rows, block=BLOCKS[0], of=of)[0][name]))
                for of in (features.OWN, features.RANDOM, features.DIFFERENCE)
            )
            assert difference == pytest.approx(own - random, abs=1e-5) and own != random
    counts = first.table("counts").rows
    assert [(row["block"], row["expected"], row["specificity"]) for row in counts] == [(b, 2, 2) for b in BLOCKS]
    assert all(int(str(row["active"])) >= 8 for row in first.table("single").rows)
    words = {word for text in PROMPTS for word in text.split()} - {"a"}
    assert {word for row in first.table("single").rows for word in str(row["label"]).split()} <= words
    monkeypatch.setattr(Generator, "generate", lambda *_, **__: pytest.fail("generated again"))
    make_artefacts(job, ["features"])
    assert artefact(job) == first and check(job.out, ["features"])


def test_a_labels_file_says_which_features_are_drawn(job: PaperJob, tmp_path: Path) -> None:
    make_artefacts(replace(job, blocks=BLOCKS[:1], out=tmp_path / "any"), ["features"])
    mine = replace(job, blocks=BLOCKS[:1], labels=tmp_path / "labels.csv")
    known = [int(str(row["feature"])) for row in artefact(replace(mine, out=tmp_path / "any")).table("single").rows]
    assert mine.labels is not None
    mine.labels.write_text(f"block,feature,label\nmid.0,{known[1]},a red cat\n")
    make_artefacts(mine, ["features"])
    (row,) = artefact(mine).table("single").rows
    assert (row["feature"], row["label"]) == (known[1], "a red cat")
    (counts,) = artefact(mine).table("counts").rows
    assert (counts["expected"], counts["causality"]) == (2, 1)
    with pytest.raises(RiebenchError, match=r"the labels file has no label of up\.0\.1; use --blocks mid\.0"):
        make_artefacts(replace(mine, blocks=BLOCKS), ["features"])
    mine.labels.write_text("block,feature,label\nmid.0,96,cat\n")
    with pytest.raises(RiebenchError, match=r"the SAE of mid\.0 has 96 features"):
        make_artefacts(mine, ["features"])


def test_too_few_prompts_and_wrong_labels_are_one_line(tmp_path: Path) -> None:
    options = ["--model", str(tiny_folder()), "--suite", "sdxl", "--sae", str(tiny_saes()), "--device", "cpu"]
    for more, message in ((["--limit", "10"], "needs 11 prompts or more, and there are 10"),
                          (["--labels", str(tmp_path / "none")], "none: cannot be read")):  # fmt: skip
        line = ["paper", "features", *options, *more, "--out", str(tmp_path / "out")]
        result = CliRunner().invoke(app, line)
        assert result.exit_code == 2 and message in " ".join(result.stderr.split()), result.output


def test_every_value_of_the_toy_world_has_words() -> None:
    found = {
        features._toy_phrase(name, value)
        for name, values in ATTRIBUTES.items() for value in values if value != "none"
    }  # fmt: skip
    assert {"red", "wearing a hat", "a pencil sketch", "in a forest"} <= found
    assert len(found) == sum(map(len, ATTRIBUTES.values())) - 2
