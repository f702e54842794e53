"""CLIP models: their names, the identities stored with values, and their loading.

First `ClipSpec`, the parsed form of the names that users may write, the short names and identities; then `locate`,
which finds a model's files, and `load_open_clip`. Importing this module imports neither torch nor open_clip.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from riebench.errors import MetricError, near_match
from riebench.models.assets import asset_folder
from riebench.utils.files import file_sha256
from riebench.utils.hub import from_hub, offline_mode
from riebench.utils.weights import WEIGHT_ENDINGS, check_weights_file

if TYPE_CHECKING:
    import torch


Activation = Literal["QuickGELU", "GELU"]
LOCAL = "local-dir:"
SCORER_FORMS = "a short name, local-dir:FOLDER, MODEL/TAG, MODEL@FILE or MODEL/TAG@FILE"
"""Forms in which a scorer may be written."""
SHORT_COMMIT = 12
"""Digits of a commit that are printed."""
UNLIMITED = 4096
"""Context length at which no prompt is cut."""
FOLDER_CONFIG = "open_clip_config.json"
HUB_NAMES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
PREPROCESSING = ("mean", "std", "interpolation", "resize_mode")
"""Facts that open_clip has about the preprocessing of pictures in a training."""


@dataclass(frozen=True)
class ClipSpec:
    """Model, weights and source of a CLIP.

    Attributes:
        model: open_clip's model name, or `local-dir:FOLDER`.
        pretrained: open_clip's weights tag; None for a folder.
        activation: activation that its MLPs must use, or None where the architecture fixes it.
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
        """Parse a scorer as users write it.

        Args:
            text: a name of `SCORERS`; `local-dir:FOLDER` in open_clip's layout; `MODEL/TAG`; or `MODEL@FILE` for a
                built-in architecture with a local weights file. Where several trainings of an architecture need
                different treatment, `MODEL/TAG@FILE` names the training of the file.

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
            raise MetricError(f"unknown scorer {text!r}{near_match(text, SCORERS)}; write {SCORER_FORMS}")
        path = check_weights_file(Path(file).expanduser()) if at else None
        return cls(model, tag or None, _activation_by_name(model), file=path)

    @property
    def label(self) -> str:
        """Name of the CLIP in messages."""
        return self.asset or f"{self.model}{f'/{self.pretrained}' if self.pretrained else ''}"


SCORERS: dict[str, ClipSpec] = {
    "toy-clip": ClipSpec("toy-clip", asset="toy-clip"),
    "toy-clip-2": ClipSpec("toy-clip-2", asset="toy-clip-2"),
    "toy-mixed-clip": ClipSpec("toy-mixed-clip", asset="toy-mixed-clip"),
    "toy-mixed-clip-2": ClipSpec("toy-mixed-clip-2", asset="toy-mixed-clip-2"),
    # From open_clip 2.29 on, plain ViT-L-14 with these weights runs the wrong activation with only a warning.
    "clip-l14": ClipSpec(
        "ViT-L-14-quickgelu", "openai", "QuickGELU", revision="18d0535469bb561bf468d76c1d73aa35156c922b"
    ),
    "siglip2-b16": ClipSpec("ViT-B-16-SigLIP2", "webli", revision="eee10eff6dd8cabae2d7f379d4e8cfcd352030aa"),
    "dfn-l14": ClipSpec("ViT-L-14-quickgelu", "dfn2b", "QuickGELU"),
}
"""Scorers by short name.

`siglip2-b16` and `dfn-l14` are independent of SDXL's own text encoder, `toy-clip-2` of `toy-clip`.
"""


def scorer_pair(names: Sequence[str]) -> tuple[str | None, str | None]:
    """Split the values of `--scorer` into the scorer and the second, independent one.

    Returns:
        Both names, None for those not given.

    Raises:
        MetricError: for more than two, the same twice, or one that `ClipSpec.parse` refuses.
    """
    for name in names:
        ClipSpec.parse(name)
    if len(names) > 2 or len(set(names)) != len(names):
        raise MetricError("--scorer is given at most twice: the CLIP that scores, then another that confirms it")
    first, second, *_ = (*names, None, None)
    return first, second


def _activation_by_name(model: str) -> Activation | None:
    return "QuickGELU" if model.endswith("-quickgelu") else None


def identity(spec: ClipSpec) -> str:
    """Return the identity stored with every value, without loading the network.

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
    """Check that a stored identity is that of a scorer with its usual prompts.

    The weights of a local scorer do not matter: they may have changed since.

    Raises:
        MetricError: as `ClipSpec.parse`.
    """
    name = ClipSpec.parse(scorer).label
    return backbone == name or (backbone.startswith(f"{name}@") and " " not in backbone)


