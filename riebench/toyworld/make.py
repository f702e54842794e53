"""The stages of the toy world's training, and the pipelines made of their results.

`make` trains one stage and exports its model to the folder that the package ships. `scheduler`, `assemble` and
`export` put the trained parts together as diffusers pipelines.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Set
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from torch import Tensor, nn

from riebench.errors import RiebenchError
from riebench.models.assets import ASSETS, asset_folder, write_manifest
from riebench.scoring.metrics.judge_network import ATTRIBUTES, WIDE_ATTRIBUTES, Values
from riebench.toyworld import saes
from riebench.toyworld.data import Pool, training_pool, wide_pool
from riebench.toyworld.networks import clip, diffusion, second_clip, vae
from riebench.toyworld.networks.dit import autoencoder, pipeline
from riebench.toyworld.networks.dit import training as dit_training
from riebench.toyworld.networks.dit.transformer import BLOCKS
from riebench.toyworld.networks.judging import training as judge
from riebench.toyworld.networks.judging.damage import damaged_pool, decoded_pool
from riebench.toyworld.networks.judging.edited import SECOND, Origin, edited_pool, unedited_pools
from riebench.toyworld.networks.judging.labelled import read_labelled
from riebench.toyworld.networks.loop import Stage, TrainingFolderError, fit, write_atomically
from riebench.toyworld.networks.mixed import training as mixed_training
from riebench.toyworld.networks.mixed.network import fold
from riebench.toyworld.networks.saving import save_in_half
from riebench.toyworld.networks.text import build_encoders, build_tokenizers

FINISHED = "finished"
"""Folder of a stage's result, in the stage's work folder."""

LABELLED_HINT = "name their folder with --labelled benchmarks/labelled/training"

_SCHEDULE = {
    "num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
    "prediction_type": "v_prediction", "steps_offset": 1,
}  # fmt: skip


def scheduler(name: str) -> Any:
    """Build the scheduler of "toy-base", or that of "toy-turbo" and "toy-mixed".

    They are SDXL's (Euler, leading) and SDXL Turbo's (ancestral Euler, trailing). The one difference from SDXL is
    v-prediction: it stays well-behaved at the last noise level, where one-step generation starts.
    """
    if name in ("toy-turbo", "toy-mixed"):
        return EulerAncestralDiscreteScheduler(timestep_spacing="trailing", **_SCHEDULE)
    return EulerDiscreteScheduler(timestep_spacing="leading", **_SCHEDULE)


def assemble(
    name: str, unet: UNet2DConditionModel, vae: AutoencoderKL, values: Values = ATTRIBUTES
) -> StableDiffusionXLPipeline:
    """Assemble a pipeline from its trained parts.

    Args:
        name: "toy-base", "toy-turbo" or "toy-mixed".
        unet: the model's.
        vae: the autoencoder.
        values: those of the model's world.
    """
    tokenizers = build_tokenizers(values)
    encoders = build_encoders(tokenizers, values)
    return StableDiffusionXLPipeline(
        vae=vae,
        text_encoder=encoders[0],
        text_encoder_2=encoders[1],
        tokenizer=tokenizers[0],
        tokenizer_2=tokenizers[1],
        unet=unet,
        scheduler=scheduler(name),
        force_zeros_for_empty_prompt=True,
        add_watermarker=False,
    )


def export(
    name: str, unet: UNet2DConditionModel, vae: AutoencoderKL, folder: Path, values: Values = ATTRIBUTES
) -> None:
    """Write a pipeline in half precision, as the package ships it.

    It is loaded in float32.
    """
    save_in_half(assemble(name, unet, vae, values), folder)


def make(
    stage: str, work: Path, *, device: str = "cpu", compiled: bool = False, assets: Path | None = None,
    edited: Path | None = None, leave_out: Set[Origin] = frozenset(), labelled: Path | None = None,
) -> None:  # fmt: skip
    """Train one stage, or finish an interrupted one, and export its model.

    Args:
        stage: "vae", "base", "turbo", "clip", "clip-2", "saes", "judge", "mixed", "dit" or "dit-saes"; each needs the
            ones before it in that order, except that the CLIPs need none, that the judge needs edited pictures too,
            that mixed and dit start from toy-turbo, the shipped one if `assets` has none, and that dit-saes needs dit
            alone.
        work: folder for pictures, checkpoints, logs and results.
        device: "cpu" or "cuda".
        compiled: compiles the U-Net of base and turbo, or the transformer of dit.
        assets: where finished models go; None is the package's own folder.
        edited: results with edited pictures, for the judge.
        leave_out: examples and seeds whose edited pictures the judge must not learn from.
        labelled: folder with edited pictures labelled by eye, for the judge.

    Raises:
        RiebenchError: if an earlier stage is missing or the folder belongs to another configuration.
    """
    target = assets or ASSETS
    stages: dict[str, Callable[[_StageContext], None]] = {
        "vae": _vae, "base": _base, "turbo": _turbo, "clip": _clip, "clip-2": _second_clip,
        "judge": _judge, "saes": _saes, "mixed-base": _mixed_base, "mixed-teacher": _mixed_teacher,
        "mixed-start": _mixed_start, "mixed": _mixed, "mixed-clip": _mixed_clip, "mixed-clip-2": _mixed_second_clip,
        "mixed-judge": _mixed_judge, "dit": _dit, "dit-saes": _dit_saes,
    }  # fmt: skip
    try:
        stages[stage](_StageContext(work, torch.device(device), compiled, target, edited, leave_out, labelled))
    except TrainingFolderError as error:
        raise RiebenchError(str(error)) from error
    if target.is_dir():  # some stages export nothing
        write_manifest(target)


class _StageContext:
    """The folders and device of a stage, and the data and models it starts from.

    Args:
        work: folder for pictures, checkpoints, logs and results.
        device: trains there.
        compiled: compiles the U-Net.
        assets: folder of the exported models.
        edited: results with edited pictures, if named.
        leave_out: examples and seeds whose edited pictures are not used.
        labelled: folder with edited pictures labelled by eye, if named.
    """

    def __init__(
        self, work: Path, device: torch.device, compiled: bool, assets: Path, edited: Path | None,
        leave_out: Set[Origin], labelled: Path | None,
    ) -> None:  # fmt: skip
        self.work, self.device, self.compiled, self.assets = work, device, compiled, assets
        self.edited, self.leave_out, self.labelled = edited, leave_out, labelled

    @property
    def pool(self) -> Pool:
        """The training pictures."""
        return training_pool(self.work)

    @property
    def wide_pool(self) -> Pool:
        """The training pictures of the second world."""
        return wide_pool(self.work)

    def shipped(self, name: str) -> Path:
        """Return the folder of a finished model, exported or else shipped."""
        exported = self.assets / name
        return exported if exported.is_dir() else asset_folder(name)

    def result_folder(self, stage: str) -> Path:
        """Return the folder of a stage's result."""
        return self.work / stage / FINISHED

    def vae(self, stage: str = "vae") -> AutoencoderKL:
        """Load a stage's trained autoencoder."""
        return AutoencoderKL.from_pretrained(self.require_result(stage)).requires_grad_(False).eval()

    def shipped_unet(self, name: str) -> UNet2DConditionModel:
        """Load the U-Net of a finished model, in float32."""
        return UNet2DConditionModel.from_pretrained(self.shipped(name) / "unet", torch_dtype=torch.float32)

    def shipped_vae(self) -> AutoencoderKL:
        """Load the autoencoder of toy-turbo, in float32, for use alone."""
        vae = AutoencoderKL.from_pretrained(self.shipped("toy-turbo") / "vae", torch_dtype=torch.float32)
        return vae.requires_grad_(False).eval()

    def unet(self, stage: str, *, planted: bool = True) -> UNet2DConditionModel:
        """Load a stage's trained U-Net; planted roles stay fixed in training."""
        unet = UNet2DConditionModel.from_pretrained(self.require_result(stage))
        if planted:
            diffusion.plant_roles(unet)
        return unet.to(device=self.device, memory_format=torch.channels_last)

    def maybe_compile(self, unet: nn.Module) -> nn.Module:
        """Return the U-Net, compiled if that was asked for."""
        compiled: Any = torch.compile(unet, dynamic=False) if self.compiled else unet
        return compiled

    def clear_asset(self, name: str) -> Path:
        """Delete an exported model and return its folder."""
        folder = self.assets / name
        shutil.rmtree(folder, ignore_errors=True)
        return folder

    def require_result(self, stage: str) -> Path:
        """Return the folder of a stage's result; refuse if there is none."""
        folder = self.result_folder(stage)
        if not folder.is_dir():
            raise RiebenchError(f"{folder} is missing: run `python -m riebench.toyworld train {stage}` first")
        return folder


