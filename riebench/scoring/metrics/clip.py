"""CLIP scores: how far the edited picture moved towards the target prompt, as raw cosines."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from riebench.errors import MetricError
from riebench.scoring.metrics.base import (
    Bool,
    Float,
    MetricFormat,
    Reason,
    Sample,
    UInt8,
    Value,
    forget_oldest,
    metric,
    picture_key,
    strict_float32,
)
from riebench.scoring.metrics.clip_models import ClipSpec, LoadedClip, identity, load_open_clip, locate
from riebench.scoring.metrics.networks import Network, NetworkOptions, Networks, network
from riebench.tasks.prompts import plain_prompt

if TYPE_CHECKING:
    import torch


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


@network("clip")
class ClipNetwork(Network):
    """The CLIP of `--scorer`, in float32. A missing one is an error when it is loaded, never a value left out."""

    @staticmethod
    def load(networks: Networks) -> ClipScorer:
        """Load the network; it is shared with `clip-half`."""
        return ClipScorer.of(_open_clip(networks), networks.options.device)

    @staticmethod
    def identity(options: NetworkOptions) -> str:
        """Return the identity of the scorer's weights."""
        return identity(ClipSpec.parse(options.scorer))


@network("clip2")
class SecondClipNetwork(Network):
    """The independent CLIP, in float32."""

    @staticmethod
    def load(networks: Networks) -> ClipScorer:
        """Load the network.

        Raises:
            MetricError: if there is none for this model.
        """
        second, options = networks.options.second, networks.options
        if second is None:
            raise MetricError("clip_gain_2 needs a second scorer; name it with a second --scorer")
        return ClipScorer.load(second, device=options.device, offline=options.offline)

    @staticmethod
    def identity(options: NetworkOptions) -> str:
        """Return the identity of the second scorer's weights."""
        return identity(ClipSpec.parse(options.second)) if options.second else "none"

    @staticmethod
    def locate(options: NetworkOptions) -> None:
        """Check that the second scorer is here."""
        if options.second is None:
            raise MetricError("no second scorer belongs to this model; name one with a second --scorer")
        locate(ClipSpec.parse(options.second), offline=options.offline)


def _open_clip(networks: Networks) -> LoadedClip:
    options = networks.options
    load = partial(load_open_clip, ClipSpec.parse(options.scorer), options.device, offline=options.offline)
    return networks.part("open_clip", load)


def _clip(networks: Networks, name: str = "clip") -> ClipScorer:
    scorer: ClipScorer = networks.get(name)
    return scorer


def _change(samples: Sequence[Sample], scorer: ClipScorer) -> tuple[Float, Float]:
    # Movement of the picture and wished movement of the text, both [N, D].
    pictures = scorer.pictures(s.edited for s in samples) - scorer.pictures(s.source for s in samples)
    texts = scorer.texts(s.target_prompt for s in samples) - scorer.texts(s.source_prompt for s in samples)
    return pictures, texts


def dots(first: Float, second: Float) -> list[Value]:
    """Row by row the scalar products of [N, D] and [N, D]."""
    return [float(value) for value in (first * second).sum(axis=1)]


@metric(direction="higher", low=-1, high=1, backbone="clip")
def clip_target(samples: Sequence[Sample], networks: Networks) -> list[Value]:
    """Cosine of the edited picture with the target prompt."""
    pictures = _clip(networks).pictures(s.edited for s in samples)
    return dots(pictures, _clip(networks).texts(s.target_prompt for s in samples))


@metric(
    direction="higher",
    low=-2,
    high=2,
    backbone="clip",
    format=MetricFormat("CLIP alignment gain x100 (higher is better)", 100, 2, signed=True),
)
def clip_gain(samples: Sequence[Sample], networks: Networks) -> list[Value]:
    """`clip_target` of the edited minus that of the source picture: the primary alignment number."""
    change = _clip(networks).pictures(s.edited for s in samples) - _clip(networks).pictures(s.source for s in samples)
    return dots(change, _clip(networks).texts(s.target_prompt for s in samples))


@metric(
    direction="higher",
    low=-2,
    high=2,
    backbone="clip2",
    format=MetricFormat(
        "CLIP alignment gain x100 by an independent scorer, on its own scale (higher is better)", 100, 2, signed=True
    ),
)
def clip_gain_2(samples: Sequence[Sample], networks: Networks) -> list[Value]:
    """`clip_gain` by a second network that shares no weights with the generator; on a scale of its own."""
    scorer = _clip(networks, "clip2")
    change = scorer.pictures(s.edited for s in samples) - scorer.pictures(s.source for s in samples)
    return dots(change, scorer.texts(s.target_prompt for s in samples))


