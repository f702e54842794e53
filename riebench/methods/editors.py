"""Editors: methods that give pictures instead of edits.

`EditorContext` is what an editor works on, `Editor` a registered one and `editor` the decorator that registers it.
Image-to-image, LEDITS++ and the adversarial control are here; prompt-to-prompt is in
`riebench.methods.prompting.prompt_to_prompt`.
"""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, cast
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from riebench.errors import MemoryShortageError, RiebenchError
from riebench.methods.access import Access, Guarded, GuardedMapping
from riebench.methods.base import Method, Need, OtherExamples, Role
from riebench.models.clip import ClipSpec, LoadedClip, load_open_clip
from riebench.models.placement import attention_kernel, out_of_memory, refuse_lost, use_denoiser_device
from riebench.models.presets import scorer_for
from riebench.registry import METHODS
from riebench.store.records import Training
from riebench.tasks.schema import EditExample

if TYPE_CHECKING:
    from riebench.generation.generator import Generator
    from riebench.models.families.base import EditingTask
    from riebench.models.loading import LoadedModel

INVERTING: frozenset[EditingTask] = frozenset({"ledits_pp"})
"""Pipelines that invert a picture."""
REACH = 8.0
"""Farthest that the adversarial control moves a colour, of 255: a change that is hardly seen."""
Picture = NDArray[np.uint8]
"""One picture, uint8 [H, W, 3]."""
Pictures = NDArray[np.uint8]
"""Pictures of one example, one per strength: uint8 [n, H, W, 3]."""


@dataclass(frozen=True)
class EditorContext:
    """The input of an editor.

    Attributes:
        generator: the loaded model, its prompt embeddings and its decoding.
        example: the edit; prompts without brackets.
        noise: seed of the noise that source and target picture were made from.
        pictures: the source and the target picture as stored, uint8 [H, W, 3].
        strengths: the edit strengths to make pictures at.
        access: the inputs that the editor declares; None refuses nothing.
        others: the other examples of the category, if the editor needs them.
        seed: index of the seed.
        training: gets the training that the pictures were learned by, for their records.
    """

    generator: Generator
    example: EditExample
    noise: int
    pictures: Mapping[Role, NDArray[np.uint8]]
    strengths: tuple[float, ...]
    access: Access | None = None
    others: OtherExamples | None = None
    seed: int = 0
    training: list[Training] = field(default_factory=list)

    def limited_to(self, access: Access) -> EditorContext:
        """Return the context as an editor sees it: it refuses what is not declared."""
        others = self.others
        if others is not None and not access.has("T"):
            others = cast(OtherExamples, Guarded(others, access, "T"))
        if access.has("P"):
            return replace(self, access=access, others=others)
        return replace(
            self, access=access, others=others,
            example=cast(EditExample, Guarded(self.example, access, "P", frozenset({"target"}))),
            pictures=GuardedMapping(self.pictures, access, {"target": "P"}),
        )  # fmt: skip

    @property
    def model(self) -> LoadedModel:
        """The loaded model."""
        return self.generator.model

    def pipeline(self, task: EditingTask) -> Any:
        """Build one of diffusers' editing pipelines for the model.

        It has the model's own networks and a copy of its scheduler.

        Raises:
            RiebenchError: if diffusers has none for the model's family, or it inverts and the editor does not declare
                that.
        """
        if self.access is not None and task in INVERTING:
            self.access.require("V")
        pipe = self.model.family.editing_pipeline(task, self.model.pipe)
        pipe.set_progress_bar_config(disable=True)
        use_denoiser_device(pipe, self.model.family, self.model.options)
        return pipe

    def conditions(self, prompt: str) -> dict[str, Tensor]:
        """Return a prompt's embeddings as arguments of pipelines.

        Negative ones only under guidance.
        """
        return self.generator.embed(prompt).arguments

    def other_noise(self, name: str) -> torch.Generator:
        """Return a CPU generator that follows from the noise seed.

        It gives other numbers than the noise of the pictures.

        An editor of a given picture does not know the noise that it was made from. If that very noise were added, the
        edit would be led back to the same picture.

        Args:
            name: what the noise is for; another name gives other numbers.
        """
        digest = hashlib.sha256(f"riebench-{name}-v1:{self.noise}".encode()).digest()
        return torch.Generator("cpu").manual_seed(int.from_bytes(digest[:8], "big") >> 1)

    def encode(self, picture: NDArray[np.uint8]) -> Tensor:
        """Encode a picture to latents.

        They are the mean of the autoencoder's distribution, computed in its own number format.

        Args:
            picture: uint8 [H, W, 3].

        Returns:
            float32 [1, c, h, w], scaled as the denoiser takes them.
        """
        pixels = torch.from_numpy(picture.astype(np.float32)).permute(2, 0, 1)[None] / 127.5 - 1
        return self.model.family.encode(self.model.pipe, pixels, self.model.device)


