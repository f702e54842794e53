"""EditScore, a vision-language model that was trained to judge edits.

It is shown source and edited picture with an instruction, and asked twice in its authors' words: how well the
instruction was followed and the rest was kept, and how natural the edited picture looks. It answers with numbers from 0
to 25. The authors draw answers at random and guess where one cannot be read; here the most probable answer counts, and
one that cannot be read is missing. Suites have no instructions, so one is made of both prompts.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from cachetools import LRUCache

from riebench.errors import MetricError
from riebench.scoring.metrics.base import MetricFormat, Reason, Sample, UInt8, Value, metric, picture_key
from riebench.scoring.metrics.clip import clean_prompt
from riebench.scoring.metrics.networks import Network, NetworkOptions, Networks, network
from riebench.scoring.metrics.pretrained.files import (
    INDEX,
    WEIGHTS,
    HubModel,
    load_model,
    load_processor,
    loading_errors,
)

NAME = "editscore"
PROCESSOR = ("preprocessor_config.json", "tokenizer.json", "tokenizer_config.json")
BASE = HubModel(
    NAME, "Qwen/Qwen2.5-VL-7B-Instruct", PROCESSOR, (INDEX, WEIGHTS),
    revision="cc594898137f460bfe9f0759e9844b3ce807cfb5",
)  # fmt: skip
ADAPTER = HubModel(
    NAME, "EditScore/EditScore-7B", weights=("adapter_model.safetensors",), config="adapter_config.json",
    revision="dcce052accfc75f2d48279c889a71755ecdf737b",
)  # fmt: skip
"""What the authors' training adds to the model (LoRA)."""
INSTRUCTION = 'Change the image of "{source}" into one of "{target}".'
"""The instruction that stands for two prompts."""
RANGE = 25
"""Largest number of an answer."""
LONGEST_ANSWER = 512
"""Tokens of an answer, at most."""
CACHED = 20_000
Ask = Callable[[Sequence[UInt8], str], str]
"""Pictures uint8 [H, W, 3] and a text -> the answer."""


@dataclass(frozen=True)
class Questions:
    """Both questions, in the authors' words.

    Attributes:
        edit: about source and edited picture; holds "<instruction>".
        quality: about the edited picture alone.
    """

    edit: str
    quality: str


@dataclass(frozen=True)
class Verdict:
    """Both answers about an edit.

    Attributes:
        edit: the answer about the edit, as it was given.
        quality: the answer about the edited picture, as it was given.
    """

    edit: str
    quality: str

    @property
    def followed(self) -> Value:
        """Degree to which the instruction was followed, 0 to 10."""
        return _number(self.edit, 0)

    @property
    def kept(self) -> Value:
        """Degree to which all else was kept, 0 to 10."""
        return _number(self.edit, 1)

    @property
    def overall(self) -> Value:
        """The authors' score, 0 to 10: root of the product of both lesser numbers."""
        edit, quality = read_numbers(self.edit), read_numbers(self.quality)
        if edit is None or quality is None:
            return Reason.UNUSABLE_ANSWER
        return float((min(edit) * min(quality)) ** 0.5)


def _number(answer: str, place: int) -> Value:
    numbers = read_numbers(answer)
    return Reason.UNUSABLE_ANSWER if numbers is None else numbers[place]


def read_numbers(answer: str) -> tuple[float, float] | None:
    """Read both numbers of an answer, 0 to 10; None if it cannot be read.

    It has to hold one JSON object with a list of two numbers under "score".
    """
    start, end = answer.find("{"), answer.rfind("}")
    try:
        numbers = json.loads(answer[start : end + 1].replace("\n", " "))["score"]
        first, second = numbers
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    if not all(type(one) in (int, float) and 0 <= one <= RANGE for one in (first, second)):
        return None
    return first * 10 / RANGE, second * 10 / RANGE


class EditJudge:
    """Judge of edits, which is asked about each pair of pictures once.

    Args:
        ask: asks the model.
        questions: both questions.
        backbone: identity stored with every value.
        details: further facts needed to repeat a number.
    """

    def __init__(self, ask: Ask, questions: Questions, backbone: str, details: dict[str, str]) -> None:
        self.backbone = backbone
        self.details = {**details, "instruction": INSTRUCTION, "edit": questions.edit, "quality": questions.quality}
        self._ask, self._questions = ask, questions
        self._verdicts: LRUCache[tuple[bytes, bytes, str], Verdict] = LRUCache(CACHED)

    def judge(self, sample: Sample) -> Verdict:
        """Return the answers about a sample's edit."""
        text = INSTRUCTION.format(source=clean_prompt(sample.source_prompt), target=clean_prompt(sample.target_prompt))
        key = picture_key(sample.edited), picture_key(sample.source), text
        if key not in self._verdicts:
            edit = self._ask([sample.source, sample.edited], self._questions.edit.replace("<instruction>", text))
            self._verdicts[key] = Verdict(edit, self._ask([sample.edited], self._questions.quality))
        return self._verdicts[key]


