"""CLIP metrics, raw cosines of pictures with prompts and with other pictures.

First `ClipScorer`, which embeds pictures and prompts, with its networks and the metrics of the default profile; then
`HalfClipScorer`, which runs the same CLIP in half precision, with the metrics of the profile `paper`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
from cachetools import LRUCache

from riebench.errors import MetricError
from riebench.models.clip import ClipSpec, LoadedClip, identity, load_open_clip, locate
from riebench.scoring.metrics.base import (
    Bool,
    Float,
    MetricFormat,
    Reason,
    Sample,
    UInt8,
    Value,
    metric,
    picture_key,
    strict_float32,
)
from riebench.scoring.metrics.networks import Network, NetworkOptions, Networks, network
from riebench.tasks.prompts import plain_prompt

if TYPE_CHECKING:
    import torch


Key = TypeVar("Key")
Input = TypeVar("Input")
Prompts = Literal["default", "paper"]
"""Profiles that clean prompts in their own way."""

MIN_CHANGE = 1e-6
"""Below this length a difference of embeddings has no direction."""

CACHED_PICTURES = 20_000
"""Number of embeddings of pictures kept in memory, about 6 KB each, the last used ones."""

LARGE_PICTURE = 256 * 256 * 3
"""Numbers of a picture from which on several are resized at a time; for small ones threads take longer than that."""

BOX_MARGIN = 0.15
"""Growth of a region's bounding box on each side, as a share of its own side."""

HALF_SUFFIX = " (paper prompts, float16 autocast)"
"""End of the identity of a CLIP in half precision."""


def clean_prompt(prompt: str, profile: Prompts = "default") -> str:
    """Return the text that CLIP sees.

    Args:
        prompt: as written in the task file.
        profile: `default` removes square brackets (they mark the edited word in some suites) and collapses
            white space; `paper` changes nothing, as in the published scripts.
    """
    if profile == "paper":
        return prompt
    return plain_prompt(prompt)


def profile_identity(backbone: str, profile: Prompts) -> str:
    """Return a backbone's identity under a profile.

    Prompts that are cleaned in another way give other numbers, so they need another identity.
    """
    return backbone if profile == "default" else f"{backbone} ({profile} prompts)"