@dataclass(frozen=True)
class Editor(Method):
    """A registered editor.

    Attributes:
        multiple: picture sides must be a multiple of this.
    """

    multiple: int = 1

    def check_size(self, size: int) -> None:
        """Check that the editor can work at a picture side.

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
    def edit_pictures(self, ctx: EditorContext, params: Mapping[str, Any]) -> Pictures:
        """Make the pictures of one example, one per strength.

        Raises:
            RiebenchError: if parameters, levels or size do not fit, memory does not suffice, or the editor leaves the
                model changed or gives something else than pictures.
        """
        self.check(params)
        size = ctx.model.spec.size
        self.check_strengths(ctx.strengths)
        self.check_size(size)
        made = self._call(ctx, params)
        shape = (len(ctx.strengths), size, size, 3)
        if made.shape != shape or made.dtype != np.uint8:
            raise RiebenchError(
                f"method {self.name!r} gave {made.dtype} of shape {made.shape}; it must give uint8 of shape {shape}"
            )
        return made

    def _call(self, ctx: EditorContext, params: Mapping[str, Any]) -> NDArray[Any]:
        """Call the function; restore the model and report shortages of memory."""
        model = ctx.model
        try:
            with unchanged(model):
                return np.asarray(self.function(ctx.limited_to(Access(self.name, self.access)), **params))
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                refuse_lost(model.device, error)
                raise
        # Raised outside the handler, so that no traceback keeps the tensors when fewer pictures are tried.
        raise MemoryShortageError(
            f"not enough memory on {model.device} for {len(ctx.strengths)} pictures of {model.spec.size} px by method "
            f"{self.name!r}; use --dtype float16, then --vae fp16-fix or --vae-tiling, or leave this configuration out"
        )


def editor(
    name: str,
    *,
    access: str,
    strengths: tuple[float, float] = (0.0, math.inf),
    multiple: int = 1,
    needs: tuple[Need, ...] = (),
) -> Callable[[Callable[..., Pictures]], Editor]:
    """Register an editor as a method, as a decorator.

    The function is `edit(ctx, *, param=default, ...)`, from `EditorContext` to `Pictures`.

    Args:
        name: as configurations call it.
        access: see `riebench.methods.base.Method`.
        strengths: see `riebench.methods.base.Method`.
        multiple: see `Editor.multiple`.
        needs: "others" for the other examples of the category.
    """

    def enter(function: Callable[..., Pictures]) -> Editor:
        made = Editor(name, function, frozenset(needs), access, strengths=strengths, multiple=multiple)
        METHODS.register(name)(made)
        return made

    return enter


_WITH_PROCESSORS: WeakKeyDictionary[nn.Module, tuple[Any, ...]] = WeakKeyDictionary()


def _with_processors(denoiser: nn.Module) -> tuple[Any, ...]:
    """Return a denoiser's layers whose attention processor can be exchanged."""
    found = _WITH_PROCESSORS.get(denoiser)
    if found is None:
        found = tuple(module for module in denoiser.modules() if hasattr(module, "set_processor"))
        _WITH_PROCESSORS[denoiser] = found
    return found


@contextmanager
def unchanged(model: LoadedModel) -> Iterator[None]:
    """Restore a model's attention processors and scheduler at the end.

    This happens whatever went wrong inside.

    Raises:
        RiebenchError: at the end, if a network has another number format than before: what was rounded is lost.
    """
    pipe, networks = model.pipe, model.family.networks(model.pipe)
    layers = _with_processors(model.denoiser)
    processors, scheduler = [layer.processor for layer in layers], pipe.scheduler
    # All of its state: pipelines change its configuration in place, where comparing dictionaries does not see it.
    state = copy.deepcopy(scheduler.__dict__)
    formats = [None if part is None else part.dtype for part in networks]
    try:
        yield
    finally:
        for layer, processor in zip(layers, processors, strict=True):
            if layer.processor is not processor:
                layer.set_processor(processor)
        scheduler.__dict__.clear()
        scheduler.__dict__.update(state)
        pipe.scheduler = scheduler
    if [None if part is None else part.dtype for part in networks] != formats:
        raise RiebenchError("the editor left the model in another number format; load it again without this method")


