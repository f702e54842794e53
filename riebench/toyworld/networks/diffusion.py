"""The U-Net of the toy SDXL and its training.

toy-base is trained on pictures, and toy-turbo is distilled from toy-base.

Text enters at the innermost level only, through the cross-attention of the paper's four blocks, each of which can
read one subspace of the text embedding (`text.BLOCK_ROLES`). The other two inner blocks (down.2.0, up.0.2) have the
output of their cross-attention fixed at zero, and the weights of pooled text and time ids are zero. All of this is in
the weights: the U-Net loads in diffusers' own pipeline.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from riebench.scoring.metrics.judge_network import ATTRIBUTES, Values
from riebench.toyworld.captions import caption
from riebench.toyworld.data import Pool
from riebench.toyworld.networks.loop import step_generator
from riebench.toyworld.networks.text import BLOCK_ROLES, CONTEXT, HIDDEN, build_tokenizers, embedding_table

CHANNELS = (32, 64, 128)
TIME_ID_DIM = 8
BASE_SEED, TURBO_SEED = 21, 31
BASE_CONFIG = {
    "steps": 7000, "batch": 32, "learning_rate": 1.5e-3, "caption_dropout": 0.1, "start_level": 940,
    "hard_share": 0.4, "seed": BASE_SEED,
}  # fmt: skip
TURBO_CONFIG = {"steps": 160, "batch": 32, "learning_rate": 4e-4, "guidance": 2.0, "seed": TURBO_SEED}
WIDE_BASE_CONFIG = {**BASE_CONFIG, "steps": 1600, "learning_rate": 1e-3, "hard_share": 0.2, "seed": BASE_SEED + 1}
"""That of the second world's base model, which starts from toy-base."""
WIDE_PATTERNS_CONFIG = {
    **WIDE_BASE_CONFIG,
    "steps": 1000,
    "learning_rate": 8e-4,
    "hard_share": 0.5,
    "seed": BASE_SEED + 2,
}
"""That of its second part, in which half of a batch are patterned objects in crisp styles: patterns come last."""
BLURRED_STYLES = ("watercolor", "pixel")
"""Styles in which a pattern is a few blots or cells."""
WIDE_TURBO_CONFIG = {**TURBO_CONFIG, "seed": TURBO_SEED + 1}
TURBO_TIMESTEPS = (999, 749, 499, 249)
BLOCK_MODULES = {
    "down.2.0": "down_blocks.2.attentions.0", "down.2.1": "down_blocks.2.attentions.1",
    "mid.0": "mid_block.attentions.0",
    "up.0.0": "up_blocks.0.attentions.0", "up.0.1": "up_blocks.0.attentions.1", "up.0.2": "up_blocks.0.attentions.2",
}  # fmt: skip


