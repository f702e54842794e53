"""DreamSim, a distance of pictures trained on people's judgements of likeness.

Three Vision Transformers (DINO, OpenAI's CLIP and open_clip's, all ViT-B/16) read each picture, with the changes of
their attention that the training found (LoRA) added to their weights. The distance is 1 minus the cosine of their
joined features, from which the mean over features is taken.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from riebench.errors import MetricError
from riebench.scoring.metrics.base import Float, MetricFormat, Sample, UInt8, Value, metric, strict_float32
from riebench.scoring.metrics.networks import Network, NetworkOptions, Networks, network
from riebench.scoring.metrics.pretrained.dino import PictureScorer
from riebench.scoring.metrics.pretrained.files import loading_errors
from riebench.utils.files import content_digest, file_sha256
from riebench.utils.hub import is_offline, offline_remedy
from riebench.utils.weights import check_weights_file

if TYPE_CHECKING:
    import torch

RELEASE = "v0.2.0-checkpoints"
"""The authors' release of the ensemble's weights."""
ARCHIVE = f"https://github.com/ssundaram21/dreamsim/releases/download/{RELEASE}/dreamsim_ensemble_checkpoint.zip"
ADAPTER = "ensemble_lora"
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", ("adapter_model.safetensors", "adapter_model.bin")
SIDE = 224
"""Side in pixels to which pictures are resized, whatever their shape."""
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
"""Means and standard deviations of channels, of pixels in [0, 1]."""
HEADS = 12
"""Heads of the attention, the one size that weights do not tell."""
CACHE = "dreamsim_ensemble"
"""Folder below torch's hub folder in which the archive is unpacked."""


@dataclass(frozen=True)
class Tower:
    """One of the Vision Transformers.

    Attributes:
        file: its weights.
        statistics: mean and standard deviation of its inputs' channels.
        is_clip: whether it is a CLIP: a norm before its blocks, and a projection behind them. A DINO's features are
            those of its last block, without a norm.
        quick: whether its activation is QuickGELU.
    """

    file: str
    statistics: tuple[tuple[float, ...], tuple[float, ...]]
    is_clip: bool = False
    quick: bool = False


TOWERS = (
    Tower("dino_vitb16_pretrain.pth", IMAGENET),
    Tower("clip_vitb16_pretrain.pth.tar", CLIP, is_clip=True, quick=True),
    Tower("open_clip_vitb16_pretrain.pth.tar", CLIP, is_clip=True),
)
"""The ensemble, in the order of its features."""
DINO_BACKBONE = "checkpoints/dino_vitbase16_pretrain.pth"
"""DINO's network alone, where the authors' package puts it. What it holds is the teacher of the checkpoint in `TOWERS`,
which is read where this file is missing."""


def dreamsim_folder(options: NetworkOptions) -> Path:
    """Return the folder with the unpacked weights, fetching them unless offline.

    Raises:
        MetricError: if they are not there; the message tells the way to get them.
    """
    place = options.weights.get("dreamsim")
    if place is not None:
        return _whole(place)
    import torch

    folder = Path(torch.hub.get_dir()) / CACHE
    if not _lacking(folder) or options.offline or is_offline():
        return _whole(folder)
    _fetch(folder)
    return _whole(folder)


def _lacking(folder: Path) -> list[str]:
    """Return the names of the files that a folder lacks."""
    lacking = [tower.file for tower in TOWERS if not (folder / tower.file).is_file()]
    lacking += [f"{ADAPTER}/{ADAPTER_CONFIG}"] if not (folder / ADAPTER / ADAPTER_CONFIG).is_file() else []
    there = any((folder / ADAPTER / name).is_file() for name in ADAPTER_WEIGHTS)
    return lacking if there else [*lacking, f"{ADAPTER}/{ADAPTER_WEIGHTS[0]}"]


def _whole(folder: Path) -> Path:
    lacking = _lacking(folder)
    if lacking:
        offline = f" ({offline_remedy()})" if is_offline() else ""
        raise MetricError(
            f"scorer dreamsim: {folder} lacks {', '.join(lacking)}; unpack {ARCHIVE} there, or name the folder that "
            f"holds them: --weights dreamsim=FOLDER{offline}"
        )
    for tower in TOWERS:
        if tower.file.endswith(".pth"):
            check_weights_file(folder / tower.file)
    return folder


