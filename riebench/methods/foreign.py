"""Editors: methods that make the pictures themselves, with another pipeline or another attention.

An editor is registered by `editor` and gets an `EditorContext` in place of an `EditContext`. It is called once per
example and setting with all strengths at once, so that what they share (an inversion, a source run) is done once.
"""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from riebench.errors import MemoryShortageError, RiebenchError
from riebench.methods.base import Method
from riebench.methods.runs import Role
from riebench.models.placement import out_of_memory, parts_of, refuse_lost
from riebench.registry import METHODS
from riebench.tasks.schema import EditExample

if TYPE_CHECKING:
    from riebench.generation.generator import Generator
    from riebench.models.loading import LoadedModel

Pictures = NDArray[np.uint8]
"""Pictures of one example, one per strength: uint8 [n, H, W, 3]."""


@dataclass(frozen=True)
class EditorContext:
    """What an editor works on.

    Attributes:
        generator: the loaded model, its prompt embeddings and its decoding.
        example: the edit; prompts without brackets.
        noise: seed of the noise that source and target picture were made from.
        pictures: the source and the target picture as stored, uint8 [H, W, 3].
        strengths: the levels of the knob to make pictures of.
    """

    generator: Generator
    example: EditExample
    noise: int
    pictures: Mapping[Role, NDArray[np.uint8]]
    strengths: tuple[float, ...]

    @property
    def model(self) -> LoadedModel:
        """The loaded model."""
        return self.generator.model

    @property
    def components(self) -> dict[str, Any]:
        """The model's parts, as the constructors of pipelines take them.

        The scheduler is a copy, since schedulers hold the state of a run. Networks are the model's own.
        """
        pipe = self.model.pipe
        parts = {**pipe.components, "scheduler": copy.deepcopy(pipe.scheduler)}
        zeros = bool(pipe.config.force_zeros_for_empty_prompt)
        return {**parts, "force_zeros_for_empty_prompt": zeros, "add_watermarker": False}

    def conditions(self, prompt: str) -> dict[str, Tensor]:
        """A prompt's embeddings, named as SDXL's pipelines take them; negative ones only under guidance."""
        names = (
            "prompt_embeds", "pooled_prompt_embeds", "negative_prompt_embeds", "negative_pooled_prompt_embeds",
        )  # fmt: skip
        found = zip(names, self.generator.embed(prompt), strict=True)
        return {name: values for name, values in found if values is not None}

    def other_noise(self, name: str) -> torch.Generator:
        """A CPU generator that follows from the noise seed but gives other numbers.

        Who edits a given picture does not know the noise that it was made from; made noisy by that very noise, it
        would be led back to where it came from.

        Args:
            name: what the noise is for; another name gives other numbers.
        """
        digest = hashlib.sha256(f"riebench-{name}-v1:{self.noise}".encode()).digest()
        return torch.Generator("cpu").manual_seed(int.from_bytes(digest[:8], "big") >> 1)

    def encode(self, picture: NDArray[np.uint8]) -> Tensor:
        """A picture's latents: the mean of the autoencoder's answer, computed in its own number format.

        Args:
            picture: uint8 [H, W, 3].

        Returns:
            float32 [1, 4, h, w], scaled as the U-Net takes them.
        """
        vae = self.model.pipe.vae
        pixels = torch.from_numpy(picture.astype(np.float32)).permute(2, 0, 1)[None] / 127.5 - 1
        latents = vae.encode(pixels.to(self.model.device, vae.dtype)).latent_dist.mode()
        return latents.float() * float(vae.config.scaling_factor)


@dataclass(frozen=True)
class Editor(Method):
    """A registered editor.

    Attributes:
        multiple: picture sides must be a multiple of this.
    """

    multiple: int = 1

    def check_size(self, size: int) -> None:
        """Compares a picture side with what the editor can do.

        Raises:
            RiebenchError: if it does not fit; names the nearest that does.
        """
        if size % self.multiple:
            near = max(1, round(size / self.multiple)) * self.multiple
            raise RiebenchError(
                f"method {self.name!r} takes picture sides that are multiples of {self.multiple}, not {size}; "
                f"use --size {near}"
            )

    @torch.inference_mode()
    def paint(self, ctx: EditorContext, params: Mapping[str, Any]) -> Pictures:
        """The pictures of one example, one per strength.

        Raises:
            RiebenchError: if parameters, levels or size do not fit, memory does not suffice, or the editor leaves the
                model changed or gives something else than pictures.
        """
        self.check(params)
        size = ctx.model.spec.size
        self.check_strengths(ctx.strengths)
        self.check_size(size)
        made = self._made(ctx, params)
        shape = (len(ctx.strengths), size, size, 3)
        if made.shape != shape or made.dtype != np.uint8:
            raise RiebenchError(
                f"method {self.name!r} gave {made.dtype} of shape {made.shape}; it must give uint8 of shape {shape}"
            )
        return made

    def _made(self, ctx: EditorContext, params: Mapping[str, Any]) -> NDArray[Any]:
        """What the function gives, with the model as it was and shortages of memory told as such."""
        model = ctx.model
        try:
            with unchanged(model):
                return np.asarray(self.function(ctx, **params))
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                refuse_lost(model.device, error)
                raise
        # Out here, what had been made no longer lives on in a traceback when fewer pictures are tried.
        raise MemoryShortageError(
            f"not enough memory on {model.device} for {len(ctx.strengths)} pictures of {model.spec.size} px by method "
            f"{self.name!r}; use --dtype float16, then --vae fp16-fix or --vae-tiling, or leave this setting out"
        )


def editor(
    name: str, *, access: str, strengths: tuple[float, float] = (0.0, math.inf), multiple: int = 1
) -> Callable[[Callable[..., Pictures]], Editor]:
    """Decorator: registers `edit(ctx, *, param=default, ...)`, from `EditorContext` to `Pictures`, as a method.

    Args:
        name: as settings call it.
        access: see `riebench.methods.base.Method`.
        strengths: see `riebench.methods.base.Method`.
        multiple: see `Editor.multiple`.
    """

    def enter(function: Callable[..., Pictures]) -> Editor:
        made = Editor(name, function, frozenset(), access, strengths=strengths, multiple=multiple)
        METHODS.register(name)(made)
        return made

    return enter


@contextmanager
def unchanged(model: LoadedModel) -> Iterator[None]:
    """Brings a model's attention processors and scheduler back at the end, whatever happened.

    Raises:
        RiebenchError: at the end, if a network has another number format than before: what was rounded is lost.
    """
    pipe = model.pipe
    processors, scheduler = dict(pipe.unet.attn_processors), pipe.scheduler
    # All of its state: pipelines change its configuration in place, where comparing dictionaries does not see it.
    state = copy.deepcopy(scheduler.__dict__)
    formats = [None if part is None else part.dtype for part in parts_of(pipe)]
    try:
        yield
    finally:
        now = pipe.unet.attn_processors
        if any(now[name] is not one for name, one in processors.items()):
            pipe.unet.set_attn_processor(dict(processors))
        scheduler.__dict__.clear()
        scheduler.__dict__.update(state)
        pipe.scheduler = scheduler
    if [None if part is None else part.dtype for part in parts_of(pipe)] != formats:
        raise RiebenchError("the editor left the model in another number format; load it again without this method")
