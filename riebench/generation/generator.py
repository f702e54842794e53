"""Batched generation: every picture has its own noise and its own edit.

`Generator` makes pictures and decodes latents, `NoDecodeGenerator` leaves the pictures out, `Capture` says which
activations to trace, `GenerationResult` is what comes out, `StepCallback` changes prompts and latents between the steps
of a batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from cachetools import LRUCache
from numpy.typing import NDArray
from torch import Tensor

from riebench.errors import MemoryShortageError, MissingWordsError, RiebenchError
from riebench.generation.distribution import DistributionMeter
from riebench.generation.edits import Edit, TextParts, TextReader
from riebench.generation.hooks import hooked
from riebench.generation.prefix import Prefix, PrefixPlan, Run, record, resume, shared_cut
from riebench.generation.trace import Quantity, Sink, StepSink, Trace, capture, intervene
from riebench.generation.transfers import paired_runs
from riebench.models.families.base import TextEmbeddings
from riebench.models.families.text_keys import shared_text
from riebench.models.loading import LoadedModel
from riebench.models.placement import attention_kernel, out_of_memory, refuse_lost
from riebench.tasks.prompts import phrase_spans

LATENTS = "latents"


@dataclass(frozen=True)
class Capture:
    """A request to capture activations during a generation.

    Attributes:
        sites: blocks or feed-forward sites.
        keep: what of each block.
        long: keeps 16 bits of each number (see `riebench.generation.memory`).
        sink: takes the values as they come; the trace then keeps none.
    """

    sites: tuple[str, ...]
    keep: tuple[Quantity, ...] = ("update",)
    long: bool = False
    sink: Sink | StepSink | None = None


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
    """A generator of pictures of one model.

    Args:
        model: the model.
        cached_prompts: how many prompts' embeddings are kept.
    """

    def __init__(self, model: LoadedModel, cached_prompts: int = 256) -> None:
        self.model = model
        self._embeddings: LRUCache[str, TextEmbeddings] = LRUCache(cached_prompts)

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
        meter: DistributionMeter | None = None,
    ) -> GenerationResult:
        """Generate one batch.

        Args:
            prompts: one per picture.
            seeds: one per picture; each seeds a CPU generator of its own, so that noise depends neither on the batch
                nor on the device.
            edits: one per picture, None for none.
            capture: what to capture; edited values where there are edits.
            keep_latents: keeps the latents after each step.
            keep_prefix: what to keep for edited runs of the same prompts and seeds.
            prefixes: source runs of the rows; what the whole batch has in common with them is not computed again.
            meter: takes edited activations.

        Returns:
            Pictures and traces, in the order of the prompts; traces may end with further runs that edits read.

        Raises:
            RiebenchError: if a block is missing or its calls are not one per step, if numbers overflow, or if memory
                does not suffice.
            ValueError: if lengths differ or the batch is empty.
        """
        try:
            return self._generate(prompts, seeds, edits, capture, keep_latents, keep_prefix, prefixes, meter)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                refuse_lost(self.model.device, error)
                raise
        # Raised outside the handler, so that no traceback keeps the failed batch's tensors when smaller ones are tried.
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
        meter: DistributionMeter | None,
    ) -> GenerationResult:
        if not prompts or len(prompts) != len(seeds) or (edits is not None and len(edits) != len(prompts)):
            raise ValueError(f"{len(prompts)} prompts, {len(seeds)} seeds, edits: {edits and len(edits)}")
        wanted = [] if capture is None else [capture] if isinstance(capture, Capture) else list(capture)
        extra, pairs = paired_runs(prompts, seeds, edits or ())
        every = [*prompts, *(p for p, _ in extra)]
        callback = StepCallback(self.model, every, edits or (), self, keep=keep_latents)
        options = callback.begin(self._options(every, [*seeds, *(s for _, s in extra)]))
        with ExitStack() as stack:
            runs = list(zip(prompts, seeds, strict=True))
            if edits is not None:
                # What is captured has to be computed.
                stack.enter_context(
                    self._apply_edits(runs, edits, len(extra), pairs, () if wanted else prefixes, meter)
                )
            traces = tuple(stack.enter_context(self._capture(one)) for one in wanted)
            kept = None
            if keep_prefix is not None:
                kept = stack.enter_context(record(self.model.denoiser, runs, keep_prefix, guided=self.model.guided))
            stack.enter_context(callback.exchanged())
            if not callback.changes_text:
                stack.enter_context(shared_text(self.model.denoiser, every))
            # Set inside, since the autoencoder's one wide head suits few of the kernels that suit the denoiser.
            stack.enter_context(attention_kernel(self.model.options))
            latents = self.model.pipe(**options, **callback.options).images
        if callback.last is not None:
            # Some pipelines return what the denoiser made of the last step, whatever a callback changed afterwards.
            latents = self.model.family.returned_latents(self.model.pipe, callback.last)
        return GenerationResult(self.decode(latents[: len(prompts)]), traces, callback.latents, kept)

    @contextmanager
    def _apply_edits(
        self, runs: Sequence[Run], edits: Sequence[Edit | None], extra: int, pairs: Mapping[int, tuple[int, int]],
        prefixes: Sequence[Prefix], meter: DistributionMeter | None,
    ) -> Iterator[None]:  # fmt: skip
        denoiser, guided, steps = self.model.denoiser, self.model.guided, self.model.spec.steps
        cut = None if extra else shared_cut(prefixes, runs, edits)
        rows = [*edits, *[None] * extra]
        if cut is None:
            with intervene(denoiser, rows, pairs=pairs, guided=guided, steps=steps, meter=meter):
                yield
            return
        absent_steps = partial(prefixes[0].absent_steps, cut)
        with (
            intervene(denoiser, rows, guided=guided, steps=steps, absent_steps=absent_steps, meter=meter),
            resume(denoiser, prefixes, runs, cut, guided=guided),
        ):
            yield

    def text_parts(self, prompt: str) -> TextParts:
        """Return a prompt as the denoiser reads it, [1, ...] each."""
        return self.embed(prompt).parts

    def _capture(self, wanted: Capture) -> Any:
        return capture(
            self.model.denoiser, wanted.sites, keep=wanted.keep, steps=self.model.spec.steps, guided=self.model.guided,
            long=wanted.long, sink=wanted.sink,
        )  # fmt: skip

    def _options(self, prompts: Sequence[str], seeds: Sequence[int]) -> dict[str, Any]:
        texts = [self.embed(prompt).arguments for prompt in prompts]
        return {
            **{name: self.model.family.join_text([text[name] for text in texts]) for name in texts[0]},
            **self.model.family.call_options(self.model.spec),
            "generator": [torch.Generator("cpu").manual_seed(seed) for seed in seeds],
        }

    @torch.inference_mode()
    def embed(self, prompt: str) -> TextEmbeddings:
        """Encode a prompt alone, so that its embeddings do not depend on the batch.

        The embeddings that were used last are kept.
        """
        found = self._embeddings.get(prompt)
        if found is None:
            model = self.model
            found = model.family.embed(model.pipe, prompt, model.device, guided=model.guided)
            self._embeddings[prompt] = found
        return found

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> NDArray[np.uint8]:
        """Decode latents to pictures.

        The autoencoder computes in its own number format (usually float32), and pixels are rounded once.

        Args:
            latents: [B, ...], as the pipeline's call returns them.

        Returns:
            uint8 [B, H, W, 3].

        Raises:
            RiebenchError: if a latent (an edit too strong for the number format) or a pixel is not finite.
        """
        vae, family, size = self.model.pipe.vae, self.model.family, self.model.spec.size
        if not bool(torch.isfinite(latents).all()):
            raise RiebenchError(
                "the generation overflowed; use a smaller strength, or --dtype bfloat16 or float32; if a usual "
                "strength overflows, look at the SAE's row norms with `riebench sae inspect`"
            )
        single = family.unpack_latents(latents, size).shape[-1] > family.full_shape.max_decoded
        parts = latents.split(1 if single else latents.shape[0])
        pixels = torch.cat([family.decode(self.model.pipe, part) for part in parts])
        if not bool(torch.isfinite(pixels).all()):
            if vae.dtype == torch.float32:
                remedy = "its weights are damaged: download them again"
            else:
                remedy = "leave --vae out: decode in float32"
            raise RiebenchError(f"the autoencoder gave numbers that are no colours; {remedy}")
        scaled = (pixels.float() / 2 + 0.5).clamp(0, 1).mul(255).round()
        return scaled.permute(0, 2, 3, 1).to(torch.uint8).cpu().numpy()

    def token_positions(self, prompt: str, words: str) -> list[int]:
        """Find the positions of some words among a prompt's tokens.

        Args:
            prompt: the whole prompt.
            words: a phrase of it; case does not matter, whole words only.

        Returns:
            Sorted positions in the text that the denoiser reads (all tokenizers' taken together), each below the last.

        Raises:
            MissingWordsError: if the prompt does not contain the phrase.
            RiebenchError: if it was cut off.
        """
        spans = phrase_spans(prompt, words)
        if not spans:
            raise MissingWordsError(f"the prompt {prompt!r} does not contain the region's words {words!r}")
        characters = [index for start, end in spans for index in range(start, end)]
        found = self.model.family.token_positions(self.model.pipe, prompt, characters)
        if not found:
            raise RiebenchError(f"the words {words!r} were cut off the prompt {prompt!r}; shorten it")
        return sorted(found)

    def word_positions(self, prompt: str) -> list[int]:
        """Find the positions of all the prompt's words.

        Start, end and padding tokens are left out.
        """
        return self.token_positions(prompt, prompt.strip())


class NoDecodeGenerator(Generator):
    """Generator that leaves out decoding, half the work of one step.

    It serves measurements that read activations and need no pictures.
    """

    def decode(self, latents: Tensor) -> NDArray[np.uint8]:
        """Return pictures without pixels, [B, 0, 0, 3].

        Raises:
            RiebenchError: if a latent is not finite.
        """
        if not bool(torch.isfinite(latents).all()):
            raise RiebenchError("the generation overflowed; use --dtype bfloat16 or float32")
        return np.zeros((len(latents), 0, 0, 3), np.uint8)


class StepCallback:
    """Step callback of a pipeline for one batch.

    Args:
        model: whose pipeline runs.
        prompts: one per row.
        edits: one per row, at most; None and empty edits leave their row as it is.
        reader: reads prompts.
        keep: keeps every row's latents after each step.
    """

    def __init__(
        self,
        model: LoadedModel,
        prompts: Sequence[str],
        edits: Sequence[Edit | None],
        reader: TextReader,
        *,
        keep: bool = False,
    ) -> None:
        self._family, self._size, self._steps = model.family, model.spec.size, model.spec.steps
        self._layout, self._denoiser, self._guided = model.layout, model.denoiser, model.guided
        self._prompts = prompts
        self._reader = reader
        self._kept: list[Tensor] | None = [] if keep else None
        self._last: Tensor | None = None
        active = {row: edit for row, edit in enumerate(edits) if edit is not None and not edit.empty}
        self._texts = {row: edit for row, edit in active.items() if edit.text is not None}
        self._latents = {row: edit for row, edit in active.items() if edit.latents is not None}

    @property
    def changes_text(self) -> bool:
        """True if any row's text changes between the steps."""
        return bool(self._texts)

    @property
    def options(self) -> dict[str, Any]:
        """Arguments for the pipeline's call; none if there is nothing to do."""
        texts = self._family.step_text_names if self._texts else ()
        names = [*texts, *((LATENTS,) if self._latents or self._kept is not None else ())]
        if not names:
            return {}
        return self._family.step_options(self, names)

    @property
    def last(self) -> Tensor | None:
        """Latents after the last step if an edit changed any there.

        They are as the pipeline carries them between the steps.
        """
        return self._last

    @property
    def latents(self) -> Tensor | None:
        """Latents of all steps, [B, T, c, h, w], if they were to be kept."""
        return torch.stack(self._kept, dim=1) if self._kept else None

    def begin(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Return a pipeline's options with the embeddings of the first step."""
        if not self._texts:
            return dict(options)
        given = {name: options[name] for name in self._family.text_names}
        return {**options, **self._replace_rows(given, self._weights(0))}

    def __call__(self, pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        """Return what the next step starts from; called after each step."""
        changed: dict[str, Any] = {}
        if LATENTS in tensors:
            latents = self._change_latents(self._family.unpack_latents(tensors[LATENTS], self._size), step)
            changed[LATENTS] = self._family.pack_latents(latents)
            if step + 1 == self._steps and self._latents:
                self._last = changed[LATENTS]
            if self._kept is not None:
                self._kept.append(latents.clone())
        following = self._weights(step + 1)
        if step + 1 < self._steps and following != self._weights(step):
            changed |= self._replace_rows({name: tensors[name] for name in self._family.step_text_names}, following)
        return changed

    @contextmanager
    def exchanged(self) -> Iterator[None]:
        """Exchange text that the pipeline holds fixed between the steps.

        It is exchanged in every call of the denoiser inside the `with` block.
        """
        arguments = self._family.step_text_arguments if self._texts else {}
        if not arguments:
            yield
            return
        with hooked(self._denoiser, (), None, guided=self._guided) as hooks:

            def exchange(args: Any, kwargs: Any) -> Any:
                if hooks.layout.offset("conditional", len(self._prompts), hooks.call) is None:
                    return None
                weights = self._weights(hooks.step)
                given = {name: kwargs[argument] for name, argument in arguments.items()}
                changed = self._replace_rows(given, weights, tuple(arguments))
                return args, {**kwargs, **{arguments[name]: values for name, values in changed.items()}}

            hooks.before(self._denoiser, exchange)
            yield

    def _weights(self, step: int) -> dict[int, float]:
        return {
            row: edit.text.weight(step, self._steps, edit.strength) if edit.acts_at(step) else 0.0
            for row, edit in self._texts.items()
            if edit.text is not None
        }

    def _replace_rows(
        self, given: Mapping[str, Any], weights: Mapping[int, float], names: Sequence[str] | None = None
    ) -> dict[str, Any]:
        """Return the embeddings with the rows of changed prompts replaced.

        Only rows of the conditional half are replaced.

        Args:
            given: name -> embeddings of the batch.
            weights: row -> how strongly its change is read.
            names: names of the embeddings as before the first step; None if they are the first ones in order.
        """
        count = len(self._prompts)
        order = self._family.text_names
        places = range(len(given)) if names is None else [order.index(name) for name in names]
        # Texts that differ in length are a list with an entry for each row.
        written = {name: [*values] if isinstance(values, list) else values.clone() for name, values in given.items()}
        for row, weight in weights.items():
            edit = self._texts[row]
            if edit.text is None:
                continue
            parts = edit.text.read(self._reader, self._prompts[row], weight)
            for values, part in zip(written.values(), [parts[place] for place in places], strict=True):
                # Before the first step, and where the halves are calls of their own, there are conditional rows alone.
                both = len(values) > count
                offset = self._layout.offset("conditional", count, 0) if both else 0
                place = row + (offset or 0)
                values[place] = part[0].to(values[place])
        return written

    def _change_latents(self, latents: Tensor, step: int) -> Tensor:
        acting = {row: edit for row, edit in self._latents.items() if edit.acts_at(step)}
        if not acting:
            return latents
        changed = latents.clone()
        for row, edit in acting.items():
            if edit.latents is not None:
                changed[row] = edit.latents.after(step, latents[row], edit.strength)
        return changed