@editor("img2img", access="P", strengths=(0.0, 1.0))
def img2img(ctx: EditorContext, *, steps: int | None = None) -> Pictures:
    """Make the source picture noisy and denoise it with the target prompt.

    Diffusers' own pipeline does the work.

    The strength is how noisy: of T steps the last int(T * strength) run, so that a model of 4 steps has 4 levels
    besides 0, and levels that run equally many steps give the same picture. None gives the source picture exactly.
    All of them give nearly a new picture of the target prompt, from noise of its own (so not the target picture),
    with a trace of the source picture left, since the noisiest step of the schedule is not all noise.

    Args:
        ctx: the example.
        steps: T; None for the model's own number, more for finer edit strengths.

    Raises:
        RiebenchError: if `steps` is not positive.
    """
    spec = ctx.model.spec
    total = spec.steps if steps is None else steps
    if total < 1:
        raise RiebenchError(f"img2img: steps {total}; give at least 1")
    pipe = ctx.pipeline("img2img")
    # Given pixels, the pipeline would move the shared autoencoder to another number format; given latents, it does not.
    start = ctx.encode(ctx.pictures["source"])

    def make(strength: float) -> Picture:
        with attention_kernel(ctx.model.options):
            latents = pipe(
                image=start, strength=strength, num_inference_steps=total, guidance_scale=spec.guidance,
                generator=[ctx.other_noise("img2img")], output_type="latent", **ctx.conditions(ctx.example.target),
            ).images  # fmt: skip
        picture: Picture = ctx.generator.decode(latents)[0]
        return picture

    return _make_each(ctx, lambda strength: int(total * strength), {0: ctx.pictures["source"]}, make)


@editor("ledits_pp", access="PV", multiple=32)
def ledits_pp(
    ctx: EditorContext, *, inversion_steps: int = 50, skip: float = 0.15, threshold: float = 0.9,
    source_guidance: float = 0.0,
) -> Pictures:  # fmt: skip
    """Invert the source picture and guide it towards the target prompt (LEDITS++).

    It is inverted once, by diffusers' own pipeline.

    The strength is the scale of that guidance. 0 gives the source picture exactly, without an inversion; the smallest
    strengths come near the picture that the autoencoder makes of it.

    Args:
        ctx: the example.
        inversion_steps: steps of the inversion and of the edit; the model's own number is for generation only.
        skip: how far from pure noise it ends: more steps of the schedule by this share, left out.
        threshold: which share of the latents is left alone; the rest is where the guidance is largest.
        source_guidance: guidance towards the source prompt during inversion; 0 inverts without a prompt.

    Raises:
        RiebenchError: if parts of the model are kept off the device.
    """
    if ctx.model.options.offload != "none":
        raise RiebenchError("ledits_pp needs the whole model on the device; use --offload none")
    if not inversion_steps or not 0 <= skip < 1 or not 0 <= threshold <= 1:
        raise RiebenchError("ledits_pp: give inversion_steps of at least 1, skip from 0 to below 1, threshold 0 to 1")
    levels = sorted({float(strength) for strength in ctx.strengths if strength})
    made: dict[float, Picture] = {0.0: ctx.pictures["source"]}
    if levels:
        pipe = _invert(ctx, inversion_steps, skip, source_guidance)
        pipe.batch_size = len(levels)
        pipe.init_latents = pipe.init_latents.expand(len(levels), -1, -1, -1)
        with ctx.model.family.same_condition(ctx.model.denoiser):
            latents = pipe(
                editing_prompt=[ctx.example.target], edit_guidance_scale=[_Scales(tuple(levels))],
                edit_threshold=[threshold], output_type="latent", use_cross_attn_mask=False, use_intersect_mask=False,
            ).images  # fmt: skip
        made |= dict(zip(levels, ctx.generator.decode(latents), strict=True))
    return np.stack([made[float(strength)] for strength in ctx.strengths])


@dataclass(frozen=True)
class _Scales:
    """A scale for each picture of a batch, where LEDITS++ has one number for all."""

    levels: tuple[float, ...]

    def __rmul__(self, guidance: Tensor) -> Tensor:
        # As a number does: in half precision the product is rounded, but not the scale.
        scales = torch.tensor(self.levels, device=guidance.device)[:, None, None, None]
        return (guidance.float() * scales).to(guidance.dtype)


