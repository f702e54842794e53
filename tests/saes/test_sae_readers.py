"""Every format that is read: found by what is in the folder, and computing what its description says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sae_files import WRITERS, K, f64, parts, saelens, sparsify, write_dl_new, write_unbox

from riebench.errors import RiebenchError
from riebench.registry import SAE_FORMATS
from riebench.saes.files import Checkpoint, SaeOptions
from riebench.saes.formats import load_sae
from riebench.saes.readers import sae_format, sae_formats
from riebench.saes.sae import SparseAutoencoder


def positions(d: int = 4) -> torch.Tensor:
    return 2 * torch.randn(3, 40, d, generator=torch.Generator().manual_seed(5)) + 0.3


@pytest.mark.parametrize("n", [6, 3])
@pytest.mark.parametrize("name", list(WRITERS))
def test_a_stored_sae_computes_what_its_format_says(tmp_path: Path, name: str, n: int) -> None:
    found, write = WRITERS[name]
    expected, x = write(tmp_path, parts(n)), positions()
    sae = load_sae(tmp_path)
    assert (sae.format, sae.n, sae.d, sae.signal) == (found, *expected.encoder.shape, expected.signal)
    codes = expected.unit_codes(f64(x))
    np.testing.assert_allclose(sae.encode(x).numpy(), codes, atol=2e-5)
    np.testing.assert_allclose(sae.decode(sae.encode(x), x).numpy(), expected.reconstruction(f64(x)), atol=5e-5)
    assert len(sae.sha256) == 64
    assert sae.encode(x.half()).dtype == torch.float32


def test_the_written_saes_have_positions_with_few_features_and_rows_of_all_lengths(tmp_path: Path) -> None:
    expected = write_unbox(tmp_path, parts())
    active = (expected.codes(f64(positions())) > 0).sum(-1)
    assert set(active.flatten()) == {0, 1, 2}
    assert np.ptp(np.linalg.norm(expected.decoder, axis=1)) > 0.5
    stored = torch.load(tmp_path / "state_dict.pth", weights_only=True)["state_dict"]["decoder.weight"]
    assert stored.shape == (4, 6) and stored.stride() == (1, 4)


@pytest.mark.parametrize("name", ["saelens layer norm", "saelens norm rescale", "saeuron", "openai topk"])
def test_features_of_normalised_positions_add_in_the_positions_own_units(tmp_path: Path, name: str) -> None:
    expected, x = WRITERS[name][1](tmp_path, parts()), positions()
    sae = load_sae(tmp_path)
    scale = x.std(-1, keepdim=True) if sae.normalise == "layer" else x.norm(dim=-1, keepdim=True) / 2
    moved = sae.contributions(x) @ sae.directions
    np.testing.assert_allclose(
        moved.numpy(), (expected.codes(f64(x)) @ expected.decoder) * f64(scale), atol=5e-5
    )  # fmt: skip
    assert torch.isfinite(sae.contributions(torch.zeros(2, 4))).all()


@pytest.mark.parametrize("name", ["unbox", "saelens topk", "sparsify", "dl plain", "openai topk", "saev relu"])
def test_a_checkpoint_is_found_by_its_file_too(tmp_path: Path, name: str) -> None:
    WRITERS[name][1](tmp_path / "folder", parts())
    (weights,) = (path for path in (tmp_path / "folder").iterdir() if path.suffix != ".json")
    assert torch.equal(load_sae(weights).encode(positions()), load_sae(tmp_path / "folder").encode(positions()))


def test_a_lost_constant_can_be_given(tmp_path: Path) -> None:
    p, x = parts(), positions()
    saelens(tmp_path, p, {"normalize_activations": True})
    sae = load_sae(tmp_path, SaeOptions(input_scale=0.25))
    u, pre = f64(x) * 0.25, f64(p.b_dec)
    codes = np.maximum((u - pre) @ f64(p.encoder).T + f64(p.b_enc), 0)
    np.testing.assert_allclose(sae.decode(sae.encode(x)).numpy(), (codes @ f64(p.decoder) + pre) / 0.25, atol=5e-5)
    # One number switched on moves the activation by what it moves in the scaled space, scaled back.
    lengths = np.linalg.norm(f64(p.decoder), axis=1)
    np.testing.assert_allclose(sae.encode(x).numpy(), codes * lengths / 0.25, rtol=1e-4, atol=1e-4)


def test_signed_features_come_only_when_asked_for(tmp_path: Path) -> None:
    p, x = parts(), positions()
    saelens(tmp_path, p, {"activation_fn": "abstopk", "activation_fn_kwargs": {"k": K}})
    sae = load_sae(tmp_path, SaeOptions(signed=True))
    values = (f64(x) - f64(p.b_dec)) @ f64(p.encoder).T + f64(p.b_enc)
    kept = np.abs(values) >= np.sort(np.abs(values), -1)[..., -K][..., None]
    np.testing.assert_allclose(
        sae.encode(x).numpy(), values * kept * np.linalg.norm(f64(p.decoder), axis=1), atol=2e-5
    )  # fmt: skip
    assert (sae.encode(x) < 0).any() and ((sae.encode(x) != 0).sum(-1) == K).all()


def test_width_follows_from_the_expansion_where_latents_are_not_counted(tmp_path: Path) -> None:
    sparsify(tmp_path, parts(n=8), {"num_latents": 0, "expansion_factor": 2})
    assert load_sae(tmp_path).n == 8


@pytest.mark.parametrize("name", ["AutoEncoder", "AutoEncoderNew", "gated", "jump", "matryoshka"])
def test_classes_with_tensors_of_their_own_need_no_configuration(tmp_path: Path, name: str) -> None:
    write = {"AutoEncoder": "dl plain", "AutoEncoderNew": "dl new"}.get(name, f"dl {name}")
    WRITERS[write][1](tmp_path, parts())
    loaded = load_sae(tmp_path)
    (tmp_path / "config.json").unlink()
    assert torch.equal(load_sae(tmp_path).encode(positions()), loaded.encode(positions()))


def test_the_hash_covers_what_the_configuration_decides(tmp_path: Path) -> None:
    saelens(tmp_path, parts(), {"apply_b_dec_to_input": True})
    before = load_sae(tmp_path).sha256
    saelens(tmp_path, parts(), {"apply_b_dec_to_input": False})
    assert load_sae(tmp_path).sha256 != before


def test_block_and_signal_are_taken_from_where_it_was_hooked(tmp_path: Path) -> None:
    WRITERS["saelens without subtraction"][1](tmp_path / "a", parts())
    WRITERS["dl topk"][1](tmp_path / "b", parts())
    first, second = load_sae(tmp_path / "a"), load_sae(tmp_path / "b", SaeOptions(signal="update"))
    assert (first.block, first.signal) == ("mid.0", "update")
    assert (second.block, second.signal) == ("mid.0", "update")


def test_a_new_format_is_one_function(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    formats = sae_formats()
    monkeypatch.setattr(SAE_FORMATS, "_objects", dict(SAE_FORMATS._objects))

    @sae_format("mine", needs=("mine.txt",))
    def read_mine(checkpoint: Checkpoint) -> SparseAutoencoder:
        return load_sae(Path((checkpoint.folder / "mine.txt").read_text()))

    write_unbox(tmp_path / "inner", parts())
    (tmp_path / "outer").mkdir()
    (tmp_path / "outer" / "mine.txt").write_text(str(tmp_path / "inner"))
    assert load_sae(tmp_path / "outer").format == "mine"
    assert len(sae_formats()) == len(formats) + 1


def test_two_saes_in_one_folder_are_distinguished_by_their_files(tmp_path: Path) -> None:
    write_dl_new(tmp_path, parts())
    write_unbox(tmp_path, parts())
    with pytest.raises(RiebenchError, match=r"several SAEs \(dictionary_learning and sdxl-unbox\); name one of its"):
        load_sae(tmp_path)
    assert load_sae(tmp_path / "state_dict.pth").format == "sdxl-unbox"
    assert load_sae(tmp_path / "ae.pt").activation == "relu"
