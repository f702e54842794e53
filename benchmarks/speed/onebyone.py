"""Edited pictures in the manner of the published scripts.

For every edited picture the source run, the target run and the edited run are generated anew, one picture at a time,
with nothing kept from the picture before. Only what a method finds in *other* examples is kept, as a script would
compute it once; an editor with a pipeline of its own gets the two pictures it starts from.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from riebench.generation.generator import Capture, GenerationResult, Generator
from riebench.generation.hooks import unit_layers
from riebench.generation.memory import BatchSize
from riebench.generation.regions.masks import View, make_masks
from riebench.generation.regions.options import DEFAULT_REGIONS, parse_regions
from riebench.generation.trace import Trace
from riebench.methods.base import ROLES, EditContext, ExampleRuns, Reuse, get_method
from riebench.methods.editors import Editor, EditorContext
from riebench.models.families.sdxl.names import BLOCKS
from riebench.models.loading import LoadedModel
from riebench.runs.capture import CapturePlan
from riebench.runs.masks import MaskMaker
from riebench.runs.plan import ExampleWork, Unit, works_of
from riebench.runs.prepare import prepare_setting
from riebench.runs.references import References
from riebench.saes.sources import model_saes
from riebench.tasks.masks import RegionMasks
from riebench.tasks.schema import EditTask, Setting


class OneByOne:
    """Maker of units one by one.

    Args:
        model: the generating model.
        folder: gets the pictures.
        saes: where its SAEs are; None for the model's own.
        tasks: whole tasks of one suite, for methods that look at other examples.
        settings: all that units may have, for the same.
    """

    def __init__(
        self, model: LoadedModel, folder: Path, saes: str | None = None, tasks: Sequence[EditTask] = (),
        settings: Sequence[Setting] = (),
    ) -> None:  # fmt: skip
        self.model = model
        self.folder = folder
        self.generator = Generator(model)
        self.saes = model_saes(saes, model, BLOCKS, offline=True)
        self.layers = {block: unit_layers(model.denoiser, block) for block in BLOCKS}
        self.references = self._references(tasks, settings, saes)

    def _references(
        self, tasks: Sequence[EditTask], settings: Sequence[Setting], saes: str | None
    ) -> References | None:
        looking = [one for one in settings if "others" in get_method(one.method).needs]
        if not looking:
            return None
        spec, suite = parse_regions(DEFAULT_REGIONS), tasks[0].suite
        prepared = {
            one.name: prepare_setting(one, suite, self.model, self.folder / "others", saes, spec.identity, offline=True)
            for one in looking
        }
        shared = next(iter(prepared.values())).folder.shared
        masks = MaskMaker(spec, shared, self.generator, batches=BatchSize(1), offline=True)
        captures = CapturePlan(self.generator, prepared, masks.uses_attention)
        return References(tasks, self.generator, masks, captures)

    def make(self, unit: Unit) -> NDArray[np.uint8]:
        """Make one edited picture, uint8 [H, W, 3], from three generations."""
        (work,) = works_of([unit], fixed_noise=self.model.spec.fixed_noise)
        # A new one, since a generator keeps the embeddings of prompts.
        self.generator = Generator(self.model)
        method = get_method(unit.setting.method)
        pair = [self._run(prompt, work.noise, unit) for prompt in (work.plain.source, work.plain.target)]
        if isinstance(method, Editor):
            pictures = {role: one.images[0] for role, one in zip(ROLES, pair, strict=True)}
            others = None if self.references is None else self.references.others(work)
            context = EditorContext(
                self.generator, work.plain, work.noise, pictures, (unit.key.strength,), others=others, seed=work.seed
            )
            picture = method.edit_pictures(context, unit.setting.params)[0]
        else:
            picture = self._edited(unit, work, pair)
        Image.fromarray(picture).save(self.folder / f"{unit.setting.name}-{unit.key.digest}.png")
        return picture

    def _edited(self, unit: Unit, work: ExampleWork, pair: Sequence[GenerationResult]) -> NDArray[np.uint8]:
        trace = _joined([one.traces[0] for one in pair])
        kept = [(role, one.latents) for role, one in zip(ROLES, pair, strict=True)]
        latents = {role: values[0] for role, values in kept if values is not None}
        runs = ExampleRuns(
            work.plain, work.seed, trace, {"source": 0, "target": 1}, self._masks(work, pair), self.layers,
            rule=work.task.region_rule, latents=latents,
            others=None if self.references is None else self.references.others(work), noise=work.noise,
        )  # fmt: skip
        made = get_method(unit.setting.method).edit(EditContext(runs, unit.blocks, self.saes), unit.setting.params)
        if isinstance(made, Reuse):
            prompt, edit = getattr(work.plain, made.picture), None
        else:
            prompt, edit = work.plain.source, replace(made, strength=unit.key.strength)
        return self.generator.generate([prompt], [work.noise], edits=[edit]).images[0]

    def _run(self, prompt: str, noise: int, unit: Unit) -> GenerationResult:
        needs = get_method(unit.setting.method).needs
        sites = [f"{block}.ff.{layer}" for block, count in self.layers.items() for layer in range(count)]
        captures = [Capture((*BLOCKS, *(sites if "units" in needs else ()))), Capture(BLOCKS, ("attention",))]
        return self.generator.generate([prompt], [noise], capture=captures, keep_latents="latents" in needs)

    def _masks(self, work: ExampleWork, pair: Sequence[GenerationResult]) -> RegionMasks:
        prompts = (work.plain.source, work.plain.target)
        views = [self._view(prompt, one) for prompt, one in zip(prompts, pair, strict=True)]
        return make_masks(
            work.task.region_rule, work.plain.source_region, work.plain.target_region, views[0], views[1], "attention",
            work.task.folder or Path(),
        )  # fmt: skip

    def _view(self, prompt: str, one: GenerationResult) -> View:
        trace, generator = one.traces[1], self.generator
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
            joined.add(site, "update", {"conditional": values[:, step]}, unconditional=False)
    return joined