def _fetch(folder: Path) -> None:
    """Download the authors' archive, and unpack the files of the ensemble alone.

    Raises:
        MetricError: if it cannot be had.
    """
    import torch

    archive = folder.with_suffix(".zip")
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        torch.hub.download_url_to_file(ARCHIVE, str(archive), progress=False)
        unpack(archive, folder)
    except (OSError, zipfile.BadZipFile) as error:
        raise MetricError(f"scorer dreamsim: {ARCHIVE} cannot be fetched ({' '.join(str(error).split())})") from error
    finally:
        archive.unlink(missing_ok=True)


def unpack(archive: Path, folder: Path) -> None:
    """Unpack the files of the ensemble, wherever they lie in an archive.

    Args:
        archive: a zip file.
        folder: where they are put; names of the archive decide nothing.
    """
    wanted = [tower.file for tower in TOWERS] + [f"{ADAPTER}/{name}" for name in (ADAPTER_CONFIG, *ADAPTER_WEIGHTS)]
    with zipfile.ZipFile(archive) as packed:
        for member in packed.namelist():
            name = next((name for name in wanted if f"/{member}".endswith(f"/{name}")), None)
            if name is not None:
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).write_bytes(packed.read(member))


def identity(options: NetworkOptions) -> str:
    """Return the identity stored with every value: the release, or a folder's hash."""
    place = options.weights.get("dreamsim")
    if place is None:
        return f"dreamsim-ensemble@{RELEASE}"
    names = [
        DINO_BACKBONE,
        *(tower.file for tower in TOWERS),
        *(f"{ADAPTER}/{one}" for one in (ADAPTER_CONFIG, *ADAPTER_WEIGHTS)),
    ]
    hashes = {name: file_sha256(place / name) for name in names if (place / name).is_file()}
    return f"dreamsim-ensemble@{content_digest(hashes)[:12]}"


def load_dreamsim(options: NetworkOptions) -> PictureScorer:
    """Load the ensemble through timm, in float32.

    Raises:
        MetricError: if it is not there, or holds other weights.
    """
    import timm

    folder = dreamsim_folder(options)
    with loading_errors(folder, "DreamSim's ensemble"):
        changes = lora_changes(folder / ADAPTER)
        towers = [load_tower(tower, folder, changes, place) for place, tower in enumerate(TOWERS)]
    networks = [(tower, model.to(options.device), projection) for tower, model, projection in towers]

    def encode(pictures: list[UInt8]) -> Float:
        import torch

        pixels = torch.cat([_pixels(picture) for picture in pictures]).to(options.device)
        with strict_float32(options.device):
            parts = [features(tower, model, projection, pixels) for tower, model, projection in networks]
            joined = torch.cat(parts, dim=1)
            joined = joined - joined.mean(dim=1, keepdim=True)
        return np.asarray(joined.float().cpu().numpy(), dtype=np.float64)

    details = {"package": f"timm {timm.__version__}", "model": ARCHIVE, "dtype": "float32"}
    return PictureScorer(encode, identity(options), details)


def _pixels(picture: UInt8) -> torch.Tensor:
    """Return a picture at the network's size, float32 [1, 3, 224, 224] in [0, 1]."""
    from PIL import Image
    from torchvision.transforms.functional import InterpolationMode, resize, to_tensor

    small = resize(Image.fromarray(picture), [SIDE, SIDE], InterpolationMode.BICUBIC)
    tensor: torch.Tensor = to_tensor(small)[None]
    return tensor


def features(tower: Tower, model: Any, projection: torch.Tensor | None, pixels: torch.Tensor) -> torch.Tensor:
    """Compute a tower's features of some pictures.

    Args:
        tower: which one.
        model: its network, of timm.
        projection: [width, D] behind a CLIP; None for none.
        pixels: [N, 3, 224, 224] in [0, 1].

    Returns:
        [N, D].
    """
    from torchvision.transforms.functional import normalize

    mean, deviation = tower.statistics
    token: torch.Tensor = model.forward_features(normalize(pixels, list(mean), list(deviation)))[:, 0]
    return token if projection is None else token @ projection.to(token.device)


def load_tower(
    tower: Tower, folder: Path, changes: Mapping[str, torch.Tensor], place: int
) -> tuple[Tower, Any, torch.Tensor | None]:
    """Load one Vision Transformer with the trained changes of its attention.

    Args:
        tower: which one.
        folder: holds its weights.
        changes: as `lora_changes` returns them.
        place: of the tower in the ensemble.

    Returns:
        The tower, its network and its projection; None without one.
    """
    import torch

    alone = folder / DINO_BACKBONE
    file = alone if alone.is_file() and not tower.is_clip else folder / tower.file
    stored = torch.load(file, map_location="cpu", weights_only=True)
    weights = dict(stored["state_dict"] if tower.is_clip else _dino_weights(stored))
    projection = weights.pop("proj") if tower.is_clip else None
    if tower.is_clip:
        # The norm before the blocks stands under the name of a dropout layer.
        for part in ("weight", "bias"):
            weights[f"norm_pre.{part}"] = weights.pop(f"pos_drop.{part}")
    else:
        weights = {name: value for name, value in weights.items() if not name.startswith(("norm.", "head."))}
    found = 0
    for name, change in changes.items():
        own = name.removeprefix(f"extractor_list.{place}.model.")
        if own != name:
            weights[own] = weights[own] + change
            found += 1
    model = build_transformer(weights, tower)
    model.load_state_dict(weights, strict=True)
    if not found:
        raise ValueError(f"{ADAPTER} has no weights for {tower.file}")
    return tower, model.float().eval().requires_grad_(False), projection


