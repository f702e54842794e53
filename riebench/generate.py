"""Batched generation: every picture with its own noise, its own edit, and a trace if one is asked for."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from riebench.denoising import Denoising, TextParts
from riebench.edits import Edit
from riebench.errors import MemoryShortageError, MissingWordsError, RiebenchError
from riebench.models.loading import LoadedModel
from riebench.models.placement import attention_kernel, out_of_memory, refuse_lost
from riebench.prefix import Prefix, PrefixPlan, Run, shared_cut
from riebench.resuming import record, resume
from riebench.tasks.prompts import phrase_spans
from riebench.trace import Sink, Trace, What, capture, intervene
from riebench.transfers import beside_edits

Embeddings = tuple[Tensor, Tensor, Tensor | None, Tensor | None]
"""Prompt, pooled prompt, negative prompt and pooled negative prompt embeddings, [1, ...] each."""


@dataclass(frozen=True)
class Capture:
    """What to capture during a generation.

    Attributes:
        sites: blocks or feed-forward sites.
        keep: what of each block.
        long: keeps 16 bits of each number (see `riebench.footprint`).
        sink: takes the values as they come; the trace then keeps none.
    """

    sites: tuple[str, ...]
    keep: tuple[What, ...] = ("update",)
    long: bool = False
    sink: Sink | None = None


@dataclass(frozen=True)
class GenerationResult:
    """Generated pictures.

    Attributes:
        images: uint8 [B, H, W, 3].
        traces: one per `Capture` asked for.
        latents: [B, T, c, h, w] after each step, if they were to be kept.
        prefix: what edited runs can share of the first rows, if that was to be kept.
    """

    images: NDArray[np.uint8]
    traces: tuple[Trace, ...] = ()
    latents: Tensor | None = None
    prefix: Prefix | None = None

    @property
    def trace(self) -> Trace:
        """The only trace.

        Raises:
            ValueError: if there is not exactly one.
        """
        (only,) = self.traces
        return only


class Generator:
    """Generates pictures of one model.

    Args:
        model: the model.
        cached_prompts: how many prompts' embeddings are kept.
    """

    def __init__(self, model: LoadedModel, cached_prompts: int = 256) -> None:
        self.model = model
        self._cached_prompts = cached_prompts
        self._embeddings: OrderedDict[str, Embeddings] = OrderedDict()

    @torch.inference_mode()
    def generate(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        *,
        edits: Sequence[Edit | None] | None = None,
        capture: Capture | Sequence[Capture] | None = None,
        keep_latents: bool = False,
        keep_prefix: PrefixPlan | None = None,
        prefixes: Sequence[Prefix] = (),
    ) -> GenerationResult:
        """Generates one batch.

        Args:
            prompts: one per picture.
            seeds: one per picture; each seeds a CPU generator of its own, so that noise depends neither on the batch
                nor on the device.
            edits: one per picture, None for none.
            capture: what to capture; edited values where there are edits.
            keep_latents: keeps the latents after each step.
            keep_prefix: what to keep for edited runs of the same prompts and seeds.
            prefixes: source runs of the rows; what the whole batch has in common with them is not computed again.

        Returns:
            Pictures and traces, in the order of the prompts (traces may end with runs that edits needed beside).

        Raises:
            RiebenchError: if a block is missing or its calls are not one per step, if numbers overflow, or if memory
                does not suffice.
            ValueError: if lengths differ or the batch is empty.
        """
        try:
            return self._generate(prompts, seeds, edits, capture, keep_latents, keep_prefix, prefixes)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                refuse_lost(self.model.device, error)
                raise
        # Out here, the failed batch's tensors no longer live on in a traceback when smaller ones are tried.
        fewer = f"--batch-size {len(prompts) // 2} or less, then " if len(prompts) > 1 else ""
        raise MemoryShortageError(
            f"not enough memory on {self.model.device} for {len(prompts)} pictures of {self.model.spec.size} px at "
            f"once; use {fewer}--offload model, then --vae fp16-fix or --vae-tiling, then --offload sequential"
        )

    def _generate(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        edits: Sequence[Edit | None] | None,
        capture: Capture | Sequence[Capture] | None,
        keep_latents: bool,
        keep_prefix: PrefixPlan | None,
        prefixes: Sequence[Prefix],
    ) -> GenerationResult:
        if not prompts or len(prompts) != len(seeds) or (edits is not None and len(edits) != len(prompts)):
            raise ValueError(f"{len(prompts)} prompts, {len(seeds)} seeds, edits: {edits and len(edits)}")
        wanted = [] if capture is None else [capture] if isinstance(capture, Capture) else list(capture)
        beside, pairs = beside_edits(prompts, seeds, edits or ())
        every = [*prompts, *(p for p, _ in beside)]
        denoising = Denoising(every, edits or (), self._text, self.model.spec.steps, keep=keep_latents)
        options = denoising.begin(self._options(every, [*seeds, *(s for _, s in beside)]))
        with ExitStack() as stack:
            runs = list(zip(prompts, seeds, strict=True))
            if edits is not None:
                # What is captured has to be computed.
                stack.enter_context(self._intervened(runs, edits, len(beside), pairs, () if wanted else prefixes))
            traces = tuple(stack.enter_context(self._capture(one)) for one in wanted)
            kept = None
            if keep_prefix is not None:
                kept = stack.enter_context(record(self.model.unet, runs, keep_prefix, guided=self.model.guided))
            # Set inside, since the autoencoder's one wide head suits few of the kernels that suit the U-Net.
            stack.enter_context(attention_kernel(self.model.options))
            latents = self.model.pipe(**options, **denoising.options).images
        return GenerationResult(self.decode(latents[: len(prompts)]), traces, denoising.latents, kept)

    @contextmanager
    def _intervened(
        self, runs: Sequence[Run], edits: Sequence[Edit | None], beside: int, pairs: Mapping[int, tuple[int, int]],
        prefixes: Sequence[Prefix],
    ) -> Iterator[None]:  # fmt: skip
        unet, guided, steps = self.model.unet, self.model.guided, self.model.spec.steps
        cut = None if beside else shared_cut(prefixes, runs, edits)
        rows = [*edits, *[None] * beside]
        if cut is None:
            with intervene(unet, rows, pairs=pairs, guided=guided, steps=steps):
                yield
            return
        missed = partial(prefixes[0].missed, cut)
        with (
            intervene(unet, rows, guided=guided, steps=steps, missed=missed),
            resume(unet, prefixes, runs, cut, guided=guided),
        ):
            yield

    def _text(self, prompt: str) -> TextParts:
        return self.embed(prompt)[:2]

    def _capture(self, wanted: Capture) -> Any:
        return capture(
            self.model.unet, wanted.sites, keep=wanted.keep, steps=self.model.spec.steps, guided=self.model.guided,
            long=wanted.long, sink=wanted.sink,
        )  # fmt: skip

    def _options(self, prompts: Sequence[str], seeds: Sequence[int]) -> dict[str, Any]:
        spec = self.model.spec
        embeddings = [self.embed(prompt) for prompt in prompts]
        names = (
            "prompt_embeds", "pooled_prompt_embeds", "negative_prompt_embeds", "negative_pooled_prompt_embeds",
        )  # fmt: skip
        joined = {
            name: torch.cat([part for part in parts if part is not None])
            for name, parts in zip(names, zip(*embeddings, strict=True), strict=True)
            if parts[0] is not None
        }
        return {
            **joined,
            "num_inference_steps": spec.steps,
            "guidance_scale": spec.guidance,
            "height": spec.size,
            "width": spec.size,
            "generator": [torch.Generator("cpu").manual_seed(seed) for seed in seeds],
            "output_type": "latent",
        }

    @torch.inference_mode()
    def embed(self, prompt: str) -> Embeddings:
        """A prompt's embeddings, encoded alone so that they do not depend on the batch.

        The negative prompt is the one pipelines use when none is given: all zeros.
        """
        if prompt in self._embeddings:
            self._embeddings.move_to_end(prompt)
            return self._embeddings[prompt]
        prompt_embeds, negative, pooled, negative_pooled = self.model.pipe.encode_prompt(
            prompt, device=self.model.device, num_images_per_prompt=1, do_classifier_free_guidance=self.model.guided
        )
        self._embeddings[prompt] = (prompt_embeds, pooled, negative, negative_pooled)
        while len(self._embeddings) > self._cached_prompts:
            self._embeddings.popitem(last=False)
        return self._embeddings[prompt]

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> NDArray[np.uint8]:
        """Pictures of latents, decoded in the autoencoder's own number format (usually float32) and rounded once.

        Args:
            latents: [B, 4, h, w].

        Returns:
            uint8 [B, H, W, 3].

        Raises:
            RiebenchError: if a latent (an edit too strong for the number format) or a pixel is not finite.
        """
        vae = self.model.pipe.vae
        if not bool(torch.isfinite(latents).all()):
            raise RiebenchError("the generation overflowed; use a smaller strength, or --dtype bfloat16 or float32")
        # One picture at a time: SDXL's decoder needs far more memory than its U-Net, and a batch gains nothing.
        single = latents.shape[-1] > 64
        parts = (latents.float() / vae.config.scaling_factor).to(vae.dtype).split(1 if single else latents.shape[0])
        pixels = torch.cat([vae.decode(part, return_dict=False)[0] for part in parts])
        if not bool(torch.isfinite(pixels).all()):
            mend = "its weights are damaged: download them" if vae.dtype == torch.float32 else "leave --vae out: decode"
            again = "again" if vae.dtype == torch.float32 else "in float32"
            raise RiebenchError(f"the autoencoder gave numbers that are no colours; {mend} {again}")
        scaled = (pixels.float() / 2 + 0.5).clamp(0, 1).mul(255).round()
        return scaled.permute(0, 2, 3, 1).to(torch.uint8).cpu().numpy()

    def token_positions(self, prompt: str, words: str) -> list[int]:
        """Where words of a prompt lie among its tokens.

        Args:
            prompt: the whole prompt.
            words: a phrase of it; case does not matter, whole words only.

        Returns:
            Sorted positions in the text the U-Net reads (both tokenizers' taken together), each below the last one.

        Raises:
            MissingWordsError: if the prompt does not contain the phrase.
            RiebenchError: if it was cut off.
        """
        spans = phrase_spans(prompt, words)
        if not spans:
            raise MissingWordsError(f"the prompt {prompt!r} does not contain the region's words {words!r}")
        found: set[int] = set()
        pipe = self.model.pipe
        for tokenizer in (pipe.tokenizer, pipe.tokenizer_2):
            encoding = tokenizer(prompt)
            limit = tokenizer.model_max_length - 1
            tokens = {encoding.char_to_token(i) for start, end in spans for i in range(start, end)}
            found |= {token for token in tokens if token is not None and token < limit}
        if not found:
            raise RiebenchError(f"the words {words!r} were cut off the prompt {prompt!r}; shorten it")
        return sorted(found)

    def word_positions(self, prompt: str) -> list[int]:
        """Positions of all the prompt's words (no start, end or padding)."""
        return self.token_positions(prompt, prompt.strip())
