"""LPIPS v0.1, the perceptual distance of pictures, on AlexNet and on SqueezeNet.

The networks come first, then the metrics: the distance to the source or target picture, whole or over the background.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from riebench.errors import MetricError
from riebench.models.assets import asset_folder
from riebench.scoring.metrics.base import (
    Float,
    MetricFormat,
    Reason,
    Sample,
    Value,
    check_pair,
    group_by_size,
    metric,
    strict_float32,
)
from riebench.scoring.metrics.networks import Network, NetworkOptions, Networks, network
from riebench.utils.files import file_sha256

if TYPE_CHECKING:
    import torch

BACKBONE = "lpips-v0.1-alexnet"
"""Identity stored with every value of the network on AlexNet."""
SQUEEZE_BACKBONE = "lpips-v0.1-squeezenet"
"""Identity stored with every value of the network on SqueezeNet, which the profile `piebench` uses."""

MIN_SIDE = 32
"""Smallest side in pixels; below it AlexNet's last layers have no output."""

TRUNK_FILE = "alexnet_features.safetensors"
LAYERS = {"slice1.0": "0", "slice2.3": "3", "slice3.6": "6", "slice4.8": "8", "slice5.10": "10"}
"""Convolution in the lpips package -> its number in torchvision's `features`."""

SQUEEZENET = "squeezenet"
"""Name of the network on SqueezeNet."""
SQUEEZE_FILE = "squeezenet1_1-b8a52dc0.pth"
"""torchvision's weights; the name ends in the beginning of their SHA-256, as all of torchvision's do."""
SQUEEZE_SLICES = ((0, 2), (2, 5), (5, 8), (8, 10), (10, 11), (11, 12), (12, 13))
"""Layers of torchvision's `features` in each slice of the lpips package."""
SQUEEZE_ADDRESS = f"https://download.pytorch.org/models/{SQUEEZE_FILE}"


class LpipsModel:
    """LPIPS network on AlexNet, on one device, in float32, frozen.

    The learned channel weights come from the `lpips` package and the AlexNet trunk from a shipped file, so nothing is
    ever downloaded.

    Args:
        device: torch device.
        trunk: folder with `alexnet_features.safetensors`; by default the shipped one, checked.

    Raises:
        MetricError: if the trunk file lacks a layer or has one of another shape.
    """

    def __init__(self, device: str = "cpu", trunk: Path | None = None) -> None:
        from safetensors.torch import load_file

        path = (trunk or asset_folder("lpips")) / TRUNK_FILE
        names = {f"{slice_}.{kind}": f"features.{number}.{kind}"
                 for slice_, number in LAYERS.items() for kind in ("weight", "bias")}  # fmt: skip
        self.device = device
        self.model = _build_network("alex", load_file(path), names, path).to(device)

    def distance(self, first: npt.NDArray[Any], second: npt.NDArray[Any]) -> Float:
        """Compute LPIPS of pairs of pictures.

        Args:
            first: [N, H, W, 3], RGB, uint8 or floats in [0, 1]; sides of at least 32 pixels.
            second: the same shape.

        Returns:
            [N], 0 (identical) or more.

        Raises:
            MetricError: for another shape, type or range.

        Example:
            The metric authors' `ex_ref` against `ex_p0` and `ex_p1` gives 0.721881 and 0.137566.
        """
        if not _are_pictures(first, second):
            first, second = check_pair(first, second)
        values = np.zeros(len(first))
        # Equal pictures are exactly 0, on every device and whatever else is in the batch.
        differ = (first != second).any(axis=(1, 2, 3))
        if differ.any():
            with strict_float32(self.device):
                a, b = self._inputs(first[differ], second[differ])
                values[differ] = self.model(a, b).flatten().cpu().numpy()
        return values

    def spatial(self, first: npt.NDArray[Any], second: npt.NDArray[Any]) -> Float:
        """Compute LPIPS per pixel: each layer's map is resized before the sum.

        Not used for background scores, because it leaks tens of pixels across a mask's edge. Arguments and errors as
        `distance`.

        Returns:
            [N, H, W].
        """
        with strict_float32(self.device):
            a, b = self._inputs(first, second)
            self.model.spatial = True
            try:
                maps: torch.Tensor = self.model(a, b)
            finally:
                self.model.spatial = False
            return np.asarray(maps[:, 0].cpu().numpy().astype(np.float64))

    def _inputs(self, first: npt.NDArray[Any], second: npt.NDArray[Any]) -> tuple[torch.Tensor, torch.Tensor]:
        import torch

        if not _are_pictures(first, second):
            first, second = check_pair(first, second)
        if min(first.shape[1:3]) < MIN_SIDE:
            raise MetricError(f"LPIPS needs pictures of at least {MIN_SIDE} pixels a side, got {first.shape[1:3]}")

        # The network wants [-1, 1]; this is the only place where the range changes.
        def convert(pictures: npt.NDArray[Any]) -> torch.Tensor:
            if pictures.dtype == np.uint8:
                # The same numbers, without a copy of the pictures in float64.
                scaled = (np.arange(256) / 255 * 2 - 1).astype(np.float32)[pictures]
            else:
                scaled = (pictures * 2 - 1).astype(np.float32)
            return torch.from_numpy(scaled).permute(0, 3, 1, 2).to(self.device)

        return convert(first), convert(second)


