"""Looking into a U-Net and changing it."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import CHANNELS, GRID, tiny_model
from torch import Tensor, nn
from unet_calls import POSITIONS, call_unet, push, unet_input

from riebench import blocks
from riebench.errors import RiebenchError
from riebench.generation.edits import AdaptiveEdit, Branch, Edit, StaticEdit, Term
from riebench.generation.generator import Capture, Generator
from riebench.generation.trace import capture, intervene
from riebench.models.families.blocks import Half
from riebench.models.families.sdxl.names import BLOCKS, SDXL_BLOCKS
from riebench.saes.sae import SparseAutoencoder

PROMPTS, SEEDS = ["a red house", "a blue cat"], [1, 2]


def hook_count() -> int:
    """Hooks on the tiny U-Net."""
    return sum(
        len(module._forward_hooks) + len(module._forward_pre_hooks) for module in tiny_model().denoiser.modules()
    )


@pytest.mark.parametrize("name", SDXL_BLOCKS)
def test_block_names_translate_both_ways(name: str) -> None:
    assert blocks.short_name(blocks.module_path(name)) == name
    assert blocks.short_name(blocks.long_name(name)) == name
    assert blocks.module_path(blocks.long_name(name)) == blocks.module_path(name)


@given(st.integers(0, 9), st.integers(0, 9), st.integers(0, 99))
def test_unit_names_translate_both_ways(level: int, index: int, layer: int) -> None:
    name = blocks.unit_site(f"up.{level}.{index}", layer)
    assert blocks.short_name(blocks.module_path(name)) == name
    assert blocks.block_of(name) == f"up.{level}.{index}"
    assert blocks.kind(name) == blocks.UNITS


def test_unknown_block_names_the_nearest() -> None:
    with pytest.raises(RiebenchError, match=r"did you mean 'down.2.1'"):
        blocks.module_path("down.2.l")


def test_update_is_output_minus_input_in_every_block() -> None:
    unet = tiny_model().denoiser
    sites = ["down.2.1", "mid.0", "up.0.0", "up.0.1", "mid.res.0", "down.1.res.0", "up.0.res.2"]
    with capture(unet, sites, keep=("input", "output", "update"), steps=1) as trace:
        call_unet()
    for site in sites:
        update, output, given_ = (trace.get(site, what) for what in ("update", "output", "input"))
        assert update.dtype == torch.float32 and update.shape == output.shape and update.shape[:2] == (2, 1)
        if given_.shape != output.shape:  # a resnet that changes width carries its input through a projection
            shortcut: Any = unet.get_submodule(f"{blocks.module_path(site)}.conv_shortcut")
            given_ = shortcut(given_[:, 0])[:, None]
        torch.testing.assert_close(update, output - given_, atol=1e-5, rtol=1e-5)
    assert trace.grids["mid.0"] == (GRID, GRID)
    assert trace.row("mid.0", 1)[0, 5].tolist() == trace.get("mid.0")[1, 0, :, 1, 1].tolist()


def test_units_are_what_the_feed_forward_layer_passes_on() -> None:
    with capture(tiny_model().denoiser, ["mid.0", "mid.0.ff.0"]) as trace:
        call_unet()
    units = trace.get("mid.0.ff.0")
    assert units.shape == (2, 1, POSITIONS, CHANNELS * 4)
    assert trace.row("mid.0.ff.0", 0).shape == (1, POSITIONS, CHANNELS * 4)


def test_attention_sums_to_one_and_is_that_of_the_layer() -> None:
    unet = tiny_model().denoiser
    with capture(unet, ["mid.0"], keep=("attention",)) as trace:
        call_unet()
    found = trace.get("mid.0", "attention")[:, 0]
    assert found.shape == (2, POSITIONS, 7)
    # The layer's own arithmetic, on what it was given.
    layer: Any = unet.get_submodule("mid_block.attentions.0.transformer_blocks.0.attn2")
    seen: list[Tensor] = []
    handle = layer.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    call_unet()
    handle.remove()
    with torch.inference_mode():
        query = layer.head_to_batch_dim(layer.to_q(seen[0]))
        key = layer.head_to_batch_dim(layer.to_k(unet_input(2)["encoder_hidden_states"]))
        own = layer.get_attention_scores(query, key).unflatten(0, (2, layer.heads)).mean(1)
    torch.testing.assert_close(found, own, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found.sum(-1), torch.ones(2, POSITIONS))
    assert float(found.std()) > 0.01


def test_capturing_changes_nothing() -> None:
    plain = call_unet()
    with capture(tiny_model().denoiser, BLOCKS, keep=("input", "output", "update", "attention")):
        seen = call_unet()
    assert torch.equal(plain, seen)


def test_guidance_halves_are_kept_apart() -> None:
    with capture(tiny_model().denoiser, ["mid.0"], guided=True, unconditional=True) as trace:
        call_unet(guided=True)
    with capture(tiny_model().denoiser, ["mid.0"]) as whole:
        call_unet(guided=True)
    assert torch.equal(trace.get("mid.0", half="unconditional"), whole.get("mid.0")[:2])
    assert torch.equal(trace.get("mid.0"), whole.get("mid.0")[2:])


def test_steps_are_counted_per_generation() -> None:
    result = Generator(tiny_model(steps=3)).generate(PROMPTS, SEEDS, capture=Capture(("mid.0",)))
    assert result.trace.steps == 3
    assert result.trace.get("mid.0").shape == (2, 3, CHANNELS, GRID, GRID)


def test_missing_block_is_an_error_and_leaves_no_hook() -> None:
    before = hook_count()
    unet = tiny_model().denoiser
    with pytest.raises(RiebenchError, match=r"no block down.9.1 \(did you mean"), capture(unet, ["down.9.1"]):
        call_unet()
    assert hook_count() == before


def test_wrong_number_of_calls_is_an_error() -> None:
    unet = tiny_model().denoiser
    with pytest.raises(RiebenchError, match="expected 2 U-Net calls, saw 1"), capture(unet, ["mid.0"], steps=2):
        call_unet()
    with pytest.raises(RiebenchError, match="expected 1 U-Net calls, saw 0"), intervene(unet, [None], steps=1):
        pass


class UNet2DConditionModel(nn.Module):
    """A network, called as SDXL's denoiser is, that has a block and never calls it."""

    def __init__(self) -> None:
        super().__init__()
        block = nn.ModuleDict({"proj_out": nn.Identity()})
        self.mid_block = nn.ModuleDict({"attentions": nn.ModuleList([block])})

    def forward(self, sample: Tensor) -> Tensor:
        return sample