class ClipScorer:
    """Source of unit-length CLIP embeddings; each picture and prompt is embedded once.

    Args:
        encode_pictures: list of uint8 [H, W, 3] -> [N, D], any length.
        encode_texts: list of strings -> [N, D], any length.
        cut: list of strings -> for each, whether it loses words to the context length.
        backbone: identity stored with every value.
        details: further facts needed to repeat a number.
        profile: the way in which prompts are cleaned.
        batch_size: largest number of pictures or texts per call of an encoder.
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
        self.backbone = profile_identity(backbone, profile)
        self.details = details or {}
        self.profile = profile
        self.batch_size = batch_size
        self.cut_prompts: set[str] = set()
        """Prompts seen so far that were too long and scored without their end."""
        self._encode_pictures, self._encode_texts, self._cut = encode_pictures, encode_texts, cut
        self._pictures: LRUCache[bytes, Float] = LRUCache(CACHED_PICTURES)
        self._texts: dict[str, Float] = {}

    @classmethod
    def load(cls, spec: str | ClipSpec, *, device: str = "cpu", offline: bool = False) -> ClipScorer:
        """Load a CLIP through open_clip's own factory, in float32.

        Pictures go through the transform that belongs to the weights.

        Args:
            spec: a `ClipSpec`, or a text that `ClipSpec.parse` reads.
            device: torch device.
            offline: whether nothing may be fetched.

        Raises:
            MetricError: if the weights are missing or the activation is not the one they were trained with.
        """
        resolved = ClipSpec.parse(spec) if isinstance(spec, str) else spec
        return cls.from_loaded(load_open_clip(resolved, device, offline=offline), device)

    @classmethod
    def from_loaded(cls, loaded: LoadedClip, device: str = "cpu", profile: Prompts = "default") -> ClipScorer:
        """Make the scorer of a network that is loaded already.

        Args:
            loaded: the network, on `device`.
            device: torch device.
            profile: the way in which prompts are cleaned.
        """

        def pictures(batch: list[UInt8]) -> Float:
            inputs = _transformed(batch, loaded.transform)
            with cls.precision(device):
                return _to_numpy(loaded.model.encode_image(inputs.to(device)))

        def texts(batch: list[str]) -> Float:
            with cls.precision(device):
                return _to_numpy(loaded.model.encode_text(loaded.tokenizer(batch).to(device)))

        return cls(pictures, texts, cut=loaded.cut, backbone=loaded.backbone, details=loaded.details, profile=profile)

    @staticmethod
    def precision(device: str) -> AbstractContextManager[None]:
        """Return the context that the network runs in: true float32, no gradients."""
        return strict_float32(device)

    def pictures(self, pictures: Iterable[UInt8]) -> Float:
        """Embed pictures, uint8 [H, W, 3] each, as [N, D] of length 1.

        Raises:
            MetricError: if an embedding has no direction.
        """
        batch = list(pictures)
        keys = [picture_key(picture) for picture in batch]
        # Held here too, as the cache may drop some of them when others are added.
        found = {key: self._pictures[key] for key in keys if key in self._pictures}
        new = {key: picture for key, picture in zip(keys, batch, strict=True) if key not in found}
        embeddings = self._embed(list(new), list(new.values()), self._encode_pictures)
        self._pictures.update(embeddings)
        found |= embeddings
        return np.stack([found[key] for key in keys])

    def texts(self, prompts: Iterable[str]) -> Float:
        """Embed prompts after `clean_prompt`, as [N, D] of length 1.

        Prompts that are too long are added to `cut_prompts`.

        Raises:
            MetricError: as `pictures`.
        """
        cleaned = [clean_prompt(prompt, self.profile) for prompt in prompts]
        new = [text for text in dict.fromkeys(cleaned) if text not in self._texts]
        if new:
            self.cut_prompts.update(text for text, cut in zip(new, self._cut(new), strict=True) if cut)
        self._texts |= self._embed(new, new, self._encode_texts)
        return np.stack([self._texts[text] for text in cleaned])

    def _embed(
        self, keys: Sequence[Key], inputs: Sequence[Input], encode: Callable[[list[Input]], Float]
    ) -> dict[Key, Float]:
        """Embed inputs in batches, as key -> embedding [D] of length 1."""
        found: dict[Key, Float] = {}
        for start in range(0, len(keys), self.batch_size):
            stop = start + self.batch_size
            embeddings = np.asarray(encode(list(inputs[start:stop])), dtype=np.float64)
            if not np.isfinite(embeddings).all() or not np.any(embeddings, axis=1).all():
                raise MetricError(f"{self.backbone}: an embedding is not finite or has length 0; check the weights")
            found.update(zip(keys[start:stop], self.normalize(embeddings), strict=True))
        return found

    @staticmethod
    def normalize(embeddings: Float) -> Float:
        """Scale embeddings [N, D] to length 1."""
        return np.asarray(embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True))


def _transformed(batch: Sequence[UInt8], transform: Callable[[Any], torch.Tensor]) -> torch.Tensor:
    """Return pictures as a CLIP's network takes them, [N, 3, S, S].

    Where the transform ends, as open_clip's do, in a change to tensors and a normalisation of channels, these are done
    for all pictures at once: the same numbers, many times faster. Pictures that the steps before would leave as they
    are skip these.
    """
    import torch
    from PIL import Image
    from torchvision.transforms import Compose, Normalize, ToTensor

    steps = list(transform.transforms) if isinstance(transform, Compose) else [transform]
    together = [isinstance(step, kind) for step, kind in zip(steps[-2:], (ToTensor, Normalize), strict=False)]
    normalise = steps[-1] if together == [True, True] else None
    kept = _kept_size(steps[:-2]) if normalise else None

    def one(picture: UInt8) -> Any:
        if picture.shape[:2] == kept:
            return picture
        made: Any = Image.fromarray(picture, "RGB")
        for step in steps[:-2] if normalise else steps:
            made = step(made)
        return np.asarray(made) if normalise else made

    if max(picture.size for picture in batch) < LARGE_PICTURE:
        made = [one(picture) for picture in batch]
    else:
        # Resizing a picture keeps one processor busy; the network waits for all of them.
        with ThreadPoolExecutor(min(len(batch), torch.get_num_threads()), "riebench-resize") as threads:
            made = [*threads.map(one, batch)]
    if normalise is None:
        return torch.stack(made)
    pixels = torch.from_numpy(np.stack(made)).permute(0, 3, 1, 2).contiguous().float().div(255)
    tensor: torch.Tensor = normalise(pixels)
    return tensor


def _kept_size(steps: Sequence[Any]) -> tuple[int, int] | None:
    """Return the size [H, W] of pictures that these steps leave as they are.

    None if they change pictures of every size, or are not known.
    """
    from open_clip.transform import MaybeConvertMode
    from torchvision.transforms import CenterCrop, Resize

    sizes = set()
    for step in steps:
        if isinstance(step, Resize | CenterCrop):
            sizes.add((step.size, step.size) if isinstance(step.size, int) else (*step.size,))
        elif not isinstance(step, MaybeConvertMode) or step.mode != "RGB":
            return None
    return sizes.pop() if len(sizes) == 1 else None


def _to_numpy(tensor: torch.Tensor) -> Float:
    return np.asarray(tensor.float().cpu().numpy(), dtype=np.float64)


@network("clip")
class ClipNetwork(Network):
    """CLIP of `--scorer`, in float32.

    If it is missing, loading it is an error; its metrics are never left out.
    """

    @staticmethod
    def load(networks: Networks) -> ClipScorer:
        """Load the network; it is shared with `clip-half`."""
        return ClipScorer.from_loaded(_open_clip(networks), networks.options.device)

    @staticmethod
    def identity(options: NetworkOptions) -> str:
        """Return the identity of the scorer's weights."""
        return identity(ClipSpec.parse(options.scorer))


