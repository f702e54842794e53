"""CLIP scores: how far the edited picture moved towards the target prompt, as raw cosines."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from riebench.errors import MetricError
from riebench.metrics.base import (
    Bool,
    Float,
    Reason,
    Sample,
    UInt8,
    Value,
    forget_oldest,
    metric,
    picture_key,
    strict_float32,
)
from riebench.metrics.openclip import LoadedClip, load_open_clip
from riebench.metrics.scorers import ClipSpec
from riebench.tasks.prompts import plain_prompt

if TYPE_CHECKING:
    import torch

    from riebench.metrics.tools import Tools

Prompts = Literal["default", "paper"]

MIN_CHANGE = 1e-6
"""Below this length a difference of embeddings has no direction."""

CACHED_PICTURES = 20_000
"""Embeddings of pictures kept in memory; about 6 KB each."""

BOX_MARGIN = 0.15
"""How much a region's bounding box grows on each side, as a share of its own side."""


def clean_prompt(prompt: str, profile: Prompts = "default") -> str:
    """The text that CLIP sees.

    Args:
        prompt: as written in the task file.
        profile: `default` removes square brackets (they mark the edited word in some suites) and collapses
            whitespace; `paper` changes nothing, as in the published scripts.
    """
    if profile == "paper":
        return prompt
    return plain_prompt(prompt)


def profiled(backbone: str, profile: Prompts) -> str:
    """A backbone's identity under a profile: other prompts are other numbers."""
    return backbone if profile == "default" else f"{backbone} ({profile} prompts)"


class ClipScorer:
    """Unit-length CLIP embeddings of pictures and prompts, each computed once.

    Args:
        encode_pictures: list of uint8 [H, W, 3] -> [N, D], any length.
        encode_texts: list of strings -> [N, D], any length.
        cut: list of strings -> which of them lose words to the context length.
        backbone: identity stored with every value.
        details: what else must be known to repeat a number.
        profile: how prompts are cleaned.
        batch_size: most pictures or texts per call of an encoder.
    """

    def __init__(
        self,
        encode_pictures: Callable[[list[UInt8]], Float],
        encode_texts: Callable[[list[str]], Float],
        *,
        cut: Callable[[list[str]], list[bool]] = lambda texts: [False] * len(texts),
        backbone: str = "clip",
        details: dict[str, str] | None = None,
        profile: Prompts = "default",
        batch_size: int = 64,
    ) -> None:
        self.backbone = profiled(backbone, profile)
        self.details = details or {}
        self.profile = profile
        self.batch_size = batch_size
        self.cut_prompts: set[str] = set()
        """Prompts seen so far that were too long and scored without their end."""
        self._encode_pictures, self._encode_texts, self._cut = encode_pictures, encode_texts, cut
        self._pictures: dict[bytes, Float] = {}
        self._texts: dict[str, Float] = {}

    @classmethod
    def load(cls, spec: str | ClipSpec, *, device: str = "cpu", offline: bool = False) -> ClipScorer:
        """Load through open_clip's own factory, in float32, with the transform that belongs to the weights.

        Args:
            spec: what `ClipSpec.parse` reads.
            device: torch device.
            offline: fetches nothing.

        Raises:
            MetricError: if the weights are missing or the activation is not the one they were trained with.
        """
        resolved = ClipSpec.parse(spec) if isinstance(spec, str) else spec
        return cls.of(load_open_clip(resolved, device, offline=offline), device)

    @classmethod
    def of(cls, loaded: LoadedClip, device: str = "cpu", profile: Prompts = "default") -> ClipScorer:
        """The scorer of a network that is loaded already.

        Args:
            loaded: on `device`.
            device: torch device.
            profile: how prompts are cleaned.
        """
        import torch

        def pictures(batch: list[UInt8]) -> Float:
            from PIL import Image

            inputs = torch.stack([loaded.transform(Image.fromarray(picture, "RGB")) for picture in batch])
            with cls.numbers(device):
                return _numpy(loaded.model.encode_image(inputs.to(device)))

        def texts(batch: list[str]) -> Float:
            with cls.numbers(device):
                return _numpy(loaded.model.encode_text(loaded.tokenizer(batch).to(device)))

        return cls(pictures, texts, cut=loaded.cut, backbone=loaded.backbone, details=loaded.details, profile=profile)

    @staticmethod
    def numbers(device: str) -> AbstractContextManager[None]:
        """What the network runs inside: true float32 without gradients."""
        return strict_float32(device)

    def pictures(self, pictures: Iterable[UInt8]) -> Float:
        """Embeddings of uint8 [H, W, 3] pictures, [N, D], length 1.

        Raises:
            MetricError: if the network gives something that has no direction.
        """
        batch = list(pictures)
        keys = [picture_key(picture) for picture in batch]
        new = {key: picture for key, picture in zip(keys, batch, strict=True) if key not in self._pictures}
        self._fill(self._pictures, list(new), list(new.values()), self._encode_pictures)
        embeddings = np.stack([self._pictures[key] for key in keys])
        forget_oldest(self._pictures, CACHED_PICTURES)
        return embeddings

    def texts(self, prompts: Iterable[str]) -> Float:
        """Embeddings of prompts after `clean_prompt`, [N, D], length 1; long ones are noted in `cut_prompts`.

        Raises:
            MetricError: as `pictures`.
        """
        cleaned = [clean_prompt(prompt, self.profile) for prompt in prompts]
        new = [text for text in dict.fromkeys(cleaned) if text not in self._texts]
        if new:
            self.cut_prompts.update(text for text, cut in zip(new, self._cut(new), strict=True) if cut)
        self._fill(self._texts, new, new, self._encode_texts)
        return np.stack([self._texts[text] for text in cleaned])

    def _fill(
        self, cache: dict[Any, Float], keys: list[Any], inputs: list[Any], encode: Callable[[list[Any]], Float]
    ) -> None:
        for start in range(0, len(keys), self.batch_size):
            stop = start + self.batch_size
            embeddings = np.asarray(encode(inputs[start:stop]), dtype=np.float64)
            if not np.isfinite(embeddings).all() or not np.any(embeddings, axis=1).all():
                raise MetricError(f"{self.backbone}: an embedding is not finite or has length 0; check the weights")
            cache.update(zip(keys[start:stop], self.unit(embeddings), strict=True))

    @staticmethod
    def unit(embeddings: Float) -> Float:
        """Embeddings [N, D] at length 1."""
        return np.asarray(embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True))


