"""Scores trained on people's choices between pictures: PickScore and HPS v2.1.

Both are a CLIP ViT-H/14 whose cosine of picture and prompt was tuned until it orders pictures as people do. A gain is
the score of the edited picture for the target prompt minus that of the source picture for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np

from riebench.models.clip import ClipSpec, load_open_clip
from riebench.scoring.metrics.base import Float, MetricFormat, Sample, UInt8, Value, metric, strict_float32
from riebench.scoring.metrics.clip import ClipScorer, row_products
from riebench.scoring.metrics.networks import Network, NetworkOptions, Networks, network
from riebench.scoring.metrics.pretrained.files import HubModel, load_model, load_processor
from riebench.utils.files import file_sha256
from riebench.utils.weights import check_weights_file

PICKSCORE = HubModel(
    "pickscore", "yuvalkirstain/PickScore_v1", weights=("model.safetensors", "pytorch_model.bin"),
    revision="a4e4367c6dfa7288a00c550414478f865b875800",
)  # fmt: skip
PROCESSOR_FILES = ("preprocessor_config.json", "tokenizer.json", "tokenizer_config.json")
PICKSCORE_PROCESSOR = HubModel(
    "pickscore", "laion/CLIP-ViT-H-14-laion2B-s32B-b79K", PROCESSOR_FILES[1:], (PROCESSOR_FILES[0],),
    revision="1c2b8495b28150b8a4922ee1c8edee224c284c0c", config="",
)  # fmt: skip
"""The processor that PickScore's authors name; a local folder may hold these files itself."""
HPS_FILE = "HPS_v2.1_compressed.pt"
HPS = HubModel("hps", "xswu/HPSv2", weights=(HPS_FILE,), revision="697403c78157020a1ae59d23f111aa58ced35b0a", config="")
HPS_MODEL, HPS_TAG = "ViT-H-14", "laion2b_s32b_b79k"
"""open_clip's names of the architecture, and of the training whose picture statistics HPS was trained with."""
LARGEST = 100.0
"""Largest factor of a cosine in CLIP's training."""


class PreferenceScorer(ClipScorer):
    """Source of embeddings whose product, times a factor, is a score.

    Attributes:
        factor: of the cosine, above 0.
    """

    factor: float = 1.0

    def scores(self, pictures: Sequence[UInt8], prompts: Sequence[str]) -> list[Value]:
        """Compute the score of each picture for the prompt in its place."""
        return row_products(self.factor * self.pictures(pictures), self.texts(prompts))


def load_pickscore(options: NetworkOptions) -> PreferenceScorer:
    """Load PickScore through transformers, in float32.

    Raises:
        MetricError: if it is not there, or another kind of model.
    """
    import torch
    from transformers import AutoProcessor, CLIPModel

    folder = PICKSCORE.folder(options)
    model = load_model(CLIPModel.from_pretrained, folder, PICKSCORE.repository, dtype=torch.float32).to(options.device)
    processor = load_processor(AutoProcessor.from_pretrained, _processor_folder(options), PICKSCORE.repository)
    length = int(model.config.text_config.max_position_embeddings)

    def pictures(batch: list[UInt8]) -> Float:
        from PIL import Image

        pixels = [processor(images=Image.fromarray(one), return_tensors="pt").pixel_values for one in batch]
        with strict_float32(options.device):
            return _features(model.get_image_features(pixel_values=torch.cat(pixels).to(options.device)))

    def texts(batch: list[str]) -> Float:
        tokens = processor(text=batch, padding=True, truncation=True, max_length=length, return_tensors="pt")
        with strict_float32(options.device):
            return _features(model.get_text_features(**tokens.to(options.device)))

    def cut(batch: list[str]) -> list[bool]:
        return [len(one) > length for one in processor.tokenizer(batch).input_ids]

    factor = float(model.logit_scale.exp())
    details = {**PICKSCORE.facts(options), "factor": f"{factor:.6g}", "dtype": "float32"}
    scorer = PreferenceScorer(pictures, texts, cut=cut, backbone=PICKSCORE.identity(options), details=details)
    scorer.factor = factor
    return scorer


def _features(found: Any) -> Float:
    # Newer transformers returns the projected features inside an object.
    tensor = getattr(found, "pooler_output", found)
    return np.asarray(tensor.float().cpu().numpy(), dtype=np.float64)


def _processor_folder(options: NetworkOptions) -> Path:
    own = options.weights.get(PICKSCORE.name)
    if own is not None and all((own / name).is_file() for name in PROCESSOR_FILES):
        return own
    return PICKSCORE_PROCESSOR.folder(replace(options, weights={}))


@network("pickscore")
class PickScoreNetwork(Network):
    """PickScore v1, from the hub or a folder; MIT."""

    weights = f"{PICKSCORE.about} and, if they are not to come from the hub, {', '.join(PROCESSOR_FILES)}"

    @staticmethod
    def load(networks: Networks) -> PreferenceScorer:
        """Load the network."""
        return load_pickscore(networks.options)

    @staticmethod
    def identity(options: NetworkOptions) -> str:
        """Return the repository and its commit, or the hash of a local folder."""
        return PICKSCORE.identity(options)

    @staticmethod
    def locate(options: NetworkOptions) -> None:
        """Check that weights and processor are here."""
        PICKSCORE.folder(options)
        _processor_folder(options)


