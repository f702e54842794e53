"""VQAScore, the probability of "Yes" when a model is asked about a picture.

A vision-language model is shown the picture and asked whether it shows the target prompt. The probability is that of
the first token of the answer "Yes" among all tokens, from one pass and without sampling. If the most probable token is
neither a yes nor a no, the model answers something else, and the value is missing; nothing is asked twice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from cachetools import LRUCache

from riebench.scoring.metrics.base import (
    MetricFormat,
    Reason,
    Sample,
    UInt8,
    Value,
    metric,
    picture_key,
    strict_float32,
)
from riebench.scoring.metrics.clip import CACHED_PICTURES, clean_prompt
from riebench.scoring.metrics.networks import Network, NetworkOptions, Networks, network
from riebench.scoring.metrics.pretrained.files import INDEX, WEIGHTS, HubModel, load_model, load_processor

QUESTION = 'Does this figure show "{text}"? Please answer yes or no.'
"""The question, in the words of VQAScore's authors."""
YES, NO = "Yes", "No"
PROCESSOR = ("preprocessor_config.json", "tokenizer.json", "tokenizer_config.json")
TEMPLATES = ("chat_template.json", "chat_template.jinja", "video_preprocessor_config.json", "generation_config.json")
"""Further files of the processor and the model, of which a release has some."""
MODEL = HubModel(
    "vqa", "Qwen/Qwen3-VL-2B-Instruct", PROCESSOR, (WEIGHTS, INDEX),
    revision="89644892e4d85e24eaac8bacfd4f463576704203", optional=TEMPLATES,
)  # fmt: skip


@dataclass(frozen=True)
class Answer:
    """First token of an answer.

    Attributes:
        yes: probability of `YES` among all tokens.
        no: that of `NO`.
        first: the most probable token, as text.
    """

    yes: float
    no: float
    first: str

    @property
    def value(self) -> Value:
        """The probability of a yes, or the reason why the answer says nothing."""
        return self.yes if self.first.strip(" .,!\"'").lower() in ("yes", "no") else Reason.UNUSABLE_ANSWER


class QuestionScorer:
    """Asker of one question about pictures, each picture and text once.

    Args:
        ask: picture uint8 [H, W, 3] and question -> answer.
        backbone: identity stored with every value.
        details: further facts needed to repeat a number.
    """

    def __init__(self, ask: Callable[[UInt8, str], Answer], backbone: str, details: dict[str, str]) -> None:
        self.backbone, self.details = backbone, {**details, "question": QUESTION}
        self._ask = ask
        self._answers: LRUCache[tuple[bytes, str], Answer] = LRUCache(CACHED_PICTURES)

    def answer(self, picture: UInt8, prompt: str) -> Answer:
        """Ask whether a picture shows a prompt, from which brackets are removed."""
        text = clean_prompt(prompt)
        key = picture_key(picture), text
        if key not in self._answers:
            self._answers[key] = self._ask(picture, QUESTION.format(text=text))
        return self._answers[key]


def load_vqa(options: NetworkOptions) -> QuestionScorer:
    """Load the vision-language model through transformers, in float32.

    Raises:
        MetricError: if it is not there, or another kind of model.
    """
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    folder = MODEL.folder(options)
    loader = AutoModelForImageTextToText.from_pretrained
    model = load_model(loader, folder, MODEL.repository, dtype=torch.float32).to(options.device)
    processor = load_processor(AutoProcessor.from_pretrained, folder, MODEL.repository)
    yes, no = (processor.tokenizer.encode(word, add_special_tokens=False)[0] for word in (YES, NO))

    def ask(picture: UInt8, question: str) -> Answer:
        inputs = chat_inputs(processor, [picture], question).to(options.device)
        with strict_float32(options.device):
            logits = model(**inputs, logits_to_keep=1).logits[0, -1].double()
            probabilities = torch.softmax(logits, dim=-1)
        first = processor.tokenizer.decode([int(probabilities.argmax())])
        return Answer(float(probabilities[yes]), float(probabilities[no]), first)

    return QuestionScorer(ask, MODEL.identity(options), {**MODEL.facts(options), "dtype": "float32"})


def chat_inputs(processor: Any, pictures: Sequence[UInt8], text: str) -> Any:
    """Return what a chat model reads of a user who shows pictures and says a text.

    Args:
        processor: the model's, with its template of a chat.
        pictures: uint8 [H, W, 3] each.
        text: what is said after the pictures.
    """
    from PIL import Image

    shown = [{"type": "image", "image": Image.fromarray(picture)} for picture in pictures]
    chat = [{"role": "user", "content": [*shown, {"type": "text", "text": text}]}]
    return processor.apply_chat_template(
        chat, tokenize=True, add_generation_prompt=True, return_dict=True, return_tensors="pt"
    )


@network("vqa")
class VqaNetwork(Network):
    """Qwen3-VL 2B, or another vision-language model from a folder; Apache-2.0."""

    weights = f"{MODEL.about}, or of another vision-language model of transformers"

    @staticmethod
    def load(networks: Networks) -> QuestionScorer:
        """Load the network."""
        return load_vqa(networks.options)

    @staticmethod
    def identity(options: NetworkOptions) -> str:
        """Return the repository and its commit, or the hash of a local folder."""
        return MODEL.identity(options)

    @staticmethod
    def locate(options: NetworkOptions) -> None:
        """Check that the weights are here."""
        MODEL.folder(options)


def _ask(sample: Sample, networks: Networks, role: str) -> Value:
    """Ask about a sample's edited or source picture, and note the raw answer."""
    scorer: QuestionScorer = networks.get("vqa")
    found = scorer.answer(sample.edited if role == "edited" else sample.source, sample.target_prompt)
    raw: dict[str, float | str] = {f"{role}_yes": found.yes, f"{role}_no": found.no, f"{role}_first": found.first}
    networks.note(sample, "vqa", raw)
    return found.value


@metric(direction="higher", low=0, high=1, backbone="vqa")
def vqa_target(samples: Sequence[Sample], networks: Networks) -> list[Value]:
    """Compute the probability that the edited picture shows the target prompt."""
    return [_ask(sample, networks, "edited") for sample in samples]


@metric(
    direction="higher",
    low=-1,
    high=1,
    backbone="vqa",
    format=MetricFormat("VQAScore gain for the target prompt x100 (higher is better)", 100, 2, signed=True),
)
def vqa_gain(samples: Sequence[Sample], networks: Networks) -> list[Value]:
    """Compute `vqa_target` of the edited minus that of the source picture."""
    values: list[Value] = []
    for sample in samples:
        edited, source = (_ask(sample, networks, role) for role in ("edited", "source"))
        if isinstance(edited, Reason) or isinstance(source, Reason):
            values.append(Reason.UNUSABLE_ANSWER)
        else:
            values.append(edited - source)
    return values
