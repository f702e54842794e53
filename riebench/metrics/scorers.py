"""Which CLIP measures, and loading it so that it cannot be a different one unnoticed."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from riebench.errors import near_match
from riebench.files import file_sha256
from riebench.metrics.base import MetricError
from riebench.toyworld.assets import asset_folder

if TYPE_CHECKING:
    import torch

Activation = Literal["QuickGELU", "GELU"]
LOCAL = "local-dir:"
UNLIMITED = 4096
"""Context length at which no prompt is cut."""


@dataclass(frozen=True)
class ClipSpec:
    """Where a CLIP comes from.

    Attributes:
        model: open_clip's model name, or `local-dir:FOLDER`.
        pretrained: open_clip's weights tag or a weights file; None for a folder.
        activation: what its MLPs must use, or None where the architecture fixes it.
        asset: shipped folder to load instead, checked by hash.
    """

    model: str
    pretrained: str | None = None
    activation: Activation | None = None
    asset: str | None = None

    @classmethod
    def parse(cls, text: str) -> ClipSpec:
        """Read what a user may write.

        Args:
            text: a name of `SCORERS`; `local-dir:FOLDER` in open_clip's layout; `MODEL/TAG`; or `MODEL=FILE` for a
                built-in architecture with a local weights file.

        Raises:
            MetricError: for anything else.
        """
        if text in SCORERS:
            return SCORERS[text]
        if text.startswith(LOCAL):
            return cls(text)
        if "=" in text:
            model, file = text.split("=", 1)
            if not Path(file).is_file():
                raise MetricError(f"scorer {text!r}: there is no file {file}")
            return cls(model, file, _named_activation(model))
        if text.count("/") == 1:
            model, tag = text.split("/")
            return cls(model, tag, _named_activation(model))
        raise MetricError(
            f"unknown scorer {text!r}{near_match(text, SCORERS)}; or write local-dir:FOLDER, MODEL/TAG or MODEL=FILE"
        )


SCORERS: dict[str, ClipSpec] = {
    "toy-clip": ClipSpec("toy-clip", asset="toy-clip"),
    # From open_clip 2.29 on, plain ViT-L-14 with these weights runs the wrong activation with only a warning.
    "clip-l14": ClipSpec("ViT-L-14-quickgelu", "openai", "QuickGELU"),
    "siglip2-b16": ClipSpec("ViT-B-16-SigLIP2", "webli"),
    "dfn-l14": ClipSpec("ViT-L-14-quickgelu", "dfn2b", "QuickGELU"),
}
"""Scorers by short name. `siglip2-b16` and `dfn-l14` are independent of SDXL's own text encoder."""


def _named_activation(model: str) -> Activation | None:
    return "QuickGELU" if model.endswith("-quickgelu") else None


@dataclass(frozen=True)
class LoadedClip:
    """A ready CLIP.

    Attributes:
        model: has `encode_image` and `encode_text`; frozen, float32.
        transform: PIL picture -> tensor [3, S, S], as the weights were trained.
        tokenizer: list of texts -> tokens [N, context].
        backbone: identity stored with every value.
        details: package, versions, activation, number format.
    """

    model: Any
    transform: Callable[[Any], torch.Tensor]
    tokenizer: Callable[..., torch.Tensor]
    backbone: str
    details: dict[str, str]

    def cut(self, texts: list[str]) -> list[bool]:
        """Which texts are longer than the context and lose their end."""
        context = int(self.tokenizer(texts[:1]).shape[1])
        tokens = self.tokenizer(texts, context_length=UNLIMITED)
        # At this length every row ends in padding, so a row that fits holds only padding after the context.
        return [bool(hit) for hit in (tokens[:, context:] != tokens[:, -1:]).any(dim=1)]


def activation_of(model: Any) -> str:
    """Class name of the picture tower's MLP activation, or `other` for towers built by another library."""
    blocks = getattr(getattr(model.visual, "transformer", None), "resblocks", None)
    return type(blocks[0].mlp.gelu).__name__ if blocks is not None else "other"


def load_open_clip(spec: ClipSpec, device: str = "cpu") -> LoadedClip:
    """Load model, transform and tokenizer with open_clip's factory.

    Raises:
        MetricError: if weights cannot be had, or the activation is not the one of the weights.
    """
    import open_clip

    name = f"{LOCAL}{asset_folder(spec.asset)}" if spec.asset else spec.model
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*QuickGELU mismatch.*")
            # This factory, unlike `create_model_and_transforms`, refuses to return a model with random weights.
            model, transform = open_clip.create_model_from_pretrained(
                name, spec.pretrained, precision="fp32", device=device, weights_only=True
            )
            tokenizer = open_clip.get_tokenizer(name)
    except (RuntimeError, OSError, ValueError, UserWarning) as error:
        reason = " ".join(str(error).split())
        raise MetricError(f"scorer {spec.model} {spec.pretrained or ''} cannot be loaded: {reason}") from error
    found = activation_of(model)
    if spec.activation is not None and found != spec.activation:
        raise MetricError(
            f"scorer {spec.model} {spec.pretrained}: the weights need {spec.activation}, the model runs {found}; "
            "use the model name that ends in -quickgelu"
        )
    model.float().eval().requires_grad_(False)
    details = {
        "package": f"open_clip {open_clip.__version__}",
        "model": spec.asset or spec.model,
        "pretrained": spec.pretrained or "",
        "activation": found,
        "dtype": "float32",
    }
    return LoadedClip(model, transform, tokenizer, identity(spec), details)


def identity(spec: ClipSpec) -> str:
    """What is stored with every value, found without loading the network.

    Names of folders and files say nothing about their content, so local weights carry their hash.

    Raises:
        MetricError: if a local folder is missing.
    """
    if spec.asset:
        return f"{spec.asset}@{folder_digest(asset_folder(spec.asset))}"
    if spec.model.startswith(LOCAL):
        return f"open_clip@{folder_digest(Path(spec.model.removeprefix(LOCAL)))}"
    if spec.pretrained is not None and Path(spec.pretrained).is_file():
        return f"{spec.model}@{file_sha256(Path(spec.pretrained))[:12]}"
    return f"{spec.model}/{spec.pretrained}"


def is_measured_by(backbone: str, scorer: str) -> bool:
    """Whether a stored identity is that of a scorer with its usual prompts, whichever weights a local one had then.

    Raises:
        MetricError: as `ClipSpec.parse`.
    """
    spec = ClipSpec.parse(scorer)
    name = spec.asset or f"{spec.model}/{spec.pretrained}"
    return backbone == name or (backbone.startswith(f"{name}@") and " " not in backbone)


def folder_digest(folder: Path) -> str:
    """12 hex digits over names and contents of a folder's JSON and weight files.

    Raises:
        MetricError: if there is no such folder.
    """
    if not folder.is_dir():
        raise MetricError(f"there is no folder {folder}")
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.suffix in {".json", ".safetensors", ".bin", ".pt"}:
            digest.update(f"{path.name}:{file_sha256(path)}\n".encode())
    return digest.hexdigest()[:12]
