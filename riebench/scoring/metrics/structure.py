"""Structure distance, the difference of two pictures' self-similarities by DINO.

It compares which parts of each picture resemble one another, whatever these parts look like.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from cachetools import LRUCache

from riebench.errors import MetricError
from riebench.scoring.metrics.base import (
    MetricFormat,
    Sample,
    Value,
    check_pair,
    metric,
    picture_key,
    strict_float32,
)
from riebench.scoring.metrics.networks import Network, NetworkOptions, Networks, network
from riebench.utils.files import file_sha256
from riebench.utils.hub import from_hub, offline_mode
from riebench.utils.weights import check_weights_file

if TYPE_CHECKING:
    import torch

REPOSITORY = "facebook/dino-vitb8"
FILES = (("config.json", "model.safetensors"), ("config.json", "pytorch_model.bin"))
SIDE = 224
"""Side in pixels to which pictures are resized for DINO."""
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""ImageNet's mean and standard deviation, for pixels in [0, 1]."""
CACHED_MATRICES = 16
"""Number of matrices kept in memory, 2.5 MB each, the last used ones.

Units are scored in the order of their source pictures, so a source picture's matrix stays while its edits are scored.
"""


def dino_folder(folder: Path | None = None, *, offline: bool = True) -> Path:
    """Return the folder of DINO ViT-B/8.

    Args:
        folder: the user's folder; None for the hub's cache.
        offline: whether nothing may be fetched.

    Raises:
        MetricError: if it is not there; the message tells the way to get it.
    """
    if folder is None:
        try:
            return from_hub(REPOSITORY, FILES, offline=offline)
        except MetricError as error:
            raise MetricError(f"structure needs DINO: {error}; a folder works too: --weights dino=FOLDER") from error
    weights = [folder / name for _, name in FILES if (folder / name).is_file()]
    if not (folder / "config.json").is_file() or not weights:
        raise MetricError(f"{folder} is no folder of {REPOSITORY}: it needs config.json and model.safetensors")
    check_weights_file(weights[0])
    return folder


def identity(folder: Path | None = None) -> str:
    """Return the identity stored with every value.

    A local folder is identified by the hash of its weights.
    """
    if folder is None:
        return REPOSITORY
    weights = next((folder / name for _, name in FILES if (folder / name).is_file()), None)
    return f"dino-vitb8@{file_sha256(weights)[:12] if weights else 'missing'}"


