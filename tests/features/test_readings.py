"""Readings of SAEs whose layout leaves something open, told apart on what a model computes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from sae_files import OVERCOMPLETE, parts, put, put_json, write_unbox
from typer.testing import CliRunner

from riebench.cli.main import app
from riebench.errors import RiebenchError
from riebench.features.readings import open_places, try_readings
from riebench.generation.generator import Capture, Generator
from riebench.models.assets import asset_folder
from riebench.models.loading import LoadedModel
from riebench.saes.figures import SaeFigures
from riebench.saes.files import SaeOptions
from riebench.saes.formats import left_open, load_sae, load_saes
from riebench.saes.readings import ReadingFigures, Readings, verdict
from riebench.saes.sae import SparseAutoencoder
from riebench.saes.sources import model_saes, parse_sources

PROMPTS = ["a red house in the woods", "a blue car"]


@pytest.fixture(scope="module")
def trained() -> SparseAutoencoder:
    """An SAE of the toy world, trained on updates of mid.0 as they are, with k = 16."""
    return load_saes(asset_folder("saes"), ["mid.0"], k=16)["mid.0"]


def write_openai(folder: Path, sae: SparseAutoencoder) -> Path:
    """The SAE as the openai layout stores it, which does not say whether inputs are normalised."""
    state = {
        "encoder.weight": sae.encoder, "decoder.weight": sae.directions.T, "pre_bias": sae.pre_bias,
        "latent_bias": sae.latent_bias, "activation": "TopK",
        "activation_state_dict": {"k": sae.k, "postact_fn": "ReLU"},
    }  # fmt: skip
    put(folder, "autoencoder.pt", state)
    return folder


def write_saelens(folder: Path, sae: SparseAutoencoder, scale: float) -> Path:
    """The SAE as SAELens exports it after a training on inputs times `scale`, which the export does not hold."""
    put(folder, "sae_weights.safetensors", {
        "W_enc": sae.encoder.T / scale, "W_dec": sae.directions * scale, "b_enc": sae.latent_bias,
        "b_dec": sae.pre_bias * scale,
    })  # fmt: skip
    put_json(folder, "cfg.json", {
        "architecture": "topk", "k": sae.k, "d_in": sae.d, "d_sae": sae.n, "rescale_acts_by_decoder_norm": False,
        "normalize_activations": "expected_average_only_in", "hook_name": "unet.mid_block.attentions.0.proj_out",
    })  # fmt: skip
    return folder


def write_without_k(folder: Path, sae: SparseAutoencoder) -> Path:
    """The SAE as the overcomplete library stores it, which does not hold k."""
    put(folder, "weights.pt", {
        "encoder.final_block.0.weight": sae.encoder, "dictionary._weights": sae.directions,
        "encoder.final_block.0.bias": sae.latent_bias - sae.pre_bias @ sae.encoder.T, "bias": sae.decoder_bias,
        "dictionary.multiplier": torch.tensor(0.0),
    })  # fmt: skip
    mapping = {name: value for name, value in OVERCOMPLETE.items() if name != "k"}
    mapping["tensors"] = {**OVERCOMPLETE["tensors"], "decoder_bias": "bias"}
    (folder / "mapping.yaml").write_text(yaml.safe_dump(mapping))
    return folder


def read(place: str, model: LoadedModel) -> tuple[Readings, SaeOptions]:
    sources, (readings,) = try_readings(open_places(parse_sources(place)), model, PROMPTS, progress=False)
    return readings, sources[0].options


def explained(readings: Readings) -> dict[str, float]:
    return {one.options: one.figures.explained_variance for one in readings.tried}


def test_a_top_k_without_layer_norm_is_told_from_one_with_it(
    tmp_path: Path, trained: SparseAutoencoder, toy_model: LoadedModel
) -> None:
    readings, options = read(f"mid.0={write_openai(tmp_path / 'plain', trained)}", toy_model)
    found = explained(readings)
    assert len(found) == 6 and readings.best == "normalise=none,signal=update"
    assert found[readings.best] > 0.98 and found["normalise=layer,signal=update"] < 0
    assert readings.verdict.startswith("#normalise=none,signal=update fits best (explained variance 0.99")
    assert options == SaeOptions(normalise="none")
    # The same directions, for positions that are normalised first: the reading without normalisation fits less well.
    scaled = load_sae(tmp_path / "plain", SaeOptions(normalise="layer"))
    assert scaled.normalise == "layer" and scaled.sha256 != load_sae(tmp_path / "plain").sha256


def test_an_option_that_is_stated_leaves_nothing_open(tmp_path: Path, trained: SparseAutoencoder) -> None:
    place = write_openai(tmp_path, trained)
    assert left_open(place) == ("normalise",)
    assert left_open(place, SaeOptions(normalise="none")) == ()
    assert [load_sae(place, SaeOptions(normalise=one)).normalise for one in (None, "none", "norm")] == [
        "layer", "none", "norm"
    ]  # fmt: skip
    with pytest.raises(RiebenchError, match="normalise is none, layer or norm, not 'some'"):
        parse_sources("x#normalise=some")
    with pytest.raises(RiebenchError, match="input norm none belongs to its layout, so it cannot be read with layer"):
        write_unbox(tmp_path / "native", parts())
        load_sae(tmp_path / "native", SaeOptions(normalise="layer"))


def test_a_lost_input_scale_is_measured(tmp_path: Path, trained: SparseAutoencoder, toy_model: LoadedModel) -> None:
    scale = usual_scale(toy_model)
    readings, options = read(f"{write_saelens(tmp_path, trained, scale)}", toy_model)
    (first, second) = readings.tried
    assert first.options == readings.best and second.options == "input_scale=1"
    assert options.input_scale == pytest.approx(scale, rel=1e-3)
    assert first.figures.explained_variance > 0.98 > second.figures.explained_variance
    assert readings.best == f"input_scale={scale:.4g}"


def usual_scale(model: LoadedModel) -> float:
    """sqrt(d) over the mean length of the block's updates."""
    trace = Generator(model).generate(PROMPTS, [0, 1], capture=Capture(("mid.0",))).trace
    update = trace.get("mid.0", "update").float()
    return float(update.shape[2] ** 0.5 / update.norm(dim=2).mean())


