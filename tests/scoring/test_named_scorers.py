"""Scorers that are named with `--scorers`: their choice, their numbers on tiny models, and what tables say of them."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from scored_runs import TASKS, noise, stored_run
from tiny_scorers import dino_folder, dreamsim_folder, hps_file, pickscore_folder, qwen3_vl_folder
from typer.testing import CliRunner

from riebench.analysis.configurations import configurations
from riebench.analysis.tables import per_method
from riebench.cli.main import app
from riebench.errors import MetricError, RiebenchError
from riebench.jobs.request import RunRequest
from riebench.registry import METRICS, NETWORKS
from riebench.scoring.metrics.base import Sample
from riebench.scoring.metrics.networks import NetworkOptions, Networks
from riebench.scoring.metrics.pretrained.dino import DINOV2
from riebench.scoring.metrics.pretrained.dreamsim import unpack
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
    for name in ("pickscore", "dinov2", "dinov3", "hps", "vqa"):
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
    commit, identity = "f9e44c814b77203eaa57a6bdbbd535f21ede1415", NETWORKS.get("dinov2").identity
    in_hub(empty_hub, "facebook/dinov2-base", weights["dinov2"], commit)
    assert identity(NetworkOptions()) == f"facebook/dinov2-base@{commit[:12]}"
    assert NETWORKS.get("dinov2").load(Networks(offline=True)).details["revision"] == commit
    local = identity(NetworkOptions(weights=weights))
    assert local.startswith("dinov2-base@") and local != identity(NetworkOptions(weights={"dinov2": weights["dinov3"]}))


def test_another_commit_than_the_pinned_one_does_not_measure(weights: dict[str, Path], empty_hub: Path) -> None:
    in_hub(empty_hub, "facebook/dinov2-base", weights["dinov2"], "ab" * 20)
    with pytest.raises(MetricError, match=r"hf download facebook/dinov2-base --revision f9e44c8"):
        NETWORKS.get("dinov2").load(Networks(offline=True))
    unpinned = HubModel("other", "facebook/dinov2-base", DINOV2.beside)
    assert unpinned.identity(NetworkOptions()) == "facebook/dinov2-base@abababababab"


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
    call: dict[str, Any] = {
        "scorer": "toy-clip",
        "metrics": ["clip_gain"],
        "beside": chosen.metrics,
        "weights": weights,
    }
    report = score([folder], TASKS, progress=False, **call)
    assert report.computed == {name: 2 for name in chosen.metrics}
    assert not score([folder], TASKS, progress=False, **call).computed
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


@pytest.fixture(scope="module")
def sim_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """DreamSim's files, with towers of one block."""
    return dreamsim_folder(tmp_path_factory.mktemp("dreamsim") / "files", depth=1)


def attend(states: torch.Tensor, weights: dict[str, torch.Tensor], low: tuple[torch.Tensor, torch.Tensor]) -> Any:
    """Attention of one block with 12 heads, the LoRA on a path of its own beside the stored weights."""
    joined = states @ weights["blocks.0.attn.qkv.weight"].T + weights["blocks.0.attn.qkv.bias"]
    joined = joined + 2 / 4 * (states @ low[0].T) @ low[1].T
    queries, keys, values = (part.reshape(-1, 12, 2).transpose(0, 1) for part in joined.chunk(3, dim=-1))
    found = torch.softmax(queries @ keys.transpose(1, 2) / 2**0.5, dim=-1) @ values
    mixed = found.transpose(0, 1).reshape(-1, 24)
    return mixed @ weights["blocks.0.attn.proj.weight"].T + weights["blocks.0.attn.proj.bias"]


