"""What the speed measurements run: the toy sweep, the same pictures one by one, and the bare model calls.

One by one means in the manner of the published scripts: for every edited picture the source run, the target run and the
edited run are generated anew, one picture at a time, with nothing kept from the picture before.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from riebench.generate import Capture, GenerationResult, Generator
from riebench.hooks import Hooks, unit_layers
from riebench.methods.base import ROLES, EditContext, ExampleRuns, Reuse, get_method
from riebench.models import LoadedModel
from riebench.planning import Unit, Work, works_of
from riebench.regions import RegionMasks, View, make_masks
from riebench.saes.sources import model_saes
from riebench.schema import BLOCKS, EditTask, Setting
from riebench.suites import load_settings, load_suite
from riebench.traces import Trace

SWEEP = (
    "no_edit", "target_prompt", "sae_sweep", "sae_each_sweep", "neurons_sweep", "activation_patch_sweep",
    "mean_steering_sweep", "random_features_sweep", "embed_lerp", "prompt_switch", "masked_target",
)  # fmt: skip
"""The official toy sweep, but for editors with pipelines of their own and methods that look at other examples."""


@dataclass
class Clock:
    """Seconds spent inside the model, and the work it did.

    Attributes:
        model: seconds inside U-Net, autoencoder and text encoders, what hooks do there not counted.
        hooks: seconds inside hooks.
        unet: the U-Net's part of `model`.
        calls: calls of "unet", "decoder" and "text".
        rows: the rows of those calls; those of "unet" are the U-Net evaluations.
        batches: rows of each U-Net call.
    """

    model: float = 0.0
    hooks: float = 0.0
    unet: float = 0.0
    calls: Counter[str] = field(default_factory=Counter)
    rows: Counter[str] = field(default_factory=Counter)
    batches: list[int] = field(default_factory=list)


@contextmanager
def clocked(model: LoadedModel) -> Iterator[Clock]:
    """Measures what the model's own code takes inside the `with` block, in seconds of the process."""
    clock, depth = Clock(), 0

    def timed(function: Callable[..., Any], label: str, rows: Callable[..., int]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal depth
            depth += 1
            before, start = clock.hooks, time.process_time()
            try:
                return function(*args, **kwargs)
            finally:
                depth -= 1
                spent = time.process_time() - start - (clock.hooks - before)
                count = rows(*args, **kwargs)
                clock.calls[label] += 1
                clock.rows[label] += count
                if label == "unet":
                    clock.unet += spent
                    clock.batches.append(count)
                if depth == 0:
                    clock.model += spent

        return call

    def as_hook(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            start = time.process_time()
            try:
                return function(*args)
            finally:
                clock.hooks += time.process_time() - start

        return call

    plain_before, plain_after = Hooks.before, Hooks.after
    pipe = model.pipe
    parts = [(pipe.unet, "forward", "unet"), (pipe.vae, "decode", "decoder")]
    parts += [(part, "forward", "text") for part in (pipe.text_encoder, pipe.text_encoder_2) if part is not None]
    with (
        patch.object(Hooks, "before", lambda self, module, function: plain_before(self, module, as_hook(function))),
        patch.object(Hooks, "after", lambda self, module, function: plain_after(self, module, as_hook(function))),
    ):
        for part, name, label in parts:
            part.__dict__[name] = timed(getattr(part, name), label, _rows)
        try:
            yield clock
        finally:
            for part, name, _ in parts:
                del part.__dict__[name]


def _rows(*args: Any, **kwargs: Any) -> int:
    first = args[0] if args else next(iter(kwargs.values()))
    return len(first)


def sample(examples: int, names: Sequence[str] = SWEEP) -> tuple[list[EditTask], tuple[Setting, ...]]:
    """The first so many examples of the toy suite, spread over its categories, and settings of its sweep."""
    tasks = load_suite("toy")
    each, more = divmod(examples, len(tasks))
    counts = [each + (number < more) for number in range(len(tasks))]
    chosen = [
        task.model_copy(update={"examples": task.examples[:count]})
        for task, count in zip(tasks, counts, strict=True)
        if count
    ]
    return chosen, load_settings("toy", names, "sweep")


class OneByOne:
    """Makes units in the manner of the published scripts.

    Args:
        model: generates.
        folder: gets the pictures.
        saes: where its SAEs are; None for the model's own.
    """

    def __init__(self, model: LoadedModel, folder: Path, saes: str | None = None) -> None:
        self.model = model
        self.folder = folder
        self.saes = model_saes(saes, model, BLOCKS, offline=True)
        self.layers = {block: unit_layers(model.unet, block) for block in BLOCKS}

    def make(self, unit: Unit) -> NDArray[np.uint8]:
        """One edited picture, uint8 [H, W, 3], from three generations."""
        (work,) = works_of([unit], fixed_noise=self.model.spec.fixed_noise)
        pair = [self._run(prompt, work.noise, unit) for prompt in (work.plain.source, work.plain.target)]
        masks = self._masks(work, pair)
        trace = _joined([one.traces[0] for one in pair])
        kept = [(role, one.latents) for role, one in zip(ROLES, pair, strict=True)]
        latents = {role: values[0] for role, values in kept if values is not None}
        runs = ExampleRuns(
            work.plain, work.seed, trace, {"source": 0, "target": 1}, masks, self.layers, rule=work.task.region_rule,
            latents=latents,
        )  # fmt: skip
        made = get_method(unit.setting.method).edit(EditContext(runs, unit.blocks, self.saes), unit.setting.params)
        if isinstance(made, Reuse):
            prompt, edit = getattr(work.plain, made.picture), None
        else:
            prompt, edit = work.plain.source, replace(made, strength=unit.key.strength)
        picture = Generator(self.model).generate([prompt], [work.noise], edits=[edit]).images[0]
        Image.fromarray(picture).save(self.folder / f"{unit.setting.name}-{unit.key.digest}.png")
        return picture

    def _run(self, prompt: str, noise: int, unit: Unit) -> GenerationResult:
        needs = get_method(unit.setting.method).needs
        sites = [f"{block}.ff.{layer}" for block, count in self.layers.items() for layer in range(count)]
        captures = [Capture((*BLOCKS, *(sites if "units" in needs else ()))), Capture(BLOCKS, ("attention",))]
        return Generator(self.model).generate([prompt], [noise], capture=captures, keep_latents="latents" in needs)

    def _masks(self, work: Work, pair: Sequence[GenerationResult]) -> RegionMasks:
        prompts = (work.plain.source, work.plain.target)
        views = [self._view(prompt, one) for prompt, one in zip(prompts, pair, strict=True)]
        return make_masks(
            work.task.region_rule, work.plain.source_region, work.plain.target_region, views[0], views[1], "attention",
            work.task.folder or Path(),
        )  # fmt: skip

    def _view(self, prompt: str, one: GenerationResult) -> View:
        trace, generator = one.traces[1], Generator(self.model)
        maps = [trace.row(site, 0, "attention").mean(0) for site in trace.sites]
        grid = trace.grids[trace.sites[0]]
        same = [found for found in maps if found.shape[0] == math.prod(grid)]
        return View(
            prompt, one.images[0], torch.stack(same).mean(0), grid,
            lambda words: generator.token_positions(prompt, prompt if words is None else words),
        )  # fmt: skip


def _joined(traces: Sequence[Trace]) -> Trace:
    joined = Trace()
    joined.grids = traces[0].grids
    for site in traces[0].sites:
        values = torch.cat([trace.get(site) for trace in traces])
        for step in range(values.shape[1]):
            joined.add(site, "update", values[:, step], guided=False, unconditional=False)
    return joined


@torch.inference_mode()
def bare(model: LoadedModel, evaluations: Sequence[int], decoded: int, batch: int) -> None:
    """The bare model calls: U-Net calls of so many rows, and as many pictures decoded, nothing else.

    Args:
        model: as loaded.
        evaluations: rows of each U-Net call.
        decoded: pictures.
        batch: pictures decoded at once.
    """
    unet, vae = model.pipe.unet, model.pipe.vae
    side = model.spec.size // model.pipe.vae_scale_factor
    prompt, pooled, _, _ = Generator(model).embed("a red house")
    ids = torch.zeros(1, 6, device=model.device, dtype=prompt.dtype)
    for rows in evaluations:
        latents = torch.zeros(rows, unet.config.in_channels, side, side, device=model.device, dtype=prompt.dtype)
        added = {"text_embeds": pooled.expand(rows, -1), "time_ids": ids.expand(rows, -1)}
        unet(latents, 500, prompt.expand(rows, -1, -1), added_cond_kwargs=added, return_dict=False)
    for start in range(0, decoded, batch):
        rows = min(batch, decoded - start)
        vae.decode(torch.zeros(rows, vae.config.latent_channels, side, side, device=model.device), return_dict=False)
