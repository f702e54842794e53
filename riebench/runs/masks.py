"""Masks of a run's examples: read if stored, else made and stored.

Providers that need models of their own look at the stored pictures of all examples in one go: the models are loaded
once, nothing of an example stays in memory, and the models are freed before the first edit is made. Providers that
look at the generating model's attention work while it is captured.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from riebench.errors import RiebenchError, foreign_code, reason
from riebench.generation.generator import GenerationResult, Generator
from riebench.generation.memory import BatchSize
from riebench.generation.regions.grounding import free_memory, locate
from riebench.generation.regions.masks import RegionProvider, View, make_masks, mask_overlay, needs_attention
from riebench.generation.regions.options import RegionSpec
from riebench.methods.base import ROLES
from riebench.registry import REGIONS
from riebench.runs.plan import ExampleWork
from riebench.store.shared import SharedFolder
from riebench.tasks.masks import RegionMasks
from riebench.utils.terminal import ProgressBar


class MaskMaker:
    """Maker of the masks of examples, which it also stores.

    Args:
        spec: the region provider.
        shared: the folder of shared pictures and masks.
        generator: makes the pictures to look at.
        batches: number of pictures generated at once.
        offline: True to fetch nothing.
        progress: True to show a bar.
    """

    def __init__(
        self, spec: RegionSpec, shared: SharedFolder, generator: Generator, *, batches: BatchSize,
        offline: bool = False, progress: bool = False,
    ) -> None:  # fmt: skip
        self.spec = spec
        self.shared = shared
        self.generator = generator
        self.batches = batches
        self.offline = offline
        self.progress = progress
        self._reasons: dict[str, str] = {}
        self._ready: RegionProvider | None = None

    def uses_attention(self, work: ExampleWork) -> bool:
        """Check whether attention has to be captured for an example's masks."""
        return not self.spec.models and needs_attention(_regions(work))

    def prepare(self, works: Sequence[ExampleWork]) -> None:
        """Make all masks that need region models, unless they are stored.

        Without any to make, no model is loaded.

        Raises:
            RiebenchError: if the models cannot be loaded, before anything is generated if files are missing.
        """
        if not self.spec.models:
            return
        wanted = [work for work in works if needs_attention(_regions(work)) and self._stored_masks(work) is None]
        if not wanted:
            return
        self.spec.options.check_side(self.generator.model.spec.size)
        folders = locate(self.spec, offline=self.offline)
        self._generate_pictures([work for work in wanted if not self._has_pictures(work)])
        ready = [work for work in wanted if self._has_pictures(work)]
        with region_provider(self.spec, folders, self.generator) as provider:
            for work in ProgressBar(ready, title="masks", unit="example", shown=self.progress):
                self._find_masks(work, provider)

    def masks(self, work: ExampleWork, pair: GenerationResult, index: int, count: int) -> RegionMasks:
        """Return an example's masks: those stored, or new ones.

        Args:
            work: the example.
            pair: source and target runs of some examples.
            index: index of this example among them.
            count: number of examples.

        Raises:
            RiebenchError: if they cannot be made.
        """
        stored = self._stored_masks(work)
        if stored is not None:
            return stored
        if self.spec.models and needs_attention(_regions(work)):
            why = "its source or target picture was missing when regions were looked for; --redo errors tries again"
            raise RiebenchError(self._reasons.get(self._mask_name(work), why))
        views = (
            captured_view(self.generator, work.plain.source, pair, index),
            captured_view(self.generator, work.plain.target, pair, index + count),
        )
        if self.spec.models:
            # Nothing has to be looked for here, so the provider is never called and its models stay unloaded.
            return self._make_masks(work, *views, self.spec.provider)
        if self._ready is None:
            self._ready = provider_without_models(self.spec, self.generator)
        return self._make_masks(work, *views, self._ready)

    def _mask_name(self, work: ExampleWork) -> str:
        return self.shared.mask_name(work.units[0].key)

    def _stored_masks(self, work: ExampleWork) -> RegionMasks | None:
        stored = self.shared.read_json(self._mask_name(work))
        return None if stored is None else RegionMasks.from_json(stored)

    def _make_masks(self, work: ExampleWork, source: View, target: View, provider: str | RegionProvider) -> RegionMasks:
        example = work.plain
        with foreign_code(f"region provider {self.spec.provider!r}"):
            masks = make_masks(
                work.task.region_rule, example.source_region, example.target_region, source, target, provider,
                work.task.folder or Path(),
            )  # fmt: skip
        self.shared.write_json(self._mask_name(work), masks.to_json(self.spec.identity))
        return RegionMasks.from_json(self.shared.read_json(self._mask_name(work)) or {})

    def _picture_names(self, work: ExampleWork) -> list[str]:
        """Return the names of the source and the target picture in the shared folder."""
        return [self.shared.image_name(work.units[0].key, role) for role in ROLES]

    def _has_pictures(self, work: ExampleWork) -> bool:
        return all((self.shared.path / name).exists() for name in self._picture_names(work))

    def _generate_pictures(self, works: Sequence[ExampleWork]) -> None:
        """Generate and store the source and target pictures of some examples.

        Those that cannot be made fail again later, with the edits, and are then recorded.
        """
        self.batches.each(works, len(ROLES), self._generate_pairs, self._store_pictures, lambda work, why: None)

    def _generate_pairs(self, works: Sequence[ExampleWork]) -> NDArray[np.uint8]:
        """Generate the source pictures of all, then the target pictures of all."""
        prompts = [work.plain.source for work in works] + [work.plain.target for work in works]
        return self.generator.generate(prompts, [work.noise for work in works] * 2).images

    def _store_pictures(self, works: Sequence[ExampleWork], images: NDArray[np.uint8]) -> None:
        for half, role in zip(np.split(images, len(ROLES)), ROLES, strict=True):
            for work, image in zip(works, half, strict=True):
                self.shared.write_image(self.shared.image_name(work.units[0].key, role), image)

    def _find_masks(self, work: ExampleWork, provider: RegionProvider) -> None:
        source, target = (self.shared.read_image(name) for name in self._picture_names(work))
        views = (
            View(work.plain.source, source, None, (1, 1), _no_positions),
            View(work.plain.target, target, None, (1, 1), _no_positions),
        )
        try:
            masks = self._make_masks(work, *views, provider)
        except Exception as error:
            # An error with one picture does not end the run; the units of its example are recorded with this reason.
            self._reasons[self._mask_name(work)] = reason(error)
            return
        name = f"{self._mask_name(work).removesuffix('.json')}.png"
        self.shared.write_image(name, mask_overlay(source, target, masks))