def _invert(ctx: EditorContext, steps: int, skip: float, source_guidance: float) -> Any:
    """Return the pipeline, holding the inversion of the source picture."""
    pipe = ctx.pipeline("ledits_pp")

    def encode(image: Picture, dtype: torch.dtype, **unused: Any) -> tuple[Tensor, Picture]:
        return ctx.encode(image).to(dtype), image

    # Its own way fails where the autoencoder's number format is not that of the text encoders.
    pipe.encode_image = encode
    pipe.invert(
        ctx.pictures["source"], source_prompt=ctx.example.source if source_guidance else "",
        source_guidance_scale=source_guidance, num_inversion_steps=steps, skip=skip,
        generator=ctx.other_noise("ledits_pp"),
    )  # fmt: skip
    return pipe


def _make_each(
    ctx: EditorContext, level: Callable[[float], float], made: dict[Any, Picture], make: Callable[[float], Picture]
) -> Pictures:
    """Make a picture per strength; strengths of the same level share one."""
    for strength in ctx.strengths:
        if level(strength) not in made:
            made[level(strength)] = make(strength)
    return np.stack([made[level(strength)] for strength in ctx.strengths])


@editor("adversarial", access="P", strengths=(0.0, REACH))
def adversarial(ctx: EditorContext, *, scorer: str | None = None, rounds: int = 10) -> Pictures:
    """Move the source picture the way that the scorer's own gradient points.

    It is a control of the score and no edit: nothing that a person would call a change is made, but the gain by the
    scorer that is attacked is large. The generating model is not used.

    The strength is how far a colour of a pixel may move, of 255; 0 gives the source picture. In each round every colour
    moves by the sign of the gradient of the cosine with the target prompt, and never leaves that reach.

    Args:
        ctx: the example.
        scorer: the CLIP that is attacked, as `--scorer` takes it; None for the one that scores the model's pictures.
        rounds: how often the gradient is taken.

    Raises:
        RiebenchError: if `rounds` is not positive, or the CLIP cannot be loaded.
    """
    if rounds < 1:
        raise RiebenchError(f"adversarial: rounds {rounds}; give at least 1")
    source = ctx.pictures["source"]
    levels = sorted({float(strength) for strength in ctx.strengths if strength})
    made: dict[float, Picture] = {0.0: source}
    if levels:
        # Gradients are off wherever pictures are made; what was loaded without them cannot have any later.
        with torch.inference_mode(False), torch.enable_grad():
            clip = _attacked(scorer or scorer_for(ctx.model.spec), str(ctx.model.device))
            moved = attack(clip, source, ctx.example.target, levels, rounds)
        made |= dict(zip(levels, moved, strict=True))
    return np.stack([made[float(strength)] for strength in ctx.strengths])


@lru_cache(maxsize=1)
def _attacked(scorer: str, device: str) -> LoadedClip:
    """Return a CLIP, loaded once for all examples."""
    return load_open_clip(ClipSpec.parse(scorer), device)


def attack(clip: LoadedClip, source: Picture, prompt: str, reaches: Sequence[float], rounds: int) -> Pictures:
    """Move a picture so that its cosine with a prompt grows.

    Args:
        clip: loaded outside of inference mode; the call has to be outside of it, too.
        source: the picture.
        prompt: what it is moved towards.
        reaches: how far a colour may move, of 255; one picture for each.
        rounds: how often the gradient is taken.
    """
    device = next(clip.model.parameters()).device
    start = torch.from_numpy(source.astype(np.float32)).permute(2, 0, 1)[None].to(device)
    reach = torch.tensor(list(reaches), device=device)[:, None, None, None]
    text = clip.embed_text(prompt).detach()
    moved = start.repeat(len(reaches), 1, 1, 1)
    for _ in range(rounds):
        moved.requires_grad_(True)
        (gradient,) = torch.autograd.grad((clip.embed_pixels(moved / 255) @ text.T).sum(), moved)
        # Somewhat more than it takes to cross the reach, as not all rounds point one way.
        moved = moved.detach() + 2.5 * reach / rounds * gradient.sign()
        moved = torch.minimum(torch.maximum(moved, start - reach), start + reach).clamp(0, 255)
    # Towards the source, so that no colour is rounded beyond its reach.
    pictures: Pictures = (start + (moved - start).trunc()).permute(0, 2, 3, 1).to(torch.uint8).cpu().numpy()
    return pictures
