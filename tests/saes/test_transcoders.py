"""What SAEs read and reconstruct: transcoders, outputs, and SAEs that depend on the denoising time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.models.embeddings import get_timestep_embedding
from edit_contexts import BLOCKS, CHANNELS, FEATURES, GRID, STEPS, context, dense, edit_of
from sae_files import (
    Floats,
    Parts,
    above,
    f64,
    parts,
    put,
    relu,
    saelens,
    sparsify,
    top_k,
    write_saeuron,
    write_unbox,
)
from tiny import tiny_model
from torch import Tensor

from riebench.errors import RiebenchError
from riebench.generation.edits import AdaptiveEdit, LiveSite, StaticEdit
from riebench.methods.base import EditContext, Role
from riebench.saes.files import SaeOptions
from riebench.saes.formats import load_sae, save_sdxl_unbox
from riebench.saes.sae import Reads, SparseAutoencoder, Time, TimeModulation
from riebench.saes.sources import check_width, model_saes

ARCHITECTURES = ("transcoder", "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder")


def positions(d: int = 4) -> Tensor:
    return 2 * torch.randn(3, 40, d, generator=torch.Generator().manual_seed(5)) + 0.3


def normal(*shape: int, seed: int = 7) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def check_transcoder(sae: SparseAutoencoder, x: Tensor, codes: Floats, decoder: Floats, rest: Floats) -> None:
    """Compare codes and reconstruction with a reference, and the effect of a feature with its direction."""
    np.testing.assert_allclose(sae.encode(x).numpy(), codes * np.linalg.norm(decoder, axis=1), atol=5e-5)
    np.testing.assert_allclose(sae.decode(sae.encode(x), x).numpy(), codes @ decoder + rest, atol=1e-4)
    # Switching features: what does not depend on them, skip connection and bias, cancels.
    changed = sae.encode(x)
    changed[..., 1] += 2.5
    moved = sae.decode(changed, x) - sae.decode(sae.encode(x), x)
    np.testing.assert_allclose(moved.numpy(), 2.5 * sae.directions[1].expand_as(moved), atol=2e-5)
    np.testing.assert_allclose((sae.contributions(x) @ sae.directions).numpy(), codes @ decoder, atol=1e-4)
    assert (sae.reads, sae.timed) == ("input", False)


@pytest.mark.parametrize(("transcode", "skip"), [(True, True), (True, False), (False, True)])
def test_sparsify_transcoders(tmp_path: Path, transcode: bool, skip: bool) -> None:
    """Files without `transcode` but with W_skip are older: they take b_dec off the input."""
    p, w_skip, x = parts(), normal(4, 4), positions()
    stated = {"transcode": True} if transcode else {}
    sparsify(tmp_path, p, {**stated, "skip_connection": skip}, {"W_skip": w_skip} if skip else {})
    sae = load_sae(tmp_path)
    pre = 0 if transcode else f64(p.b_dec)
    codes = top_k((f64(x) - pre) @ f64(p.encoder).T + f64(p.b_enc))
    rest = f64(p.b_dec) + (f64(x) @ f64(w_skip).T if skip else 0)
    check_transcoder(sae, x, codes, f64(p.decoder), rest)
    assert sae.signal is None and (sae.skip is not None) == skip


@pytest.mark.parametrize("norm", ["none", "layer_norm", "constant_norm_rescale"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_saelens_transcoders(tmp_path: Path, architecture: str, norm: str) -> None:
    """Inputs may be normalised, which says nothing about outputs; these may have another width."""
    p, x = parts(), positions()
    decoder, b_dec, w_skip = normal(6, 5), normal(5), normal(5, 4)
    state: dict[str, Tensor] = {"W_dec": decoder, "b_dec": b_dec}
    state |= {"W_skip": w_skip} if "skip" in architecture else {}
    state |= {"threshold": p.threshold} if "jumprelu" in architecture else {}
    hooks = {"hook_name": "unet.mid_block.attentions.0", "hook_name_out": "unet.mid_block.attentions.0.proj_out"}
    config = {"architecture": architecture, "d_out": 5, "normalize_activations": norm, "metadata": hooks}
    saelens(tmp_path, p, {**config, "apply_b_dec_to_input": False}, state)
    sae = load_sae(tmp_path)
    u = f64(x)
    if norm == "layer_norm":
        u = (u - u.mean(-1, keepdims=True)) / (u.std(-1, ddof=1, keepdims=True) + 1e-5)
    elif norm != "none":
        u = u * 2 / np.linalg.norm(u, axis=-1, keepdims=True)
    act = above(f64(p.threshold)) if "jumprelu" in architecture else relu
    rest = f64(b_dec) + (f64(x) @ f64(w_skip).T if "skip" in architecture else 0)
    check_transcoder(sae, x, act(u @ f64(p.encoder).T + f64(p.b_enc)), f64(decoder), rest)
    assert (sae.block, sae.signal, sae.d, sae.d_out) == ("mid.0", "update", 4, 5)
    with pytest.raises(RiebenchError, match=r"has width 4 in and 5 out, but"):
        check_width(sae, "mid.0", tiny_model())


def test_only_transcoders_skip_their_features() -> None:
    p = parts()
    built = (p.encoder, p.decoder, p.b_dec, p.b_dec, p.b_enc)
    with pytest.raises(RiebenchError, match="reconstructs what it reads without any feature"):
        SparseAutoencoder(*built, k=2, skip=torch.eye(4))
    with pytest.raises(RiebenchError, match="decoder_bias has shape"):
        SparseAutoencoder(p.encoder, p.decoder, p.b_dec, torch.zeros(5), p.b_enc, k=2)
    sae = SparseAutoencoder(*built, k=2, transcoder=True, skip=torch.eye(4))
    with pytest.raises(ValueError, match="has a skip connection"):
        sae.decode(torch.zeros(1, 6))


def test_the_user_says_what_an_unbox_file_holds(tmp_path: Path) -> None:
    write_unbox(tmp_path, parts())
    usual, stated, output = (load_sae(tmp_path, SaeOptions(signal=signal)) for signal in (None, "update", "output"))
    assert (usual.signal, stated.signal, output.signal, output.reads) == ("update", "update", "output", "output")
    # The same weights give other edits there, so that their runs must not be taken for each other.
    assert usual.sha256 == stated.sha256 != output.sha256


def test_a_configuration_may_state_the_signal(tmp_path: Path) -> None:
    decoder = torch.nn.functional.normalize(normal(4, 6), dim=0)
    zeros: dict[str, Any] = {"pre_bias": torch.zeros(4), "latent_bias": torch.zeros(6)}
    save_sdxl_unbox(tmp_path, encoder=decoder.T, decoder=decoder, k=2, **zeros, extra={"signal": "output"})
    assert load_sae(tmp_path).signal == "output"
    with pytest.raises(RiebenchError, match="was trained on block outputs, not on updates"):
        load_sae(tmp_path, SaeOptions(signal="update"))
    save_sdxl_unbox(tmp_path, encoder=decoder.T, decoder=decoder, k=2, **zeros, extra={"signal": "input"})
    with pytest.raises(RiebenchError, match="signal is update or output, not 'input'"):
        load_sae(tmp_path)


def test_a_run_asks_for_a_signal_that_nothing_states(tmp_path: Path) -> None:
    wide = parts(n=96, d=64)
    sparsify(tmp_path / "mid.0", wide, {"transcode": True})
    write_saeuron(tmp_path / "up.0.1", wide)
    with pytest.raises(RiebenchError, match=r"mid\.0 does not say .* add #signal=update .* #signal=output"):
        model_saes(str(tmp_path), tiny_model(), ["mid.0"])
    found = model_saes(f"{tmp_path}#signal=output", tiny_model(), ["mid.0", "up.0.1"])
    assert [(sae.reads, sae.signal) for sae in found.values()] == [("input", "output"), ("output", "output")]
    built = (wide.encoder, wide.decoder, wide.b_dec, wide.b_dec, wide.b_enc)
    unknown = SparseAutoencoder(*built, k=2, signal=None)
    with pytest.raises(RiebenchError, match="does not say what it was trained on"):
        assert unknown.reads


def modulation(d: int, e: int = 16) -> dict[str, Tensor]:
    """Tensors of a time's modulation, as DifFRACT names them."""
    shapes = {"time_mlp.0": e, "time_mlp.2": e, "mod_linear": 2 * d}
    weights = {f"{name}.weight": normal(width, e, seed=len(name) + width) / 3 for name, width in shapes.items()}
    return weights | {f"{name}.bias": normal(width, seed=width) / 3 for name, width in shapes.items()}