@network("clip2")
class SecondClipNetwork(Network):
    """Second, independent CLIP, in float32."""

    @staticmethod
    def load(networks: Networks) -> ClipScorer:
        """Load the network.

        Raises:
            MetricError: if there is none for this model.
        """
        second, options = networks.options.second, networks.options
        if second is None:
            raise MetricError("clip_gain_2 and clip_margin_2 need a second scorer; name it with a second --scorer")
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
    # Change of the picture and desired change, that of the prompt, both [N, D].
    pictures = scorer.pictures(s.edited for s in samples) - scorer.pictures(s.source for s in samples)
    texts = scorer.texts(s.target_prompt for s in samples) - scorer.texts(s.source_prompt for s in samples)
    return pictures, texts


def row_products(first: Float, second: Float) -> list[Value]:
    """Compute the scalar products of the rows of [N, D] and [N, D]."""
    return [float(value) for value in (first * second).sum(axis=1)]


@metric(direction="higher", low=-1, high=1, backbone="clip")
def clip_target(samples: Sequence[Sample], networks: Networks) -> list[Value]:
    """Compute the cosine of the edited picture with the target prompt."""
    pictures = _clip(networks).pictures(s.edited for s in samples)
    return row_products(pictures, _clip(networks).texts(s.target_prompt for s in samples))


@metric(
    direction="higher",
    low=-2,
    high=2,
    backbone="clip",
    format=MetricFormat("CLIP alignment gain x100 (higher is better)", 100, 2, signed=True),
)
def clip_gain(samples: Sequence[Sample], networks: Networks) -> list[Value]:
    """Compute `clip_target` of the edited minus that of the source picture.

    This is the primary measure of alignment.
    """
    change = _clip(networks).pictures(s.edited for s in samples) - _clip(networks).pictures(s.source for s in samples)
    return row_products(change, _clip(networks).texts(s.target_prompt for s in samples))


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
    """Compute `clip_gain` by a second, independent network.

    The network shares no weights with the generator, and its numbers have a scale of their own.
    """
    scorer = _clip(networks, "clip2")
    change = scorer.pictures(s.edited for s in samples) - scorer.pictures(s.source for s in samples)
    return row_products(change, scorer.texts(s.target_prompt for s in samples))


@metric(direction="higher", low=-4, high=4, backbone="clip")
def clip_margin(samples: Sequence[Sample], networks: Networks) -> list[Value]:
    """Compute the scalar product of the picture's change and the prompts' change.

    A change of the picture that helps both prompts alike cancels out.
    """
    return row_products(*_change(samples, _clip(networks)))


