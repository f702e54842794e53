"""Scorers that are named with `--scorers`: their choice, their numbers on tiny models, and what tables say of them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from scored_runs import TASKS, noise, stored_run
from tiny_scorers import dino_folder, hps_file, pickscore_folder
from typer.testing import CliRunner

from riebench.analysis.configurations import configurations
from riebench.analysis.tables import per_method
from riebench.cli.main import app
from riebench.errors import MetricError, RiebenchError
from riebench.jobs.request import RunRequest
from riebench.registry import METRICS, NETWORKS
from riebench.scoring.metrics.base import Sample
from riebench.scoring.metrics.networks import NetworkOptions, Networks
from riebench.scoring.metrics.pretrained.files import HubModel
from riebench.scoring.metrics.pretrained.preference import load_hps
from riebench.scoring.profiles import PROFILES, profile_metrics
from riebench.scoring.score import score
from riebench.scoring.scorers import ON_REQUEST, REQUESTED, choose_scorers
from riebench.store.folder import RunFolder

MASK = np.zeros((64, 64), bool)
ONE_LINE = r"\A[^\n]*\Z"
SAMPLES = [Sample(noise(seed), noise(9), MASK, "a blue car", "a [red] boat") for seed in range(2)]
PROMPT = "a red boat"
CLIP_SIZES: dict[str, Any] = {
    "embed_dim": 8,
    "vision_cfg": {"image_size": 16, "layers": 1, "width": 16, "head_width": 8, "patch_size": 8},
    "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


@pytest.fixture(autouse=True)
def empty_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub's cache with nothing in it."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Name of a scorer -> its tiny model."""
    root = tmp_path_factory.mktemp("scorers")
    return {
        "pickscore": pickscore_folder(root / "pickscore"),
        "dinov2": dino_folder(root / "dinov2", "Dinov2Model"),
        "dinov3": dino_folder(root / "dinov3", "DINOv3ViTModel"),
    }


@pytest.fixture
def small_hps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """HPS with an architecture of a few numbers under the name of the real one."""
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "ViT-H-14", CLIP_SIZES)
    return hps_file(tmp_path / "HPS_v2.1_compressed.pt", CLIP_SIZES)


def numbers(name: str, networks: Networks, samples: list[Sample] | None = None) -> np.ndarray:
    return np.array(METRICS.get(name)(samples or SAMPLES, networks), dtype=np.float64)


def test_names_are_sorted_into_clips_and_others() -> None:
    chosen = choose_scorers(["clip-l14", "dinov2", "siglip2", "pickscore"])
    assert chosen.clips == ("clip-l14", "siglip2-b16")
    assert chosen.metrics == ("dinov2_image", "pick_target", "pick_gain")
    assert choose_scorers([]).clips == (None, None)
    for names, message in {
        ("dinov",): "unknown scorer 'dinov' (did you mean 'dino",
        ("clip-l41",): "did you mean 'clip-l14'",
        ("dino", "dino"): "scorer 'dino' is given twice",
        ("siglip2", "siglip2-b16"): "scorer 'siglip2-b16' is given twice",
        ("clip-l14", "siglip2", "dfn-l14"): "two CLIPs at most",
    }.items():
        with pytest.raises(MetricError, match=ONE_LINE) as caught:
            choose_scorers(names)
        assert message in str(caught.value)


def test_every_scorer_has_a_network_and_metrics_that_no_run_computes_unasked() -> None:
    for name, metrics in REQUESTED.items():
        assert {METRICS.get(metric).backbone for metric in metrics} == {name}
        assert NETWORKS.get(name).weights
    assert not {*profile_metrics("default", METRICS.names())} & {*ON_REQUEST}
    assert {*PROFILES["default"].scorers} == {*REQUESTED} and not PROFILES["paper"].scorers


def test_a_misspelt_name_ends_run_and_score_with_one_line() -> None:
    for verb in ("run", "score"):
        done = CliRunner().invoke(app, [verb, "--scorers", "clip-l14,pikscore"])
        assert done.exit_code == 2
        assert "unknown scorer 'pikscore' (did you mean 'pickscore'?)" in done.stderr and done.stderr.count("\n") == 1


