"""The profile `piebench`: published weaknesses, reproduced on purpose and kept apart."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scored_runs import TASKS, noise, stored_run
from tiny_clip import VISION

from riebench.errors import MetricError
from riebench.scoring.metrics import lpips as lpips_module
from riebench.scoring.metrics.base import Reason, Sample
from riebench.scoring.metrics.clip import ClipScorer
from riebench.scoring.metrics.lpips import SqueezeLpips
from riebench.scoring.metrics.networks import Networks
from riebench.scoring.metrics.piebench import (
    add_border,
    frame_sample,
    pie_clip_region,
    pie_clip_target,
    pie_lpips,
    pie_mse,
    pie_psnr,
    pie_ssim,
)
from riebench.scoring.metrics.pixel import mse_bg, psnr_bg, ssim_map
from riebench.scoring.score import score

NETWORKS = Networks()


def left(share: float, side: int = 64) -> np.ndarray:
    mask = np.zeros((side, side), bool)
    mask[:, : round(side * share)] = True
    return mask


def sample(edited: np.ndarray, source: np.ndarray, mask: np.ndarray) -> Sample:
    return Sample(edited, source, mask, "a [red] car", "a [blue] boat")


@settings(max_examples=20)
@given(st.integers(0, 1000), st.integers(1, 60), st.sampled_from([0.1, 0.5, 0.9]))
def test_a_uniform_change_looks_better_by_the_share_of_the_background(seed: int, change: int, share: float) -> None:
    source = np.random.default_rng(seed).integers(0, 190, (64, 64, 3)).astype(np.uint8)
    # With the border in the mask already, both profiles look at the same background.
    mask = add_border(left(share))
    one = [sample((source + change).astype(np.uint8), source, mask)]
    flattered, ours = pie_psnr(one, NETWORKS)[0], psnr_bg(one, NETWORKS)[0]
    assert isinstance(flattered, float) and isinstance(ours, float)
    assert flattered - ours == pytest.approx(10 * np.log10(1 / (~mask).mean()), abs=1e-9)
    assert pie_mse(one, NETWORKS)[0] == pytest.approx(float(mse_bg(one, NETWORKS)[0]) * (~mask).mean(), rel=1e-9)


def test_the_outermost_pixels_are_always_region() -> None:
    source = noise(0)
    edited = source.copy()
    edited[0], edited[:, -1] = 0, 0
    one = [sample(edited, source, left(0))]
    assert pie_mse(one, NETWORKS) == [0.0]
    assert pie_psnr(one, NETWORKS) == [Reason.IDENTICAL]
    assert mse_bg(one, NETWORKS)[0] != 0.0


def test_a_whole_mask_is_missing_and_the_smallest_background_is_not() -> None:
    whole = np.ones((64, 64), bool)
    inner = whole.copy()
    inner[1, 1] = False
    edge = whole.copy()
    edge[0, 0] = False  # the border makes the mask whole
    for mask, there in ((whole, False), (edge, False), (inner, True)):
        for metric in (pie_mse, pie_ssim):
            value = metric([sample(noise(0), noise(1), mask)], NETWORKS)[0]
            assert isinstance(value, float) if there else value == Reason.NO_BACKGROUND


def test_ssim_counts_the_region_as_equal() -> None:
    a, b, mask = noise(0), noise(1), add_border(left(0.5))
    black = [np.where(mask[:, :, None], 0, picture)[None] / 255 for picture in (a, b)]
    assert pie_ssim([sample(a, b, mask)], NETWORKS) == pytest.approx([ssim_map(*black).mean()], rel=1e-12)


def test_pictures_that_are_not_square_keep_their_last_pixels() -> None:
    wide = np.random.default_rng(0).integers(0, 256, (520, 1030, 3)).astype(np.uint8)
    mask = np.zeros((520, 1030), bool)
    mask[-1, -1] = mask[0, 0] = True
    cut = frame_sample(sample(wide, wide.copy(), mask))
    assert cut.edited.shape == cut.source.shape == (512, 512, 3)
    assert np.array_equal(cut.edited, wide[8:, 518:])
    assert cut.mask.shape == (512, 512)
    assert not cut.mask[1:-1, 1:-1].any() and cut.mask[0].all() and cut.mask[:, -1].all()
    assert frame_sample(sample(noise(0), noise(1), left(0))).edited.shape == (64, 64, 3)


def test_clip_sees_the_region_on_black_and_never_goes_below_zero() -> None:
    seen: list[np.ndarray] = []

    def pictures(batch: list[np.ndarray]) -> np.ndarray:
        seen.extend(batch)
        return np.stack([[1.0, 0.0] if picture.mean() > 60 else [0.6, 0.8] for picture in batch])

    texts: list[str] = []

    def encode(batch: list[str]) -> np.ndarray:
        texts.extend(batch)
        return np.stack([[-1.0, 1.0]] * len(batch))

    networks = Networks(ready={"clip": ClipScorer(pictures, encode)})
    one = [sample(np.full((64, 64, 3), 200, np.uint8), noise(1), left(0.25))]
    assert pie_clip_target(one, networks) == [0.0]
    assert pie_clip_region(one, networks) == pytest.approx([100 * 0.2 / np.sqrt(2)], rel=1e-9)
    assert texts == ["a blue boat"]
    region = frame_sample(one[0]).mask
    assert (seen[1][region] == 200).all() and (seen[1][~region] == 0).all()


# --- LPIPS on SqueezeNet ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trunk() -> Any:
    from torchvision.models import squeezenet1_1

    torch.manual_seed(0)
    return squeezenet1_1(weights=None).eval()


@pytest.fixture
def squeeze_file(trunk: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Random weights under a name that tells their hash, as torchvision names its files."""
    file = tmp_path / "weights.pth"
    torch.save(trunk.state_dict(), file)
    name = f"squeezenet1_1-{hashlib.sha256(file.read_bytes()).hexdigest()[:8]}.pth"
    monkeypatch.setattr(lpips_module, "SQUEEZE_FILE", name)
    return file.rename(tmp_path / name)