def tower_features(folder: Path, place: int, picture: np.ndarray) -> torch.Tensor:
    """Features of a tower of one block, step by step."""
    from torch.nn.functional import conv2d, gelu, layer_norm

    file, clip = [("dino_vitb16_pretrain.pth", False), ("clip_vitb16_pretrain.pth.tar", True),
                  ("open_clip_vitb16_pretrain.pth.tar", True)][place]  # fmt: skip
    stored = torch.load(folder / file, weights_only=True)
    w = stored["state_dict"] if clip else {n.removeprefix("backbone."): v for n, v in stored["teacher"].items()}
    lora = torch.load(folder / "ensemble_lora" / "adapter_model.bin", weights_only=True)
    start = f"base_model.model.extractor_list.{place}.model.blocks.0.attn.qkv.lora_"
    mean, deviation = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)) if clip else (
        (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # fmt: skip
    large = np.array(Image.fromarray(picture).resize((224, 224), Image.Resampling.BICUBIC))
    pixels = ((torch.from_numpy(large) / 255 - torch.tensor(mean)) / torch.tensor(deviation)).permute(2, 0, 1)[None]

    def norm(states: torch.Tensor, name: str) -> torch.Tensor:
        return layer_norm(states, (24,), w[f"{name}.weight"], w[f"{name}.bias"], 1e-5 if clip else 1e-6)

    patches = conv2d(pixels.float(), w["patch_embed.proj.weight"], w["patch_embed.proj.bias"], stride=16)
    states = torch.cat([w["cls_token"][0], patches[0].flatten(1).T]) + w["pos_embed"][0]
    states = norm(states, "pos_drop") if clip else states
    low = lora[f"{start}A.weight"], lora[f"{start}B.weight"]
    states = states + attend(norm(states, "blocks.0.norm1"), w, low)
    hidden = norm(states, "blocks.0.norm2") @ w["blocks.0.mlp.fc1.weight"].T + w["blocks.0.mlp.fc1.bias"]
    hidden = hidden * torch.sigmoid(1.702 * hidden) if place == 1 else gelu(hidden)
    states = states + hidden @ w["blocks.0.mlp.fc2.weight"].T + w["blocks.0.mlp.fc2.bias"]
    return norm(states, "norm")[0] @ w["proj"] if clip else states[0]


def test_dreamsim_is_its_definition(sim_folder: Path) -> None:
    def embed(picture: np.ndarray) -> np.ndarray:
        joined = torch.cat([tower_features(sim_folder, place, picture) for place in range(3)])
        return (joined - joined.mean()).double().numpy()

    expected = []
    for sample in SAMPLES:
        one, two = embed(sample.edited), embed(sample.source)
        expected.append(1 - one @ two / np.linalg.norm(one) / np.linalg.norm(two))
    networks = Networks(weights={"dreamsim": sim_folder})
    assert min(expected) > 1e-5
    assert numbers("dreamsim", networks) == pytest.approx(expected, rel=1e-2, abs=1e-6)
    assert numbers("dreamsim", networks, [Sample(noise(1), noise(1), MASK, "a", "b")]) == pytest.approx([0], abs=1e-6)


def test_dreamsim_is_unpacked_from_its_archive_and_named_by_release_or_hash(sim_folder: Path, tmp_path: Path) -> None:
    archive = Path(shutil.make_archive(str(tmp_path / "all"), "zip", sim_folder.parent))
    with zipfile.ZipFile(archive, "a") as packed:
        packed.writestr("../outside/harm.txt", "x")
    unpack(archive, tmp_path / "here" / "unpacked")
    assert sorted(path.name for path in tmp_path.rglob("*.pth*")) == sorted(p.name for p in sim_folder.glob("*.pth*"))
    assert not list(tmp_path.rglob("harm.txt"))
    identity = NETWORKS.get("dreamsim").identity
    options = NetworkOptions(weights={"dreamsim": sim_folder})
    assert identity(NetworkOptions()) == "dreamsim-ensemble@v0.2.0-checkpoints"
    assert identity(options) == identity(NetworkOptions(weights={"dreamsim": tmp_path / "here" / "unpacked"}))
    (tmp_path / "here" / "unpacked" / "ensemble_lora" / "adapter_model.bin").unlink()
    with pytest.raises(MetricError, match=r"lacks ensemble_lora/adapter_model\.safetensors; unpack https"):
        NETWORKS.get("dreamsim").locate(NetworkOptions(weights={"dreamsim": tmp_path / "here" / "unpacked"}))


@pytest.fixture(scope="module")
def language_models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A tiny Qwen3-VL that answers yes or no, and one that answers anything."""
    root = tmp_path_factory.mktemp("vqa")
    return qwen3_vl_folder(root / "readable"), qwen3_vl_folder(root / "any", readable=False)


def test_vqa_is_the_probability_that_generation_begins_with_yes(language_models: tuple[Path, Path]) -> None:
    from transformers import AutoProcessor, Qwen3VLForConditionalGeneration

    folder = language_models[0]
    model, processor = Qwen3VLForConditionalGeneration.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    question = f'Does this figure show "{PROMPT}"? Please answer yes or no.'
    # The chat as the model reads it, written out.
    text = f"<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>{question}<|im_end|>\n<|im_start|>assistant\n"
    expected = []
    for picture in (SAMPLES[0].edited, SAMPLES[0].source):
        inputs = processor(text=[text], images=[Image.fromarray(picture)], return_tensors="pt")
        made = model.generate(**inputs, max_new_tokens=1, do_sample=False, output_scores=True,
                              return_dict_in_generate=True)  # fmt: skip
        yes = processor.tokenizer.convert_tokens_to_ids("Yes")
        expected.append(float(torch.softmax(made.scores[0][0].double(), dim=-1)[yes]))
    networks = Networks(weights={"vqa": folder})
    assert abs(expected[0] - expected[1]) > 1e-6
    assert numbers("vqa_target", networks, SAMPLES[:1]) == pytest.approx(expected[:1], abs=1e-6)
    assert numbers("vqa_gain", networks, SAMPLES[:1]) == pytest.approx([expected[0] - expected[1]], abs=1e-6)


def test_answers_that_say_nothing_are_missing_and_stored(language_models: tuple[Path, Path], tmp_path: Path) -> None:
    readable, other = language_models
    metrics = choose_scorers(["vqa"]).metrics
    for name, folder in (("readable", readable), ("other", other)):
        run = stored_run(tmp_path / name)
        report = score([run], TASKS, scorer="toy-clip", metrics=metrics, weights={"vqa": folder}, progress=False)
        lines = [json.loads(line) for line in (run.path / "raw_outputs.jsonl").read_text().splitlines()]
        assert len(lines) == 2 and {line["unit"] for line in lines} == {unit for unit, _, _ in run.scores()}
        values = {key[0]: one.value for key, one in RunFolder(run.path).scores().items() if key[1] == "vqa_target"}
        for line in lines:
            outputs = line["outputs"]
            assert 0 < outputs["edited_yes"] < 1 and outputs.keys() == {
                f"{role}_{part}" for role in ("edited", "source") for part in ("yes", "no", "first")
            }
            assert values[line["unit"]] == (outputs["edited_yes"] if name == "readable" else None)
        assert report.missing == ({} if name == "readable" else {"unusable_answer": 4})
        (facts,) = json.loads((run.path / "scoring.json").read_text())["networks"].values()
        assert facts["question"] == 'Does this figure show "{text}"? Please answer yes or no.'
        # What could not be read is not asked for again.
        again = score([run], TASKS, scorer="toy-clip", metrics=metrics, weights={"vqa": folder}, progress=False)
        assert not again.computed
