"""EditScore: its answers read, what cannot be read, its numbers; and beside its authors' package where it is there."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from PIL import Image
from scored_runs import TASKS, noise, stored_run
from tiny_scorers import qwen3_vl_folder

from riebench.errors import MetricError
from riebench.registry import METRICS, NETWORKS
from riebench.scoring.metrics.base import Reason, Sample
from riebench.scoring.metrics.networks import NetworkOptions, Networks
from riebench.scoring.metrics.pretrained.editscore import (
    EditJudge,
    Questions,
    Verdict,
    authors_questions,
    judge_inputs,
    read_numbers,
)
from riebench.scoring.score import score
from riebench.scoring.scorers import choose_scorers

MASK = np.zeros((64, 64), bool)
GOOD = 'I see. {"reasoning": "a boat\nnow", "score": [20, 15]}'
QUALITY = '{"reasoning": "", "score": [25, 10.0]}'


def judge(edit: str = GOOD, quality: str = QUALITY) -> tuple[EditJudge, list[tuple[int, str]]]:
    """A judge that gives these answers, and what it was asked: number of pictures and text."""
    asked: list[tuple[int, str]] = []

    def ask(pictures: Any, text: str) -> str:
        asked.append((len(pictures), text))
        return edit if len(pictures) == 2 else quality

    return EditJudge(ask, Questions("Rate: <instruction>", "Natural?"), "EditScore-7B@1", {}), asked


@pytest.mark.parametrize(
    "answer",
    ["", "[20, 15]", '{"score": 20}', '{"score": [20]}', '{"score": [20, 26]}', '{"score": [20, -1]}',
     '{"score": [20, true]}', '{"score": ["20", "15"]}', '{"reasoning": "x"}', '{"score": [20, 15]', "[" * 9999],
)  # fmt: skip
def test_answers_without_two_numbers_in_range_cannot_be_read(answer: str) -> None:
    assert read_numbers(answer) is None
    assert Verdict(answer, QUALITY).overall is Reason.UNUSABLE_ANSWER
    assert Verdict(GOOD, answer).overall is Reason.UNUSABLE_ANSWER and Verdict(GOOD, answer).followed == 8


def test_the_score_is_the_root_of_both_lesser_numbers_and_each_edit_is_judged_once() -> None:
    found, asked = judge()
    networks = Networks(ready={"editscore": found})
    samples = [Sample(noise(0), noise(9), MASK, "a blue car", "a [red] boat")] * 2
    values = {name: METRICS.get(name)(samples, networks) for name in choose_scorers(["editscore"]).metrics}
    # 20 and 15 of 25 are 8 and 6 of 10; 25 and 10 are 10 and 4.
    assert values == {"editscore": [pytest.approx(24**0.5)] * 2, "editscore_followed": [8, 8], "editscore_kept": [6, 6]}
    assert asked == [(2, 'Rate: Change the image of "a blue car" into one of "a red boat".'), (1, "Natural?")]


def test_unreadable_answers_are_missing_stored_and_not_asked_for_again(tmp_path: Path) -> None:
    found, asked = judge(edit="I would say it is fine.")
    run = stored_run(tmp_path)
    metrics = choose_scorers(["editscore"]).metrics
    report = score([run], TASKS, metrics=metrics, networks=Networks(ready={"editscore": found}), progress=False)
    assert report.missing == {"unusable_answer": 6} and len(asked) == 4
    lines = [json.loads(line) for line in (run.path / "raw_outputs.jsonl").read_text().splitlines()]
    assert [line["outputs"] for line in lines] == [{"edit": "I would say it is fine.", "quality": QUALITY}] * 2
    assert not score([run], TASKS, metrics=metrics, networks=Networks(ready={"editscore": found})).computed
    assert len(asked) == 4


def test_without_its_packages_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(
        MetricError, match=r"\Ascorer editscore needs its packages .*: pip install 'riebench\[judges\]'\Z"
    ):
        NETWORKS.get("editscore").locate(NetworkOptions(offline=True))


def test_questions_inputs_and_score_are_those_of_the_authors_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("peft")
    pytest.importorskip("editscore")
    monkeypatch.setattr(sys, "path", [*sys.path])
    from editscore import EditScore, vie_prompts
    from editscore.mllm_tools import qwen25vl
    from transformers import AutoProcessor, BatchFeature

    processor = AutoProcessor.from_pretrained(qwen3_vl_folder(tmp_path))
    monkeypatch.setattr(BatchFeature, "to", lambda self, *_: self)
    theirs = object.__new__(qwen25vl.Qwen25VL)
    theirs.processor = processor
    pictures = [noise(0), noise(1)]
    expected = theirs.prepare_input([Image.fromarray(one) for one in pictures], "what?")
    found = judge_inputs(qwen25vl, processor, pictures, "what?")
    assert {*found} == {*expected} and all((found[name] == expected[name]).all() for name in found)

    class Model:
        """Gives our answers to the authors' questions."""

        asked: ClassVar[list[str]] = []

        def prepare_input(self, images: Any, text: str) -> str:
            self.asked.append(text)
            return text

        def inference(self, text: str, seed: int) -> str:
            return GOOD if "Change" in text else QUALITY

    questions = authors_questions(vie_prompts)
    monkeypatch.setattr(qwen25vl, "Qwen25VL", lambda **_: Model())
    scorer = EditScore(backbone="qwen25vl", score_range=25)
    result = scorer.evaluate([Image.fromarray(one) for one in pictures], "Change it.")
    assert Model.asked == [questions.edit.replace("<instruction>", "Change it."), questions.quality]
    verdict = Verdict(GOOD, QUALITY)
    assert verdict.overall == pytest.approx(result["overall"], abs=1e-4)
    assert (verdict.followed, verdict.kept) == (result["prompt_following"], result["consistency"])