def _dino_weights(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Return DINO's weights, from its training or of its network alone."""
    if "teacher" not in stored:
        return dict(stored)
    start = "backbone."
    found = {name.removeprefix(start): value for name, value in stored["teacher"].items() if name.startswith(start)}
    if not found:
        raise ValueError("the checkpoint has no weights of DINO's network")
    return found


def build_transformer(weights: Mapping[str, torch.Tensor], tower: Tower) -> Any:
    """Build the Vision Transformer that some weights fit.

    Args:
        weights: with the names of timm.
        tower: which one; all sizes but the number of heads follow from the weights.
    """
    from functools import partial

    import torch
    from timm.layers import QuickGELU
    from timm.models.vision_transformer import VisionTransformer

    patch = weights["patch_embed.proj.weight"]
    width, side = int(patch.shape[0]), int(patch.shape[-1])
    blocks = len({name.split(".")[1] for name in weights if name.startswith("blocks.")})
    norm = partial(torch.nn.LayerNorm, eps=1e-5 if tower.is_clip else 1e-6)
    model = VisionTransformer(
        img_size=side * round((weights["pos_embed"].shape[1] - 1) ** 0.5),
        patch_size=side,
        embed_dim=width,
        depth=blocks,
        num_heads=HEADS,
        num_classes=0,
        global_pool="token",
        final_norm=tower.is_clip,
        mlp_ratio=weights["blocks.0.mlp.fc1.weight"].shape[0] / width,
        norm_layer=norm,
        act_layer=QuickGELU if tower.quick else torch.nn.GELU,
    )
    if tower.is_clip:
        # timm's own `pre_norm` leaves out the bias of the patches.
        model.norm_pre = norm(width)
    return model


def lora_changes(folder: Path) -> dict[str, torch.Tensor]:
    """Return what a LoRA adds to weights, by their names in the authors' network.

    Args:
        folder: an adapter in peft's layout.
    """
    import torch
    from safetensors.torch import load_file

    config = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    scale = float(config["lora_alpha"]) / int(config["r"])
    file = next(folder / name for name in ADAPTER_WEIGHTS if (folder / name).is_file())
    check_weights_file(file)
    stored = load_file(file) if file.suffix == ".safetensors" else torch.load(file, "cpu", weights_only=True)
    ends = ".lora_A.weight", ".lora_B.weight"
    plain = {name.removeprefix("base_model.model.").replace(".default.weight", ".weight"): value
             for name, value in stored.items()}  # fmt: skip
    names = [name.removesuffix(ends[0]) for name in plain if name.endswith(ends[0])]
    return {f"{name}.weight": scale * plain[name + ends[1]].float() @ plain[name + ends[0]].float() for name in names}


@network("dreamsim")
class DreamSimNetwork(Network):
    """DreamSim's ensemble, from its authors' release or a folder; MIT."""

    weights = f"folder of DreamSim with {', '.join(tower.file for tower in TOWERS)} and {ADAPTER}/"

    @staticmethod
    def load(networks: Networks) -> PictureScorer:
        """Load the network."""
        return load_dreamsim(networks.options)

    @staticmethod
    def identity(options: NetworkOptions) -> str:
        """Return the release, or the hash of a local folder."""
        return identity(options)

    @staticmethod
    def locate(options: NetworkOptions) -> None:
        """Check that the weights are here."""
        dreamsim_folder(options)


@metric(
    direction="lower",
    low=0,
    high=2,
    backbone="dreamsim",
    format=MetricFormat("DreamSim distance to the source picture x100 (lower is better)", 100, 2),
)
def dreamsim(samples: Sequence[Sample], networks: Networks) -> list[Value]:
    """Compute DreamSim's distance of the edited to the source picture."""
    scorer: PictureScorer = networks.get("dreamsim")
    return [1 - value if isinstance(value, float) else value for value in scorer.similarity(samples)]
