"""Names the user may write -> the objects they stand for.

What ships with the package is listed at the bottom, lazily, so that listing names imports neither torch nor a model.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, Generic, TypeVar, cast

from riebench.errors import RiebenchError, near_match

T = TypeVar("T")


class Registry(Generic[T]):
    """A table of named objects of one kind, some of them imported only when asked for.

    Args:
        kind: what the objects are, for messages ("method", "metric", ...).
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._objects: dict[str, T] = {}
        self._lazy: dict[str, str] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator that enters an object under a name.

        Raises:
            ValueError: if the name is taken by another object. A lazy entry's own object may fill its name.
        """

        def enter(thing: T) -> T:
            if name in self._objects:
                raise ValueError(f"{self.kind} {name!r} is registered twice")
            self._objects[name] = thing
            return thing

        return enter

    def register_lazy(self, name: str, target: str) -> None:
        """Enters "module:attribute", imported at the first `get`.

        Raises:
            ValueError: if the name is taken or the target has no colon.
        """
        if name in self._lazy or name in self._objects:
            raise ValueError(f"{self.kind} {name!r} is registered twice")
        if ":" not in target:
            raise ValueError(f"{self.kind} {name!r}: {target!r} is not 'module:attribute'")
        self._lazy[name] = target

    def get(self, name: str) -> T:
        """The object of that name.

        Raises:
            RiebenchError: if there is none; names the nearest match.
        """
        if name not in self._objects:
            if name not in self._lazy:
                raise RiebenchError(f"unknown {self.kind} {name!r}{near_match(name, self.names())}")
            module, attribute = self._lazy[name].split(":")
            # Importing may itself run `register(name)`; either way the attribute is the object.
            thing = getattr(importlib.import_module(module), attribute)
            self._objects.setdefault(name, cast(T, thing))
        return self._objects[name]

    def names(self) -> tuple[str, ...]:
        """All names, sorted, without importing anything."""
        return tuple(sorted({*self._objects, *self._lazy}))

    def __contains__(self, name: object) -> bool:
        return name in self._objects or name in self._lazy


METHODS: Registry[Any] = Registry("method")
METRICS: Registry[Any] = Registry("metric")
NETWORKS: Registry[Any] = Registry("network")
SAE_FORMATS: Registry[Any] = Registry("SAE format")
REGIONS: Registry[Any] = Registry("region provider")
MODEL_FAMILIES: Registry[Any] = Registry("model family")

DEFAULT_FAMILY = "sdxl"
"""The family whose blocks are meant where no model is named."""

for _name, _target in {
    "no_edit": "riebench.methods.controls:no_edit",
    "target_prompt": "riebench.methods.controls:target_prompt",
    "random_features": "riebench.methods.controls:random_features",
    "sae": "riebench.methods.features:sae",
    "activation_patch": "riebench.methods.activations:activation_patch",
    "mean_steering": "riebench.methods.activations:mean_steering",
    "neurons": "riebench.methods.activations:neurons",
    "embed_lerp": "riebench.methods.prompts:embed_lerp",
    "prompt_switch": "riebench.methods.prompts:prompt_switch",
    "masked_target": "riebench.methods.prompts:masked_target",
    "random_directions": "riebench.methods.controls:random_directions",
    "wrong_example": "riebench.methods.controls:wrong_example",
    "concept_steering": "riebench.methods.activations:concept_steering",
    "img2img": "riebench.methods.editors:img2img",
    "p2p": "riebench.methods.prompt_to_prompt:p2p",
    "ledits_pp": "riebench.methods.editors:ledits_pp",
}.items():
    METHODS.register_lazy(_name, _target)

for _name, _target in {
    "clip_target": "riebench.scoring.metrics.clip:clip_target",
    "clip_gain": "riebench.scoring.metrics.clip:clip_gain",
    "clip_gain_2": "riebench.scoring.metrics.clip:clip_gain_2",
    "clip_margin": "riebench.scoring.metrics.clip:clip_margin",
    "clip_direction": "riebench.scoring.metrics.clip:clip_direction",
    "clip_image": "riebench.scoring.metrics.clip:clip_image",
    "clip_region_gain": "riebench.scoring.metrics.clip:clip_region_gain",
    "lpips": "riebench.scoring.metrics.lpips:lpips",
    "lpips_target": "riebench.scoring.metrics.lpips:lpips_target",
    "lpips_bg": "riebench.scoring.metrics.lpips:lpips_bg",
    "mse_bg": "riebench.scoring.metrics.pixel:mse_bg",
    "psnr_bg": "riebench.scoring.metrics.pixel:psnr_bg",
    "ssim_bg": "riebench.scoring.metrics.pixel:ssim_bg",
    "judge_target": "riebench.scoring.metrics.judge:judge_target",
    "judge_kept": "riebench.scoring.metrics.judge:judge_kept",
    "structure": "riebench.scoring.metrics.structure:structure",
    "paper_text_target": "riebench.scoring.metrics.clip:paper_text_target",
    "paper_text_source": "riebench.scoring.metrics.clip:paper_text_source",
    "paper_image_source": "riebench.scoring.metrics.clip:paper_image_source",
    "paper_image_target": "riebench.scoring.metrics.clip:paper_image_target",
    "pie_structure": "riebench.scoring.metrics.piebench:pie_structure",
    "pie_psnr": "riebench.scoring.metrics.piebench:pie_psnr",
    "pie_lpips": "riebench.scoring.metrics.piebench:pie_lpips",
    "pie_mse": "riebench.scoring.metrics.piebench:pie_mse",
    "pie_ssim": "riebench.scoring.metrics.piebench:pie_ssim",
    "pie_clip_target": "riebench.scoring.metrics.piebench:pie_clip_target",
    "pie_clip_region": "riebench.scoring.metrics.piebench:pie_clip_region",
}.items():
    METRICS.register_lazy(_name, _target)

for _name, _target in {
    "clip": "riebench.scoring.metrics.clip:ClipNetwork",
    "clip2": "riebench.scoring.metrics.clip:SecondClipNetwork",
    "clip-half": "riebench.scoring.metrics.clip:HalfClipNetwork",
    "lpips": "riebench.scoring.metrics.lpips:LpipsNetwork",
    "squeezenet": "riebench.scoring.metrics.lpips:SqueezeNetwork",
    "dino": "riebench.scoring.metrics.structure:DinoNetwork",
    "judge": "riebench.scoring.metrics.judge:ToyJudge",
}.items():
    NETWORKS.register_lazy(_name, _target)

REGIONS.register_lazy("attention", "riebench.generation.regions.masks:attention_regions")
REGIONS.register_lazy("grounded-sam", "riebench.generation.regions.grounding:GroundedSam")
REGIONS.register_lazy("clipseg", "riebench.generation.regions.grounding:ClipSeg")

MODEL_FAMILIES.register_lazy("sdxl", "riebench.models.families.sdxl.family:FAMILY")