def provider_without_models(spec: RegionSpec, generator: Generator) -> RegionProvider:
    """Return a provider that loads no model.

    A function is taken as it is; a class is given its options.

    Args:
        spec: the provider.
        generator: whose device it uses.
    """
    found = REGIONS.get(spec.provider)
    provider: RegionProvider = found.load(spec.options, {}, generator.model.device) if hasattr(found, "load") else found
    return provider


@contextmanager
def region_provider(spec: RegionSpec, folders: dict[str, Path], generator: Generator) -> Iterator[RegionProvider]:
    """Load a provider with models of its own; free its memory at the end.

    Args:
        spec: the provider.
        folders: folders of its models.
        generator: generator whose device it uses.
    """
    model = generator.model
    # With offloading, the part that was used last may still be on the device.
    model.pipe.maybe_free_model_hooks()
    loaded: list[Any] = [REGIONS.get(spec.provider).load(spec.options, folders, model.device)]
    try:
        # Only the list holds the provider, so that emptying it frees the memory.
        yield lambda words, view: loaded[0](words, view)
    finally:
        loaded.clear()
        free_memory()


def captured_view(generator: Generator, prompt: str, found: GenerationResult, row: int) -> View:
    """Return one of some pictures as a region provider sees it.

    Its text attention is what was captured as the last trace.

    Args:
        generator: knows the prompt's tokens.
        prompt: the picture's prompt.
        found: the pictures.
        row: index of the picture.
    """
    trace = found.traces[-1]
    maps = [trace.row(site, row, "attention").mean(0) for site in trace.sites]
    grid = trace.grids[trace.sites[0]] if maps else (1, 1)
    same = [one for one in maps if one.shape[0] == grid[0] * grid[1]]

    def positions(words: str | None) -> Sequence[int]:
        return generator.token_positions(prompt, prompt if words is None else words)

    attention = torch.stack(same).mean(0) if same else None
    return View(prompt, found.images[row], attention, grid, positions)


def _regions(work: ExampleWork) -> tuple[str, str]:
    return work.example.source_region, work.example.target_region


def _no_positions(words: str | None) -> Sequence[int]:
    return ()
