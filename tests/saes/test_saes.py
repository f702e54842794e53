"""The internal form of an SAE, and the sdxl-unbox layout."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import CHANNELS, FEATURES, SPARSITY, tiny_model, tiny_saes

from riebench.errors import RiebenchError
from riebench.models.families.sdxl.names import BLOCKS
from riebench.saes.formats import (
    checkpoints_by_block,
    folder_name,
    load_sae,
    load_saes,
    save_sdxl_unbox,
)
from riebench.saes.sae import SparseAutoencoder
from riebench.saes.sources import model_saes

N, D, K = 6, 4, 2


def parts(seed: int = 0) -> dict[str, Any]:
    """Tensors of an SAE with rows of any length."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    return {
        "encoder": normal(N, D), "directions": normal(N, D), "pre_bias": normal(D), "decoder_bias": normal(D),
        "latent_bias": normal(N),
    }  # fmt: skip


def by_hand(stored: dict[str, Any], x: torch.Tensor, k: int | None) -> tuple[Any, Any]:
    """Codes and reconstruction in float64, straight from the definition."""
    p = {name: tensor.double().numpy() for name, tensor in stored.items() if isinstance(tensor, torch.Tensor)}
    codes = np.maximum((x.double().numpy() - p["pre_bias"]) @ p["encoder"].T + p["latent_bias"], 0)
    if k is not None:
        smallest = np.sort(codes, -1)[..., -k][..., None]
        codes = np.where(codes >= smallest, codes, 0)
    return codes, codes @ p["directions"] + p["decoder_bias"]


@pytest.mark.parametrize(("activation", "k"), [("topk", K), ("relu", None)])
def test_codes_and_reconstruction_are_those_of_the_definition(activation: Any, k: int | None) -> None:
    stored, x = parts(), torch.randn(3, 5, D, generator=torch.Generator().manual_seed(9))
    sae = SparseAutoencoder(**stored, k=k, activation=activation)
    codes, reconstruction = by_hand(stored, x, k)
    lengths = stored["directions"].norm(dim=1).numpy()
    np.testing.assert_allclose(sae.encode(x).numpy(), codes * lengths, atol=1e-5)
    np.testing.assert_allclose(sae.decode(sae.encode(x)).numpy(), reconstruction, atol=1e-5)
    torch.testing.assert_close(sae.directions.norm(dim=1), torch.ones(N))


def test_long_rows_do_not_win_the_top_k() -> None:
    stored = parts()
    scaled = {**stored, "directions": stored["directions"] * torch.arange(1, N + 1)[:, None] ** 3}
    x = torch.randn(20, D, generator=torch.Generator().manual_seed(2))
    plain, stretched = (SparseAutoencoder(**p, k=K).encode(x) > 0 for p in (stored, scaled))
    assert torch.equal(plain, stretched)


def test_thresholds_are_strict() -> None:
    stored = {**parts(), "encoder": torch.eye(N)[:, :D], "pre_bias": torch.zeros(D), "latent_bias": torch.zeros(N)}
    sae = SparseAutoencoder(**stored, activation="jump", threshold=torch.full((N,), 0.5))
    codes = sae.encode(torch.tensor([0.5, 0.6, -1.0, 0.4])) / sae.row_scale
    torch.testing.assert_close(codes, torch.tensor([0.0, 0.6, 0.0, 0.0, 0.0, 0.0]))


def test_normalised_positions_are_undone_and_their_features_scaled() -> None:
    stored, x = parts(), 50 * torch.randn(7, D, generator=torch.Generator().manual_seed(3)) + 9
    sae = SparseAutoencoder(**stored, activation="relu", normalise="layer")
    mean, std = x.mean(-1, keepdim=True), x.std(-1, keepdim=True) + 1e-5
    _, inner = by_hand(stored, (x - mean) / std, None)
    np.testing.assert_allclose(sae.decode(sae.encode(x), x).numpy(), inner * std.numpy() + mean.numpy(), rtol=1e-4)
    moved = sae.contributions(x) @ sae.directions
    torch.testing.assert_close(moved, (sae.encode(x) @ sae.directions) * std)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": N + 1}, "k must be 1 to 6"),
        ({"k": 0}, "k must be 1 to 6"),
        ({"directions": torch.zeros(N, D), "k": K}, "directions are zero"),
        ({"pre_bias": torch.zeros(D + 1), "k": K}, "pre_bias has shape"),
        ({"encoder": torch.full((N, D), float("nan")), "k": K}, "not finite"),
        ({"encoder": torch.zeros(N, D, 1, 1), "k": K}, "two axes"),
        ({"activation": "jump"}, "needs a tensor threshold"),
    ],
)
def test_damaged_saes_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(RiebenchError, match=message):
        SparseAutoencoder(**{**parts(), **change})


def test_wrong_width_is_refused() -> None:
    with pytest.raises(RiebenchError, match="width 4, but the activation has 5"):
        SparseAutoencoder(**parts(), k=K).encode(torch.zeros(1, 5))


def write(folder: Path, k: int = K, **changes: Any) -> Path:
    """An sdxl-unbox checkpoint."""
    p = parts()
    tensors = {
        "encoder": p["encoder"], "decoder": p["directions"].T, "pre_bias": p["pre_bias"],
        "latent_bias": p["latent_bias"],
    }  # fmt: skip
    save_sdxl_unbox(folder, **{**tensors, **changes}, k=k, mean=torch.ones(N), std=torch.zeros(N))
    return folder