def _are_pictures(first: npt.NDArray[Any], second: npt.NDArray[Any]) -> bool:
    """Return whether both are uint8 [N, H, W, 3] of one shape.

    Such pictures need no check of their range.
    """
    alike = first.dtype == second.dtype == np.uint8 and first.shape == second.shape
    return alike and first.ndim == 4 and first.shape[3] == 3


def squeezenet_file(file: Path | None = None) -> Path:
    """Return the path of torchvision's SqueezeNet weights.

    Args:
        file: the user's path, a file or its folder; None for torch's hub folder.

    Raises:
        MetricError: if the file is missing, or its SHA-256 does not begin with the digits in its name.
    """
    import torch

    path = file or Path(torch.hub.get_dir()) / "checkpoints" / SQUEEZE_FILE
    path = path / SQUEEZE_FILE if path.is_dir() else path
    if not path.is_file():
        raise MetricError(
            f"LPIPS on SqueezeNet needs {SQUEEZE_FILE}: put {SQUEEZE_ADDRESS} at {path}, or give --weights "
            "squeezenet=FILE"
        )
    expected = SQUEEZE_FILE.removesuffix(".pth").rpartition("-")[2]
    found = file_sha256(path)
    if not found.startswith(expected):
        raise MetricError(f"{path} is damaged: its SHA-256 begins {found[:8]}, not {expected}; fetch it again")
    return path


class SqueezeLpips(LpipsModel):
    """LPIPS network on SqueezeNet, which the profile `piebench` needs.

    Nothing is ever downloaded.

    Args:
        device: torch device.
        file: torchvision's `squeezenet1_1-b8a52dc0.pth`; by default the one in torch's hub folder.

    Raises:
        MetricError: if it is missing, or not that file.
    """

    def __init__(self, device: str = "cpu", file: Path | None = None) -> None:
        import torch

        path = squeezenet_file(file)
        weights: dict[str, torch.Tensor] = torch.load(path, map_location="cpu", weights_only=True)
        slices = {str(index): number for number, ends in enumerate(SQUEEZE_SLICES, start=1) for index in range(*ends)}
        parts = [name.split(".", 2) for name in weights if name.startswith("features.")]
        names = {f"slice{slices[index]}.{index}.{rest}": f"features.{index}.{rest}" for _, index, rest in parts}
        self.device = device
        self.model = _build_network("squeeze", weights, names, path).to(device)


def _without_random_numbers() -> AbstractContextManager[None]:
    """Return a context in which no tensor is filled with uniform random numbers.

    It keeps what is in its memory. For layers whose weights are loaded afterwards.
    """
    from torch.overrides import TorchFunctionMode

    class Unfilled(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if getattr(func, "__name__", "") in ("kaiming_uniform_", "uniform_"):
                return args[0] if args else kwargs["tensor"]
            return func(*args, **(kwargs or {}))

    return Unfilled()


def _build_network(kind: str, weights: Mapping[str, torch.Tensor], names: Mapping[str, str], path: Path) -> Any:
    # `names` maps each tensor of the trunk to the stored tensor that fills it.
    import warnings

    import torch
    from lpips import LPIPS

    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]), _without_random_numbers():
        # The package calls torchvision in a deprecated way and fills the trunk with random numbers first, which takes
        # longer than reading the weights. Callers must see neither the warnings nor a changed state of the global
        # random generator.
        warnings.simplefilter("ignore")
        model = LPIPS(net=kind, version="0.1", pretrained=True, pnet_rand=True, eval_mode=True, verbose=False)
    try:
        model.net.load_state_dict({ours: weights[theirs] for ours, theirs in names.items()}, strict=True)
    except (KeyError, RuntimeError) as error:
        name = {"alex": "AlexNet", "squeeze": "SqueezeNet"}[kind]
        raise MetricError(f"{path} is not torchvision's {name} features: {error}") from error
    model = model.float().eval().requires_grad_(False)
    model.net.forward = _on_distinct(model.net.forward)
    return model


