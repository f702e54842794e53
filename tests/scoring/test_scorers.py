"""Scorers from the hub's cache, from local files and folders, and a second one beside the first."""

from __future__ import annotations

import pickle
import re
import shutil
import socket
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import scored_runs
import torch
from scored_runs import TASKS, key_of, noise, stored_run
from tiny_clip import VISION, tiny_clip_folder

from riebench.analysis.configurations import configurations
from riebench.analysis.leaderboard import make_leaderboard
from riebench.analysis.tables import per_method
from riebench.errors import MetricError, RiebenchError
from riebench.models.clip import HUB_NAMES, SCORERS, ClipSpec, identity, load_open_clip, locate, scorer_pair
from riebench.models.presets import PRESETS, judge_for, scorer_for, second_scorer_for
from riebench.models.spec import ModelSpec
from riebench.scoring.metrics.clip import ClipScorer
from riebench.scoring.metrics.networks import Networks, parse_weights
from riebench.scoring.score import score
from riebench.store.folder import RunFolder
from riebench.tasks.schema import Attributes
from riebench.utils.markup import csv_rows

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TRAINING: dict[str, Any] = {
    "url": "", "hf_hub": "nobody/tiny/", "mean": (0.3, 0.4, 0.5), "std": (0.2, 0.2, 0.2), "interpolation": "bicubic",
    "resize_mode": "squash", "quick_gelu": True,
}  # fmt: skip


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty hub cache, and no network."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))

    def refuse(*args: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    return tmp_path / "hub"


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A built-in architecture of open_clip's, tiny, with one training; its configuration."""
    config: dict[str, Any] = {
        "embed_dim": 8, "quick_gelu": True, "vision_cfg": VISION,
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
    }  # fmt: skip
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tiny-quickgelu", config)
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tiny", {**config, "quick_gelu": False})
    for name in ("tiny", "tiny-quickgelu"):
        monkeypatch.setitem(open_clip.pretrained._PRETRAINED, name, {"own": TRAINING})
    return config


def write_weights(config: dict[str, Any], file: Path) -> Path:
    """Random weights of an architecture."""
    from safetensors.torch import save_file

    torch.manual_seed(1)
    state = open_clip.CLIP(**config).state_dict()
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: value.contiguous() for name, value in state.items()}, file)
    return file


def in_cache(cache: Path, repository: str) -> Path:
    """A repository's snapshot in the hub's cache."""
    folder = cache / f"models--{repository.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(COMMIT)
    return folder / "snapshots" / COMMIT


@pytest.mark.parametrize("name", ["clip-l14", "siglip2-b16", "dfn-l14"])
def test_offline_says_in_one_line_what_is_missing_and_how_to_bring_it(name: str) -> None:
    with pytest.raises(MetricError) as caught:
        load_open_clip(SCORERS[name], offline=True)
    message = str(caught.value)
    assert "\n" not in message
    assert "is not on this machine (`hf download " in message
    assert "open_clip_model.safetensors" in message
    assert ("--revision 18d0535469bb561bf468d76c1d73aa35156c922b" in message) == (name == "clip-l14")
    assert ("tokenizer.json" in message) == (name == "siglip2-b16")


def test_weights_in_the_cache_are_loaded_offline_with_the_transform_of_their_training(
    cache: Path, tiny: dict[str, Any]
) -> None:
    write_weights(tiny, in_cache(cache, "nobody/tiny") / "open_clip_model.safetensors")
    spec = ClipSpec("tiny-quickgelu", "own", "QuickGELU", revision=COMMIT)
    loaded = load_open_clip(spec, offline=True)
    assert loaded.backbone == "tiny-quickgelu/own"
    assert (loaded.details["activation"], loaded.details["revision"]) == ("QuickGELU", COMMIT)
    picture = noise(0, 16)
    from PIL import Image

    pixels = loaded.transform(Image.fromarray(picture)).permute(1, 2, 0).numpy()
    assert pixels == pytest.approx((picture / 255 - TRAINING["mean"]) / 0.2, abs=1e-5)


