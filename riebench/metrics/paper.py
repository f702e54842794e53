"""CLIP numbers as the published RIEBench scripts make them: brackets left in the prompts, half precision throughout."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING

import numpy as np

from riebench.metrics.base import Float, Sample, Value, metric
from riebench.metrics.clip import ClipScorer, Prompts
from riebench.metrics.openclip import LoadedClip

if TYPE_CHECKING:
    from riebench.metrics.tools import Tools

HALF = " (paper prompts, float16 autocast)"
"""What the identity of such a scorer ends in."""


class HalfClipScorer(ClipScorer):
    """A CLIP under float16 autocast, on every device alike; lengths and cosines are rounded to float16, too."""

    @classmethod
    def of(cls, loaded: LoadedClip, device: str = "cpu", profile: Prompts = "paper") -> ClipScorer:
        """The scorer of a network that is loaded already; prompts keep their brackets."""
        scorer = super().of(loaded, device, profile)
        scorer.backbone = half_identity(loaded.backbone)
        scorer.details = {**loaded.details, "dtype": "float16 autocast"}
        return scorer

    @staticmethod
    def numbers(device: str) -> AbstractContextManager[None]:
        """What the network runs inside: float16 autocast without gradients."""
        return _half(device)

    @staticmethod
    def unit(embeddings: Float) -> Float:
        """Embeddings [N, D] divided by their lengths, every result rounded to float16."""
        rounded = embeddings.astype(np.float16)
        lengths = np.linalg.norm(rounded.astype(np.float32), axis=1, keepdims=True).astype(np.float16)
        return np.asarray(rounded / lengths, dtype=np.float64)


def half_identity(backbone: str) -> str:
    """The identity of a CLIP that is run as here."""
    return backbone + HALF


@contextmanager
def _half(device: str) -> Iterator[None]:
    import torch

    with torch.inference_mode(), torch.autocast(torch.device(device).type, dtype=torch.float16):
        yield


def _cosines(first: Float, second: Float) -> list[Value]:
    return [float(value) for value in (first * second).sum(axis=1).astype(np.float16)]


@metric(direction="higher", low=-1.01, high=1.01, backbone="clip-half")
def paper_text_target(samples: Sequence[Sample], tools: Tools) -> list[Value]:
    """Cosine of the edited picture with the target prompt, brackets and all."""
    return _cosines(
        tools.half_clip.pictures(s.edited for s in samples), tools.half_clip.texts(s.target_prompt for s in samples)
    )


@metric(direction="lower", low=-1.01, high=1.01, backbone="clip-half")
def paper_text_source(samples: Sequence[Sample], tools: Tools) -> list[Value]:
    """Cosine of the edited picture with the source prompt, brackets and all."""
    return _cosines(
        tools.half_clip.pictures(s.edited for s in samples), tools.half_clip.texts(s.source_prompt for s in samples)
    )


@metric(direction="higher", low=-1.01, high=1.01, backbone="clip-half")
def paper_image_source(samples: Sequence[Sample], tools: Tools) -> list[Value]:
    """Cosine of the edited picture with the source picture."""
    return _cosines(
        tools.half_clip.pictures(s.edited for s in samples), tools.half_clip.pictures(s.source for s in samples)
    )


@metric(direction="higher", low=-1.01, high=1.01, backbone="clip-half", needs_target=True)
def paper_image_target(samples: Sequence[Sample], tools: Tools) -> list[Value]:
    """Cosine of the edited picture with what the model makes of the target prompt."""
    return _cosines(
        tools.half_clip.pictures(s.edited for s in samples), tools.half_clip.pictures(s.wanted for s in samples)
    )