@metric(direction="higher", low=-4, high=4, backbone="clip2")
def clip_margin_2(samples: Sequence[Sample], networks: Networks) -> list[Value]:
    """Compute `clip_margin` by the second, independent network."""
    return row_products(*_change(samples, _clip(networks, "clip2")))


@metric(direction="higher", low=-1, high=1, backbone="clip")
def clip_direction(samples: Sequence[Sample], networks: Networks) -> list[Value]:
    """Compute the cosine of the picture's change with the prompts' change.

    It does not depend on the size of the change, so it is never shown alone.
    """
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
    """Compute the cosine of the edited with the source picture."""
    return row_products(
        _clip(networks).pictures(s.edited for s in samples), _clip(networks).pictures(s.source for s in samples)
    )


def region_box(mask: Bool) -> tuple[slice, slice]:
    """Compute a mask's bounding box, grown and clipped to the picture.

    It grows by 15 % of its own side on each side. Fractions of a pixel count as whole pixels, so that the box holds
    every pixel that the growth touches.

    Args:
        mask: bool [H, W] with at least one true pixel.

    Returns:
        Rows and columns.

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
    """Compute `clip_gain` on the region's bounding box, the same in both pictures."""
    values: list[Value] = [Reason.NO_REGION] * len(samples)
    positions = [position for position, sample in enumerate(samples) if sample.mask.any()]
    if not positions:
        return values
    chosen = [samples[position] for position in positions]
    boxes = [region_box(sample.mask) for sample in chosen]
    scorer = _clip(networks)
    edited = scorer.pictures(s.edited[box] for s, box in zip(chosen, boxes, strict=True))
    source = scorer.pictures(s.source[box] for s, box in zip(chosen, boxes, strict=True))
    gains = row_products(edited - source, scorer.texts(s.target_prompt for s in chosen))
    for position, gain in zip(positions, gains, strict=True):
        values[position] = gain
    return values


class HalfClipScorer(ClipScorer):
    """Source of CLIP embeddings under float16 autocast, on every device alike.

    Lengths and cosines are rounded to float16, too.
    """

    @classmethod
    def from_loaded(cls, loaded: LoadedClip, device: str = "cpu", profile: Prompts = "paper") -> ClipScorer:
        """Make the scorer of a network that is loaded already.

        Prompts keep their brackets.
        """
        scorer = super().from_loaded(loaded, device, profile)
        scorer.backbone = half_identity(loaded.backbone)
        scorer.details = {**loaded.details, "dtype": "float16 autocast"}
        return scorer

    @staticmethod
    def precision(device: str) -> AbstractContextManager[None]:
        """Return the context that the network runs in: float16 autocast, no gradients."""
        return _half_precision(device)

    @staticmethod
    def normalize(embeddings: Float) -> Float:
        """Divide embeddings [N, D] by their lengths, every result rounded to float16."""
        rounded = embeddings.astype(np.float16)
        lengths = np.linalg.norm(rounded.astype(np.float32), axis=1, keepdims=True).astype(np.float16)
        return np.asarray(rounded / lengths, dtype=np.float64)


@network("clip-half")
class HalfClipNetwork(Network):
    """CLIP of `--scorer`, run as in published scripts."""

    @staticmethod
    def load(networks: Networks) -> ClipScorer:
        """Load the network; it is shared with `clip`."""
        return HalfClipScorer.from_loaded(_open_clip(networks), networks.options.device)

    @staticmethod
    def identity(options: NetworkOptions) -> str:
        """Return the identity of the scorer's weights, run in half precision."""
        return half_identity(identity(ClipSpec.parse(options.scorer)))


def half_identity(backbone: str) -> str:
    """Return the identity of a CLIP in half precision, given that of its weights."""
    return backbone + HALF_SUFFIX


@contextmanager
def _half_precision(device: str) -> Iterator[None]:
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
    """Compute the cosine of the edited picture with the verbatim target prompt."""
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
    """Compute the cosine of the edited picture with the verbatim source prompt."""
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
    """Compute the cosine of the edited picture with the source picture."""
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
    """Compute the cosine of the edited picture with the target picture.

    The target picture is the one that the model makes of the target prompt.
    """
    scorer = _clip(networks, "clip-half")
    return _cosines(
        scorer.pictures(s.edited for s in samples),
        scorer.pictures(s.required_target for s in samples),
    )