def test_a_local_file_gives_the_numbers_of_the_hub_under_its_own_identity(
    cache: Path, tiny: dict[str, Any], tmp_path: Path
) -> None:
    weights = write_weights(tiny, in_cache(cache, "nobody/tiny") / "open_clip_model.safetensors")
    own = tmp_path / "here.safetensors"
    shutil.copy(weights, own)
    by_tag = ClipScorer.load("tiny-quickgelu/own", offline=True)
    for text in (f"tiny-quickgelu@{own}", f"tiny-quickgelu/own@{own}"):
        by_file = ClipScorer.load(text, offline=True)
        assert np.array_equal(by_file.pictures([noise(0)]), by_tag.pictures([noise(0)]))
        assert np.array_equal(by_file.texts(["a car"]), by_tag.texts(["a car"]))
        assert by_file.backbone.startswith(text.partition("@")[0] + "@")
        assert str(tmp_path) not in by_file.backbone + str(by_file.details)


def test_a_file_of_several_possible_trainings_has_to_say_which(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = {**TRAINING, "mean": (0.5, 0.5, 0.5)}
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "tiny-quickgelu", {"own": TRAINING, "other": other})
    file = write_weights(tiny, tmp_path / "w.safetensors")
    with pytest.raises(MetricError, match=r"tiny-quickgelu/TAG@FILE with TAG one of own, other"):
        locate(ClipSpec.parse(f"tiny-quickgelu@{file}"))
    located = locate(ClipSpec.parse(f"tiny-quickgelu/other@{file}"))
    assert located.preprocessing["image_mean"] == (0.5, 0.5, 0.5)


def test_the_wrong_activation_is_refused_before_anything_is_fetched(tiny: dict[str, Any]) -> None:
    with pytest.raises(MetricError, match="mismatch: the weights need QuickGELU, the model runs GELU; use tiny-quick"):
        load_open_clip(ClipSpec("tiny", "own"))
    with pytest.raises(MetricError, match=r"QuickGELU mismatch.*use ViT-L-14-quickgelu/openai"):
        load_open_clip(ClipSpec.parse("ViT-L-14/openai"))


def test_unknown_names_are_refused_with_the_nearest() -> None:
    with pytest.raises(MetricError, match="did you mean 'ViT-B-32'"):
        locate(ClipSpec.parse("ViT-B-33/openai"), offline=True)
    with pytest.raises(MetricError, match="did you mean 'openai'"):
        locate(ClipSpec.parse("ViT-B-32/opanai"), offline=True)


class Exploding:
    """What a pickle that wants to run code looks like."""

    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("code of the file ran",)