def _vae(context: _StageContext) -> None:
    vae.train(context.pool, context.work, context.device).cpu().save_pretrained(context.result_folder("vae"))


def _latents(path: Path, pool: Pool, autoencoder: AutoencoderKL, context: _StageContext) -> Tensor:
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        model = autoencoder.to(device=context.device, memory_format=torch.channels_last)
        parts = []
        for first in range(0, len(pool.images), 500):
            indices = torch.arange(first, min(first + 500, len(pool.images)))
            parts.append(vae.encode(model, vae.pictures(pool, indices, context.device)).half().cpu())
        write_atomically(path, lambda to: torch.save(torch.cat(parts), to))
    latents: Tensor = torch.load(path, weights_only=True)
    return latents


def _train_base(
    context: _StageContext, stage: str, unet: UNet2DConditionModel, pool: Pool, latents: Tensor,
    config: dict[str, float], hard: Tensor | None = None,
) -> UNet2DConditionModel:  # fmt: skip
    unet = unet.to(device=context.device, memory_format=torch.channels_last)
    loss = diffusion.base_loss(context.maybe_compile(unet), pool, latents, context.device, config, hard)
    fit(Stage(stage, config, unet, loss, int(config["steps"]), config["learning_rate"], warmup=200), context.work)
    diffusion.plant_roles(unet)  # exact zeros in what ships, whatever an old checkpoint held
    unet.save_pretrained(context.result_folder(stage))
    return unet.cpu()