def _numpy(tensor: torch.Tensor) -> Float:
    return np.asarray(tensor.float().cpu().numpy(), dtype=np.float64)


def _change(samples: Sequence[Sample], scorer: ClipScorer) -> tuple[Float, Float]:
    # Movement of the picture and wished movement of the text, both [N, D].
    pictures = scorer.pictures(s.edited for s in samples) - scorer.pictures(s.source for s in samples)
    texts = scorer.texts(s.target_prompt for s in samples) - scorer.texts(s.source_prompt for s in samples)
    return pictures, texts


def dots(first: Float, second: Float) -> list[Value]:
    """Row by row the scalar products of [N, D] and [N, D]."""
    return [float(value) for value in (first * second).sum(axis=1)]


@metric(direction="higher", low=-1, high=1, backbone="clip")
def clip_target(samples: Sequence[Sample], tools: Tools) -> list[Value]:
    """Cosine of the edited picture with the target prompt."""
    pictures = tools.clip.pictures(s.edited for s in samples)
    return dots(pictures, tools.clip.texts(s.target_prompt for s in samples))


@metric(direction="higher", low=-2, high=2, backbone="clip")
def clip_gain(samples: Sequence[Sample], tools: Tools) -> list[Value]:
    """`clip_target` of the edited minus that of the source picture: the primary alignment number."""
    change = tools.clip.pictures(s.edited for s in samples) - tools.clip.pictures(s.source for s in samples)
    return dots(change, tools.clip.texts(s.target_prompt for s in samples))


@metric(direction="higher", low=-2, high=2, backbone="clip2")
def clip_gain_2(samples: Sequence[Sample], tools: Tools) -> list[Value]:
    """`clip_gain` by a second network that shares no weights with the generator; on a scale of its own."""
    change = tools.clip2.pictures(s.edited for s in samples) - tools.clip2.pictures(s.source for s in samples)
    return dots(change, tools.clip2.texts(s.target_prompt for s in samples))


@metric(direction="higher", low=-4, high=4, backbone="clip")
def clip_margin(samples: Sequence[Sample], tools: Tools) -> list[Value]:
    """Picture change times prompt change; cancels what helps both prompts alike."""
    return dots(*_change(samples, tools.clip))


@metric(direction="higher", low=-1, high=1, backbone="clip")
def clip_direction(samples: Sequence[Sample], tools: Tools) -> list[Value]:
    """Cosine of the picture's change with the prompts' change; says nothing about size, so never shown alone."""
    pictures, texts = _change(samples, tools.clip)
    values: list[Value] = []
    for picture, text in zip(pictures, texts, strict=True):
        picture_length, text_length = np.linalg.norm(picture), np.linalg.norm(text)
        # Prompts first: this reason must not depend on what the method did.
        if text_length < MIN_CHANGE:
            values.append(Reason.SAME_PROMPTS)
        elif picture_length < MIN_CHANGE:
            values.append(Reason.ZERO_EDIT)
        else:
            values.append(float(picture @ text / (picture_length * text_length)))
    return values


@metric(direction="higher", low=-1, high=1, backbone="clip")
def clip_image(samples: Sequence[Sample], tools: Tools) -> list[Value]:
    """Cosine of the edited with the source picture."""
    return dots(tools.clip.pictures(s.edited for s in samples), tools.clip.pictures(s.source for s in samples))


def region_box(mask: Bool) -> tuple[slice, slice]:
    """Rows and columns of a mask's bounding box, grown by 15 % of its own side on each side and clipped.

    Fractions of a pixel are kept: the box never loses what the growth touches.

    Args:
        mask: bool [H, W] with at least one true pixel.

    Raises:
        MetricError: if the mask is empty.
    """
    slices = []
    for axis in (1, 0):
        hit = np.flatnonzero(mask.any(axis=axis))
        if hit.size == 0:
            raise MetricError("an empty mask has no bounding box")
        start, stop = int(hit[0]), int(hit[-1]) + 1
        margin = BOX_MARGIN * (stop - start)
        slices.append(slice(max(0, math.floor(start - margin)), min(mask.shape[1 - axis], math.ceil(stop + margin))))
    return slices[0], slices[1]


@metric(direction="higher", low=-2, high=2, backbone="clip")
def clip_region_gain(samples: Sequence[Sample], tools: Tools) -> list[Value]:
    """`clip_gain` on the region's bounding box, the same box in both pictures."""
    values: list[Value] = [Reason.NO_REGION] * len(samples)
    positions = [position for position, sample in enumerate(samples) if sample.mask.any()]
    if not positions:
        return values
    chosen = [samples[position] for position in positions]
    boxes = [region_box(sample.mask) for sample in chosen]
    change = tools.clip.pictures(s.edited[box] for s, box in zip(chosen, boxes, strict=True)) - tools.clip.pictures(
        s.source[box] for s, box in zip(chosen, boxes, strict=True)
    )
    gains = dots(change, tools.clip.texts(s.target_prompt for s in chosen))
    for position, gain in zip(positions, gains, strict=True):
        values[position] = gain
    return values
