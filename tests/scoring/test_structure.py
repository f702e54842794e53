"""Structure distance on a small random Vision Transformer, against a computation of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cachetools import LRUCache
from scored_runs import TASKS, noise, stored_run
from torch.nn.functional import interpolate, layer_norm, linear
from transformers import ViTConfig, ViTModel

from riebench.errors import MetricError
from riebench.scoring.metrics.base import Sample
from riebench.scoring.metrics.networks import Networks
from riebench.scoring.metrics.piebench import pie_structure
from riebench.scoring.metrics.structure import CACHED_MATRICES, DinoKeys, dino_folder, identity, structure
from riebench.scoring.score import score
from riebench.store.folder import RunFolder

TOKENS = 1 + 7 * 7


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ViT in the hub's layout: 224 px, patches of 32 px, two blocks."""
    path = tmp_path_factory.mktemp("dino")
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=224, patch_size=32
    )
    model = ViTModel(config, add_pooling_layer=False)
    # Fresh weights are so small that all tokens look alike.
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def keys(folder: Path) -> DinoKeys:
    return DinoKeys.load(folder, backbone=identity(folder))


def expected_matrix(keys: DinoKeys, picture: np.ndarray, scale: float) -> Any:
    """The self-similarity from the last block's input, its norm and its key projection, one token pair at a time."""
    pixels = torch.from_numpy(picture / 255 * scale).permute(2, 0, 1)[None].float()
    small = interpolate(pixels, size=(224, 224), mode="bilinear", antialias=True, align_corners=False)
    mean = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
    deviation = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)
    with torch.inference_mode():
        states = keys.model(pixel_values=(small - mean) / deviation, output_hidden_states=True).hidden_states
        # transformers has moved the blocks and renamed the projection of keys between versions.
        block: Any = [module for module in keys.model.modules() if hasattr(module, "layernorm_before")][-1]
        keyed = (part for name, part in block.named_modules() if name.endswith(("k_proj", "attention.key")))
        norm, project = block.layernorm_before, next(keyed)
        inputs = layer_norm(states[-2][0], (32,), norm.weight, norm.bias, norm.eps)
        tokens = linear(inputs, project.weight, project.bias).double().numpy()
    return np.array([[a @ b / np.sqrt((a @ a) * (b @ b)) for b in tokens] for a in tokens])


@pytest.mark.parametrize("scale", [1.0, 255.0])
def test_is_the_definition(keys: DinoKeys, scale: float) -> None:
    first, second = noise(0, 96), noise(1, 96)
    one, two = (expected_matrix(keys, picture, scale) for picture in (first, second))
    assert one.shape == (TOKENS, TOKENS)
    assert keys.similarity(first / 255, scale=scale).numpy() == pytest.approx(one, abs=1e-4)
    expected = ((one - two) ** 2).mean()
    assert expected > 1e-3
    assert keys.distance(first[None], second[None], scale=scale) == pytest.approx([expected], rel=1e-3)


def test_metrics_use_the_right_range_of_pixels(keys: DinoKeys) -> None:
    networks = Networks(ready={"dino": keys})
    one = [Sample(noise(0), noise(1), np.zeros((64, 64), bool), "a", "b")]
    assert structure(one, networks) == keys.distance(noise(0)[None], noise(1)[None]).tolist()
    assert pie_structure(one, networks) == keys.distance(noise(0)[None], noise(1)[None], scale=255.0).tolist()
    assert structure(one, networks) != pie_structure(one, networks)


def test_identical_pictures_and_order(keys: DinoKeys) -> None:
    assert keys.distance(noise(3)[None], noise(3)[None]).tolist() == [0.0]
    pair = keys.distance(np.stack([noise(3), noise(4)]), np.stack([noise(4), noise(3)]))
    assert pair[0] == pytest.approx(pair[1], rel=1e-6)
    assert pair[0] > 0


def test_a_source_picture_goes_through_the_network_once(keys: DinoKeys, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many edits of it are scored in between."""
    monkeypatch.setattr(keys, "_matrices", LRUCache(CACHED_MATRICES))
    seen: list[float] = []

    def similarity(picture: np.ndarray[Any, Any], **_: Any) -> torch.Tensor:
        seen.append(float(picture.mean()))
        return torch.zeros(1)

    monkeypatch.setattr(keys, "similarity", similarity)
    mask = np.zeros((64, 64), bool)
    samples = [Sample(noise(edit), noise(100), mask, "a", "b") for edit in range(2 * CACHED_MATRICES)]
    structure(samples, Networks(ready={"dino": keys}))
    assert len(seen) == len(set(seen)) == 2 * CACHED_MATRICES + 1


def test_other_ranges_are_refused(keys: DinoKeys) -> None:
    with pytest.raises(MetricError, match=r"\[0, 1\]"):
        keys.distance(noise(0)[None].astype(float), noise(1)[None].astype(float))


def test_folders_that_are_not_dino_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(MetricError, match=r"needs config\.json and model\.safetensors"):
        dino_folder(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    (tmp_path / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(MetricError, match="Git-LFS pointer"):
        dino_folder(tmp_path)
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    with pytest.raises(MetricError, match="weights are missing"):
        DinoKeys.load(dino_folder(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"noise" * 10)
    with pytest.raises(MetricError, match="cannot be loaded"):
        DinoKeys.load(dino_folder(tmp_path))


def test_measured_when_the_weights_come_and_a_reason_before(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    run = stored_run(tmp_path)

    def scored(**options: Any) -> tuple[dict[str, int], str, set[tuple[str, str | None]]]:
        report = score([run], TASKS, metrics=["structure", "mse_bg"], offline=True, progress=False, **options)
        lines = [one for one in RunFolder(run.path).scores().values() if one.metric == "structure"]
        return dict(report.computed), report.summary, {(one.backbone, one.reason) for one in lines}

    computed, summary, lines = scored()
    assert computed == {"structure": 2, "mse_bg": 2}
    assert "structure not measured: structure needs DINO: facebook/dino-vitb8 is not on this machine" in summary
    assert lines == {("facebook/dino-vitb8", "no_weights")}
    # The reason is stored once, and reported each time.
    computed, summary, _ = scored()
    assert computed == {} and "not measured" in summary
    computed, _, lines = scored(weights={"dino": folder})
    assert computed == {"structure": 2}
    assert (identity(folder), None) in lines
    assert scored(weights={"dino": folder})[0] == {}