def test_squeezenet_distance_is_the_definition(trunk: Any, squeeze_file: Path) -> None:
    import lpips

    model = SqueezeLpips(file=squeeze_file)
    learned = torch.load(Path(lpips.__file__).parent / "weights/v0.1/squeeze.pth", "cpu", weights_only=True)
    shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])

    def features(picture: np.ndarray) -> list[torch.Tensor]:
        state = ((torch.from_numpy(picture / 255).float() * 2 - 1 - shift) / scale).permute(2, 0, 1)[None]
        found = []
        with torch.inference_mode():
            for index, layer in enumerate(trunk.features):
                state = layer(state)
                if index in (1, 4, 7, 9, 10, 11, 12):
                    found.append(state[0] / (state[0].norm(dim=0, keepdim=True) + 1e-10))
        return found

    expected = 0.0
    for index, (a, b) in enumerate(zip(features(noise(0)), features(noise(1)), strict=True)):
        weights = learned[f"lin{index}.model.1.weight"].view(-1, 1, 1)
        expected += float((weights * (a - b) ** 2).sum(dim=0).mean())
    assert model.distance(noise(0)[None], noise(1)[None]) == pytest.approx([expected], rel=1e-4)
    mask = add_border(left(0.5))
    black = [np.where(mask[:, :, None], 0, picture)[None].astype(np.uint8) for picture in (noise(0), noise(1))]
    values = pie_lpips([sample(noise(0), noise(1), mask)], Networks(ready={"squeezenet": model}))
    assert values == pytest.approx(model.distance(*black).tolist(), rel=1e-6)


def test_another_file_is_refused(squeeze_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    squeeze_file.write_bytes(squeeze_file.read_bytes()[:-1])
    with pytest.raises(MetricError, match="is damaged: its SHA-256 begins"):
        SqueezeLpips(file=squeeze_file)


def test_without_its_networks_the_profile_gives_reasons(
    squeeze_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "torch"))
    run = stored_run(tmp_path)
    first = score([run], TASKS, scorer="toy-clip", profile="piebench", offline=True, progress=False)
    assert first.missing == {"no_weights": 4}
    assert f"pie_lpips not measured: LPIPS on SqueezeNet needs {squeeze_file.name}: put https://" in first.summary
    assert "pie_structure not measured: structure needs DINO" in first.summary
    (tmp_path / "torch" / "checkpoints").mkdir(parents=True)
    squeeze_file.rename(tmp_path / "torch" / "checkpoints" / squeeze_file.name)
    second = score([run], TASKS, scorer="toy-clip", profile="piebench", offline=True, progress=False)
    assert second.computed == {"pie_lpips": 2}