def hps_file(options: NetworkOptions) -> Path:
    """Return the file with the weights of HPS v2.1.

    Raises:
        MetricError: if it is not there; the message tells the way to get it.
    """
    place = options.weights.get(HPS.name)
    if place is not None and place.is_file():
        return check_weights_file(place)
    folder = HPS.folder(options)
    return folder / HPS_FILE


def picture_transform(side: int, normalize: Any) -> Callable[[Any], Any]:
    """Return the transform of HPS's authors: to a tensor first, and then to size.

    open_clip's own resizes the picture before, from which this differs by rounding.

    Args:
        side: of the network's pictures, in pixels.
        normalize: the change of channels that belongs to the weights.
    """
    from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize, ToTensor

    resize = Resize(side, interpolation=InterpolationMode.BICUBIC, antialias=True)
    return Compose([ToTensor(), resize, CenterCrop(side), normalize])


def load_hps(options: NetworkOptions) -> PreferenceScorer:
    """Load HPS v2.1 through open_clip, in float32.

    Raises:
        MetricError: if it is not there, or holds other weights.
    """
    spec = ClipSpec(HPS_MODEL, HPS_TAG, "GELU", file=hps_file(options))
    loaded = load_open_clip(spec, options.device, offline=options.offline)
    size, usual = loaded.model.visual.image_size, cast(Any, loaded.transform)
    side = int(size[0] if isinstance(size, tuple) else size)
    loaded = replace(
        loaded,
        transform=picture_transform(side, usual.transforms[-1]),
        backbone=HpsNetwork.identity(options),
        details={**loaded.details, **HPS.facts(options), "package": loaded.details["package"], "factor": "1"},
    )
    scorer = PreferenceScorer.from_loaded(loaded, options.device)
    assert isinstance(scorer, PreferenceScorer)
    return scorer


@network("hps")
class HpsNetwork(Network):
    """Human Preference Score v2.1, from the hub or a file; Apache-2.0."""

    weights = f"{HPS_FILE} of {HPS.repository}, or a folder with it"

    @staticmethod
    def load(networks: Networks) -> PreferenceScorer:
        """Load the network."""
        return load_hps(networks.options)

    @staticmethod
    def identity(options: NetworkOptions) -> str:
        """Return the repository and its commit, or the hash of a local file."""
        place = options.weights.get(HPS.name)
        if place is None:
            return HPS.identity(options)
        file = place if place.is_file() else place / HPS_FILE
        return f"HPSv2.1@{file_sha256(file)[:12] if file.is_file() else 'missing'}"

    @staticmethod
    def locate(options: NetworkOptions) -> None:
        """Check that the weights are here."""
        hps_file(options)


def _target_scores(samples: Sequence[Sample], networks: Networks, name: str) -> list[Value]:
    scorer: PreferenceScorer = networks.get(name)
    return scorer.scores([s.edited for s in samples], [s.target_prompt for s in samples])


def _gains(samples: Sequence[Sample], networks: Networks, name: str) -> list[Value]:
    scorer: PreferenceScorer = networks.get(name)
    change = scorer.pictures(s.edited for s in samples) - scorer.pictures(s.source for s in samples)
    return row_products(scorer.factor * change, scorer.texts(s.target_prompt for s in samples))


@metric(direction="higher", low=-LARGEST, high=LARGEST, backbone="pickscore")
def pick_target(samples: Sequence[Sample], networks: Networks) -> list[Value]:
    """Compute PickScore of the edited picture for the target prompt."""
    return _target_scores(samples, networks, "pickscore")


@metric(
    direction="higher",
    low=-2 * LARGEST,
    high=2 * LARGEST,
    backbone="pickscore",
    format=MetricFormat("PickScore gain for the target prompt (higher is better)", 1, 2, signed=True),
)
def pick_gain(samples: Sequence[Sample], networks: Networks) -> list[Value]:
    """Compute PickScore of the edited minus that of the source picture."""
    return _gains(samples, networks, "pickscore")


@metric(direction="higher", low=-1, high=1, backbone="hps")
def hps_target(samples: Sequence[Sample], networks: Networks) -> list[Value]:
    """Compute HPS v2.1 of the edited picture for the target prompt."""
    return _target_scores(samples, networks, "hps")


@metric(
    direction="higher",
    low=-2,
    high=2,
    backbone="hps",
    format=MetricFormat("HPS v2.1 gain for the target prompt x100 (higher is better)", 100, 2, signed=True),
)
def hps_gain(samples: Sequence[Sample], networks: Networks) -> list[Value]:
    """Compute HPS v2.1 of the edited minus that of the source picture."""
    return _gains(samples, networks, "hps")