def authors_package() -> Any:
    """Import the authors' package, which has the questions and the form of a chat.

    Raises:
        MetricError: if it, or what it needs, is not installed.
    """
    path = [*sys.path]
    try:
        importlib.import_module("peft")
        from editscore import vie_prompts
        from editscore.mllm_tools import qwen25vl
    except ImportError as error:
        raise MetricError(f"scorer {NAME} needs its packages ({error}): pip install 'riebench[judges]'") from error
    finally:
        # The package puts a relative folder in front of all others.
        sys.path[:] = path
    return vie_prompts, qwen25vl


def authors_questions(prompts: Any) -> Questions:
    """Return both questions of the authors, on the scale of their 7B model."""
    begin = prompts._context_no_delimit_reasoning_first
    edit, rule = prompts._prompts_0shot_two_image_edit_rule, prompts._prompts_0shot_tie_rule_SC
    quality = prompts._prompts_0shot_rule_PQ
    return Questions(
        "\n".join([begin, edit, rule.replace("10", str(RANGE))]),
        "\n".join([begin, quality.replace("10", str(RANGE))]),
    )


def load_editscore(options: NetworkOptions) -> EditJudge:
    """Load the model with its adapter, in the number format of its release.

    Raises:
        MetricError: if weights or packages are not there.
    """
    import torch
    from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration

    prompts, chat = authors_package()
    folder = BASE.folder(options)
    loader = Qwen2_5_VLForConditionalGeneration.from_pretrained
    model = load_model(loader, folder, BASE.repository, dtype=torch.bfloat16)
    adapter = ADAPTER.folder(options)
    with loading_errors(adapter, ADAPTER.repository):
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
    model = model.eval().requires_grad_(False).to(options.device)
    processor = load_processor(AutoProcessor.from_pretrained, folder, BASE.repository)

    def ask(pictures: Sequence[UInt8], text: str) -> str:
        inputs = judge_inputs(chat, processor, pictures, text).to(options.device)
        with torch.inference_mode():
            made = model.generate(**inputs, max_new_tokens=LONGEST_ANSWER, do_sample=False)
        answer: str = processor.tokenizer.decode(made[0, inputs.input_ids.shape[1] :], skip_special_tokens=True)
        return answer.strip()

    details = {**ADAPTER.facts(options), "base": BASE.identity(options), "dtype": "bfloat16"}
    return EditJudge(ask, authors_questions(prompts), identity(options), details)


def judge_inputs(chat: Any, processor: Any, pictures: Sequence[UInt8], text: str) -> Any:
    """Return what the model reads, made as the authors make it.

    Args:
        chat: the authors' module for this model.
        processor: the model's.
        pictures: uint8 [H, W, 3] each.
        text: the question.
    """
    from PIL import Image

    shown = [{"type": "image", "image": Image.fromarray(picture)} for picture in pictures]
    images, videos = chat.process_vision_info(
        [{"role": "user", "content": [*shown, {"type": "text", "text": text}]}]
    )  # fmt: skip
    written = chat.apply_chat_template(text, num_images=len(pictures))
    return processor(text=[written], images=images, videos=videos, padding=True, return_tensors="pt")


def identity(options: NetworkOptions) -> str:
    """Return the adapter's repository and its commit, or the hash of a local folder."""
    return ADAPTER.identity(options)


@network(NAME)
class EditScoreNetwork(Network):
    """EditScore 7B, an adapter of Qwen2.5-VL 7B; Apache-2.0."""

    weights = f"{BASE.about}, and {', '.join(ADAPTER.choices[0])} of {ADAPTER.repository} beside them"

    @staticmethod
    def load(networks: Networks) -> EditJudge:
        """Load the network."""
        return load_editscore(networks.options)

    @staticmethod
    def identity(options: NetworkOptions) -> str:
        """Return the adapter's repository and its commit, or the hash of a local folder."""
        return identity(options)

    @staticmethod
    def locate(options: NetworkOptions) -> None:
        """Check that packages and weights are here."""
        authors_package()
        BASE.folder(options)
        ADAPTER.folder(options)


def _verdicts(samples: Sequence[Sample], networks: Networks) -> list[Verdict]:
    judge: EditJudge = networks.get(NAME)
    found = []
    for sample in samples:
        verdict = judge.judge(sample)
        networks.note(sample, NAME, {"edit": verdict.edit, "quality": verdict.quality})
        found.append(verdict)
    return found


@metric(
    direction="higher",
    low=0,
    high=10,
    backbone=NAME,
    format=MetricFormat("EditScore of the edit, 0 to 10 (higher is better)", 1, 2),
)
def editscore(samples: Sequence[Sample], networks: Networks) -> list[Value]:
    """Compute EditScore, which counts the edit, what it kept, and the picture."""
    return [verdict.overall for verdict in _verdicts(samples, networks)]


@metric(direction="higher", low=0, high=10, backbone=NAME)
def editscore_followed(samples: Sequence[Sample], networks: Networks) -> list[Value]:
    """Compute how well the instruction was followed, by EditScore."""
    return [verdict.followed for verdict in _verdicts(samples, networks)]


@metric(direction="higher", low=0, high=10, backbone=NAME)
def editscore_kept(samples: Sequence[Sample], networks: Networks) -> list[Value]:
    """Compute how little else was changed, by EditScore."""
    return [verdict.kept for verdict in _verdicts(samples, networks)]
