"""Which CLIP measures: short names, what users may write, and the identity stored with every number. No torch here."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from riebench.errors import MetricError, near_match
from riebench.metrics.weights import check_weights_file
from riebench.models.assets import asset_folder
from riebench.utils.files import file_sha256

Activation = Literal["QuickGELU", "GELU"]
LOCAL = "local-dir:"
FORMS = "a short name, local-dir:FOLDER, MODEL/TAG, MODEL@FILE or MODEL/TAG@FILE"
"""What a scorer may be written as."""


@dataclass(frozen=True)
class ClipSpec:
    """Where a CLIP comes from.

    Attributes:
        model: open_clip's model name, or `local-dir:FOLDER`.
        pretrained: open_clip's weights tag; None for a folder.
        activation: what its MLPs must use, or None where the architecture fixes it.
        asset: shipped folder to load instead, checked by hash.
        file: local file with the weights.
        revision: commit of the hub to fetch the weights from; None for the newest.
    """

    model: str
    pretrained: str | None = None
    activation: Activation | None = None
    asset: str | None = None
    file: Path | None = None
    revision: str | None = None

    @classmethod
    def parse(cls, text: str) -> ClipSpec:
        """Read what a user may write.

        Args:
            text: a name of `SCORERS`; `local-dir:FOLDER` in open_clip's layout; `MODEL/TAG`; or `MODEL@FILE` for a
                built-in architecture with a local weights file. Where several trainings of an architecture need
                different treatment, `MODEL/TAG@FILE` says which one the file is of.

        Raises:
            MetricError: for anything else, or a file or folder that is not there.
        """
        if text in SCORERS:
            return SCORERS[text]
        if text.startswith(LOCAL):
            folder = Path(text.removeprefix(LOCAL)).expanduser()
            if not folder.is_dir():
                raise MetricError(f"scorer {text!r}: there is no folder {folder}")
            return cls(f"{LOCAL}{folder}")
        name, at, file = text.partition("@")
        model, slash, tag = name.partition("/")
        if not model or "/" in tag or bool(slash) != bool(tag) or not (slash or at):
            raise MetricError(f"unknown scorer {text!r}{near_match(text, SCORERS)}; write {FORMS}")
        path = check_weights_file(Path(file).expanduser()) if at else None
        return cls(model, tag or None, _named_activation(model), file=path)

    @property
    def label(self) -> str:
        """The spec in words, for messages."""
        return self.asset or f"{self.model}{f'/{self.pretrained}' if self.pretrained else ''}"


SCORERS: dict[str, ClipSpec] = {
    "toy-clip": ClipSpec("toy-clip", asset="toy-clip"),
    # From open_clip 2.29 on, plain ViT-L-14 with these weights runs the wrong activation with only a warning.
    "clip-l14": ClipSpec(
        "ViT-L-14-quickgelu", "openai", "QuickGELU", revision="18d0535469bb561bf468d76c1d73aa35156c922b"
    ),
    "siglip2-b16": ClipSpec("ViT-B-16-SigLIP2", "webli"),
    "dfn-l14": ClipSpec("ViT-L-14-quickgelu", "dfn2b", "QuickGELU"),
}
"""Scorers by short name. `siglip2-b16` and `dfn-l14` are independent of SDXL's own text encoder."""


def scorer_pair(names: Sequence[str]) -> tuple[str | None, str | None]:
    """The scorer and the second, independent one among what `--scorer` was given; None for those not given.

    Raises:
        MetricError: for more than two, the same twice, or one that `ClipSpec.parse` refuses.
    """
    for name in names:
        ClipSpec.parse(name)
    if len(names) > 2 or len(set(names)) != len(names):
        raise MetricError("--scorer is given at most twice: the CLIP that scores, then another that confirms it")
    first, second, *_ = (*names, None, None)
    return first, second


def _named_activation(model: str) -> Activation | None:
    return "QuickGELU" if model.endswith("-quickgelu") else None


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
    return f"{spec.label}@{file_sha256(spec.file)[:12]}" if spec.file else spec.label


def is_measured_by(backbone: str, scorer: str) -> bool:
    """Whether a stored identity is that of a scorer with its usual prompts, whichever weights a local one had then.

    Raises:
        MetricError: as `ClipSpec.parse`.
    """
    name = ClipSpec.parse(scorer).label
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