# --- the same CLIP through both libraries -------------------------------------------------------------------------


def hugging_face_twin(model: Any) -> Any:
    """A transformers CLIP with the weights of an open_clip one."""
    from transformers import CLIPConfig, CLIPModel

    shape = {"hidden_size": 16, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
             "hidden_act": "quick_gelu"}  # fmt: skip
    config = CLIPConfig(
        text_config={**shape, "vocab_size": 12, "max_position_embeddings": 10, "eos_token_id": 2},
        vision_config={**shape, "image_size": 16, "patch_size": 8},
        projection_dim=8,
    )
    twin, state = CLIPModel(config).eval(), model.state_dict()
    names = {
        "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
        "text_model.embeddings.position_embedding.weight": "positional_embedding",
        "vision_model.embeddings.class_embedding": "visual.class_embedding",
        "vision_model.embeddings.patch_embedding.weight": "visual.conv1.weight",
        "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
    }
    new = {ours: state[theirs] for ours, theirs in names.items()}
    new["text_projection.weight"], new["visual_projection.weight"] = state["text_projection"].T, state["visual.proj"].T
    new["logit_scale"] = state["logit_scale"]
    norms = {"text_model.final_layer_norm": "ln_final", "vision_model.pre_layrnorm": "visual.ln_pre",
             "vision_model.post_layernorm": "visual.ln_post"}  # fmt: skip
    for side, prefix in (("text_model", ""), ("vision_model", "visual.")):
        ours, theirs = f"{side}.encoder.layers.0", f"{prefix}transformer.resblocks.0"
        norms |= {f"{ours}.layer_norm1": f"{theirs}.ln_1", f"{ours}.layer_norm2": f"{theirs}.ln_2",
                  f"{ours}.mlp.fc1": f"{theirs}.mlp.c_fc", f"{ours}.mlp.fc2": f"{theirs}.mlp.c_proj",
                  f"{ours}.self_attn.out_proj": f"{theirs}.attn.out_proj"}  # fmt: skip
        for kind in ("weight", "bias"):
            parts = state[f"{theirs}.attn.in_proj_{kind}"].chunk(3)
            new |= {f"{ours}.self_attn.{name}_proj.{kind}": part for name, part in zip("qkv", parts, strict=True)}
    new |= {
        f"{ours}.{kind}": state[f"{theirs}.{kind}"] for ours, theirs in norms.items() for kind in ("weight", "bias")
    }
    twin.load_state_dict(new, strict=False)
    fresh = {name for name, value in twin.state_dict().items() if name not in new and value.is_floating_point()}
    assert not fresh
    return twin


def test_open_clip_and_transformers_give_the_same_embeddings() -> None:
    from open_clip import CLIP

    torch.manual_seed(3)
    text = {"context_length": 10, "vocab_size": 12, "width": 16, "heads": 2, "layers": 1}
    model = CLIP(embed_dim=8, vision_cfg=VISION, text_cfg=text, quick_gelu=True).eval()
    twin = hugging_face_twin(model)
    pixels, tokens = torch.randn(2, 3, 16, 16), torch.tensor([[1, 4, 5, 11, 0, 0, 0, 0, 0, 0]])
    with torch.inference_mode():
        ours = model.encode_image(pixels), model.encode_text(tokens)
        state = twin.vision_model(pixel_values=pixels).pooler_output
        theirs = twin.visual_projection(state), twin.text_projection(twin.text_model(input_ids=tokens).pooler_output)
    for a, b in zip(ours, theirs, strict=True):
        assert a.numpy() == pytest.approx(b.numpy(), abs=1e-5)
