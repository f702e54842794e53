"""Layouts beyond one file with two matrices: shards, wrappers' names, pursuit, tied and computed dictionaries."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from sae_files import (
    OVERCOMPLETE,
    WRITERS,
    dictionary,
    f64,
    linear,
    overcomplete,
    parts,
    put,
    saelens,
    write_dl_topk,
    write_saelens_topk,
    write_sparsify,
    write_unbox,
)
from sae_layout_files import (
    ARCHETYPAL,
    LAYOUT_WRITERS,
    PURSUED,
    archetypal,
    put_in_shards,
    rename_tensors,
    without,
    write_mapped_in_shards,
    write_overcomplete_pursuit,
    write_overcomplete_tied,
    write_saelens_abstopk,
    write_saelens_pursuit,
    write_tied_by_the_encoder,
)
from safetensors.torch import load_file, save_file
from sdxl_files import REPO, fake_hub, serve
from tiny import CHANNELS, tiny_model

from riebench.errors import RiebenchError
from riebench.features.inspect import inspect, load_all
from riebench.saes import pursuit
from riebench.saes.files import SaeOptions
from riebench.saes.formats import load_sae, load_saes
from riebench.saes.pursuit import PursuitRule, pursue
from riebench.saes.sae import SparseAutoencoder
from riebench.saes.sources import parse_sources

P = parts()


def positions(d: int = 4) -> torch.Tensor:
    return 2 * torch.randn(3, 40, d, generator=torch.Generator().manual_seed(5)) + 0.3


def refusal(path: Path, options: SaeOptions | None = None) -> str:
    with pytest.raises(RiebenchError) as caught:
        load_sae(path, options or SaeOptions())
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("n", [6, 3])
@pytest.mark.parametrize("name", list(LAYOUT_WRITERS))
def test_a_stored_sae_computes_what_its_layout_says(tmp_path: Path, name: str, n: int) -> None:
    found, write = LAYOUT_WRITERS[name]
    expected, x = write(tmp_path, parts(n)), positions()
    sae = load_sae(tmp_path)
    assert (sae.format, sae.n, sae.d, sae.signal) == (found, *expected.encoder.shape, expected.signal)
    np.testing.assert_allclose(sae.encode(x).numpy(), expected.unit_codes(f64(x)), atol=2e-5)
    np.testing.assert_allclose(sae.decode(sae.encode(x), x).numpy(), expected.reconstruction(f64(x)), atol=5e-5)


@pytest.mark.parametrize("rescale", [True, False])
def test_the_architecture_of_signed_features_is_read_when_asked_for(tmp_path: Path, rescale: bool) -> None:
    expected, x = write_saelens_abstopk(tmp_path, P, rescale=rescale), positions()
    assert "add #signed=yes" in refusal(tmp_path)
    (source,) = parse_sources(f"{tmp_path}#signed=yes")
    sae = load_sae(tmp_path, source.options)
    codes = sae.encode(x)
    np.testing.assert_allclose(codes.numpy(), expected.unit_codes(f64(x)), atol=2e-5)
    np.testing.assert_allclose(sae.decode(codes).numpy(), expected.reconstruction(f64(x)), atol=5e-5)
    assert (codes < 0).any() and ((codes != 0).sum(-1) == 2).all()


def test_pursuits_of_the_tests_end_in_every_way(tmp_path: Path) -> None:
    x = f64(positions()).reshape(-1, 4)
    counts = {
        name: set((LAYOUT_WRITERS[name][1](tmp_path / name, P).codes(x) != 0).sum(-1).tolist())
        for name in ("saelens pursuit", "saelens pursuit until repeat", "overcomplete pursuit")
    }
    assert all(len(some) > 1 for some in counts.values())
    signed = LAYOUT_WRITERS["overcomplete pursuit"][1](tmp_path / "few", parts(n=3)).codes(x)
    assert (signed < 0).any() and (signed > 0).any()


def test_relaxations_of_the_tests_lie_on_both_sides_of_the_limit() -> None:
    for n in (6, 3):
        lengths = archetypal(parts(n))["dictionary.Relax"].norm(dim=1)
        assert lengths.min() < ARCHETYPAL["relaxation_limit"] < lengths.max()


def test_a_pursuit_takes_the_first_of_equal_features_and_fits_in_little_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows, x = torch.eye(3)[[0, 0, 1, 2]], torch.randn(7, 3)
    codes = pursue(x.abs(), rows, rows, torch.zeros(4), PursuitRule(3))
    assert torch.equal(codes, torch.cat([x.abs()[:, :1], torch.zeros(7, 1), x.abs()[:, 1:]], dim=1))
    monkeypatch.setattr(pursuit, "MAX_PRODUCTS", 8)
    sizes: list[int] = []
    plain = pursuit._pursue_part

    def watched(part: torch.Tensor, *rest: Any) -> None:
        sizes.append(part.numel())
        plain(part, *rest)

    monkeypatch.setattr(pursuit, "_pursue_part", watched)
    assert torch.equal(pursue(x.abs(), rows, rows, torch.zeros(4), PursuitRule(3)), codes)
    assert sizes == [8, 8, 8, 4]


def test_a_pursuit_needs_its_steps(tmp_path: Path) -> None:
    zero = torch.zeros(4)
    with pytest.raises(RiebenchError, match="needs its number of steps"):
        SparseAutoencoder(torch.eye(4), torch.eye(4), zero, zero, zero, activation="matching-pursuit")
    write_overcomplete_pursuit(tmp_path, P)
    (tmp_path / "mapping.yaml").write_text(yaml.safe_dump(without(PURSUED, "k")))
    assert "k: is missing for activation matching-pursuit-signed; state it, or add #k=NUMBER" in refusal(tmp_path)
    sae = load_sae(tmp_path, SaeOptions(k=3))
    assert (sae.k, sae.pursuit) == (3, PursuitRule(3))
    write_saelens_pursuit(tmp_path / "lens", P)
    config = json.loads((tmp_path / "lens" / "cfg.json").read_text())
    (tmp_path / "lens" / "cfg.json").write_text(json.dumps({**config, "residual_threshold": "low"}))
    assert "residual_threshold must be a number, not 'low'" in refusal(tmp_path / "lens")
    (tmp_path / "lens" / "cfg.json").write_text(json.dumps({**config, "max_iterations": 10**9}))
    assert "needs its number of steps, 1 to 10000" in refusal(tmp_path / "lens")


def test_a_lost_constant_scales_the_length_at_which_a_pursuit_ends(tmp_path: Path) -> None:
    write_saelens_pursuit(tmp_path, P)
    plain = load_sae(tmp_path)
    config = json.loads((tmp_path / "cfg.json").read_text())
    (tmp_path / "cfg.json").write_text(json.dumps({**config, "normalize_activations": "expected_average_only_in"}))
    scaled, x = load_sae(tmp_path, SaeOptions(input_scale=0.25)), positions()
    torch.testing.assert_close(scaled.encode(4 * x), 4 * plain.encode(x), atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(scaled.decode(scaled.encode(4 * x)), 4 * plain.decode(plain.encode(x)))


WRAPPED = ["unbox", "saelens topk", "sparsify", "dl topk", "dl backup", "openai topk", "saev relu", "overcomplete"]


PREFIXES = ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "module.module."]


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("name", WRAPPED)
def test_names_that_wrappers_give_are_read(tmp_path: Path, name: str, prefix: str) -> None:
    WRITERS[name][1](tmp_path, P)
    before = load_sae(tmp_path)
    (weights,) = (path for path in tmp_path.iterdir() if path.suffix in (".pt", ".pth", ".safetensors"))
    rename_tensors(weights, lambda tensor: prefix + tensor)
    after = load_sae(tmp_path)
    assert after.format == before.format
    assert torch.equal(after.encode(positions()), before.encode(positions()))


def test_a_mapping_may_use_the_names_that_the_file_has(tmp_path: Path) -> None:
    overcomplete(tmp_path, P, OVERCOMPLETE)
    before = load_sae(tmp_path)
    rename_tensors(tmp_path / "weights.pt", lambda name: f"module.{name.replace('encoder.', 'encoder._orig_mod.')}")
    state = torch.load(tmp_path / "weights.pt", weights_only=True)
    named = {role: f"module.{name}" for role, name in OVERCOMPLETE["tensors"].items()}
    named["latent_bias"] = "module.encoder._orig_mod.final_block.0.bias"
    assert named["latent_bias"] in state
    torch.save({**state, "module.seen": torch.ones(2)}, tmp_path / "weights.pt")
    mapping = {**OVERCOMPLETE, "tensors": named, "ignore": ["module.seen"]}
    (tmp_path / "mapping.yaml").write_text(yaml.safe_dump(mapping))
    assert torch.equal(load_sae(tmp_path).encode(positions()), before.encode(positions()))


def test_prefixes_of_some_names_are_not_guessed_at(tmp_path: Path) -> None:
    write_unbox(tmp_path, P)
    rename_tensors(tmp_path / "state_dict.pth", lambda name: f"module.{name}" if "encoder" in name else name)
    message = refusal(tmp_path)
    assert "lacks encoder.weight" in message and "only some of its names begin with 'module.'" in message
    dictionary(tmp_path / "two", "AutoEncoder", {**linear(P), "_orig_mod.encoder.bias": P.b_enc, "bias": P.b_dec})
    assert "holds encoder.bias twice, once with '_orig_mod' before it" in refusal(tmp_path / "two")


def _shards(folder: Path) -> list[Path]:
    write_saelens_topk(folder, P)
    return put_in_shards(folder / "sae_weights.safetensors")


def test_the_hash_covers_every_shard(tmp_path: Path) -> None:
    shards = _shards(tmp_path)
    found = {load_sae(tmp_path).sha256}
    for shard in shards:
        state = load_file(shard)
        name = sorted(state)[0]
        save_file({**state, name: 2 * state[name]}, shard)
        found.add(load_sae(tmp_path).sha256)
    assert len(found) == 1 + len(shards)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"W_dec": "../other.safetensors"}, "weight_map: '../other.safetensors' leaves its folder"),
        ({"W_dec": "/etc/x.safetensors"}, "weight_map: '/etc/x.safetensors' leaves its folder"),
        ({"W_dec": "absent.safetensors"}, "names absent.safetensors, which is not there"),
        ({"W_dec": "cfg.json"}, "'cfg.json' is no safetensors file"),
        ({"W_dec": 3}, "has no weight_map of tensors to files"),
        ({"W_more": "sae_weights-00001-of-00002.safetensors"}, "lacks W_more, against the index"),
    ],
)
def test_an_index_that_cannot_be_followed(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    _shards(tmp_path)
    index = tmp_path / "sae_weights.safetensors.index.json"
    stated = json.loads(index.read_text())
    index.write_text(json.dumps({**stated, "weight_map": {**stated["weight_map"], **change}}))
    assert message in refusal(tmp_path)


def test_damaged_and_missing_parts_of_shards(tmp_path: Path) -> None:
    shards = _shards(tmp_path / "a")
    whole = (tmp_path / "a" / "sae_weights.safetensors.index.json").read_text()
    shards[1].write_text("version https://git-lfs.github.com/spec/v1\n")
    assert f"{shards[1].name} is a Git-LFS pointer" in refusal(tmp_path / "a")
    shards[1].unlink()
    assert f"names {shards[1].name}, which is not there" in refusal(tmp_path / "a")
    (tmp_path / "a" / "sae_weights.safetensors.index.json").write_text(whole[:-9])
    assert "index.json cannot be read" in refusal(tmp_path / "a")
    (tmp_path / "a" / "sae_weights.safetensors.index.json").unlink()
    assert "sae_weights.safetensors is missing" in refusal(tmp_path / "a")
    write_mapped_in_shards(tmp_path / "b", P)
    (tmp_path / "b" / "model.safetensors.index.json").unlink()
    (tmp_path / "b" / "model-00002-of-00002.safetensors").unlink()
    assert "is one of 2 shards; put all of them and model.safetensors.index.json into one" in refusal(tmp_path / "b")


def test_shards_are_named_by_their_index_or_any_of_them(tmp_path: Path) -> None:
    write_mapped_in_shards(tmp_path, P)
    x, sae = positions(), load_sae(tmp_path)
    mapping = (tmp_path / "mapping.yaml").rename(tmp_path / "my.yaml")
    for name in ("model.safetensors.index.json", "model-00001-of-00002.safetensors"):
        (source,) = parse_sources(f"{tmp_path / name}#mapping={mapping}")
        assert torch.equal(load_sae(source.locate(), source.options).encode(x), sae.encode(x))
    mapping.write_text(mapping.read_text() + "weights: model.safetensors\n")
    assert torch.equal(load_sae(tmp_path, SaeOptions(mapping=mapping)).encode(x), sae.encode(x))
    _shards(tmp_path / "lens")
    assert load_sae(tmp_path / "lens" / "sae_weights.safetensors.index.json").format == "SAELens"


@pytest.mark.parametrize("mapped", [False, True])
def test_shards_are_fetched_with_their_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mapped: bool) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    (write_mapped_in_shards if mapped else LAYOUT_WRITERS["sparsify in shards"][1])(tmp_path / "up" / "mid.0", P)
    if mapped:
        with (tmp_path / "up" / "mid.0" / "mapping.yaml").open("a") as file:
            file.write("weights: model.safetensors\n")
    (tmp_path / "up" / "mid.0" / "optimizer-00001-of-00002.safetensors").write_bytes(b"")
    with fake_hub(monkeypatch, serve(tmp_path / "up")) as asked:
        (source,) = parse_sources(f"hf://{REPO}")
        assert load_saes(source.locate(), ["mid.0"])["mid.0"].n == 6
        assert not any("optimizer" in path for path in asked)


def _map(folder: Path, **change: Any) -> str:
    put(folder, "weights.pt", archetypal(P))
    (folder / "mapping.yaml").write_text(yaml.safe_dump({**ARCHETYPAL, **change}))
    return refusal(folder)


def _tensors(*gone: str, **more: str) -> dict[str, Any]:
    return without({**ARCHETYPAL["tensors"], **more}, *gone)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tensors": _tensors("mixture")}, "a decoder that mixes points needs mixture and points"),
        ({"tensors": _tensors("mixture", "points")}, "a decoder that mixes points needs mixture and points"),
        ({"tensors": _tensors(decoder="dictionary.Relax")}, "decoder is named, and so are the points"),
        ({"tensors": _tensors("points", "mixture", "relaxation")}, "'decoder': sae.get_dictionary()}, 'sae.pt')"),
        ({"tensors": _tensors("encoder")}, "tensors.encoder: is missing; for weights shared with the decoder say tied"),
        ({"tied": True}, "tied: name either the encoder or the decoder"),
        (
            {"tensors": _tensors(points="dictionary.Relax", relaxation="dictionary.C")},
            "do not fit; they are [features, points]",
        ),
        ({"tensors": _tensors("relaxation")}, "relaxation_limit: there is no relaxation"),
        ({"unit_rows": ["encodr"]}, "unit_rows[0]"),
        ({"axes": {}}, "axes.encoder: is missing"),
        ({"stop_on_repeat": True}, "stop_on_repeat: is for a matching pursuit, not for activation topk"),
        ({"tensors": {**_tensors(), "threshold": True}}, "tensors.threshold"),
        ({"block": "mid.o"}, "block: unknown block 'mid.o' (did you mean 'mid.0'?)"),
        ({"block": "down.2.1+mid.0"}, "give an SAE for each block"),
        ({"block": "text_encoder.text_model.encoder.layers.3"}, "lies in the text encoder, which is not edited"),
    ],
)
def test_mappings_that_do_not_hold_together(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    assert message in _map(tmp_path, **change)


def test_a_block_of_a_mapping_may_have_its_long_name(tmp_path: Path) -> None:
    overcomplete(tmp_path, P, {**OVERCOMPLETE, "block": "unet.mid_block.attentions.0"})
    assert load_sae(tmp_path).block == "mid.0"


def test_mappings_of_old_keep_the_hash_that_runs_are_named_by(tmp_path: Path) -> None:
    put(tmp_path, "weights.safetensors", {"e": torch.eye(2), "d": torch.eye(2)})
    mapping = {"activation": "relu", "signal": "update", "tensors": {"encoder": "e", "decoder": "d"}}
    axes = {"encoder": "features, width", "decoder": "features, width"}
    (tmp_path / "mapping.yaml").write_text(yaml.safe_dump({**mapping, "axes": axes}))
    before = load_sae(tmp_path).sha256
    assert before.startswith("3186cdd481f1192951179ed3")
    (tmp_path / "mapping.yaml").write_text(yaml.safe_dump({**mapping, "axes": axes, "unit_rows": ["encoder"]}))
    assert load_sae(tmp_path).sha256 != before


def test_a_copy_of_tied_weights_is_no_unknown_tensor_but_another_one_is(tmp_path: Path) -> None:
    write_overcomplete_tied(tmp_path / "a", P)
    state = torch.load(tmp_path / "a" / "weights.pt", weights_only=True)
    torch.save({**state, "encoder.tied_to._weights": P.encoder}, tmp_path / "a" / "weights.pt")
    assert "does not know: encoder.tied_to._weights" in refusal(tmp_path / "a")
    write_tied_by_the_encoder(tmp_path / "b", P)
    state = load_file(tmp_path / "b" / "weights.safetensors")
    save_file({**state, "b2": state["b"].clone()}, tmp_path / "b" / "weights.safetensors")
    assert "does not know: b2" in refusal(tmp_path / "b")


JOINED = "stands for several blocks joined; an SAE of joined activations is not read"
TEXT = "lies in the text encoder, which is not edited; give SAEs of the denoiser's blocks"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("down.2.1+mid.0", JOINED),
        ("down.2.1+mid.0_k2_hidden6", JOINED),
        ("unet.down_blocks.2.attentions.1+unet.mid_block.attentions.0", JOINED),
        ("text_encoder", TEXT),
        ("text_encoder_2.text_model.encoder.layers.10_k2", TEXT),
    ],
)
def test_sites_that_are_no_single_block_are_refused_wherever_they_are_named(
    tmp_path: Path, name: str, message: str
) -> None:
    for inner in ("", "final"):
        write_dl_topk(tmp_path / f"root{inner}" / name / inner, P)
        (tmp_path / f"root{inner}" / name / inner / "config.json").write_text(
            '{"trainer": {"dict_class": "AutoEncoderTopK", "k": 2}}'
        )
        assert message in refusal(tmp_path / f"root{inner}" / name / inner)
        with pytest.raises(RiebenchError, match=message):
            load_saes(tmp_path / f"root{inner}", ["mid.0"])
        with pytest.raises(RiebenchError, match=message):
            load_all(parse_sources(str(tmp_path / f"root{inner}")))
    site = name.split("_k")[0]
    (tmp_path / "list.yaml").write_text(f"'{site}': here\n")
    for source in (f"{site}={tmp_path}", f"up.0.1=a,{site}={tmp_path}", str(tmp_path / "list.yaml")):
        with pytest.raises(RiebenchError, match=message):
            parse_sources(source)
    saelens(tmp_path / "lens", P, {"metadata": {"hook_name": site}})
    assert message in refusal(tmp_path / "lens")


def test_other_blocks_of_a_root_are_read_beside_joined_ones(tmp_path: Path) -> None:
    write_unbox(tmp_path / "mid.0", P)
    write_unbox(tmp_path / "down.2.1+mid.0", P)
    assert load_saes(tmp_path, ["mid.0"])["mid.0"].block == "mid.0"


def test_a_batch_top_k_without_k_says_how_many_features_are_active(tmp_path: Path) -> None:
    wide = parts(n=96, d=CHANNELS)
    saelens(tmp_path, wide, {"architecture": "jumprelu"}, {"threshold": torch.full((96,), 0.7)})
    found = load_all(parse_sources(f"mid.0={tmp_path}#signal=update"))
    (plain,) = inspect(found).saes
    assert (plain.k, plain.warnings[0]) == (
        None,
        "k is not stated, and all features have one threshold, as a batch top-k leaves it; --model measures how many "
        "features are active",
    )
    (measured,) = inspect(found, tiny_model(), ["a red cat"], progress=False).saes
    assert f"L0 measured: {measured.measured['update'].l0:g} on the update" in measured.warnings[0]
    saelens(tmp_path, wide, {"architecture": "jumprelu"}, {"threshold": wide.threshold})
    assert not any("k is not stated" in one for one in inspect(load_all(parse_sources(str(tmp_path)))).saes[0].warnings)


def test_the_k_of_the_training_is_taken_from_what_an_export_remembers(tmp_path: Path) -> None:
    saelens(
        tmp_path, P,
        {"architecture": "jumprelu", "metadata": {"training_architecture_details": {"k": 5.0, "decoder_init_norm": 1}}},
        {"threshold": torch.full((6,), 0.7)},
    )  # fmt: skip
    assert load_sae(tmp_path).k == 5
    write_sparsify(tmp_path / "other", P)
    assert load_sae(tmp_path / "other").k == 2


def test_a_pipelines_text_encoder_is_no_sae(tmp_path: Path) -> None:
    put(tmp_path / "text_encoder", "model.safetensors", {"w": torch.eye(2)})
    assert "holds no SAE that riebench can read" in refusal(tmp_path)