class DinoKeys:
    """DINO ViT-B/8 up to the keys of its last block, in float32.

    Args:
        model: a `transformers.ViTModel`, frozen, on `device`.
        device: torch device.
        backbone: identity stored with every value.
    """

    def __init__(self, model: Any, device: str = "cpu", backbone: str = REPOSITORY) -> None:
        self.model, self.device, self.backbone = model, device, backbone
        # The layer's name in transformers 5, and the one in earlier releases.
        ends = ("attention.k_proj", "attention.attention.key")
        self._keys: Any = [part for name, part in model.named_modules() if name.endswith(ends)][-1]
        self._matrices: LRUCache[tuple[bytes, float], torch.Tensor] = LRUCache(CACHED_MATRICES)

    @classmethod
    def load(cls, folder: Path, device: str = "cpu", backbone: str = REPOSITORY) -> DinoKeys:
        """Load a folder in the hub's layout.

        Raises:
            MetricError: if it is no Vision Transformer, or a weight is missing.
        """
        from pickle import UnpicklingError

        import torch
        from safetensors import SafetensorError
        from transformers import ViTModel
        from transformers.utils import logging

        logging.disable_progress_bar()
        try:
            with offline_mode():
                model, loading_info = ViTModel.from_pretrained(
                    folder, add_pooling_layer=False, dtype=torch.float32, output_loading_info=True
                )
        except (OSError, ValueError, RuntimeError, KeyError, UnpicklingError, SafetensorError) as error:
            raise MetricError(f"{folder} cannot be loaded as {REPOSITORY}: {' '.join(str(error).split())}") from error
        if loading_info["missing_keys"] or loading_info["mismatched_keys"]:
            first = next(iter(sorted(loading_info["missing_keys"])), "of another shape")
            raise MetricError(f"{folder} is not {REPOSITORY}: weights are missing, e.g. {first}")
        return cls(model.eval().requires_grad_(False).to(device), device, backbone)

    @property
    def details(self) -> dict[str, str]:
        """Facts needed to repeat a number."""
        import transformers

        epsilon = f"{self.model.config.layer_norm_eps:g}"
        return {"package": f"transformers {transformers.__version__}", "layer_norm_eps": epsilon, "dtype": "float32"}

    def distance(
        self, first: npt.NDArray[Any], second: npt.NDArray[Any], *, scale: float = 1.0
    ) -> npt.NDArray[np.float64]:
        """Compute the mean squared difference of self-similarity matrices.

        Args:
            first: [N, H, W, 3], uint8 or floats in [0, 1].
            second: the same shape.
            scale: pixels are multiplied by this before ImageNet's mean and deviation are applied: 1, or 255 for the
                fault of published scripts.

        Returns:
            [N], 0 (identical) to 4.

        Raises:
            MetricError: for another shape, type or range.
        """
        a, b = check_pair(first, second)
        pairs = zip(a, b, strict=True)
        return np.array([self._pair(x, y, scale) if (x != y).any() else 0.0 for x, y in pairs], dtype=np.float64)

    def _pair(self, first: npt.NDArray[Any], second: npt.NDArray[Any], scale: float) -> float:
        one, two = (self._matrix(picture, scale) for picture in (first, second))
        return float(((one - two) ** 2).mean())

    def _matrix(self, picture: npt.NDArray[Any], scale: float) -> torch.Tensor:
        key = picture_key(picture), scale
        if key not in self._matrices:
            self._matrices[key] = self.similarity(picture, scale=scale)
        return self._matrices[key]

    def similarity(self, picture: npt.NDArray[Any], *, scale: float = 1.0) -> torch.Tensor:
        """Compute the cosines between all tokens' keys.

        The class token is included, and the heads are joined.

        Args:
            picture: [H, W, 3], floats in [0, 1].
            scale: as in `distance`.

        Returns:
            float32 [tokens, tokens] on the device.
        """
        from torch.nn.functional import normalize

        seen: list[torch.Tensor] = []
        with strict_float32(self.device):
            handle = self._keys.register_forward_hook(lambda layer, inputs, output: seen.append(output))
            try:
                self.model(pixel_values=self.inputs(picture, scale=scale), interpolate_pos_encoding=True)
            finally:
                handle.remove()
            keys = normalize(seen[0][0].float(), dim=-1)
            return keys @ keys.T

    def inputs(self, picture: npt.NDArray[Any], *, scale: float = 1.0) -> torch.Tensor:
        """Return a picture as the network takes it.

        Args:
            picture: [H, W, 3], floats in [0, 1].
            scale: as in `distance`.

        Returns:
            float32 [1, 3, 224, 224] on the device.
        """
        import torch
        from torchvision.transforms.v2.functional import normalize, resize

        pixels = torch.from_numpy(np.ascontiguousarray(picture * scale)).permute(2, 0, 1).float().to(self.device)
        return normalize(resize(pixels, [SIDE, SIDE], antialias=True), list(MEAN), list(STD))[None]


@network("dino")
class DinoNetwork(Network):
    """DINO ViT-B/8, from the hub or a folder."""

    weights = f"folder of {REPOSITORY} with config.json and model.safetensors"

    @staticmethod
    def load(networks: Networks) -> DinoKeys:
        """Load the network."""
        place, options = networks.options.weights.get("dino"), networks.options
        return DinoKeys.load(dino_folder(place, offline=options.offline), options.device, identity(place))

    @staticmethod
    def identity(options: NetworkOptions) -> str:
        """Return the hub id, or the hash of a local folder's weights."""
        return identity(options.weights.get("dino"))

    @staticmethod
    def locate(options: NetworkOptions) -> None:
        """Check that the weights are here."""
        dino_folder(options.weights.get("dino"), offline=options.offline)


def structure_values(samples: Sequence[Sample], networks: Networks, scale: float = 1.0) -> list[Value]:
    """Compute `DinoKeys.distance` of edited and source picture, sample by sample."""
    values: list[Value] = []
    for sample in samples:
        values.append(float(networks.get("dino").distance(sample.edited[None], sample.source[None], scale=scale)[0]))
    return values


@metric(
    direction="lower",
    low=0,
    high=4,
    backbone="dino",
    format=MetricFormat("DINO structure distance x1000 (lower is better)", 1000, 2),
)
def structure(samples: Sequence[Sample], networks: Networks) -> list[Value]:
    """Compute the mean squared difference of the pictures' self-similarity matrices.

    A matrix holds the similarities between the parts of one picture, by DINO's keys.
    """
    return structure_values(samples, networks)