@pytest.mark.parametrize("content", ["pickle", "noise"])
def test_files_that_are_no_plain_weights_are_refused(
    tiny: dict[str, Any], tmp_path: Path, content: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / ("w.pt" if content == "pickle" else "w.safetensors")
    if content == "pickle":
        torch.save({"state_dict": Exploding()}, file)
    else:
        file.write_bytes(pickle.dumps([1, 2, 3]))
    with pytest.raises(MetricError, match=r"scorer tiny-quickgelu/own cannot be loaded"):
        load_open_clip(ClipSpec.parse(f"tiny-quickgelu/own@{file}"))
    assert "code of the file ran" not in capsys.readouterr().out


def test_a_tokenizer_of_its_own_is_taken_from_beside_the_file(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny_clip_folder(tmp_path)
    text = {
        "context_length": 10, "vocab_size": 11, "width": 16, "heads": 2, "layers": 1, "hf_tokenizer_name": "nobody/none"
    }  # fmt: skip
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tiny-quickgelu", {**tiny, "text_cfg": text})
    spec = ClipSpec.parse(f"tiny-quickgelu@{folder / 'open_clip_model.safetensors'}")
    loaded = load_open_clip(spec, offline=True)
    assert loaded.tokenizer(["a red car"])[0].tolist() == [1, 3, 4, 6, 10, 0, 0, 0, 0, 0]
    (folder / "tokenizer.json").unlink()
    with pytest.raises(MetricError, match=r"put tokenizer\.json and tokenizer_config\.json beside"):
        load_open_clip(spec, offline=True)


def test_options_of_the_command_line() -> None:
    assert scorer_pair(()) == (None, None)
    assert scorer_pair(("toy-clip", "dfn-l14")) == ("toy-clip", "dfn-l14")
    for names in (("toy-clip", "toy-clip"), ("toy-clip", "dfn-l14", "clip-l14")):
        with pytest.raises(MetricError, match="at most twice"):
            scorer_pair(names)
    with pytest.raises(MetricError, match="did you mean 'dino'"):
        parse_weights(["dimo=x"])
    with pytest.raises(MetricError, match="there is no /no/such"):
        parse_weights(["dino=/no/such"])


def spec(preset: str) -> ModelSpec:
    return ModelSpec(
        name="n", source=PRESETS[preset].spec_source, revision=None, steps=1, guidance=0, size=64, dtype="float32"
    )


def test_which_models_have_a_second_scorer() -> None:
    shipped = ("toy-turbo", "toy-base", "toy-dit")
    assert {second_scorer_for(spec(name)) for name in shipped} == {"toy-clip-2"}
    assert (scorer_for(spec("toy-mixed")), second_scorer_for(spec("toy-mixed"))) == (
        "toy-mixed-clip", "toy-mixed-clip-2",
    )  # fmt: skip
    assert second_scorer_for(spec("sdxl-turbo")) == second_scorer_for(spec("sdxl-base")) == "siglip2-b16"
    own = spec("toy-turbo").model_copy(update={"source": "own/model"})
    assert second_scorer_for(own) == "siglip2-b16"


def test_each_toy_world_is_read_by_its_own_judge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert {judge_for(spec(name)) for name in ("toy-turbo", "toy-base", "toy-dit", "sdxl-turbo")} == {"judge"}
    assert judge_for(spec("toy-mixed")) == "judge-mixed"
    assert judge_for(spec("toy-mixed").model_copy(update={"source": "own/model"})) == "judge"
    first, second = (Networks(judge=name).identity("judge") for name in ("judge", "judge-mixed"))
    assert re.fullmatch(r"toy-judge@[0-9a-f]{12}", first) and re.fullmatch(r"toy-judge-mixed@[0-9a-f]{12}", second)
    stated = Attributes(source={"color": "blue", "object": "car"}, target={"color": "red", "object": "car"})
    examples = tuple(one.model_copy(update={"attributes": stated}) for one in TASKS[0].examples)
    monkeypatch.setattr(scored_runs, "EXAMPLES", examples)
    tasks = [TASKS[0].model_copy(update={"examples": examples})]
    for model, judge in (("toy-turbo", first), ("toy-mixed", second)):
        folder = stored_run(tmp_path / model, PRESETS[model].spec_source)
        score([folder], tasks, metrics=["judge_kept"], progress=False)
        assert {one.backbone for one in folder.scores().values()} == {judge}


def test_the_toy_world_is_scored_by_two_clips_that_ship(tmp_path: Path) -> None:
    folder = stored_run(tmp_path, PRESETS["toy-turbo"].spec_source)
    score([folder], TASKS, progress=False)
    measured = {one.metric: one.backbone for one in folder.scores().values()}
    assert measured["clip_gain"] == identity(SCORERS["toy-clip"])
    assert measured["clip_gain_2"] == identity(SCORERS["toy-clip-2"]) != measured["clip_gain"]
    # Its numbers do not depend on what happens to be on a machine.
    assert "structure" not in measured


def test_sdxl_is_scored_by_both_scorers_of_its_preset_each_with_an_interval(
    cache: Path, tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Tiny random networks in the place of the real ones, in the hub's layout; the second with a tokenizer of its own.
    text = {
        "context_length": 10, "vocab_size": 11, "width": 16, "heads": 2, "layers": 1,
        "hf_tokenizer_name": "nobody/second",
    }  # fmt: skip
    configs = {
        ("ViT-L-14-quickgelu", "openai", "nobody/first"): tiny,
        ("ViT-B-16-SigLIP2", "webli", "nobody/second"): {**tiny, "text_cfg": text},
    }
    for (model, tag, repository), config in configs.items():
        monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, model, config)
        monkeypatch.setitem(open_clip.pretrained._PRETRAINED, model, {tag: {**TRAINING, "hf_hub": f"{repository}/"}})
        scorer = SCORERS["clip-l14" if tag == "openai" else "siglip2-b16"]
        snapshot = in_cache(cache, repository).with_name(str(scorer.revision))
        snapshot.mkdir(parents=True)
        tiny_clip_folder(snapshot)
        write_weights(config, snapshot / HUB_NAMES[0])
    folder = stored_run(tmp_path / "results", PRESETS["sdxl-turbo"].spec_source)
    report = score([folder], TASKS, offline=True, progress=False)
    assert report.computed["clip_gain"] == report.computed["clip_gain_2"] == 2
    (row,) = csv_rows(make_leaderboard(tmp_path / "results").numbers.splitlines())
    assert (row["scorer"], row["second_scorer_network"]) == ("ViT-L-14-quickgelu/openai", "ViT-B-16-SigLIP2/webli")
    for name in ("score", "second_scorer"):
        assert row[name] and float(row[f"{name}_low"]) < float(row[f"{name}_high"])
    assert row["score"] != row["second_scorer"]


def test_a_toy_like_model_of_ones_own_is_scored_by_the_toy_clip(tmp_path: Path) -> None:
    folder = stored_run(tmp_path)
    report = score([folder], TASKS, scorer="toy-clip", progress=False)
    gains = [one for one in RunFolder(folder.path).scores().values() if one.metric == "clip_gain"]
    assert len(gains) == 2
    assert {one.backbone for one in gains} == {identity(SCORERS["toy-clip"])}
    # Metrics that were not requested and whose network is missing are left out, with a note.
    assert {one.metric for one in folder.scores().values()}.isdisjoint(
        left_out := ["clip_gain_2", "clip_margin_2", "structure"]
    )
    assert [note.partition(" left out: ")[0] for note in report.notes] == left_out
    assert "hf download timm/ViT-B-16-SigLIP2" in report.notes[0]


def test_the_second_scorer_has_a_column_of_its_own(tmp_path: Path) -> None:
    results = tmp_path / "results"
    folder = stored_run(results)
    (tmp_path / "other").mkdir()
    other = f"local-dir:{tiny_clip_folder(tmp_path / 'other')}"
    metrics = ["clip_gain", "clip_gain_2", "lpips"]
    report = score([folder], TASKS, scorer="toy-clip", second=other, metrics=metrics, progress=False)
    assert report.computed == {"clip_gain": 2, "clip_gain_2": 2, "lpips": 2}
    again = score([folder], TASKS, scorer="toy-clip", second=other, metrics=metrics, progress=False)
    assert not again.computed
    (row,) = configurations(RunFolder(folder.path))
    assert row.backbones["clip_gain"].startswith("toy-clip@")
    assert row.backbones["clip_gain_2"] == identity(ClipSpec.parse(other))
    assert row.example_means("clip_gain") != row.example_means("clip_gain_2")
    text = per_method([row])[0].markdown()
    assert "| configuration | inputs used | clip_gain | clip_gain_2 | lpips |" in text
    assert f"`clip_gain_2` is by {identity(ClipSpec.parse(other))}." in text


def test_a_second_scorer_that_was_asked_for_and_is_missing_is_a_reason_not_a_crash(tmp_path: Path) -> None:
    folder = stored_run(tmp_path)
    names = ["clip_gain_2", "mse_bg"]
    for expected in ({"clip_gain_2": 2, "mse_bg": 2}, {}):
        report = score([folder], TASKS, second="siglip2-b16", metrics=names, offline=True, progress=False)
        assert report.computed == expected
        assert "clip_gain_2 not measured: scorer ViT-B-16-SigLIP2/webli" in report.summary
    assert folder.scores()[key_of(TASKS[0].examples[0]).digest, "clip_gain_2", "ViT-B-16-SigLIP2/webli"].reason == (
        "no_weights"
    )


def test_unknown_profile_and_scorer_end_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(RiebenchError, match="did you mean 'paper'"):
        score([stored_run(tmp_path)], TASKS, profile="papr", progress=False)