def test_a_run_keeps_the_names_in_its_options() -> None:
    request = RunRequest.from_config({"scorer": ("toy-clip",), "scorers": ("dinov2", "toy-clip-2")})
    assert request.scorer_choice.clips == ("toy-clip", "toy-clip-2")
    stored = request.to_config()
    assert (stored["scorer"], stored["scorers"]) == (["toy-clip", "toy-clip-2"], ["dinov2"])
    assert RunRequest.from_config(stored).scorer_choice == request.scorer_choice
    with pytest.raises(RiebenchError, match="the profile paper has no scorer 'dinov2'"):
        RunRequest(scorers=("dinov2",), profile="paper").plan()


def test_pickscore_is_its_authors_formula(weights: dict[str, Path]) -> None:
    from transformers import AutoModel, AutoProcessor

    networks = Networks(weights=weights)
    folder = weights["pickscore"]
    model, processor = AutoModel.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    pictures = [sample.edited for sample in SAMPLES] + [SAMPLES[0].source]
    images = processor(images=[Image.fromarray(one) for one in pictures], return_tensors="pt")
    text = processor(text=PROMPT, padding=True, truncation=True, max_length=10, return_tensors="pt")
    with torch.no_grad():
        found = model(**images, **text)
        expected = model.logit_scale.exp() * (found.image_embeds @ found.text_embeds.T)
    expected = expected[:, 0].numpy()
    assert np.ptp(expected) > 1e-2
    assert numbers("pick_target", networks) == pytest.approx(expected[:2], abs=1e-4)
    assert numbers("pick_gain", networks) == pytest.approx(expected[:2] - expected[2], abs=1e-4)