def test_a_block_that_is_passed_over_is_an_error() -> None:
    network = UNet2DConditionModel()
    with pytest.raises(RiebenchError, match=r"mid.0 ran 0 times in 1 U-Net calls"), capture(network, ["mid.0"]):
        network(torch.zeros(1))


def test_hooks_are_gone_after_an_exception() -> None:
    before = hook_count()
    edits = [Edit({"mid.0": push()})]
    with suppress(ZeroDivisionError), capture(tiny_model().denoiser, BLOCKS), intervene(tiny_model().denoiser, edits):
        assert hook_count() > before
        raise ZeroDivisionError
    assert hook_count() == before


def test_each_row_gets_its_own_edit() -> None:
    plain = call_unet()
    with intervene(tiny_model().denoiser, [None, Edit({"mid.0": push()})], steps=1):
        edited = call_unet()
    assert torch.equal(plain[0], edited[0])
    assert not torch.equal(plain[1], edited[1])


@pytest.mark.parametrize(
    "edit",
    [
        Edit({"mid.0": push()}, strength=0.0),
        Edit({"mid.0": StaticEdit(())}),
        Edit({"mid.0": StaticEdit((Term(torch.arange(0), torch.zeros(1, 0, CHANNELS)),))}),
        Edit({}),
    ],
)
def test_an_edit_of_nothing_changes_no_bit(edit: Edit) -> None:
    assert edit.empty
    plain = call_unet()
    with intervene(tiny_model().denoiser, [edit, None]):
        assert torch.equal(call_unet(), plain)


def test_a_change_of_zero_changes_no_bit_either() -> None:
    plain = call_unet()
    with intervene(tiny_model().denoiser, [Edit({"mid.0": push(size=0.0)}), Edit({"up.0.1": push(size=0.0)})]):
        assert torch.equal(call_unet(), plain)