def with_revision(backbone: str) -> str:
    """Return a stored identity with the commit of the weights, if it is pinned."""
    pinned = {spec.label: spec.revision for spec in SCORERS.values() if spec.revision is not None}
    label = next((label for label in pinned if backbone == label or backbone.startswith(f"{label} (")), None)
    return backbone if label is None else f"{backbone}, revision {pinned[label][:SHORT_COMMIT]}"


def folder_digest(folder: Path) -> str:
    """Compute a hash over names and contents of a folder's JSON and weight files.

    Returns:
        12 hex digits.

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


@dataclass(frozen=True)
class ClipFiles:
    """Files of a CLIP, all of them on this machine.

    Attributes:
        name: open_clip's model name, or `local-dir:FOLDER`.
        weights: path of the file, or for the few tags that are not on the hub the tag itself; None for a folder.
        preprocessing: arguments of open_clip's factory that belong to the weights.
        tokenizer: folder of the tokenizer, or None for the one that comes with open_clip or lies in the model's folder.
    """

    name: str
    weights: str | None = None
    preprocessing: Mapping[str, Any] = field(default_factory=dict)
    tokenizer: Path | None = None


@dataclass(frozen=True)
class LoadedClip:
    """Loaded CLIP with its transform and tokenizer.

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
        """Return for each text whether it exceeds the context and loses its end."""
        tokens = self.tokenizer(texts)
        # A row that ends in padding fits. One such token may as well be the end of a text that was cut.
        full = [row for row, end in enumerate((tokens[:, -2:] != self._padding).any(dim=1).tolist()) if end]
        long = self._exceed([texts[row] for row in full]) if full else []
        lost = dict(zip(full, long, strict=True))
        return [lost.get(row, False) for row in range(len(texts))]

    def _exceed(self, texts: list[str]) -> list[bool]:
        # At this length every row ends in padding, so a row that fits holds only padding after the context. It takes
        # many times as long as the usual one.
        tokens = self.tokenizer(texts, context_length=UNLIMITED)
        return [bool(hit) for hit in (tokens[:, self._empty.shape[1] :] != tokens[:, -1:]).any(dim=1)]

    def embed_pixels(self, pixels: torch.Tensor) -> torch.Tensor:
        """Embed square pictures so that a gradient reaches their pixels.

        Pictures are resized by torch and not by the weights' own transform, from which it differs by rounding.

        Args:
            pixels: float [N, 3, H, H], 0 to 1.

        Returns:
            float [N, D], each of length 1.
        """
        from torch.nn.functional import interpolate, normalize
        from torchvision.transforms import Normalize

        (scaling,) = [step for step in getattr(self.transform, "transforms", ()) if isinstance(step, Normalize)]
        size = self.model.visual.image_size
        side = size if isinstance(size, tuple) else (size, size)
        if tuple(pixels.shape[-2:]) != side:
            pixels = interpolate(pixels, size=side, mode="bicubic", antialias=True).clamp(0, 1)
        return normalize(self.model.encode_image(scaling(pixels)), dim=1)

    def embed_text(self, text: str) -> torch.Tensor:
        """Embed a text as the network reads it, float [1, D] of length 1."""
        from torch.nn.functional import normalize

        tokens = self.tokenizer([text]).to(next(self.model.parameters()).device)
        return normalize(self.model.encode_text(tokens), dim=1)

    @cached_property
    def _empty(self) -> torch.Tensor:
        """Tokens of an empty text, as many as the network reads of any."""
        return self.tokenizer([""])

    @property
    def _padding(self) -> int:
        """Token that fills the end of a short text."""
        return int(self._empty[0, -1])