@pytest.mark.parametrize("name", [folder_name("mid.0", K, N), "mid.0", "mid_block.attentions.0"])
@pytest.mark.parametrize("inner", ["", "final"])
def test_every_layout_of_the_native_format_is_read(tmp_path: Path, name: str, inner: str) -> None:
    write(tmp_path / name / inner)
    sae = load_saes(tmp_path, ["mid.0"])["mid.0"]
    p = parts()
    expected = SparseAutoencoder(p["encoder"], p["directions"], p["pre_bias"], p["pre_bias"], p["latent_bias"], k=K)
    x = torch.randn(5, D)
    codes = expected.encode(x)
    assert torch.equal(sae.encode(x), codes) and torch.equal(sae.decode(codes), expected.decode(codes))
    assert len(sae.sha256) == 64
    assert torch.equal(load_sae(tmp_path / name).encode(x), sae.encode(x))


def test_column_major_decoder_is_read(tmp_path: Path) -> None:
    folder = write(tmp_path / "mid.0")
    plain = load_sae(folder)
    stored = torch.load(folder / "state_dict.pth", weights_only=True)
    stored["state_dict"]["decoder.weight"] = stored["state_dict"]["decoder.weight"].T.contiguous().T
    torch.save(stored, folder / "state_dict.pth")
    assert torch.equal(load_sae(folder).directions, plain.directions)


def test_fewer_features_than_width(tmp_path: Path) -> None:
    folder = write(tmp_path / "mid.0", encoder=torch.randn(3, D), decoder=torch.randn(D, 3), latent_bias=torch.zeros(3))
    sae = load_sae(folder)
    assert (sae.n, sae.d) == (3, D)


def test_k_chooses_among_several(tmp_path: Path) -> None:
    for block, k in (("mid.0", 2), ("mid.0", 3), ("up.0.0", 2)):
        write(tmp_path / folder_name(block, k, N), k=k)
    assert load_saes(tmp_path, ["mid.0"], k=3)["mid.0"].k == 3
    # Without k, the size that all blocks have.
    assert load_saes(tmp_path, ["mid.0"])["mid.0"].k == 2
    assert {block: len(folders) for block, folders in checkpoints_by_block(tmp_path).items()} == {
        "mid.0": 2,
        "up.0.0": 1,
    }
    shutil.rmtree(tmp_path / folder_name("up.0.0", 2, N))
    with pytest.raises(RiebenchError, match=r"several SAEs for mid.0 \(k = 2, 3\); add #k=NUMBER"):
        load_saes(tmp_path, ["mid.0"])
    with pytest.raises(RiebenchError, match=r"no SAE for mid.0 with k = 9"):
        load_saes(tmp_path, ["mid.0"], k=9)


def test_what_is_no_sae_is_refused_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(RiebenchError, match="holds no SAE that riebench can read"):
        load_sae(tmp_path)
    folder = write(tmp_path / "mid.0")
    with pytest.raises(RiebenchError, match=r"no SAE for up.0.0; it has SAEs for: mid.0"):
        load_saes(tmp_path, ["up.0.0"])
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "n_dirs_local": 7}))
    with pytest.raises(RiebenchError, match=r"encoder is \[6, 4\], config.json says \[7, 4\]"):
        load_sae(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(RiebenchError, match="cannot be read"):
        load_sae(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "Git-LFS pointer"),
        (b"no torch file", "damaged"),
    ],
)
def test_files_that_are_no_weights(tmp_path: Path, content: bytes, message: str) -> None:
    folder = write(tmp_path / "mid.0")
    (folder / "state_dict.pth").write_bytes(content)
    with pytest.raises(RiebenchError, match=message):
        load_sae(folder)


def test_missing_and_unknown_tensors(tmp_path: Path) -> None:
    folder = write(tmp_path / "mid.0")
    stored = torch.load(folder / "state_dict.pth", weights_only=True)["state_dict"]
    torch.save({"state_dict": {**stored, "gate.weight": torch.zeros(2)}}, folder / "state_dict.pth")
    with pytest.raises(RiebenchError, match=r"does not know: gate.weight"):
        load_sae(folder)
    torch.save({"state_dict": {"encoder.weight": stored["encoder.weight"]}}, folder / "state_dict.pth")
    with pytest.raises(RiebenchError, match=r"lacks decoder.weight, pre_bias, latent_bias"):
        load_sae(folder)


def test_saes_fit_their_model(tmp_path: Path) -> None:
    saes = model_saes(str(tiny_saes()), tiny_model(), BLOCKS)
    assert {(sae.n, sae.d, sae.k) for sae in saes.values()} == {(FEATURES, CHANNELS, SPARSITY)}
    write(tmp_path / "mid.0")
    with pytest.raises(RiebenchError, match="width 4, but tiny-steps2-guidance0 has 64 channels"):
        model_saes(str(tmp_path), tiny_model(), ["mid.0"])
    with pytest.raises(RiebenchError, match="has no SAEs of its own"):
        model_saes(None, tiny_model(), ["mid.0"])