@metric(direction="higher", low=-4, high=4, backbone="clip")
def clip_margin(samples: Sequence[Sample], networks: Networks) -> list[Value]:
    """Picture change times prompt change; cancels what helps both prompts alike."""
    return dots(*_change(samples, _clip(networks)))


@metric(direction="higher", low=-1, high=1, backbone="clip")
def clip_direction(samples: Sequence[Sample], networks: Networks) -> list[Value]:
    """Cosine of the picture's change with the prompts' change; says nothing about size, so never shown alone."""
    pictures, texts = _change(samples, _clip(networks))
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
def clip_image(samples: Sequence[Sample], networks: Networks) -> list[Value]:
    """Cosine of the edited with the source picture."""
    return dots(
        _clip(networks).pictures(s.edited for s in samples), _clip(networks).pictures(s.source for s in samples)
    )


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
def clip_region_gain(samples: Sequence[Sample], networks: Networks) -> list[Value]:
    """`clip_gain` on the region's bounding box, the same box in both pictures."""
    values: list[Value] = [Reason.NO_REGION] * len(samples)
    positions = [position for position, sample in enumerate(samples) if sample.mask.any()]
    if not positions:
        return values
    chosen = [samples[position] for position in positions]
    boxes = [region_box(sample.mask) for sample in chosen]
    scorer = _clip(networks)
    edited = scorer.pictures(s.edited[box] for s, box in zip(chosen, boxes, strict=True))
    source = scorer.pictures(s.source[box] for s, box in zip(chosen, boxes, strict=True))
    gains = dots(edited - source, scorer.texts(s.target_prompt for s in chosen))
    for position, gain in zip(positions, gains, strict=True):
        values[position] = gain
    return values


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


@network("clip-half")
class HalfClipNetwork(Network):
    """The CLIP of `--scorer` as published scripts run it."""

    @staticmethod
    def load(networks: Networks) -> ClipScorer:
        """Load the network; it is shared with `clip`."""
        return HalfClipScorer.of(_open_clip(networks), networks.options.device)

    @staticmethod
    def identity(options: NetworkOptions) -> str:
        """Return the identity of the scorer's weights, and that they run in half precision."""
        return half_identity(identity(ClipSpec.parse(options.scorer)))


def half_identity(backbone: str) -> str:
    """The identity of a CLIP that is run as here."""
    return backbone + HALF


@contextmanager
def _half(device: str) -> Iterator[None]:
    import torch

    with torch.inference_mode(), torch.autocast(torch.device(device).type, dtype=torch.float16):
        yield


def _cosine_format(of: str) -> MetricFormat:
    return MetricFormat(f"CLIP cosine x100 with the {of}", 100, 2)


def _cosines(first: Float, second: Float) -> list[Value]:
    return [float(value) for value in (first * second).sum(axis=1).astype(np.float16)]


@metric(
    direction="higher",
    low=-1.01,
    high=1.01,
    backbone="clip-half",
    format=_cosine_format("target prompt (higher is better)"),
)
def paper_text_target(samples: Sequence[Sample], networks: Networks) -> list[Value]:
    """Cosine of the edited picture with the target prompt, brackets and all."""
    scorer = _clip(networks, "clip-half")
    return _cosines(
        scorer.pictures(s.edited for s in samples),
        scorer.texts(s.target_prompt for s in samples),
    )


@metric(
    direction="lower",
    low=-1.01,
    high=1.01,
    backbone="clip-half",
    format=_cosine_format("source prompt (lower is better)"),
)
def paper_text_source(samples: Sequence[Sample], networks: Networks) -> list[Value]:
    """Cosine of the edited picture with the source prompt, brackets and all."""
    scorer = _clip(networks, "clip-half")
    return _cosines(
        scorer.pictures(s.edited for s in samples),
        scorer.texts(s.source_prompt for s in samples),
    )


@metric(
    direction="higher",
    low=-1.01,
    high=1.01,
    backbone="clip-half",
    format=_cosine_format("source picture (higher is better)"),
)
def paper_image_source(samples: Sequence[Sample], networks: Networks) -> list[Value]:
    """Cosine of the edited picture with the source picture."""
    scorer = _clip(networks, "clip-half")
    return _cosines(
        scorer.pictures(s.edited for s in samples),
        scorer.pictures(s.source for s in samples),
    )


@metric(
    direction="higher",
    low=-1.01,
    high=1.01,
    backbone="clip-half",
    needs_target=True,
    format=_cosine_format("target picture (higher is better)"),
)
def paper_image_target(samples: Sequence[Sample], networks: Networks) -> list[Value]:
    """Cosine of the edited picture with what the model makes of the target prompt."""
    scorer = _clip(networks, "clip-half")
    return _cosines(
        scorer.pictures(s.edited for s in samples),
        scorer.pictures(s.wanted for s in samples),
    )