def locate(spec: ClipSpec, *, offline: bool = False) -> ClipFiles:
    """Find a CLIP's files, and fetch the missing ones unless offline.

    Raises:
        MetricError: with one line on what is unknown, does not fit or is missing, and how to get it.
    """
    if spec.asset or spec.model.startswith(LOCAL):
        folder = asset_folder(spec.asset) if spec.asset else Path(spec.model.removeprefix(LOCAL))
        if not (folder / FOLDER_CONFIG).is_file():
            raise MetricError(f"scorer {folder} has no {FOLDER_CONFIG}, so it is no model folder of open_clip")
        if not any(path.suffix in WEIGHT_ENDINGS for path in folder.iterdir()):
            raise MetricError(f"scorer {folder} has no weights; put its open_clip_model.safetensors there")
        return ClipFiles(f"{LOCAL}{folder}")
    import open_clip

    config = open_clip.get_model_config(spec.model)
    if config is None:
        near = near_match(spec.model, open_clip.list_models())
        raise MetricError(f"scorer {spec.label}: open_clip has no model {spec.model!r}{near}")
    training = _training(spec)
    _check_activation(spec, bool(config.get("quick_gelu")), training)
    preprocessing = {f"image_{name}": training[name] for name in PREPROCESSING if name in training}
    repository = config["text_cfg"].get("hf_tokenizer_name") or None
    if spec.file is None:
        weights, tokenizer = _fetch_files(spec, training, repository, offline)
    else:
        weights = str(check_weights_file(spec.file))
        tokenizer = _tokenizer_folder(spec, repository, offline)
    return ClipFiles(spec.model, weights, preprocessing, tokenizer)


def _training(spec: ClipSpec) -> dict[str, Any]:
    # The way the weights were trained. A file alone does not tell it, so all trainings of its architecture must agree.
    from open_clip.pretrained import get_pretrained_cfg, list_pretrained_tags_by_model

    tags: list[str] = list_pretrained_tags_by_model(spec.model)
    if spec.pretrained:
        training: dict[str, Any] = get_pretrained_cfg(spec.model, spec.pretrained)
        if not training:
            near = near_match(spec.pretrained, tags)
            raise MetricError(f"scorer {spec.label}: open_clip knows no weights of that name{near}")
        return training
    known = [get_pretrained_cfg(spec.model, tag) for tag in tags]
    kinds = {repr([cfg.get(key) for key in (*PREPROCESSING, "quick_gelu")]) for cfg in known}
    if len(kinds) > 1:
        raise MetricError(
            f"weights of {spec.model} differ in how they read pictures; say which training the file is of: "
            f"{spec.model}/TAG@FILE with TAG one of {', '.join(tags)}"
        )
    return known[0] if known else {}


def _check_activation(spec: ClipSpec, runs: bool, training: Mapping[str, Any]) -> None:
    needs = bool(training.get("quick_gelu", runs if spec.pretrained is None else False))
    if needs != runs:
        word = {True: "QuickGELU", False: "GELU"}
        better = f"{spec.model}-quickgelu" if needs else spec.model.removesuffix("-quickgelu")
        raise MetricError(
            f"scorer {spec.label}: QuickGELU mismatch: the weights need {word[needs]}, the model runs {word[runs]}; "
            f"use {better}/{spec.pretrained}"
        )