def _distil(
    context: _StageContext, stage: str, base: str, pool: Pool, latents: Tensor, config: dict[str, float]
) -> UNet2DConditionModel:
    teacher, student = context.unet(base).requires_grad_(False).eval(), context.unet(base)
    loss = diffusion.turbo_loss(context.maybe_compile(student), teacher, pool, latents, context.device, config)
    fit(
        Stage(stage, config, student, loss, int(config["steps"]), config["learning_rate"], warmup=20, ema_decay=0.99),
        context.work,
    )
    student.save_pretrained(context.result_folder(stage))
    return student.cpu()


def _base(context: _StageContext) -> None:
    latents = _latents(context.work / "vae" / "latents.pt", context.pool, context.vae(), context)
    unet = _train_base(context, "base", diffusion.build_unet(), context.pool, latents, diffusion.BASE_CONFIG)
    export("toy-base", unet, context.vae(), context.clear_asset("toy-base"))


def _turbo(context: _StageContext) -> None:
    context.require_result("base")
    latents = _latents(context.work / "vae" / "latents.pt", context.pool, context.vae(), context)
    unet = _distil(context, "turbo", "base", context.pool, latents, diffusion.TURBO_CONFIG)
    export("toy-turbo", unet, context.vae(), context.clear_asset("toy-turbo"))


def _wide_latents(context: _StageContext) -> Tensor:
    return _latents(
        context.work / "mixed-base" / "latents.pt", context.wide_pool, context.shipped_vae(), context
    )  # fmt: skip


def _mixed_base(context: _StageContext) -> None:
    pool, latents = context.wide_pool, _wide_latents(context)
    if not context.result_folder("mixed-base-first").is_dir():
        unet = context.shipped_unet("toy-base")
        diffusion.plant_roles(unet)
        _train_base(context, "mixed-base-first", unet, pool, latents, diffusion.WIDE_BASE_CONFIG)
    _train_base(
        context, "mixed-base", context.unet("mixed-base-first"), pool, latents, diffusion.WIDE_PATTERNS_CONFIG,
        diffusion.patterned(pool),
    )  # fmt: skip


def _mixed_teacher(context: _StageContext) -> None:
    context.require_result("mixed-base")
    _distil(
        context, "mixed-teacher", "mixed-base", context.wide_pool, _wide_latents(context),
        diffusion.WIDE_TURBO_CONFIG,
    )  # fmt: skip


def _clip(context: _StageContext) -> None:
    trained = clip.train(context.pool.halves()[1], context.work, context.device).cpu()
    clip.save(trained, clip.model_config(), context.clear_asset("toy-clip"))


def _second_clip(context: _StageContext) -> None:
    pool = training_pool(context.work, second_clip.POOL_SIZE, second_clip.POOL_SEED)
    trained = second_clip.train(pool, context.work, context.device).cpu()
    clip.save(trained, second_clip.model_config(), context.clear_asset("toy-clip-2"))


def _mixed_clip(context: _StageContext) -> None:
    pool = wide_pool(context.work, clip.WIDE_CONFIG["pictures"], clip.WIDE_CONFIG["seed"])
    trained = clip.train(
        pool, context.work, context.device, name="mixed-clip", config=clip.WIDE_CONFIG,
        start=context.shipped("toy-clip"),
    ).cpu()  # fmt: skip
    name = "toy-mixed-clip"
    clip.save(trained, clip.model_config(WIDE_ATTRIBUTES), context.clear_asset(name), WIDE_ATTRIBUTES)


def _mixed_second_clip(context: _StageContext) -> None:
    pool = wide_pool(context.work, second_clip.WIDE_CONFIG["pictures"], second_clip.WIDE_CONFIG["seed"])
    trained = second_clip.train(
        pool, context.work, context.device, name="mixed-clip-2", config=second_clip.WIDE_CONFIG,
        start=context.shipped("toy-clip-2"),
    ).cpu()  # fmt: skip
    name = "toy-mixed-clip-2"
    clip.save(trained, second_clip.model_config(WIDE_ATTRIBUTES), context.clear_asset(name), WIDE_ATTRIBUTES)