def _on_distinct(trunk: Callable[[torch.Tensor], Any]) -> Callable[[torch.Tensor], Any]:
    """Return a trunk that runs once on pictures that are equal and follow one another.

    Edits of one source picture do: its features are computed once a batch.

    Args:
        trunk: pictures [N, 3, H, W] -> a named tuple of feature maps [N, ...].
    """
    import torch

    def run(pictures: torch.Tensor) -> Any:
        differs = (pictures[1:] != pictures[:-1]).flatten(1).any(dim=1)
        place = torch.nn.functional.pad(differs, (1, 0)).cumsum(0)
        first = torch.nn.functional.pad(differs, (1, 0), value=True)
        maps = trunk(pictures if bool(first.all()) else pictures[first])
        return maps if bool(first.all()) else type(maps)(*(part[place] for part in maps))

    return run


@network("lpips")
class LpipsNetwork(Network):
    """LPIPS on AlexNet, which ships with the package."""

    @staticmethod
    def load(networks: Networks) -> LpipsModel:
        """Load the shipped network."""
        return LpipsModel(networks.options.device)

    @staticmethod
    def identity(options: NetworkOptions) -> str:
        """Return `BACKBONE`."""
        return BACKBONE


@network(SQUEEZENET)
class SqueezeNetwork(Network):
    """LPIPS on SqueezeNet, whose trunk users have to provide."""

    weights = f"torchvision's {SQUEEZE_FILE}"

    @staticmethod
    def load(networks: Networks) -> LpipsModel:
        """Load the network from torch's hub folder or from `--weights`."""
        return SqueezeLpips(networks.options.device, networks.options.weights.get(SQUEEZENET))

    @staticmethod
    def identity(options: NetworkOptions) -> str:
        """Return `SQUEEZE_BACKBONE`."""
        return SQUEEZE_BACKBONE

    @staticmethod
    def locate(options: NetworkOptions) -> None:
        """Check that torchvision's weights are here; they are never fetched."""
        squeezenet_file(options.weights.get(SQUEEZENET))


def _lpips(networks: Networks, name: str = "lpips") -> LpipsModel:
    model: LpipsModel = networks.get(name)
    return model


def paste_background(sample: Sample) -> npt.NDArray[np.uint8]:
    """Paste the edited picture's background around the source picture's region.

    Setting the region to 0 instead would make a distance shrink with the region's size.

    Returns:
        uint8 [H, W, 3].
    """
    return np.where(sample.mask[:, :, None], sample.source, sample.edited)


@metric(
    direction="lower",
    low=0,
    high=None,
    backbone="lpips",
    format=MetricFormat("LPIPS to the source picture (lower is better)", 1, 3),
)
def lpips(samples: Sequence[Sample], networks: Networks) -> list[Value]:
    """Compute LPIPS of the edited and the source picture, whole frame."""
    values: list[Value] = [Reason.NOT_RUN] * len(samples)
    for group in group_by_size(samples):
        edited = np.stack([samples[position].edited for position in group])
        source = np.stack([samples[position].source for position in group])
        for position, value in zip(group, _lpips(networks).distance(edited, source), strict=True):
            values[position] = float(value)
    return values


@metric(
    direction="lower",
    low=0,
    high=None,
    backbone="lpips",
    needs_target=True,
    format=MetricFormat("LPIPS to the target picture (lower is better)", 1, 3),
)
def lpips_target(samples: Sequence[Sample], networks: Networks) -> list[Value]:
    """Compute LPIPS of the edited and the target picture, whole frame.

    The target picture is the one that the model makes of the target prompt.
    """
    values: list[Value] = [Reason.NOT_RUN] * len(samples)
    for group in group_by_size(samples):
        edited = np.stack([samples[position].edited for position in group])
        target = np.stack([samples[position].required_target for position in group])
        for position, value in zip(group, _lpips(networks).distance(edited, target), strict=True):
            values[position] = float(value)
    return values


@metric(direction="lower", low=0, high=None, backbone="lpips")
def lpips_bg(samples: Sequence[Sample], networks: Networks) -> list[Value]:
    """Compute LPIPS of the background alone, divided by its share of the picture.

    The source picture is compared with itself with the edited background pasted in.
    """
    values: list[Value] = [Reason.NO_BACKGROUND] * len(samples)
    for group in group_by_size(samples):
        positions = [position for position in group if samples[position].has_background]
        if not positions:
            continue
        mixed = np.stack([paste_background(samples[position]) for position in positions])
        source = np.stack([samples[position].source for position in positions])
        for position, value in zip(positions, _lpips(networks).distance(source, mixed), strict=True):
            values[position] = float(value / samples[position].background.mean())
    return values
