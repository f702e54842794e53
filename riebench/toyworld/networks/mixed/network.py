"""The innermost level of the mixed world's U-Net, with narrow block updates.

Text enters a toy U-Net at its innermost level alone. The outer levels are those of toy-turbo, unchanged, and so what
the level gets of a given noise and what it should hand on for a given caption are known: the mixed world trains this
level by itself.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from riebench.models.families.sdxl.names import BLOCKS
from riebench.toyworld.networks.diffusion import BLOCK_MODULES, time_ids
from riebench.toyworld.networks.text import BLOCK_ROLES, HIDDEN

RANK = 16
"""Dimensions of each block's update. The grammar has 54 attribute values, all of which every block must carry."""
FIRST_TIMESTEP = 999
FOREIGN_SCALE = 0.5
"""Standard deviation of the weights that read words of other roles at first, in those of the block's own."""
INIT_SEED = 71


class LowRankLinear(nn.Module):
    """Linear map of low rank: a product of two narrow maps."""

    def __init__(self, inner: nn.Linear, outer: nn.Linear) -> None:
        super().__init__()
        self.inner, self.outer = inner, outer

    def forward(self, x: Tensor) -> Tensor:
        """Map float [..., inputs] to float [..., outputs]."""
        result: Tensor = self.outer(self.inner(x))
        return result

    def folded(self) -> nn.Linear:
        """Return the same map as one linear layer."""
        whole = nn.Linear(self.inner.in_features, self.outer.out_features)
        with torch.no_grad():
            whole.weight.copy_(self.outer.weight @ self.inner.weight)
            whole.bias.copy_(self.outer.bias)
        return whole


def low_rank(layer: nn.Linear, outputs: Tensor, rank: int = RANK) -> LowRankLinear:
    """Narrow a linear layer to the directions in which its outputs vary most.

    Args:
        layer: the layer.
        outputs: float [N, outputs], a sample of what it gives.
        rank: number of directions kept.
    """
    mean = outputs.mean(0)
    directions = torch.linalg.eigh((outputs - mean).T @ (outputs - mean)).eigenvectors[:, -rank:]
    inner = nn.Linear(layer.in_features, rank, bias=False)
    outer = nn.Linear(rank, layer.out_features)
    with torch.no_grad():
        inner.weight.copy_(directions.T @ layer.weight)
        outer.weight.copy_(directions)
        outer.bias.copy_(mean + directions @ (directions.T @ (layer.bias - mean)))
    return LowRankLinear(inner, outer)


class InnerLevel(nn.Module):
    """Innermost level of a toy U-Net, with a text for each block.

    It computes the first timestep, from which one-step pictures are made.

    Args:
        unet: the U-Net; its modules are used, not copied.
    """

    time: Tensor

    def __init__(self, unet: UNet2DConditionModel) -> None:
        super().__init__()
        self.down, self.mid, self.up = unet.down_blocks[2], unet.mid_block, unet.up_blocks[0]
        self.register_buffer("time", time_embedding(unet), persistent=False)

    def forward(self, below: Tensor, texts: Mapping[str, Tensor]) -> Tensor:
        """Compute the hidden state that the level hands on, before it is enlarged.

        Args:
            below: float [B, 64, 8, 8], the output of the second level.
            texts: block -> its text, float [B, 32, 128], for all six blocks of the level.

        Returns:
            float [B, 128, 8, 8].
        """
        time = self.time.expand(len(below), -1)
        state, skips = below, [below]
        for i, (resnet, attention) in enumerate(zip(self.down.resnets, self.down.attentions, strict=True)):
            state = _attend(attention, resnet(state, time), texts[f"down.2.{i}"])
            skips.append(state)
        state = _attend(self.mid.attentions[0], self.mid.resnets[0](state, time), texts["mid.0"])
        state = self.mid.resnets[1](state, time)
        for i, (resnet, attention) in enumerate(zip(self.up.resnets, self.up.attentions, strict=True)):
            state = _attend(attention, resnet(torch.cat([state, skips.pop()], dim=1), time), texts[f"up.0.{i}"])
        return state