def alphas_cumprod() -> Tensor:
    """Return SDXL's noise schedule, the cumulative product of alphas: float [1000]."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    return torch.cumprod(1 - betas, dim=0).float()


def build_unet(seed: int = BASE_SEED) -> UNet2DConditionModel:
    """Build an untrained U-Net with the planted roles of its blocks."""
    torch.manual_seed(seed)
    unet = UNet2DConditionModel(
        sample_size=32,
        down_block_types=("DownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        block_out_channels=CHANNELS,
        layers_per_block=2,
        transformer_layers_per_block=[1, 1, 2],
        attention_head_dim=[1, 2, 4],
        cross_attention_dim=2 * HIDDEN,
        use_linear_projection=True,
        norm_num_groups=8,
        addition_embed_type="text_time",
        addition_time_embed_dim=TIME_ID_DIM,
        projection_class_embeddings_input_dim=6 * TIME_ID_DIM + HIDDEN,
    )
    plant_roles(unet)
    return unet


def plant_roles(unet: UNet2DConditionModel) -> None:
    """Fix at zero, for good, the text weights that `BLOCK_ROLES` does not allow.

    These are all weights through which text could enter a block that is not to read it. Gradients of the fixed weights
    are zeroed by hooks, so no optimiser step (nor weight decay) moves them.
    """

    def fix(weight: nn.Parameter, keep: slice | None) -> None:
        mask = torch.zeros_like(weight)
        if keep is not None:
            mask[:, keep] = 1
        with torch.no_grad():
            weight.mul_(mask)
        weight.register_hook(lambda gradient: gradient * mask.to(gradient.device))

    columns = {role.block: role.columns for role in BLOCK_ROLES}
    for block, path in BLOCK_MODULES.items():
        for layer in unet.get_submodule(path).transformer_blocks:
            fix(layer.attn2.to_k.weight, columns.get(block))
            fix(layer.attn2.to_v.weight, columns.get(block))
            if block not in columns:
                fix(layer.attn2.to_out[0].weight, None)
                layer.attn2.to_out[0].bias.requires_grad_(False).zero_()
    # Pooled text must have no influence, and time ids are the same for every toy picture.
    fix(unet.add_embedding.linear_1.weight, None)


def time_ids(batch: int) -> Tensor:
    """Return the time ids of 64-pixel pictures without cropping: float [B, 6].

    The SDXL pipeline passes the same ones.
    """
    return torch.tensor([64.0, 64, 0, 0, 64, 64]).expand(batch, 6)


class CaptionEmbedder:
    """The text embedding that the U-Net gets from the pipeline's two text encoders.

    It is computed by table look-up.

    Args:
        values: those of the world.
    """

    def __init__(self, values: Values = ATTRIBUTES) -> None:
        self.tokenizer = build_tokenizers(values)[0]
        self.table = embedding_table(self.tokenizer, values)

    def __call__(self, captions: list[str]) -> Tensor:
        """Embed captions: float [B, 32, 128]."""
        ids = self.tokenizer(captions, padding="max_length", max_length=CONTEXT, truncation=True, return_tensors="pt")
        return self.table[ids.input_ids]


Predict = Callable[[Tensor, Tensor, Tensor], Tensor]


def predictor(unet: nn.Module, device: torch.device) -> Predict:
    """Wrap a U-Net as a function (x_t, t, text) -> v, in float32.

    It computes under bf16 autocast, with the fast attention for short sequences.
    """

    def predict(noisy: Tensor, t: Tensor, text: Tensor) -> Tensor:
        batch = len(noisy)
        extra = {"text_embeds": torch.zeros(batch, HIDDEN, device=device), "time_ids": time_ids(batch).to(device)}
        with torch.autocast(device.type, dtype=torch.bfloat16), short_attention():
            v = unet(noisy, t, encoder_hidden_states=text, added_cond_kwargs=extra, return_dict=False)[0]
        return v.float()

    return predict


def short_attention() -> AbstractContextManager[None]:
    """Select the plain attention.

    On a CPU and at 64 positions, its backward pass is twice as fast as that of the fused one.
    """
    return sdpa_kernel([SDPBackend.MATH])


def captions_of(pool: Pool, indices: Tensor, seed: int, step: int) -> list[str]:
    """Word a caption for each picture, differently at each step."""
    rng = random.Random(seed * 10_000_019 + step)
    return [caption(pool.scene(int(i)), rng) for i in indices]


def base_indices(
    hard: Tensor, pictures: int, generator: torch.Generator, config: Mapping[str, float] = BASE_CONFIG
) -> Tensor:
    """Draw the pictures of one batch, `hard_share` of them from `hard` alone.

    A tilted or pixelated outline falls on the 8x8 grid in more ways than an upright one: such objects are still soft
    when all others are crisp. The caption names pose and style, so seeing them more often does not change the
    meaning of any caption.

    Args:
        hard: int64 [M], the pictures that are hard to learn.
        pictures: number of all pictures.
        generator: CPU generator; decides everything.
        config: the stage's settings.

    Returns:
        int64 [batch].
    """
    batch = int(config["batch"])
    anywhere = torch.randint(pictures, (batch,), generator=generator)
    among_hard = hard[torch.randint(len(hard), (batch,), generator=generator)]
    return torch.where(torch.rand(batch, generator=generator) < config["hard_share"], among_hard, anywhere)


def patterned(pool: Pool) -> Tensor:
    """Find the pictures of patterned objects in crisp styles, int64 [M]."""
    chosen = torch.ones(len(pool.labels), dtype=torch.bool)
    chosen[pool.having(material="plain")] = False
    for style in BLURRED_STYLES:
        chosen[pool.having(style=style)] = False
    return chosen.nonzero()[:, 0]


def base_loss(
    unet: nn.Module, pool: Pool, latents: Tensor, device: torch.device, config: Mapping[str, float] = BASE_CONFIG,
    hard: Tensor | None = None,
) -> Callable[[int], Tensor]:  # fmt: skip
    """Build the loss of a base model: mean squared error of v on noised latents.

    High noise levels are drawn more often (density rising with t): there the caption alone decides the picture, and
    that is what one-step generation needs. From `start_level` on, where samplers start, the input is noise alone: at
    SDXL's last noise level a trace of the picture is left, enough to tell a dark picture from a bright one, and a
    model that relied on it would ignore the caption's "night" when it starts from pure noise.
    Captions are dropped now and then for classifier-free guidance; the unconditional embedding is all zeros, as in
    the SDXL pipeline for an absent negative prompt.

    Args:
        unet: the network.
        pool: the training pictures.
        latents: theirs.
        device: of the network.
        config: the stage's settings.
        hard: pictures that are drawn more often, int64 [M]; None for tilted and pixelated ones.
    """
    embed = CaptionEmbedder(pool.values)
    schedule = alphas_cumprod()
    predict = predictor(unet, device)
    hard = pool.having(pose="tilted", style="pixel") if hard is None else hard
    batch, start, seed = (int(config[name]) for name in ("batch", "start_level", "seed"))

    def loss(step: int) -> Tensor:
        generator = step_generator(seed, step)
        indices = base_indices(hard, len(latents), generator, config)
        clean = latents[indices].float()
        text = embed(captions_of(pool, indices, seed, step))
        text[torch.rand(batch, generator=generator) < config["caption_dropout"]] = 0
        t = (1000 * torch.rand(batch, generator=generator).sqrt()).long().clamp(max=999)
        starting = torch.randint(start, 1000, (batch,), generator=generator)
        t = torch.where(torch.rand(batch, generator=generator) < 0.15, starting, t)
        noise = torch.randn(clean.shape, generator=generator)
        a = schedule[t].view(-1, 1, 1, 1)
        noisy = torch.where((t >= start).view(-1, 1, 1, 1), noise, a.sqrt() * clean + (1 - a).sqrt() * noise)
        v = (a.sqrt() * noisy - clean) / (1 - a).sqrt()
        noisy = noisy.to(device).contiguous(memory_format=torch.channels_last)
        return (predict(noisy, t.to(device), text.to(device)) - v.to(device)).square().mean()

    return loss


def clean_from_v(noisy: Tensor, v: Tensor, alpha: Tensor) -> Tensor:
    """Compute the clean latent that a v-prediction implies."""
    return alpha.sqrt() * noisy - (1 - alpha).sqrt() * v


@torch.no_grad()
def teacher_rollout(predict: Predict, noise: Tensor, text: Tensor, guidance: float) -> Tensor:
    """Sample from pure noise in four deterministic steps, with guidance.

    Returns:
        The clean latents that the teacher makes of the noise, shaped like it.
    """
    schedule = alphas_cumprod()
    x, both = noise, torch.cat([torch.zeros_like(text), text])
    for i, t in enumerate(TURBO_TIMESTEPS):
        alpha = schedule[t]
        steps = torch.full((2 * len(x),), t, device=x.device)
        without, with_text = predict(torch.cat([x, x]), steps, both).chunk(2)
        v = without + guidance * (with_text - without)
        clean = clean_from_v(x, v, alpha)
        epsilon = alpha.sqrt() * v + (1 - alpha).sqrt() * x
        if i + 1 == len(TURBO_TIMESTEPS):
            return clean
        after = schedule[TURBO_TIMESTEPS[i + 1]]
        x = after.sqrt() * clean + (1 - after).sqrt() * epsilon
    raise AssertionError("unreachable")


def turbo_loss(
    student: nn.Module, teacher: nn.Module, pool: Pool, latents: Tensor, device: torch.device,
    config: Mapping[str, float] = TURBO_CONFIG,
) -> Callable[[int], Tensor]:  # fmt: skip
    """Build the loss of a distilled model, that of the guided teacher's pictures.

    The student learns to reach in one step what the teacher reaches in four, and to go on from any later step. Half of
    a batch starts from pure noise at the first timestep and aims at the picture that the teacher makes of the same
    noise; the other half starts from a training picture with noise at one of the later timesteps.
    """
    embed = CaptionEmbedder(pool.values)
    schedule = alphas_cumprod()
    predict_teacher, predict_student = predictor(teacher, device), predictor(student, device)
    batch, seed = int(config["batch"]), int(config["seed"])
    half = batch // 2

    def loss(step: int) -> Tensor:
        generator = step_generator(seed, step)
        indices = torch.randint(len(pool.labels), (batch,), generator=generator)
        text = embed(captions_of(pool, indices, seed, step)).to(device)
        noise = torch.randn(batch, 4, 32, 32, generator=generator).to(device)
        first = teacher_rollout(predict_teacher, noise[:half], text[:half], config["guidance"])
        goal = torch.cat([first, latents[indices[half:]].float().to(device)])
        later = torch.tensor(TURBO_TIMESTEPS[1:])[torch.randint(3, (batch,), generator=generator)]
        t = torch.where(torch.arange(batch) < half, TURBO_TIMESTEPS[0], later)
        alpha = schedule[t].view(-1, 1, 1, 1).to(device)
        noisy = alpha.sqrt() * goal + (1 - alpha).sqrt() * noise
        noisy[:half] = noise[:half]
        predicted = clean_from_v(noisy, predict_student(noisy, t.to(device), text), alpha)
        error = (predicted - goal).square().flatten(1).mean(1)
        return (error + 0.01).sqrt().mean()  # less than the square for what cannot be predicted: keeps edges crisp

    return loss