def _fetch_files(
    spec: ClipSpec, training: Mapping[str, Any], tokenizer: str | None, offline: bool
) -> tuple[str, Path | None]:
    # The weights file and, for architectures with a tokenizer of their own, its folder.
    owner, _, rest = str(training.get("hf_hub", "")).partition("/")
    name, _, file = rest.partition("/")
    if not name:
        # A tag that is older than the hub: open_clip fetches it from its address.
        cached = Path("~/.cache/clip").expanduser() / Path(str(training.get("url", ""))).name
        if offline and not cached.is_file():
            raise MetricError(f"scorer {spec.label} is not on this machine; put {training.get('url')} at {cached}")
        weights = str(cached) if cached.is_file() else str(spec.pretrained)
        return weights, _tokenizer_folder(spec, tokenizer, offline)
    names = (f"{Path(file).stem}.safetensors", file) if file else HUB_NAMES
    beside = TOKENIZER_FILES if tokenizer == f"{owner}/{name}" else ()
    try:
        choices = [(one, *beside) for one in names]
        folder = from_hub(f"{owner}/{name}", choices, revision=spec.revision, offline=offline)
    except MetricError as error:
        own = f"a file of yours works too: --scorer {spec.label}@FILE"
        raise MetricError(f"scorer {spec.label}: {error}; {own}") from error
    weights = str(next(folder / one for one in names if (folder / one).is_file()))
    return weights, folder if beside else _tokenizer_folder(spec, tokenizer, offline)


def _tokenizer_folder(spec: ClipSpec, repository: str | None, offline: bool) -> Path | None:
    if repository is None:
        return None
    if spec.file is not None and all((spec.file.parent / name).is_file() for name in TOKENIZER_FILES):
        return spec.file.parent
    try:
        return from_hub(repository, [TOKENIZER_FILES], offline=offline)
    except MetricError as error:
        beside = f"{error}; or put {' and '.join(TOKENIZER_FILES)} beside the weights file"
        raise MetricError(f"scorer {spec.label}: {beside}") from error


def activation_of(model: Any) -> str:
    """Return the class name of the activation in the MLPs of the picture tower.

    It is `other` for towers built by another library.
    """
    blocks = getattr(getattr(model.visual, "transformer", None), "resblocks", None)
    return type(blocks[0].mlp.gelu).__name__ if blocks is not None else "other"


def load_open_clip(spec: ClipSpec, device: str = "cpu", *, offline: bool = False) -> LoadedClip:
    """Load model, transform and tokenizer with open_clip's factory.

    Raises:
        MetricError: if the weights are missing or cannot be read, or the activation is not the one they need.
    """
    from pickle import UnpicklingError

    import open_clip
    from safetensors import SafetensorError

    files = locate(spec, offline=offline)
    try:
        with warnings.catch_warnings(), offline_mode(offline):
            warnings.filterwarnings("error", message=".*QuickGELU mismatch.*")
            # This factory, unlike `create_model_and_transforms`, refuses to return a model with random weights.
            model, transform = open_clip.create_model_from_pretrained(
                files.name, files.weights, precision="fp32", device=device, weights_only=True,
                **files.preprocessing,
            )  # fmt: skip
            tokenizer = _tokenizer(files)
    except (RuntimeError, OSError, ValueError, KeyError, UserWarning, UnpicklingError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise MetricError(f"scorer {spec.label} cannot be loaded: {reason}") from error
    found = activation_of(model)
    if spec.activation is not None and found != spec.activation:
        raise MetricError(
            f"scorer {spec.label}: the weights need {spec.activation}, the model runs {found}; "
            "use the model name that ends in -quickgelu"
        )
    model.float().eval().requires_grad_(False)
    return LoadedClip(model, transform, tokenizer, identity(spec), _details(spec, found))


def _details(spec: ClipSpec, activation: str) -> dict[str, str]:
    import open_clip

    local = "" if spec.file is None else f"file {spec.file.name}"
    return {
        "package": f"open_clip {open_clip.__version__}",
        "model": spec.asset or (LOCAL if spec.model.startswith(LOCAL) else spec.model),
        "pretrained": spec.pretrained or local,
        "activation": activation,
        "dtype": "float32",
        **({"revision": spec.revision} if spec.revision and spec.file is None else {}),
    }


def _tokenizer(files: ClipFiles) -> Any:
    import open_clip

    if files.tokenizer is None:
        return open_clip.get_tokenizer(files.name)
    from open_clip.tokenizer import HFTokenizer

    text = open_clip.get_model_config(files.name)["text_cfg"]
    return HFTokenizer(
        str(files.tokenizer),
        context_length=text.get("context_length", 77),
        tokenizer_mode=text.get("tokenizer_mode"),
        **text.get("tokenizer_kwargs", {}),
    )
