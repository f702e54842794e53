"""Trains the toy world stage by stage and puts the finished models where the package ships them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
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
from riebench.models.assets import ASSETS, write_manifest
from riebench.toyworld import saes
from riebench.toyworld.data import Pool, training_pool
from riebench.toyworld.networks import clip, diffusion, judge, vae
from riebench.toyworld.networks.loop import Stage, TrainingFolderError, fit, write_atomically
from riebench.toyworld.networks.text import build_encoders, build_tokenizers

_SCHEDULE = {
    "num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
    "prediction_type": "v_prediction", "steps_offset": 1,
}  # fmt: skip


def scheduler(name: str) -> Any:
    """SDXL's scheduler for "toy-base" (Euler, leading) or SDXL Turbo's for "toy-turbo" (ancestral, trailing).

    The one difference from SDXL is v-prediction: it stays well-behaved at the last noise level, where one-step
    generation starts.
    """
    if name == "toy-turbo":
        return EulerAncestralDiscreteScheduler(timestep_spacing="trailing", **_SCHEDULE)
    return EulerDiscreteScheduler(timestep_spacing="leading", **_SCHEDULE)


def assemble(name: str, unet: UNet2DConditionModel, vae: AutoencoderKL) -> StableDiffusionXLPipeline:
    """A whole pipeline from its trained parts; `name` is "toy-base" or "toy-turbo"."""
    tokenizers = build_tokenizers()
    encoders = build_encoders(tokenizers)
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


def export(name: str, unet: UNet2DConditionModel, vae: AutoencoderKL, folder: Path) -> None:
    """Writes a pipeline in half precision, as the package ships it (it is loaded in float32)."""
    pipe = assemble(name, unet, vae)
    for part in (pipe.unet, pipe.vae, pipe.text_encoder, pipe.text_encoder_2):
        part.to(torch.float16)
    pipe.save_pretrained(folder, safe_serialization=True)
    for part in ("unet", "vae"):
        # Where its weights lay while it was trained is nobody's business.
        config = folder / part / "config.json"
        kept = {name: value for name, value in json.loads(config.read_text()).items() if name != "_name_or_path"}
        config.write_text(json.dumps(kept, indent=2) + "\n")
    for part in (pipe.unet, pipe.vae):
        part.to(torch.float32)


FINISHED = "finished"
"""Folder of a stage's result, in the stage's work folder."""


def make(stage: str, work: Path, *, device: str = "cpu", compiled: bool = False, assets: Path | None = None) -> None:
    """Trains one stage (or finishes one that was interrupted) and exports what it made.

    Args:
        stage: "vae", "base", "turbo", "clip", "judge" or "saes"; each needs the ones before it in that order, except
            that clip and judge need none.
        work: folder for pictures, checkpoints, logs and results.
        device: "cpu" or "cuda".
        compiled: compiles the U-Net.
        assets: where finished models go; None is the package's own folder.

    Raises:
        RiebenchError: if an earlier stage is missing or the folder belongs to another configuration.
    """
    target = assets or ASSETS
    stages: dict[str, Callable[[_Shop], None]] = {
        "vae": _vae, "base": _base, "turbo": _turbo, "clip": _clip, "judge": _judge, "saes": _saes,
    }  # fmt: skip
    try:
        stages[stage](_Shop(work, torch.device(device), compiled, target))
    except TrainingFolderError as error:
        raise RiebenchError(str(error)) from error
    write_manifest(target)


class _Shop:
    """Where a stage works and what it can ask for."""

    def __init__(self, work: Path, device: torch.device, compiled: bool, assets: Path) -> None:
        self.work, self.device, self.compiled, self.assets = work, device, compiled, assets

    @property
    def pool(self) -> Pool:
        return training_pool(self.work)

    def result(self, stage: str) -> Path:
        return self.work / stage / FINISHED

    def vae(self) -> AutoencoderKL:
        return AutoencoderKL.from_pretrained(self._needed("vae")).requires_grad_(False).eval()

    def unet(self, stage: str) -> UNet2DConditionModel:
        unet = UNet2DConditionModel.from_pretrained(self._needed(stage))
        diffusion.plant_jobs(unet)
        return unet.to(device=self.device, memory_format=torch.channels_last)

    def _needed(self, stage: str) -> Path:
        folder = self.result(stage)
        if not folder.is_dir():
            raise RiebenchError(f"{folder} is missing: run `python -m riebench.toyworld train {stage}` first")
        return folder

    def fast(self, unet: nn.Module) -> nn.Module:
        compiled: Any = torch.compile(unet, dynamic=False) if self.compiled else unet
        return compiled

    def replace(self, name: str) -> Path:
        folder = self.assets / name
        shutil.rmtree(folder, ignore_errors=True)
        return folder


def _vae(shop: _Shop) -> None:
    vae.train(shop.pool, shop.work, shop.device).cpu().save_pretrained(shop.result("vae"))


def _latents(shop: _Shop) -> Tensor:
    path = shop.work / "vae" / "latents.pt"
    if not path.exists():
        model, pool = shop.vae().to(device=shop.device, memory_format=torch.channels_last), shop.pool
        parts = []
        for first in range(0, len(pool.images), 500):
            indices = torch.arange(first, min(first + 500, len(pool.images)))
            parts.append(vae.encode(model, vae.pictures(pool, indices, shop.device)).half().cpu())
        write_atomically(path, lambda to: torch.save(torch.cat(parts), to))
    latents: Tensor = torch.load(path, weights_only=True)
    return latents


def _base(shop: _Shop) -> None:
    unet = diffusion.build_unet().to(device=shop.device, memory_format=torch.channels_last)
    loss = diffusion.base_loss(shop.fast(unet), shop.pool, _latents(shop), shop.device)
    config = diffusion.BASE_CONFIG
    fit(Stage("base", config, unet, loss, int(config["steps"]), config["learning_rate"], warmup=200), shop.work)
    diffusion.plant_jobs(unet)  # exact zeros in what ships, whatever an old checkpoint held
    unet.save_pretrained(shop.result("base"))
    export("toy-base", unet.cpu(), shop.vae(), shop.replace("toy-base"))


def _turbo(shop: _Shop) -> None:
    teacher, student = shop.unet("base").requires_grad_(False).eval(), shop.unet("base")
    loss = diffusion.turbo_loss(shop.fast(student), teacher, shop.pool, _latents(shop), shop.device)
    config = diffusion.TURBO_CONFIG
    stage = Stage(
        "turbo", config, student, loss, int(config["steps"]), config["learning_rate"], warmup=20, ema_decay=0.99
    )
    fit(stage, shop.work)
    student.save_pretrained(shop.result("turbo"))
    export("toy-turbo", student.cpu(), shop.vae(), shop.replace("toy-turbo"))


def _clip(shop: _Shop) -> None:
    clip.save(clip.train(shop.pool, shop.work, shop.device).cpu(), shop.replace("toy-clip"))


def _judge(shop: _Shop) -> None:
    judge.save(judge.train(shop.pool, shop.work, shop.device).cpu(), shop.replace("judge"))


def _saes(shop: _Shop) -> None:
    saes.train(shop.assets, shop.work, shop.replace("saes"), shop.device)