def test_a_k_that_no_file_holds_is_found(tmp_path: Path, trained: SparseAutoencoder, toy_model: LoadedModel) -> None:
    readings, options = read(f"{write_without_k(tmp_path, trained)}", toy_model)
    assert [one.options for one in readings.tried] == [f"k={2**i}" for i in range(8)]
    assert (readings.best, options.k) == ("k=16", 16)
    assert all(one.figures.l0 == pytest.approx(2**i, rel=0.05) for i, one in enumerate(readings.tried[:6]))


def reading(options: str, explained_variance: float) -> ReadingFigures:
    figures = SaeFigures(l0=1, explained_variance=explained_variance, dead_share=0, positions=1)
    return ReadingFigures(options=options, signal="update", figures=figures)


def test_how_sure_the_choice_is_is_said() -> None:
    best, words = verdict([reading("k=1", 0.5), reading("k=2", 0.9), reading("k=4", 0.898)])
    assert best.options == "k=2" and "#k=4 no worse than by 5%" in words and "#k=1" not in words
    assert verdict([reading("k=1", -0.5), reading("k=2", -0.1)])[1].startswith("no reading fits: the best, #k=2,")


def test_the_command_shows_the_readings_and_a_run_says_that_it_guesses(
    tmp_path: Path, trained: SparseAutoencoder, toy_model: LoadedModel, capsys: pytest.CaptureFixture[str]
) -> None:
    place = f"mid.0={write_openai(tmp_path / 'sae', trained)}"
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    result = CliRunner().invoke(
        app,
        ["sae", "inspect", place, "--model", "toy-turbo", "--steps", "1", "--prompts", str(tmp_path / "prompts.txt"),
         "--device", "cpu", "--json", str(tmp_path / "report.json")],
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "mid.0: its layout leaves normalise open; on the same activations:" in result.stdout
    assert "#normalise=none,signal=update (best)" in result.stdout
    (stored,) = json.loads((tmp_path / "report.json").read_text())["readings"]
    assert stored["best"] == "normalise=none,signal=update"
    unmeasured = CliRunner().invoke(app, ["sae", "inspect", place])
    assert "its layout leaves normalise open; --model tries what is possible" in unmeasured.stderr
    model_saes(f"{place}#signal=update", toy_model, ["mid.0"])
    assert "read with layer, as its library does; `riebench sae inspect` with --model tries" in capsys.readouterr().err
    model_saes(f"{place}#signal=update,normalise=none", toy_model, ["mid.0"])
    assert capsys.readouterr().err == ""