def write_diffract(path: Path, p: Parts) -> dict[str, Tensor]:
    time = modulation(p.d)
    state = {
        "encoder.weight": p.encoder, "encoder.bias": p.b_enc, "decoder.weight": p.decoder.T.contiguous(),
        "decoder.bias": p.b_dec, **time,
    }  # fmt: skip
    put(path.parent, path.name, state)
    return time


def silu(x: Floats) -> Floats:
    return x / (1 + np.exp(-x))


def modulated(x: Floats, t: float, time: dict[str, Tensor]) -> Floats:
    """What the encoder reads at a time, in float64."""
    e = time["time_mlp.0.bias"].numel()
    angles = t * np.exp(-np.log(10_000) * np.arange(e // 2) / (e // 2 - 1))
    values = np.concatenate([np.sin(angles), np.cos(angles)])
    for name in ("time_mlp.0", "time_mlp.2"):
        values = silu(f64(time[f"{name}.weight"]) @ values + f64(time[f"{name}.bias"]))
    scale, shift = np.split(f64(time["mod_linear.weight"]) @ values + f64(time["mod_linear.bias"]), 2)
    return np.asarray(x * (1 + scale) + shift)


@pytest.mark.parametrize(("name", "reads"), [("transcoder_img_6.pt", "input"), ("sae_txt_12.pt", "update")])
def test_diffract_files_depend_on_the_time(tmp_path: Path, name: str, reads: str) -> None:
    p, x = parts(), positions()
    time = write_diffract(tmp_path / name, p)
    sae = load_sae(tmp_path / name)
    assert (sae.format, sae.reads, sae.signal, sae.timed) == ("DifFRACT", reads, "update", True)
    lengths, found = np.linalg.norm(f64(p.decoder), axis=1), []
    for t in (1.0, 0.25, 750.0):
        codes = relu(modulated(f64(x), t, time) @ f64(p.encoder).T + f64(p.b_enc))
        found.append(sae.encode(x, t))
        np.testing.assert_allclose(found[-1].numpy(), codes * lengths, rtol=1e-4, atol=2e-4)
        reconstruction = codes @ f64(p.decoder) + f64(p.b_dec)
        np.testing.assert_allclose(sae.decode(found[-1], x, t).numpy(), reconstruction, rtol=1e-4, atol=5e-4)
    assert not torch.allclose(found[0], found[1], atol=0.1)
    # One time for each of the first axis: each as alone, however many there are.
    together = sae.encode(x, torch.tensor([1.0, 0.25, 750.0]))
    assert all(torch.allclose(together[i], found[i][i], atol=1e-5) for i in range(3))
    with pytest.raises(RiebenchError, match="depend on the denoising time, which is not known here"):
        sae.encode(x)


def test_the_embedding_of_the_time_is_that_of_diffusers() -> None:
    """Against the function that the files were trained with."""
    eye, zeros = torch.eye(16), torch.zeros(16)
    time = TimeModulation((eye, zeros), (eye, zeros), (eye, zeros))
    t = torch.tensor([0.0, 0.3, 999.0])
    plain = get_timestep_embedding(t, embedding_dim=16)
    expected = torch.nn.functional.silu(torch.nn.functional.silu(plain)).chunk(2, dim=-1)
    for found, wanted in zip(time(t), expected, strict=True):
        assert torch.allclose(found, wanted, atol=1e-6)


def test_a_diffract_file_that_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "transcoder_img_0.pt"
    time = write_diffract(path, parts())
    state = torch.load(path, weights_only=True)
    put(tmp_path, path.name, {**state, "time_mlp.2.weight": time["time_mlp.2.weight"][:3]})
    with pytest.raises(RiebenchError, match=r"transcoder_img_0.pt: SAE tensor time second weight has shape \[3, 16\]"):
        load_sae(path)
    put(tmp_path, path.name, {**state, "mod_linear.weight": torch.zeros(4, 16), "mod_linear.bias": torch.zeros(4)})
    with pytest.raises(RiebenchError, match="time modulation has width 2, its encoder 4"):
        load_sae(path)
    put(tmp_path, path.name, {**state, "extra.weight": torch.zeros(2)})
    with pytest.raises(RiebenchError, match=r"does not know: extra\.weight"):
        load_sae(path)


def reading_context(reads: str, sae: SparseAutoencoder) -> EditContext:
    """A context whose trace also holds outputs or inputs, with other values than the updates."""
    ctx = context()
    trace, generator = ctx.runs.trace, torch.Generator().manual_seed(9)
    for step in range(STEPS):
        for block in BLOCKS:
            picture = torch.randn(2, CHANNELS, GRID, GRID, generator=generator)
            trace.add(block, reads, {"conditional": picture}, unconditional=False)
        trace.times.append(torch.tensor(0.8 - 0.5 * step))
    return EditContext(ctx.runs, ctx.blocks, dict.fromkeys(BLOCKS, sae))


def random_sae(**options: Any) -> SparseAutoencoder:
    shape = FEATURES, CHANNELS
    return SparseAutoencoder(normal(*shape), normal(*shape, seed=8), torch.zeros(CHANNELS), torch.zeros(CHANNELS),
                             torch.zeros(FEATURES), k=6, **options)  # fmt: skip


class StepDecoders(SparseAutoencoder):
    """An SAE with another decoder at each step: the directions of time t are those of 0 times (1 + t)."""

    def decode(self, f: Tensor, like: Tensor | None = None, t: Time | None = None) -> Tensor:
        assert t is not None
        return f @ (self.directions * (1 + torch.as_tensor(t)))

    def feature_directions(self, features: Tensor, t: Time | None = None) -> Tensor:
        assert t is not None
        times = torch.as_tensor(t)
        return self.directions[features] * (1 + times.reshape([*times.shape, 1, 1]))

    @property
    def timed(self) -> bool:
        return True


@pytest.mark.parametrize("kind", ["output", "transcoder", "timed", "step decoders"])
@pytest.mark.parametrize("long", [False, True])
def test_an_edit_is_the_difference_of_decoded_features(kind: str, long: bool) -> None:
    reads: Reads = "input" if kind == "transcoder" else "output"
    if kind == "step decoders":
        shape = FEATURES, CHANNELS
        zeros = torch.zeros(CHANNELS), torch.zeros(CHANNELS), torch.zeros(FEATURES)
        sae: SparseAutoencoder = StepDecoders(normal(*shape), normal(*shape, seed=8), *zeros, k=6, signal="output")
    else:
        time = modulation(CHANNELS)
        layers = [(time[f"{name}.weight"], time[f"{name}.bias"]) for name in ("time_mlp.0", "time_mlp.2", "mod_linear")]
        kinds: dict[str, dict[str, Any]] = {
            "output": {"signal": "output"},
            "transcoder": {"transcoder": True, "skip": normal(CHANNELS, CHANNELS)},
            "timed": {"signal": "output", "time": TimeModulation(*layers)},
        }
        sae = random_sae(**kinds[kind])
    ctx = reading_context(reads, sae)
    ctx.runs.trace.long = long
    edit = edit_of("sae", ctx, n_features=5)
    for block in BLOCKS:
        added, removed = (list(some) for some in edit.features[block])
        expected = torch.zeros(STEPS, GRID * GRID, CHANNELS)
        sides: tuple[tuple[Role, list[int], int], ...] = (("target", added, 1), ("source", removed, -1))
        for role, chosen, sign in sides:
            at = ctx.runs.positions(role, block)
            for step in range(STEPS):
                t = ctx.runs.trace.times[step] if sae.timed else None
                x = ctx.runs.trace.row(block, 0 if role == "source" else 1, reads)[step, at]
                codes = sae.encode(x, t)
                without = codes.clone()
                without[:, chosen] = 0
                expected[step, at] += sign * (sae.decode(codes, x, t) - sae.decode(without, x, t))
        assert added or removed
        torch.testing.assert_close(dense(edit, block), expected, atol=2e-5, rtol=1e-4)


def test_a_live_edit_takes_away_what_the_sae_reads_in_the_edited_run() -> None:
    x, seen = normal(5, CHANNELS), list[str]()
    sae = random_sae(transcoder=True, skip=normal(CHANNELS, CHANNELS), normalise="layer")
    edit = AdaptiveEdit(StaticEdit(()), torch.tensor([0, 3]), torch.arange(FEATURES), sae)

    def read(what: str) -> Tensor:
        seen.append(what)
        return x

    change = edit.change(LiveSite(0, None, read))
    assert change is not None and seen == ["input"]
    expected = torch.zeros_like(x)
    expected[[0, 3]] = (sae.decode(torch.zeros(5, FEATURES), x) - sae.decode(sae.encode(x), x))[[0, 3]]
    torch.testing.assert_close(change, expected, atol=1e-5, rtol=1e-5)


def test_without_a_stated_time_a_timed_sae_is_refused() -> None:
    ctx = reading_context("output", random_sae(signal="output", time=_tiny_modulation()))
    ctx.runs.trace.times.clear()
    with pytest.raises(RiebenchError, match="denoiser states no time"):
        edit_of("sae", ctx)


def _tiny_modulation() -> TimeModulation:
    eye = torch.eye(4)
    return TimeModulation((eye, eye[0]), (eye, eye[0]), (normal(2 * CHANNELS, 4), torch.zeros(2 * CHANNELS)))