def _attend(attention: nn.Module, state: Tensor, text: Tensor) -> Tensor:
    result: Tensor = attention(state, encoder_hidden_states=text, return_dict=False)[0]
    return result


@torch.no_grad()
def time_embedding(unet: UNet2DConditionModel) -> Tensor:
    """Compute the embedding of timestep and picture size: float [1, 128]."""
    device = unet.device
    step = torch.tensor([FIRST_TIMESTEP], device=device)
    ids = unet.add_time_proj(time_ids(1).to(device).flatten()).reshape(1, -1)
    extra = unet.add_embedding(torch.cat([torch.zeros(1, HIDDEN, device=device), ids], dim=1))
    embedding: Tensor = unet.time_embedding(unet.time_proj(step)) + extra
    return embedding


@torch.no_grad()
def second_level(unet: UNet2DConditionModel, noise: Tensor) -> Tensor:
    """Compute the innermost level's input from noise.

    Args:
        unet: a toy U-Net.
        noise: float [B, 4, 32, 32].

    Returns:
        float [B, 64, 8, 8].
    """
    time = time_embedding(unet).expand(len(noise), -1)
    state = unet.conv_in(noise)
    for block in (unet.down_blocks[0], unet.down_blocks[1]):
        state, _ = block(hidden_states=state, temb=time)
    return state


def make_student(
    teacher: UNet2DConditionModel, below: Tensor, text: Tensor, *, reads_all: bool = False
) -> UNet2DConditionModel:
    """Copy a U-Net, let its blocks read all words, and narrow their updates.

    Trainable are the parameters of the innermost level, but for the text weights of the two blocks without text.

    Args:
        teacher: the U-Net.
        below: float [B, 64, 8, 8], a sample of the level's inputs.
        text: float [B, 32, 128], captions for them.
        reads_all: whether its blocks read all words already.
    """
    student = copy.deepcopy(teacher).requires_grad_(False)
    updates: dict[str, Tensor] = {}
    handles = []
    for block in BLOCKS:
        layer = student.get_submodule(BLOCK_MODULES[block]).proj_out

        def keep(_module: nn.Module, _inputs: object, output: Tensor, block: str = block) -> None:
            updates[block] = output.flatten(0, -2)

        handles.append(layer.register_forward_hook(keep))
    level = InnerLevel(student)
    with torch.no_grad():
        level(below, dict.fromkeys(BLOCK_MODULES, text))
    for handle in handles:
        handle.remove()
    for block in BLOCKS:
        attention = student.get_submodule(BLOCK_MODULES[block])
        attention.proj_out = low_rank(attention.proj_out, updates[block])
    if not reads_all:
        _read_all_words(student)
    level.requires_grad_(True)
    for block, path in BLOCK_MODULES.items():
        if block not in BLOCKS:
            for layer in student.get_submodule(path).transformer_blocks:
                layer.attn2.requires_grad_(False)
    student.up_blocks[0].upsamplers.requires_grad_(False)
    return student


@torch.no_grad()
def _read_all_words(unet: UNet2DConditionModel) -> None:
    """Give the cross-attentions weights for the words of other roles, drawn at random."""
    generator = torch.Generator().manual_seed(INIT_SEED)
    for role in BLOCK_ROLES:
        for layer in unet.get_submodule(BLOCK_MODULES[role.block]).transformer_blocks:
            for weight in (layer.attn2.to_k.weight, layer.attn2.to_v.weight):
                foreign = torch.randn(weight.shape, generator=generator) * weight[:, role.columns].std()
                foreign[:, role.columns] = 0
                weight.add_(FOREIGN_SCALE * foreign)


def fold(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """Return a copy with the narrow maps folded into linear layers.

    Its modules are those of diffusers' own class.
    """
    whole = copy.deepcopy(unet)
    for block in BLOCKS:
        attention = whole.get_submodule(BLOCK_MODULES[block])
        if isinstance(attention.proj_out, LowRankLinear):
            attention.proj_out = attention.proj_out.folded()
    return whole
