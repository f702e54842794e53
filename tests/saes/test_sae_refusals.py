"""What is not read, each refused with one line that says what to do."""

from __future__ import annotations

import json
import os
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from sae_files import (
    OVERCOMPLETE,
    WRITERS,
    Parts,
    dictionary,
    openai,
    overcomplete,
    parts,
    put,
    put_json,
    saelens,
    saev,
    sparsify,
    write_dl_batch_topk,
    write_dl_plain,
    write_dl_topk,
    write_openai_topk,
    write_saeuron,
    write_saev_relu,
    write_sparsify,
    write_unbox,
)  # fmt: skip
from safetensors.torch import load_file, save_file

from riebench.errors import RiebenchError
from riebench.features.inspect import read_statistic
from riebench.saes.files import SaeOptions, load_tensors
from riebench.saes.formats import load_sae, load_saes
from riebench.saes.sources import parse_sources

P = parts()
NOTHING = SaeOptions()


def refusal(path: Path, options: SaeOptions = NOTHING) -> str:
    with pytest.raises(RiebenchError) as caught:
        load_sae(path, options)
    message = str(caught.value)
    assert "\n" not in message
    return message


class Payload:
    """Unpickled without care it would write a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (self.target, "it ran")


@pytest.mark.parametrize("name", ["unbox", "dl plain", "openai relu", "saev relu", "overcomplete"])
def test_a_pickle_that_wants_to_run_code_is_not_run(tmp_path: Path, name: str) -> None:
    folder, trap = tmp_path / "sae", tmp_path / "trap"
    WRITERS[name][1](folder, P)
    (weights,) = (path for path in folder.iterdir() if path.suffix in (".pt", ".pth"))
    header = weights.read_bytes().split(b"\n")[0] + b"\n" if name == "saev relu" else b""
    torch.save({"state_dict": Payload(trap), "activation": "ReLU"}, weights)
    weights.write_bytes(header + weights.read_bytes())
    assert "would run its code, which riebench never does" in refusal(folder)
    assert not trap.exists()


@pytest.mark.parametrize(
    ("save", "message"),
    [
        ({"pickle_protocol": 4}, "was saved with another pickle protocol than torch.save's own"),
        ({"pickle_protocol": 5}, "was saved with another pickle protocol than torch.save's own"),
        ({"pickle_protocol": 4, "_use_new_zipfile_serialization": False}, "was saved with another pickle protocol"),
    ],
)
def test_a_library_that_warns_first_adds_no_line(
    tmp_path: Path, save: dict[str, Any], message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    WRITERS["unbox"][1](tmp_path, P)
    (weights,) = tmp_path.glob("*.pt*")
    torch.save(torch.load(weights, weights_only=True), weights, **save)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert message in refusal(tmp_path)
    assert capfd.readouterr() == ("", "")


def test_a_program_is_no_checkpoint(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(torch.nn.Linear(4, 8)).save(str(tmp_path / "program.pt"))
    assert "is a TorchScript archive, which is a program; have its state_dict() saved" in refusal(tmp_path)
    assert capfd.readouterr() == ("", "")


HUGE = [3.4e38, 1e20, 1.1e12]


@pytest.mark.parametrize("value", HUGE)
@pytest.mark.parametrize("name", ["encoder.weight", "encoder.bias", "W_dec", "b_dec"])
def test_finite_but_huge_numbers_are_refused(tmp_path: Path, name: str, value: float) -> None:
    write_sparsify(tmp_path, P)
    (file,) = tmp_path.glob("*.safetensors")
    state = load_file(file)
    state[name].view(-1)[-1] = -value
    save_file(state, file)
    assert re.search(r"SAE tensor \w+ holds \S+; with more than 1e\+12 nothing stays finite", refusal(tmp_path))


@pytest.mark.parametrize("option", ["input_scale=1e300", "input_scale=1e-300", "input_scale=nan", "k=" + "9" * 30])
def test_options_without_measure_are_refused(option: str) -> None:
    with pytest.raises(RiebenchError, match="must be above 0, and at most 1e\\+09"):
        parse_sources(f"x#{option}")


@pytest.mark.parametrize("values", [[1.0, float("nan")], [1.0, 3e38], [1.0, float("inf")], [1, 2]])
def test_statistics_that_no_feature_has_are_refused(tmp_path: Path, values: list[Any]) -> None:
    torch.save(torch.tensor(values), tmp_path / "means.pt")
    sae: Any = SimpleNamespace(n=2, row_scale=torch.ones(2))
    with pytest.raises(RiebenchError, match="holds numbers that no feature's value has"):
        read_statistic(tmp_path / "means.pt", sae)


@pytest.mark.parametrize("kind", [torch.int64, torch.int8, torch.uint8, torch.bool, torch.complex64])
def test_weights_without_fractions_are_refused(tmp_path: Path, kind: torch.dtype) -> None:
    write_sparsify(tmp_path, P)
    (file,) = tmp_path.glob("*.safetensors")
    state = load_file(file)
    for name in state:
        save_file({**state, name: torch.ones_like(state[name]).to(kind)}, file)
        assert f"{name} holds numbers of the type {str(kind).partition('.')[2]}" in refusal(tmp_path)


def test_numpy_numbers_in_a_checkpoint_are_named(tmp_path: Path) -> None:
    dictionary(tmp_path, "AutoEncoder", {"encoder.weight": np.float64(3.0)})
    assert "numpy" in refusal(tmp_path) and "plain state_dict" in refusal(tmp_path)


@pytest.mark.parametrize("name", ["unbox", "saelens standard", "sparsify", "dl plain", "saev relu", "overcomplete"])
def test_git_lfs_pointers_are_recognised(tmp_path: Path, name: str) -> None:
    WRITERS[name][1](tmp_path, P)
    for path in tmp_path.iterdir():
        if path.suffix in (".pt", ".pth", ".safetensors"):
            path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    assert "is a Git-LFS pointer, not the file; run `git lfs pull`" in refusal(tmp_path)


def test_a_pointer_in_the_place_of_the_configuration(tmp_path: Path) -> None:
    write_sparsify(tmp_path, P)
    (tmp_path / "cfg.json").write_text("version https://git-lfs.github.com/spec/v1\n")
    assert "Git-LFS pointer" in refusal(tmp_path)


@pytest.mark.parametrize("name", ["sparsify", "saelens topk"])
def test_damaged_safetensors(tmp_path: Path, name: str) -> None:
    WRITERS[name][1](tmp_path, P)
    (weights,) = tmp_path.glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:-20])
    assert "is damaged" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("config", "state", "message"),
    [
        ({"architecture": "matching_pursuit"}, {}, "does not know: W_enc, b_enc; if they belong"),
        ({"architecture": "temporal"}, {}, "'temporal' is not read: it looks at a sequence"),
        ({"architecture": "skip_transcoder"}, {}, "lacks W_skip"),
        ({"architecture": "transcoder", "d_out": 5}, {"W_skip": torch.zeros(4, 4)}, "does not know: W_skip"),
        ({"architecture": "jumprlu"}, {}, "did you mean 'jumprelu'?"),
        ({"reshape_activations": "hook_z"}, {}, "only 'none' is read"),
        ({"normalize_activations": "expected_average_only_in"}, {}, "add #input_scale=NUMBER"),
        ({"normalize_activations": "layer_nrom"}, {}, "did you mean 'layer_norm'?"),
        ({"activation_fn": "tanh-relu"}, {}, "unknown activation 'tanh-relu'"),
        ({"activation_fn": "abstopk", "k": 2}, {}, "add #signed=yes"),
        ({"architecture": "topk"}, {}, "k must be a whole number, not None"),
        ({"architecture": "topk", "k": 7}, {}, "k must be 1 to 6"),
        ({"d_sae": 4, "d_in": 6}, {}, "encoder is [6, 4], cfg.json says [4, 6]"),
        ({"architecture": "jumprelu"}, {}, "lacks threshold"),
        ({"architecture": "batchtopk"}, {"topk_threshold": torch.tensor(-1.0)}, "it was never set"),
        ({"architecture": "batchtopk"}, {"topk_threshold": torch.zeros(6)}, "expected one number"),
        ({}, {"W_extra": torch.zeros(2)}, "does not know: W_extra; if they belong"),
        ({}, {"time_embed.weight": torch.zeros(2)}, "its features depend on the denoising step (time_embed.weight)"),
        ({}, {"W_dec": torch.zeros(6, 4)}, "6 of 6 SAE directions are zero"),
        ({}, {"b_enc": torch.full((6,), float("nan"))}, "latent_bias holds a number that is not finite"),
        ({}, {"W_dec": torch.ones(4, 6)}, "directions has shape [4, 6], expected [6, 4]"),
    ],
)  # fmt: skip
def test_saelens(tmp_path: Path, config: dict[str, Any], state: dict[str, Any], message: str) -> None:
    saelens(tmp_path, P, config, state)
    assert message in refusal(tmp_path)


@pytest.mark.parametrize(
    ("config", "state", "message"),
    [
        ({"transcode": True, "skip_connection": True}, {}, "lacks W_skip, though cfg.json states a skip connection"),
        ({"transcode": True}, {"W_skip": torch.zeros(4, 5)}, "skip has shape [4, 5], expected [4, 4]"),
        ({"signed": True}, {}, "a signed SAE gives features negative values"),
        ({}, {"encoder.weight": torch.zeros(6, 4, 3, 3)}, "a convolutional SAE"),
        ({"activation": "softmax"}, {}, "unknown activation 'softmax'"),
        ({"activation": "groupmax", "k": 4}, {}, "cannot be split into k = 4 groups"),
        ({"k": 0}, {}, "k must be 1 to 6"),
        ({"num_latents": 4}, {}, "encoder is [6, 4], cfg.json says [4, 4]"),
        ({"batch_topk": True, "k": "two"}, {}, "k must be a whole number, not 'two'"),
    ],
)
def test_sparsify(tmp_path: Path, config: dict[str, Any], state: dict[str, Any], message: str) -> None:
    sparsify(tmp_path, P, config, state)
    assert message in refusal(tmp_path)


def _dictionary(folder: Path, **change: Any) -> None:
    write_dl_batch_topk(folder, P)
    state = torch.load(folder / "ae.pt", weights_only=True)
    torch.save({**state, **change}, folder / "ae.pt")


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda f: _dictionary(f, threshold=torch.tensor(-1.0)), "it was never set (training stopped too early)"),
        (
            lambda f: (write_dl_topk(f, P), (f / "config.json").unlink()),
            "they cannot be told apart",
        ),
        (lambda f: dictionary(f, "CrossCoder", {}), "class 'CrossCoder' is no SAE riebench reads"),
        (lambda f: dictionary(f, "AutoEncoderTopk", {}), "did you mean 'AutoEncoderTopK'?"),
        (lambda f: _dictionary(f, **{"encoder.extra": torch.zeros(3)}), "does not know: encoder.extra"),
        (lambda f: put(f, "ae.pt", {"ae": 3}), "cannot be told apart"),
        (lambda f: put(f, "ae.pt", {}), "cannot be told apart"),
        (lambda f: torch.save(torch.zeros(3), f / "ae.pt"), "holds no named tensors but a Tensor"),
    ],
)
def test_dictionary_learning(tmp_path: Path, write: Callable[[Path], object], message: str) -> None:
    write(tmp_path)
    assert message in refusal(tmp_path)


def test_a_dictionary_that_contradicts_its_configuration(tmp_path: Path) -> None:
    write_dl_plain(tmp_path, P)
    put_json(tmp_path, "config.json", {"trainer": {"dict_class": "AutoEncoder", "dict_size": 4, "activation_dim": 6}})
    assert "encoder is [6, 4], config.json says [4, 6]" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda f: openai(f, P, activation="Sigmoid"), "activation 'Sigmoid' is not read"),
        (lambda f: openai(f, P, activation="TopK", activation_state_dict={}), "its TopK states k = None"),
        (lambda f: openai(f, P, activation="ReLU", strange=torch.zeros(2)), "does not know: strange"),
        (lambda f: saev(f, P, {"schema": 6, "cfg": {}}), "schema 6 is newer than riebench knows (1 to 5)"),
        (lambda f: saev(f, P, {"d_vit": 4, "exp_factor": 2}), "encoder is [6, 4], its header says [8, 4]"),
        (
            lambda f: saev(f, P, {"schema": 2, "cfg": {"d_vit": 4, "activation": {"cls": "TopKK"}}}),
            "did you mean 'TopK'?",
        ),
        (lambda f: (f / "sae.pt").write_bytes(b"{no json\n"), "its first line is no JSON header"),
    ],
)
def test_openai_and_saev(tmp_path: Path, write: Callable[[Path], object], message: str) -> None:
    write(tmp_path)
    assert message in refusal(tmp_path)


def _change(**change: Any) -> dict[str, Any]:
    return {**OVERCOMPLETE, **change}


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        (_change(activatoin="relu"), "activatoin: unknown key (did you mean 'activation'?)"),
        (_change(tensors={**OVERCOMPLETE["tensors"], "enocder": "x"}), "unknown key (did you mean 'encoder'?)"),
        (_change(tensors={**OVERCOMPLETE["tensors"], "decoder": "dictionary.weights"}), "'dictionary._weights'?"),
        (
            _change(tensors={**OVERCOMPLETE["tensors"], "latent_bias": None}),
            "does not know: encoder.final_block.0.bias",
        ),
        (_change(axes={"encoder": "features, width"}), "axes.decoder: is missing"),
        (
            _change(axes={"encoder": "width, features", "decoder": "features, width"}),
            "one of them lies the other way round",
        ),
        (_change(signal="residual"), "signal"),
        (_change(k=None), "k: is missing for activation topk; state it, or add #k=NUMBER"),
        (_change(logarithms=["threshold"]), "'threshold' is not among the mapped tensors"),
        (_change(weights="other.pt"), "there is no other.pt in"),
        (_change(inside="model"), "weights.pt has no entry 'model'"),
    ],
)
def test_key_mappings(tmp_path: Path, mapping: dict[str, Any], message: str) -> None:
    overcomplete(tmp_path, P, mapping)
    assert message in refusal(tmp_path)


def test_a_mapping_takes_k_from_the_user_and_nested_tensors_by_their_entry(tmp_path: Path) -> None:
    overcomplete(tmp_path, P, _change(k=None, inside="model.sae", ignore=["seen"]))
    state = torch.load(tmp_path / "weights.pt", weights_only=True)
    torch.save({"model": {"sae": {**state, "seen": torch.ones(6)}}, "step": 3}, tmp_path / "weights.pt")
    assert load_sae(tmp_path, SaeOptions(k=3)).k == 3
    assert "k: is missing" in refusal(tmp_path)


def test_a_mapping_elsewhere_explains_safetensors(tmp_path: Path) -> None:
    overcomplete(tmp_path / "old", P, OVERCOMPLETE)
    (tmp_path / "new").mkdir()
    save_file(torch.load(tmp_path / "old" / "weights.pt", weights_only=True), tmp_path / "new" / "model.safetensors")
    loaded = load_sae(tmp_path / "new", SaeOptions(mapping=tmp_path / "old" / "mapping.yaml"))
    x = torch.randn(5, 4)
    assert torch.equal(loaded.encode(x), load_sae(tmp_path / "old").encode(x))
    # JSON does as well, and the mapping's own path names the SAE beside it.
    (tmp_path / "new" / "mapping.json").write_text(json.dumps(OVERCOMPLETE))
    assert load_sae(tmp_path / "new" / "mapping.json").sha256 == loaded.sha256
    (tmp_path / "new" / "second.safetensors").write_bytes(b"")
    assert "does not hold exactly one file of them; name it" in refusal(tmp_path / "new")


def test_the_mapping_decides_what_an_sae_is(tmp_path: Path) -> None:
    overcomplete(tmp_path, P, OVERCOMPLETE)
    before = load_sae(tmp_path).sha256
    (tmp_path / "mapping.yaml").write_text(yaml.safe_dump(_change(k=3)))
    assert load_sae(tmp_path).sha256 != before


def test_what_the_user_says_must_not_contradict_the_file(tmp_path: Path) -> None:
    write_saeuron(tmp_path / "down.2.1", P)
    assert "was trained on block outputs, not on updates" in refusal(tmp_path / "down.2.1", SaeOptions(signal="update"))
    write_unbox(tmp_path / "mid.0", P)
    assert "has k = 2, not 5" in refusal(tmp_path / "mid.0", SaeOptions(k=5))
    overcomplete(tmp_path / "up.0.1", P, OVERCOMPLETE)
    assert "is named for block up.0.1, but was trained on mid.0" in refusal(tmp_path / "up.0.1")
    with pytest.raises(RiebenchError, match=r"the SAE was trained on block mid.0, not on up.0.0"):
        load_saes(tmp_path / "mid.0", ["up.0.0"])


@pytest.mark.parametrize(
    ("write", "gone", "message"),
    [
        (write_unbox, "config.json", "looks like an sdxl-unbox SAE, but config.json is missing"),
        (write_sparsify, "cfg.json", "cfg.json is missing"),
        (write_openai_topk, "autoencoder.pt", "or anything else with a key mapping"),
        (write_saev_relu, "sae.pt", "state_dict.pth with config.json (sdxl-unbox)"),
    ],
)
def test_what_is_missing_is_named(
    tmp_path: Path, write: Callable[[Path, Parts], object], gone: str, message: str
) -> None:
    write(tmp_path, P)
    (tmp_path / gone).unlink()
    assert message in refusal(tmp_path)


def test_training_buffers_are_no_unknown_tensors(tmp_path: Path) -> None:
    write_sparsify(tmp_path, P)
    state = load_file(tmp_path / "sae.safetensors")
    save_file({**state, "steps": torch.tensor([3])}, tmp_path / "sae.safetensors")
    assert load_sae(tmp_path).n == 6


def test_a_pipe_beside_the_weights_is_not_waited_for(tmp_path: Path) -> None:
    overcomplete(tmp_path, P, OVERCOMPLETE)
    os.mkfifo(tmp_path / "second.pt")
    assert load_sae(tmp_path).n == 6
    for path in (tmp_path / "mapping.yaml", tmp_path / "weights.pt"):
        path.unlink()
    assert "holds no SAE that riebench can read" in refusal(tmp_path)


def test_tensors_without_numbers_are_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.empty(2, device="meta")}, tmp_path / "x.pt")
    with pytest.raises(RiebenchError, match=r"a is no plain tensor|holds more than tensors"):
        load_tensors(tmp_path / "x.pt")