@pytest.mark.parametrize("site", ["mid.0", "mid.res.1", "mid.0.ff.0"])
def test_the_change_is_exactly_what_was_asked(site: str) -> None:
    unet = tiny_model().denoiser
    with capture(unet, [site]) as plain:
        call_unet()
    width = plain.row(site, 0).shape[-1]
    with intervene(unet, [None, Edit({site: push(width)}, strength=2.0)]), capture(unet, [site]) as edited:
        call_unet()
    assert torch.equal(plain.row(site, 0), edited.row(site, 0))
    torch.testing.assert_close(edited.row(site, 1) - plain.row(site, 1), torch.full_like(plain.row(site, 1), 10.0))


@pytest.mark.parametrize("name", ["mid_block.attentions.0", "unet.mid_block.attentions.0"])
def test_sites_of_an_edit_go_by_any_of_their_names(name: str) -> None:
    edited = []
    for site in ("mid.0", name):
        with intervene(tiny_model().denoiser, [None, Edit({site: push()})], steps=1):
            edited.append(call_unet())
    assert torch.equal(*edited) and not torch.equal(edited[0], call_unet())


def test_positions_are_row_major() -> None:
    unet = tiny_model().denoiser
    edit = Edit({"mid.0": StaticEdit((Term(torch.tensor([GRID + 2]), torch.full((1, 1, CHANNELS), 3.0)),))})
    with capture(unet, ["mid.0"]) as plain:
        call_unet(1)
    with intervene(unet, [edit]), capture(unet, ["mid.0"]) as edited:
        call_unet(1)
    change = (edited.get("mid.0") - plain.get("mid.0"))[0, 0].abs().sum(0)
    assert change.nonzero().tolist() == [[1, 2]]


@pytest.mark.parametrize(("branch", "other"), [("both", -5.0), ("conditional", 0.0), ("all", 5.0)])
def test_guidance_branches(branch: Branch, other: float) -> None:
    unet = tiny_model().denoiser
    with capture(unet, ["mid.0"], guided=True, unconditional=True) as plain:
        call_unet(guided=True)
    edit = Edit({"mid.0": push()}, branch=branch)
    with (
        intervene(unet, [None, edit], guided=True),
        capture(unet, ["mid.0"], guided=True, unconditional=True) as edited,
    ):
        call_unet(guided=True)
    sizes: dict[Half, float] = {"conditional": 5.0, "unconditional": other}
    for half, size in sizes.items():
        change = edited.get("mid.0", half=half) - plain.get("mid.0", half=half)
        assert not change[0].any()
        torch.testing.assert_close(change[1], torch.full_like(change[1], size), atol=1e-5, rtol=1e-5)


def test_adaptive_edit_removes_what_is_there_now() -> None:
    torch.manual_seed(1)
    sae = SparseAutoencoder(
        torch.randn(12, CHANNELS), torch.randn(12, CHANNELS), torch.zeros(CHANNELS), torch.zeros(CHANNELS),
        torch.zeros(12), activation="relu",
    )  # fmt: skip
    features = torch.tensor([2, 7])
    edit = Edit({"mid.0": AdaptiveEdit(StaticEdit(()), torch.arange(POSITIONS), features, sae)})
    unet = tiny_model().denoiser
    with capture(unet, ["mid.0"]) as plain:
        call_unet(1)
    with intervene(unet, [edit]), capture(unet, ["mid.0"]) as edited:
        call_unet(1)
    live = plain.row("mid.0", 0)
    expected = live - sae.encode(live)[..., features] @ sae.directions[features]
    torch.testing.assert_close(edited.row("mid.0", 0), expected, atol=1e-4, rtol=1e-4)


def test_wrong_batch_and_too_few_steps_are_errors() -> None:
    edit = Edit({"mid.0": push()})
    with pytest.raises(RiebenchError, match="1 edits for a batch of 2"), intervene(tiny_model().denoiser, [edit]):
        call_unet(2)
    with pytest.raises(RiebenchError, match="made from 1 steps"), intervene(tiny_model().denoiser, [edit]):
        call_unet(1)
        call_unet(1)


def test_unknown_words_are_refused() -> None:
    wrong: Any = "outputs"
    with pytest.raises(RiebenchError, match="did you mean 'output'"), capture(tiny_model().denoiser, [], keep=[wrong]):
        pass
    with pytest.raises(RiebenchError, match="unknown branch 'outputs'"):
        Edit({}, branch=wrong)
