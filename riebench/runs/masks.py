"""The masks of a run's examples: those stored, or new ones, which are then stored.

Providers that need models of their own look at stored pictures, all examples' in one go: the models are loaded once,
nothing of an example stays in memory, and the models are gone before the first edit is made. Providers that look at
the generating model's attention work while it is captured.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from riebench.errors import RiebenchError, reason
from riebench.generation.generator import GenerationResult, Generator
from riebench.generation.memory import BatchSize
from riebench.generation.regions.grounding import free_memory, locate
from riebench.generation.regions.masks import RegionProvider, View, make_masks, mask_overlay, needs_attention
from riebench.generation.regions.options import RegionSpec
from riebench.methods.base import ROLES
from riebench.registry import REGIONS
from riebench.runs.plan import Work
from riebench.store.folder import SharedFolder
from riebench.tasks.masks import RegionMasks
from riebench.utils.images import read_image


class MaskMaker:
    """Makes and keeps the masks of examples.

    Args:
        spec: who finds words.
        shared: where pictures and masks are stored.
        generator: makes the pictures to look at.
        batches: how many pictures are generated at once.
        offline: fetches nothing.
        progress: shows a bar.
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

    def looks_at_attention(self, work: Work) -> bool:
        """Whether attention has to be captured for an example's masks."""
        return not self.spec.models and needs_attention(_regions(work))

    def prepare(self, works: Sequence[Work]) -> None:
        """Makes all masks that need models, unless they are stored; without any to make, no model is loaded.

        Raises:
            RiebenchError: if the models cannot be loaded, before anything is generated if files are missing.
        """
        if not self.spec.models:
            return
        wanted = [work for work in works if needs_attention(_regions(work)) and self._stored(work) is None]
        if not wanted:
            return
        self.spec.options.check_side(self.generator.model.spec.size)
        folders = locate(self.spec, offline=self.offline)
        self._draw([work for work in wanted if not all(path.exists() for path in self._pictures(work))])
        seen = [work for work in wanted if all(path.exists() for path in self._pictures(work))]
        with region_provider(self.spec, folders, self.generator) as provider:
            for work in tqdm(seen, unit="example", desc="masks", disable=not self.progress):
                self._look(work, provider)

    def masks(self, work: Work, pair: GenerationResult, index: int, count: int) -> RegionMasks:
        """An example's masks: those stored, or new ones.

        Args:
            work: the example.
            pair: source and target runs of some examples.
            index: which of them is this one.
            count: how many there are.

        Raises:
            RiebenchError: if they cannot be made.
        """
        stored = self._stored(work)
        if stored is not None:
            return stored
        if self.spec.models and needs_attention(_regions(work)):
            why = "its source or target picture was missing when regions were looked for; --redo errors tries again"
            raise RiebenchError(self._reasons.get(self._name(work), why))
        views = (
            captured_view(self.generator, work.plain.source, pair, index),
            captured_view(self.generator, work.plain.target, pair, index + count),
        )
        return self._make(work, *views, self.spec.provider)

    def _name(self, work: Work) -> str:
        return self.shared.mask_name(work.units[0].key)

    def _stored(self, work: Work) -> RegionMasks | None:
        stored = self.shared.read_json(self._name(work))
        return None if stored is None else RegionMasks.from_json(stored)

    def _make(self, work: Work, source: View, target: View, provider: str | RegionProvider) -> RegionMasks:
        example = work.plain
        masks = make_masks(
            work.task.region_rule, example.source_region, example.target_region, source, target, provider,
            work.task.folder or Path(),
        )  # fmt: skip
        self.shared.write_json(self._name(work), masks.to_json(self.spec.identity))
        return RegionMasks.from_json(self.shared.read_json(self._name(work)) or {})

    def _pictures(self, work: Work) -> list[Path]:
        """Where the source and the target picture are."""
        return [self.shared.path / self.shared.image_name(work.units[0].key, role) for role in ROLES]

    def _draw(self, works: Sequence[Work]) -> None:
        """Stores source and target pictures; those that cannot be made fail again, and are recorded, with the edits."""
        self.batches.each(works, len(ROLES), self._generate, self._keep, lambda work, why: None)

    def _generate(self, works: Sequence[Work]) -> NDArray[np.uint8]:
        """Source pictures of all, then target pictures of all."""
        prompts = [work.plain.source for work in works] + [work.plain.target for work in works]
        return self.generator.generate(prompts, [work.noise for work in works] * 2).images

    def _keep(self, works: Sequence[Work], images: NDArray[np.uint8]) -> None:
        for half, role in zip(np.split(images, len(ROLES)), ROLES, strict=True):
            for work, image in zip(works, half, strict=True):
                self.shared.write_image(self.shared.image_name(work.units[0].key, role), image)

    def _look(self, work: Work, provider: RegionProvider) -> None:
        source, target = (read_image(path) for path in self._pictures(work))
        views = (
            View(work.plain.source, source, None, (1, 1), _nowhere),
            View(work.plain.target, target, None, (1, 1), _nowhere),
        )
        try:
            masks = self._make(work, *views, provider)
        except Exception as error:
            # One picture's trouble is no other's; the units it belongs to are recorded with this reason.
            self._reasons[self._name(work)] = reason(error)
            return
        self.shared.write_image(f"{self._name(work).removesuffix('.json')}.png", mask_overlay(source, target, masks))


@contextmanager
def region_provider(spec: RegionSpec, folders: dict[str, Path], generator: Generator) -> Iterator[RegionProvider]:
    """A provider with models of its own, loaded; its memory is given back at the end.

    Args:
        spec: the provider.
        folders: where its models lie.
        generator: whose device it uses.
    """
    model = generator.model
    # With offloading, what was used last may still be on the device.
    model.pipe.maybe_free_model_hooks()
    loaded: list[Any] = [REGIONS.get(spec.provider).load(spec.options, folders, model.device)]
    try:
        # No name holds the provider beside the list, so that emptying it gives the memory back.
        yield lambda words, view: loaded[0](words, view)
    finally:
        loaded.clear()
        free_memory()


def captured_view(generator: Generator, prompt: str, found: GenerationResult, row: int) -> View:
    """One of some pictures as a provider sees it, with the text attention that was captured as the last trace.

    Args:
        generator: knows the prompt's tokens.
        prompt: the picture's.
        found: the pictures.
        row: which.
    """
    trace = found.traces[-1]
    maps = [trace.row(site, row, "attention").mean(0) for site in trace.sites]
    grid = trace.grids[trace.sites[0]] if maps else (1, 1)
    same = [one for one in maps if one.shape[0] == grid[0] * grid[1]]

    def positions(words: str | None) -> Sequence[int]:
        return generator.token_positions(prompt, prompt if words is None else words)

    attention = torch.stack(same).mean(0) if same else None
    return View(prompt, found.images[row], attention, grid, positions)


def _regions(work: Work) -> tuple[str, str]:
    return work.example.source_region, work.example.target_region


def _nowhere(words: str | None) -> Sequence[int]:
    return ()