def _judge(context: _StageContext) -> None:
    vae_folder = context.assets / "toy-base" / "vae"
    if not vae_folder.is_dir():
        raise RiebenchError(f"{vae_folder} is missing: run `python -m riebench.toyworld train base` first")
    if context.edited is None or context.labelled is None:
        raise RiebenchError(
            "the judge learns from edited pictures: make some with `riebench run --settings-set sweep --results RUNS`, "
            f"then name that folder with --edited RUNS, and those labelled by eye: {LABELLED_HINT}"
        )
    by_eye, calibration = read_labelled(context.labelled).pools()
    edited = edited_pool(context.edited, context.leave_out)
    unedited, held_out = unedited_pools(context.edited, context.leave_out)
    damaged = damaged_pool(context.work, vae_folder, judge.DAMAGED_CONFIG["damaged"], judge.SEED, held_out=False)
    pools = judge.TrainingPools(context.pool, damaged, edited, by_eye, unedited)
    network = judge.train(pools, context.work, context.device).cpu()
    judge.calibrate(network, calibration, held_out)
    judge.save(network, context.clear_asset("judge"))


def _saes(context: _StageContext) -> None:
    saes.train(context.assets / "toy-turbo", context.work / "saes", context.clear_asset("saes"), context.device)


def _mixed_start(context: _StageContext) -> None:
    unet = context.shipped_unet("toy-turbo")
    fold(mixed_training.train(unet, context.work, context.device)).save_pretrained(context.result_folder("mixed-start"))


def _mixed(context: _StageContext) -> None:
    teacher, learned = (context.unet(stage, planted=False).cpu() for stage in ("mixed-teacher", "mixed-start"))
    start = mixed_training.carry_over(teacher, learned, context.shipped_unet("toy-turbo"))
    trained = mixed_training.train(
        teacher, context.work, context.device, name="mixed", config=mixed_training.WIDE_CONFIG, values=WIDE_ATTRIBUTES,
        start=start,
    )  # fmt: skip
    folder = context.clear_asset("toy-mixed")
    export("toy-mixed", fold(trained), context.shipped_vae(), folder, WIDE_ATTRIBUTES)
    saes.train(
        folder, context.work / "saes-mixed", context.clear_asset("saes-mixed"), context.device, extra=(),
        captions=mixed_training.SAE_CAPTIONS, steps=mixed_training.SAE_STEPS, values=WIDE_ATTRIBUTES,
    )  # fmt: skip


def _mixed_judge(context: _StageContext) -> None:
    if context.edited is None or context.labelled is None:
        raise RiebenchError(
            "the judge learns from edited pictures: make some with `riebench run --settings-set sweep --suite "
            "toy-mixed --results RUNS`, then name that folder with --edited RUNS, and those labelled by eye: "
            + LABELLED_HINT
        )
    by_eye, _ = read_labelled(context.labelled).pools()
    own_by_eye, calibration = read_labelled(context.labelled / "mixed", WIDE_ATTRIBUTES).pools()
    edited = edited_pool(context.edited, context.leave_out, SECOND)
    unedited, held_out = unedited_pools(context.edited, context.leave_out, SECOND)
    config = judge.WIDE_CONFIG
    whole = judge.first_half(context.wide_pool)
    damaged = damaged_pool(
        context.work, context.shipped("toy-turbo") / "vae", config["damaged"], config["seed"], held_out=False, wide=True
    )  # fmt: skip
    decoded = decoded_pool(whole, context.shipped_vae())
    sources = {
        "damaged_share": damaged, "by_eye_share": by_eye, "own_by_eye_share": own_by_eye, "edited_share": edited,
        "unedited_share": unedited, "decoded_share": decoded, "": whole,
    }  # fmt: skip
    network = judge.train_wide(sources, context.shipped("judge"), context.work, context.device).cpu()
    judge.calibrate(network, calibration, held_out)
    judge.save(network, context.clear_asset("judge-mixed"))


def _dit(context: _StageContext) -> None:
    frozen = autoencoder.load(context.shipped("toy-turbo"))
    latents = _latents(context.work / "dit" / "latents.pt", context.pool, frozen, context)
    network = dit_training.train(context.pool, latents, context.work, context.device, compiled=context.compiled)
    save_in_half(pipeline.assemble(network, frozen.cpu()), context.clear_asset("toy-dit"))


def _dit_saes(context: _StageContext) -> None:
    model = context.assets / "toy-dit"
    if not model.is_dir():
        raise RiebenchError(f"{model} is missing: run `python -m riebench.toyworld train dit` first")
    saes.train(
        model, context.work / "saes-dit", context.clear_asset("saes-dit"), context.device,
        extra=(), blocks=BLOCKS, captions=dit_training.SAE_CAPTIONS, steps=dit_training.SAE_STEPS,
        denoising_steps=pipeline.STEPS,
    )  # fmt: skip
