"""Named scorers beside the packages of their authors, on random weights; skipped where a package is not installed."""

from __future__ import annotations

import gzip
import importlib
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scored_runs import noise
from tiny_scorers import dreamsim_folder, hps_file

from riebench.scoring.metrics.base import Sample
from riebench.scoring.metrics.networks import Networks
from riebench.scoring.metrics.pretrained.dreamsim import dreamsim
from riebench.scoring.metrics.pretrained.preference import hps_target

MASK = np.zeros((64, 64), bool)
SAMPLES = [Sample(noise(seed), noise(9), MASK, "a blue car", "a red boat") for seed in range(2)]


def test_dreamsim_agrees_with_its_authors_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("peft")
    pytest.importorskip("dreamsim")
    from dreamsim import dreamsim as load
    from dreamsim.feature_extraction import load_clip_as_dino, load_open_clip_as_dino
    from dreamsim.feature_extraction.vision_transformer import VisionTransformer

    folder = dreamsim_folder(tmp_path / "dreamsim")
    small = partial(
        VisionTransformer, embed_dim=24, depth=12, num_heads=12, qkv_bias=True,
        norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
    )  # fmt: skip
    monkeypatch.setattr(load_clip_as_dino, "vit_base", small)
    monkeypatch.setattr(load_open_clip_as_dino, "vit_base", small)

    def dino(*_: Any) -> Any:
        """What the authors have torch fetch: DINO's own network with the weights of its teacher."""
        model = small(patch_size=16)
        teacher = torch.load(folder / "dino_vitb16_pretrain.pth", weights_only=True)["teacher"]
        model.load_state_dict({name.removeprefix("backbone."): value for name, value in teacher.items()})
        return model

    monkeypatch.setattr(torch.hub, "load", dino)
    monkeypatch.setattr(torch.hub, "set_dir", lambda _: None)
    model, preprocess = load(pretrained=True, device="cpu", cache_dir=str(folder))
    pairs = [(preprocess(Image.fromarray(s.edited)), preprocess(Image.fromarray(s.source))) for s in SAMPLES]
    with torch.no_grad():
        expected = [float(model(first, second)) for first, second in pairs]
    assert min(expected) > 1e-4
    assert dreamsim(SAMPLES, Networks(weights={"dreamsim": folder})) == pytest.approx(expected, abs=1e-6, rel=1e-3)


def authors_open_clip(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Return the open_clip inside the package of HPS, whose release lacks the vocabulary: it gets the same of ours."""
    pytest.importorskip("hpsv2")
    from open_clip.tokenizer import default_bpe

    usual = gzip.open

    def find(path: Any, *arguments: Any, **options: Any) -> Any:
        return usual(path if Path(path).exists() else default_bpe(), *arguments, **options)

    monkeypatch.setattr(gzip, "open", find)
    return importlib.import_module("hpsv2.src.open_clip")


def test_hps_agrees_with_its_authors_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import open_clip

    theirs = authors_open_clip(monkeypatch)
    sizes: dict[str, Any] = {
        "embed_dim": 8,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 16, "head_width": 8, "patch_size": 8},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2},
    }
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "ViT-H-14", sizes)
    monkeypatch.setitem(theirs.factory._MODEL_CONFIGS, "ViT-H-14", sizes)
    file = hps_file(tmp_path / "HPS_v2.1_compressed.pt", sizes)
    # As the authors' `score` does, but for half precision on GPUs.
    model, _, preprocess = theirs.create_model_and_transforms(
        "ViT-H-14", None, precision="fp32", device="cpu", output_dict=True, light_augmentation=True, aug_cfg={},
        with_score_predictor=False, with_region_predictor=False,
    )  # fmt: skip
    model.load_state_dict(torch.load(file, weights_only=True)["state_dict"])
    images = torch.stack([preprocess(Image.fromarray(sample.edited)) for sample in SAMPLES])
    with torch.no_grad():
        found = model.eval()(images, theirs.get_tokenizer("ViT-H-14")(["a red boat"]))
    expected = (found["image_features"] @ found["text_features"].T)[:, 0].tolist()
    assert abs(expected[0] - expected[1]) > 1e-3
    assert hps_target(SAMPLES, Networks(weights={"hps": file})) == pytest.approx(expected, abs=1e-4)
