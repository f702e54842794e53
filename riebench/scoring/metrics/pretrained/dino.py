"""Similarity of the edited to the source picture by DINO, DINOv2 and DINOv3.

It is the cosine of both pictures' class tokens after the last norm: that of the whole picture's content, whereas
`structure` compares its parts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from riebench.errors import MetricError
from riebench.scoring.metrics.base import Float, MetricFormat, Sample, UInt8, Value, metric, strict_float32
from riebench.scoring.metrics.clip import ClipScorer, row_products
from riebench.scoring.metrics.networks import Network, NetworkOptions, Networks, network
from riebench.scoring.metrics.pretrained.files import HubModel, load_model, load_processor
from riebench.scoring.metrics.structure import DinoKeys

PROCESSOR = ("preprocessor_config.json",)
DINOV2 = HubModel("dinov2", "facebook/dinov2-base", PROCESSOR, revision="f9e44c814b77203eaa57a6bdbbd535f21ede1415")
DINOV3 = HubModel(
    "dinov3", "facebook/dinov3-vitb16-pretrain-lvd1689m", PROCESSOR, revision="3a0fa61ff39414e2d3be4a1d50c7dfbf459aa8b8"
)
"""DINOv3 is gated: its licence has to be accepted on the hub before it can be fetched."""
BATCH = 16
"""Largest number of pictures that a network sees at a time."""


class PictureScorer(ClipScorer):
    """Source of unit-length embeddings of pictures, by a network that reads no texts.

    Args:
        encode: list of uint8 [H, W, 3] -> [N, D], any length.
        backbone: identity stored with every value.
        details: further facts needed to repeat a number.
    """

    def __init__(self, encode: Callable[[list[UInt8]], Float], backbone: str, details: dict[str, str]) -> None:
        super().__init__(encode, self._refuse_texts, backbone=backbone, details=details, batch_size=BATCH)

    def _refuse_texts(self, texts: list[str]) -> Float:
        raise MetricError(f"{self.backbone} reads no texts")

    def similarity(self, samples: Sequence[Sample]) -> list[Value]:
        """Compute the cosine of each sample's edited and source picture."""
        return row_products(self.pictures(s.edited for s in samples), self.pictures(s.source for s in samples))


def class_tokens(model: Any, processor: Any, device: str) -> Callable[[list[UInt8]], Float]:
    """Return a function from pictures to their class tokens.

    Args:
        model: a Vision Transformer of transformers, on `device`, whose first token is the class token.
        processor: its image processor.
        device: torch device.

    Returns:
        List of uint8 [H, W, 3] -> [N, D].
    """

    def encode(pictures: list[UInt8]) -> Float:
        from PIL import Image

        # One by one: pictures of a batch may differ in size.
        inputs = [processor(images=Image.fromarray(one), return_tensors="pt").pixel_values for one in pictures]
        return _first_tokens(model, inputs, device)

    return encode


def _first_tokens(model: Any, inputs: Sequence[Any], device: str, **arguments: Any) -> Float:
    """Run a model on pixels, [1, 3, S, S] each, and return its first tokens [N, D]."""
    import torch

    with strict_float32(device):
        states = model(pixel_values=torch.cat(list(inputs)).to(device), **arguments).last_hidden_state
    return np.asarray(states[:, 0].float().cpu().numpy(), dtype=np.float64)


def load_dino(model: HubModel, kind: str, options: NetworkOptions) -> PictureScorer:
    """Load a DINO in the hub's layout, in float32.

    Args:
        model: its repository.
        kind: its class in transformers.
        options: the device, and where the files lie.

    Raises:
        MetricError: if it is not there, or another kind of model.
    """
    import torch
    import transformers

    folder = model.folder(options)
    loaded = load_model(getattr(transformers, kind).from_pretrained, folder, model.repository, dtype=torch.float32)
    processor = load_processor(transformers.AutoImageProcessor.from_pretrained, folder, model.repository)
    encode = class_tokens(loaded.to(options.device), processor, options.device)
    return PictureScorer(encode, model.identity(options), {**model.facts(options), "dtype": "float32"})


class _DinoNetwork(Network):
    """Base of the networks that are one repository and one class of transformers."""

    model: HubModel
    kind: str

    @classmethod
    def load(cls, networks: Networks) -> PictureScorer:
        """Load the network."""
        return load_dino(cls.model, cls.kind, networks.options)

    @classmethod
    def identity(cls, options: NetworkOptions) -> str:
        """Return the repository and its commit, or the hash of a local folder."""
        return cls.model.identity(options)

    @classmethod
    def locate(cls, options: NetworkOptions) -> None:
        """Check that the weights are here."""
        cls.model.folder(options)


@network("dinov2")
class Dinov2Network(_DinoNetwork):
    """DINOv2 ViT-B/14, from the hub or a folder; Apache-2.0."""

    model, kind, weights = DINOV2, "Dinov2Model", DINOV2.about


@network("dinov3")
class Dinov3Network(_DinoNetwork):
    """DINOv3 ViT-B/16, from the hub or a folder; Meta's DINOv3 licence."""

    model, kind, weights = DINOV3, "DINOv3ViTModel", DINOV3.about


def _similarity_format(name: str) -> MetricFormat:
    return MetricFormat(f"{name} similarity to the source picture x100 (higher is better)", 100, 2)


def _first_dino(networks: Networks) -> PictureScorer:
    """Return the class tokens of the DINO that `structure` is measured by."""
    keys: DinoKeys = networks.get("dino")

    def encode(pictures: list[UInt8]) -> Float:
        inputs = [keys.inputs(picture / 255) for picture in pictures]
        return _first_tokens(keys.model, inputs, keys.device, interpolate_pos_encoding=True)

    return networks.part("dino class tokens", lambda: PictureScorer(encode, keys.backbone, keys.details))


@metric(direction="higher", low=-1, high=1, backbone="dino", format=_similarity_format("DINO"))
def dino_image(samples: Sequence[Sample], networks: Networks) -> list[Value]:
    """Compute the cosine of the edited with the source picture by DINO ViT-B/8."""
    return _first_dino(networks).similarity(samples)


@metric(direction="higher", low=-1, high=1, backbone="dinov2", format=_similarity_format("DINOv2"))
def dinov2_image(samples: Sequence[Sample], networks: Networks) -> list[Value]:
    """Compute the cosine of the edited with the source picture by DINOv2."""
    scorer: PictureScorer = networks.get("dinov2")
    return scorer.similarity(samples)


@metric(direction="higher", low=-1, high=1, backbone="dinov3", format=_similarity_format("DINOv3"))
def dinov3_image(samples: Sequence[Sample], networks: Networks) -> list[Value]:
    """Compute the cosine of the edited with the source picture by DINOv3."""
    scorer: PictureScorer = networks.get("dinov3")
    return scorer.similarity(samples)