@pytest.mark.parametrize("name", ["dinov2", "dinov3"])
def test_similarity_is_the_cosine_of_class_tokens(name: str, weights: dict[str, Path]) -> None:
    from transformers import AutoImageProcessor, AutoModel

    model, processor = AutoModel.from_pretrained(weights[name]), AutoImageProcessor.from_pretrained(weights[name])

    def embed(picture: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            found = model(**processor(images=Image.fromarray(picture), return_tensors="pt"))
        return found.pooler_output[0].double().numpy()

    expected = [
        embed(s.edited) @ embed(s.source) / np.linalg.norm(embed(s.edited)) / np.linalg.norm(embed(s.source))
        for s in SAMPLES
    ]
    found = numbers(f"{name}_image", Networks(weights=weights))
    assert found == pytest.approx(expected, abs=1e-5) and np.ptp(found) > 1e-4
    same = Sample(noise(9), noise(9), MASK, "a", "b")
    assert numbers(f"{name}_image", Networks(weights=weights), [same]) == pytest.approx([1])


def test_hps_is_the_cosine_of_a_picture_that_is_made_small_as_a_tensor(small_hps: Path) -> None:
    from torchvision.transforms import functional as tv

    networks = Networks(weights={"hps": small_hps})
    model = open_clip.CLIP(**CLIP_SIZES)
    model.load_state_dict(torch.load(small_hps, weights_only=True)["state_dict"])
    mean, deviation = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    scores = []
    for picture in (SAMPLES[0].edited, SAMPLES[0].source):
        pixels = tv.resize(torch.from_numpy(picture).permute(2, 0, 1) / 255, [16], tv.InterpolationMode.BICUBIC)
        with torch.no_grad():
            image = model.eval().encode_image(tv.normalize(pixels, mean, deviation)[None], normalize=True)
            text = model.encode_text(open_clip.get_tokenizer("ViT-H-14")([PROMPT]), normalize=True)
        scores.append(float(image[0] @ text[0]))
    assert abs(scores[0] - scores[1]) > 1e-3
    assert numbers("hps_target", networks, SAMPLES[:1]) == pytest.approx([scores[0]], abs=1e-5)
    assert numbers("hps_gain", networks, SAMPLES[:1]) == pytest.approx([scores[0] - scores[1]], abs=1e-5)


def test_what_is_missing_is_said_with_the_line_that_brings_it(tmp_path: Path) -> None:
    for name in ("pickscore", "dinov2", "dinov3", "hps"):
        with pytest.raises(MetricError, match=ONE_LINE) as caught:
            NETWORKS.get(name).locate(NetworkOptions(offline=True))
        assert "(`hf download " in str(caught.value) and f"--weights {name}=FOLDER" in str(caught.value)
    with pytest.raises(MetricError, match=r"it needs config\.json, model\.safetensors, preprocessor_config\.json"):
        NETWORKS.get("dinov2").locate(NetworkOptions(weights={"dinov2": tmp_path}))


def test_another_kind_of_model_is_refused(weights: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(weights["dinov2"], tmp_path / "other")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    with pytest.raises(MetricError, match=r"is not facebook/dinov2-base: weights are missing, e\.g\. .*2"):
        NETWORKS.get("dinov2").load(Networks(weights={"dinov2": folder}))


def in_hub(cache: Path, repository: str, folder: Path, commit: str) -> None:
    """Lay a folder into the hub's cache as a commit."""
    place = cache / f"models--{repository.replace('/', '--')}"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text(commit)
    shutil.copytree(folder, place / "snapshots" / commit)


def test_what_measured_is_named_with_its_commit_or_hash(weights: dict[str, Path], empty_hub: Path) -> None:
    in_hub(empty_hub, "facebook/dinov2-base", weights["dinov2"], "ab" * 20)
    identity = NETWORKS.get("dinov2").identity
    assert identity(NetworkOptions()) == "facebook/dinov2-base@abababababab"
    assert NETWORKS.get("dinov2").load(Networks(offline=True)).details["revision"] == "ab" * 20
    local = identity(NetworkOptions(weights=weights))
    assert local.startswith("dinov2-base@") and local != identity(NetworkOptions(weights={"dinov2": weights["dinov3"]}))


def test_weights_in_several_files_are_found_by_their_index(weights: dict[str, Path], empty_hub: Path) -> None:
    model = HubModel("parts", "nobody/parts", weights=("model.safetensors", "model.safetensors.index.json"))
    folder = shutil.copytree(weights["dinov2"], empty_hub.parent / "parts")
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "model-00001-of-00001.safetensors"}}))
    in_hub(empty_hub, "nobody/parts", folder, "cd" * 20)
    assert model.folder(NetworkOptions(offline=True)).name == "cd" * 20
    assert model.folder(NetworkOptions(weights={"parts": folder})) == folder
    index.write_text(json.dumps({"weight_map": {"a": "../model.safetensors"}}))
    with pytest.raises(MetricError, match="names files outside its folder"):
        model.folder(NetworkOptions(weights={"parts": folder}))


def test_named_scorers_measure_once_and_stand_in_the_tables_with_their_versions(
    weights: dict[str, Path], tmp_path: Path
) -> None:
    folder = stored_run(tmp_path)
    before = score([folder], TASKS, scorer="toy-clip", metrics=["clip_gain"], progress=False)
    assert before.computed == {"clip_gain": 2}
    chosen = choose_scorers(["dinov2", "pickscore"])
    call = {"scorer": "toy-clip", "metrics": ["clip_gain"], "beside": chosen.metrics, "weights": weights}
    report = score([folder], TASKS, progress=False, **call)  # type: ignore[arg-type]
    assert report.computed == {name: 2 for name in chosen.metrics}
    assert not score([folder], TASKS, progress=False, **call).computed  # type: ignore[arg-type]
    text = per_method(configurations(RunFolder(folder.path)))[0].markdown()
    assert "| clip_gain | pick_gain | dinov2_image |" in text
    shown = "`dinov2_image` (version 1) by dinov2-base@"
    assert shown in text and "Measured by toy-clip@" in text and "no part of a rank" in text
    facts = json.loads((folder.path / "scoring.json").read_text())["networks"]
    assert {one["model"] for one in facts.values() if "model" in one} >= {"facebook/dinov2-base"}


def test_hps_is_named_by_its_file(small_hps: Path) -> None:
    loaded = load_hps(NetworkOptions(weights={"hps": small_hps}))
    assert loaded.backbone == NETWORKS.get("hps").identity(NetworkOptions(weights={"hps": small_hps.parent}))
    assert loaded.backbone.startswith("HPSv2.1@")
