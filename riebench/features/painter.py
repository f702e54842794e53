"""Pictures with features switched by hand, from Python.

`Painter` is a model with its SAEs. `FeatureSwitch` and `switch` are the edit that switches features, and `as_mask`
reads the mask of the positions that it changes.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from riebench.blocks import ATTENTION, kind, short_name
from riebench.errors import RiebenchError, near_match
from riebench.features.activity import Activity, observe, pictures_of, round_for_ranking
from riebench.features.data import SAMPLE
from riebench.features.inspect import prompts_from, stored_statistics, usual_suite
from riebench.generation.edits import Branch, Edit, LiveSite, positions_of
from riebench.generation.generator import Capture, Generator
from riebench.generation.hooks import find_module, known_sites
from riebench.generation.regions.grounding import locate
from riebench.generation.regions.masks import find_region, needs_attention, to_grid
from riebench.generation.regions.options import DEFAULT_REGIONS, parse_regions
from riebench.models.loading import LoadedModel
from riebench.runs.capture import attention_blocks
from riebench.runs.masks import captured_view, provider_without_models, region_provider
from riebench.saes.sae import SparseAutoencoder, Time
from riebench.saes.sources import model_saes
from riebench.tasks.mask_files import mask_from_picture, read_mask
from riebench.tasks.masks import Mask
from riebench.tasks.prompts import plain_prompt

Feature = tuple[str, int]
"""Block and index."""
Unit = Literal["mean", "max", "stored", "value"]
"""The meaning of strength 1 of an added feature; see `Painter.paint`."""


@dataclass(frozen=True)
class FeatureSwitch:
    """The edit that switches features of one block at the same positions.

    The added vector is the same at every position, and at every step unless the SAE's decoder depends on the time. The
    removed one is the features' contribution at each step and position of the edited run itself, so that it is exact
    for the edited update.

    Attributes:
        sae: its features.
        on: int64 [a], features to add.
        values: float32 [a], how far each moves the update.
        off: int64 [r], features to remove.
        shares: float32 [r], share of each that is removed; 1 for all of it.
        mask: bool [H, W] of the (square) picture; None for everywhere.
    """

    sae: SparseAutoencoder
    on: Tensor
    values: Tensor
    off: Tensor
    shares: Tensor
    mask: Mask | None = None

    def change(self, live: LiveSite) -> Tensor | None:
        """Compute the change; see `riebench.generation.edits.LiveEdit.change`."""
        return self.delta(live.step, live.read(self.sae.reads), live.time)

    def delta(self, step: int, live: Tensor, time: Time | None = None) -> Tensor | None:
        """Compute the change; see `riebench.generation.edits.SiteEdit.delta`.

        Args:
            step: denoising step, from 0.
            live: what the SAE reads, in this very run, float32 [positions, width].
            time: of the step, for SAEs that need it.
        """
        positions = self._positions(len(live)).to(live.device)
        out = torch.zeros_like(live)
        if len(self.on):
            out[positions] += self.values.to(live) @ self._directions(self.on, live, time)
        if len(self.off):
            codes = self.sae.contributions(live[positions], time)[:, self.off.to(live.device)] * self.shares.to(live)
            out[positions] -= codes.to(live.dtype) @ self._directions(self.off, live, time)
        return out

    def _directions(self, features: Tensor, live: Tensor, time: Time | None) -> Tensor:
        return self.sae.feature_directions(features.to(live.device), time).to(live.dtype)

    @property
    def nbytes(self) -> int:
        """Size in bytes; see `riebench.generation.edits.SiteEdit.nbytes`."""
        own = (self.on, self.values, self.off, self.shares)
        return sum(one.numel() * one.element_size() for one in own) + (0 if self.mask is None else self.mask.nbytes)

    def _positions(self, count: int) -> Tensor:
        if self.mask is None:
            return torch.arange(count)
        side = math.isqrt(count)
        return positions_of(to_grid(self.mask, (side, count // side)))


def switch(
    saes: Mapping[str, SparseAutoencoder],
    on: Mapping[Feature, float],
    off: Mapping[Feature, float],
    mask: Mask | None = None,
    branch: Branch = "both",
) -> Edit:
    """Build the edit that switches features.

    Args:
        saes: block -> SAE, for every block named.
        on: feature -> how far it moves the update.
        off: feature -> the share of it that is removed.
        mask: positions that are changed, bool [H, W]; None for everywhere.
        branch: see `riebench.generation.edits.Branch`.
    """
    sites = {}
    for block in dict.fromkeys(block for block, _ in (*on, *off)):
        added = {index: value for (name, index), value in on.items() if name == block}
        removed = {index: share for (name, index), share in off.items() if name == block}
        sites[block] = FeatureSwitch(saes[block], *_index_value_tensors(added), *_index_value_tensors(removed), mask)
    return Edit(sites, branch=branch)


def _index_value_tensors(values: Mapping[int, float]) -> tuple[Tensor, Tensor]:
    return torch.tensor(list(values), dtype=torch.long), torch.tensor(list(values.values()), dtype=torch.float32)


def as_mask(mask: Any, size: int, region: Callable[[str], Mask]) -> Mask | None:
    """Read a mask in any form that users may give.

    Args:
        mask: None for everywhere; a bool array or tensor [size, size]; a PIL picture or the path of a picture file of
            that size, bright where features are switched; or a region as task files write it, such as "house",
            "not: house", "background" or "file:mask.png".
        size: the picture's side in pixels.
        region: finds a region in words.

    Returns:
        bool [size, size], or None for everywhere.

    Raises:
        RiebenchError: if it has another size, is empty, or is nothing of this kind.
    """
    if mask is None:
        return None
    what = "the mask"
    in_words = isinstance(mask, str) and not Path(mask).is_file()
    if in_words:
        what = f"the region {mask!r}"
        found = region(mask)
    elif isinstance(mask, str | Path):
        what = f"the mask {mask}"
        found = read_mask(Path(mask))
    elif isinstance(mask, Image.Image):
        found = mask_from_picture(mask)
    else:
        found = _mask_from_array(mask)
    if found.all() and not in_words:
        warnings.warn(f"{what} covers the whole picture", stacklevel=3)
    if found.shape != (size, size):
        shape = " x ".join(map(str, found.shape))
        raise RiebenchError(f"{what} is {shape}, the picture {size} x {size}; draw it at the picture's size")
    if not found.any():
        raise RiebenchError(f"{what} is empty: no pixel of the picture belongs to it; leave it out for everywhere")
    return found


def _mask_from_array(mask: Any) -> Mask:
    try:
        array = np.asarray(mask.cpu() if hasattr(mask, "cpu") else mask)
    except (TypeError, ValueError, RuntimeError) as error:
        raise RiebenchError(f"a {type(mask).__name__} is no mask ({error}); give a bool array") from error
    if array.dtype != np.bool_:
        raise RiebenchError(f"a mask is a bool array, not {array.dtype}; write mask > 0, or whatever is meant")
    return array


def feature_block(name: str, model: LoadedModel) -> str:
    """Return the short name of an attention block of a model.

    Raises:
        RiebenchError: if the model has none of that name; names the nearest.
    """
    block = short_name(name)
    if kind(block) != ATTENTION:
        example = model.family.names.default[-1]
        raise RiebenchError(f"{name} is no attention block; SAE features belong to one, such as {example}")
    find_module(model.denoiser, block)
    return block


def check_index(index: int, block: str, sae: SparseAutoencoder) -> int:
    """Check that an SAE has a feature, and return its index.

    Raises:
        RiebenchError: if the SAE has no such feature; states how many it has.
    """
    if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < sae.n:
        raise RiebenchError(f"the SAE of {block} has {sae.n} features, 0 to {sae.n - 1}; {index} is none of them")
    return index


@dataclass(frozen=True)
class StrongFeature:
    """A feature that is strong in a picture.

    Attributes:
        block: short name.
        index: of the feature.
        value: its mean over steps and the mask's positions.
        share: share of these at which it is not zero.
    """

    block: str
    index: int
    value: float
    share: float


class Painter:
    """A model whose features can be switched by hand.

    Args:
        model: generates.
        sae: where the SAEs are, as `--sae` reads it; None for the model's own.
        prompts: prompts that means and largest values are measured on; None for `SAMPLE` prompts of the model's suite.
        offline: downloads nothing.
        batch_size: pictures at a time while measuring.
        progress: shows a bar while measuring.
        loaded: block -> SAE of `sae` that is in memory already.
    """

    def __init__(
        self, model: LoadedModel, sae: str | None = None, *, prompts: Sequence[str] | None = None,
        offline: bool = False, batch_size: int = 4, progress: bool = False,
        loaded: Mapping[str, SparseAutoencoder] | None = None,
    ) -> None:  # fmt: skip
        if prompts is not None and not prompts:
            raise RiebenchError("no prompts to measure features on; give one or more, or leave prompts out")
        self.model = model
        self.generator = Generator(model)
        self._sae, self._prompts, self._offline = sae, prompts, offline
        self._batch_size, self._progress = batch_size, progress
        self._saes: dict[str, SparseAutoencoder] = dict(loaded or {})
        self._activities: dict[str, Activity] = {}

    def sae(self, block: str) -> SparseAutoencoder:
        """Return the SAE of a block.

        Raises:
            RiebenchError: if the model has no such block, or there is no SAE for it.
        """
        name = feature_block(block, self.model)
        if name not in self._saes:
            self._saes |= model_saes(self._sae, self.model, [name], offline=self._offline)
        return self._saes[name]

    def paint(
        self,
        prompt: str,
        *,
        seed: int = 0,
        on: Mapping[Feature, float] | None = None,
        off: Iterable[Feature] | Mapping[Feature, float] = (),
        mask: Any = None,
        unit: Unit = "mean",
        branch: Branch = "both",
        regions: str = DEFAULT_REGIONS,
    ) -> Image.Image:
        """Generate one picture with features switched.

        Args:
            prompt: of the picture.
            seed: of the noise.
            on: (block, index) -> strength. Strength x unit is added along the feature's direction, at every step and
                every position of the mask.
            off: features whose live contribution is removed there at every step; with a mapping, that share of it.
            mask: positions that are changed; see `riebench.features.painter.as_mask`. Words are located in the picture
                as it is without the switching.
            unit: the meaning of strength 1. "mean": the feature's mean size where it is active, measured on the
                painter's prompts; "max": the largest size there; "stored": the mean that the SAE's own files state;
                "value": 1, so that strengths are the SAE's own values.
            branch: the halves that are changed under guidance (see `riebench.generation.edits.Branch`).
            regions: the method that locates words in pictures, as `--regions` reads it.

        Returns:
            The picture; without `on` and `off` the unchanged one.

        Raises:
            RiebenchError: for a block, feature, mask or region that is not there.
        """
        text = plain_prompt(prompt)
        area = self.find_mask(mask, text, seed=seed, regions=regions)
        edit = self.switch(on or {}, off, area, unit=unit, branch=branch)
        return Image.fromarray(self.generator.generate([text], [seed], edits=[edit]).images[0])

    def switch(
        self, on: Mapping[Feature, float], off: Iterable[Feature] | Mapping[Feature, float], mask: Mask | None = None,
        *, unit: Unit = "mean", branch: Branch = "both",
    ) -> Edit | None:  # fmt: skip
        """Build the edit that switches features; see `paint`.

        Args:
            on: as for `paint`.
            off: likewise.
            mask: positions that are changed, bool [H, W]; None for everywhere.
            unit: as for `paint`.
            branch: likewise.

        Returns:
            The edit; None if nothing is switched.

        Raises:
            RiebenchError: as `paint`.
        """
        added = {self._feature(one): float(strength) for one, strength in on.items()}
        shares = off if isinstance(off, Mapping) else dict.fromkeys(off, 1.0)
        removed = {self._feature(one): float(share) for one, share in shares.items()}
        values = {one: strength * self._unit(one, unit, added) for one, strength in added.items()}
        return switch(self._saes, values, removed, mask, branch) if values or removed else None

    def find_mask(self, mask: Any, prompt: str, *, seed: int = 0, regions: str = DEFAULT_REGIONS) -> Mask | None:
        """Read a mask in any form, its words located in the picture of a prompt.

        Args:
            mask: see `riebench.features.painter.as_mask`.
            prompt: of the picture.
            seed: of its noise.
            regions: as for `paint`.

        Raises:
            RiebenchError: as `as_mask`.
        """
        text = plain_prompt(prompt)
        return as_mask(mask, self.model.spec.size, lambda region: self._region(region, text, seed, regions))

    @torch.inference_mode()
    def strongest(
        self, prompt: str, *, blocks: Sequence[str], seed: int = 0, mask: Any = None, count: int = 10,
        regions: str = DEFAULT_REGIONS,
    ) -> list[StrongFeature]:  # fmt: skip
        """Find the features that are strongest in a part of a picture.

        Strength is relative to a feature's own mean size. Features are ranked by it as `round_for_ranking` rounds it;
        of nearly equal ones the first block in the alphabet, then the smaller number comes first.

        Args:
            prompt: of the picture.
            blocks: blocks whose features are compared.
            seed: of the picture.
            mask: as for `paint`.
            count: number of features, at most.
            regions: as for `paint`.

        Raises:
            RiebenchError: as `paint`.
        """
        text = plain_prompt(prompt)
        names = [feature_block(block, self.model) for block in blocks]
        area = self.find_mask(mask, text, seed=seed, regions=regions)
        self._measure(names)
        keep = tuple(sorted({self.sae(name).reads for name in names}))
        trace = self.generator.generate([text], [seed], capture=Capture(tuple(names), keep)).trace
        found = []
        for name in names:
            sae = self.sae(name)
            times = torch.stack(trace.times) if sae.timed and trace.times else None
            values = sae.contributions(trace.row(name, 0, sae.reads), times)
            if area is not None:
                values = values[:, positions_of(to_grid(area, trace.grids[name])).to(values.device)]
            mean, share = values.mean((0, 1)).cpu(), (values != 0).float().mean((0, 1)).cpu()
            typical = self._activities[name].means.float()
            # A feature that was never active while measuring has no mean size to compare with.
            relative = torch.where(typical > 0, mean.abs() / typical.clamp(min=1e-9), 0.0)
            ranks = round_for_ranking(relative.numpy())
            for index in (-ranks).argsort(kind="stable")[:count].tolist():
                strong = StrongFeature(name, index, float(mean[index]), float(share[index]))
                found.append((float(ranks[index]), strong))
        ranked = sorted(found, key=lambda one: (-one[0], one[1].block, one[1].index))
        return [strong for relative, strong in ranked[:count] if relative > 0]

    def _feature(self, feature: Any) -> Feature:
        try:
            block, index = feature
        except (TypeError, ValueError) as error:
            example = (self.model.family.names.default[-1], 17)
            raise RiebenchError(f"{feature!r} is no feature; write (block, index), such as {example}") from error
        return short_name(str(block)), check_index(index, str(block), self.sae(str(block)))

    def _unit(self, feature: Feature, unit: Unit, needed: Iterable[Feature]) -> float:
        if unit not in get_args(Unit):
            raise RiebenchError(f"unknown unit {unit!r}{near_match(str(unit), get_args(Unit))}")
        if unit == "value":
            return 1.0
        block, index = feature
        if unit == "stored":
            mean, _ = stored_statistics(self._sae, self.model, block, self.sae(block), offline=self._offline)
            if mean is None:
                raise RiebenchError(f"the SAE of {block} states no mean of its features; use unit='mean' or 'value'")
            size = float(mean[index])
        else:
            self._measure([name for name, _ in needed])
            activity = self._activities[block]
            size = float(activity.means[index] if unit == "mean" else activity.largest[index])
        if size == 0:
            raise RiebenchError(
                f"feature {index} of {block} was never active, so it has no {unit} to multiply; say how far it is to "
                "move the update with unit='value'"
            )
        return size

    def _measure(self, blocks: Iterable[str]) -> None:
        """Measure all features of blocks, each block once."""
        missing = [name for name in dict.fromkeys(blocks) if name not in self._activities]
        if not missing:
            return
        prompts = self._prompts or prompts_from(usual_suite(self.model.spec.name), None, SAMPLE)
        new = {name: Activity(self.sae(name)) for name in missing}
        observe(self.generator, new, pictures_of(prompts, (0,)), batch_size=self._batch_size, progress=self._progress)
        self._activities |= new

    def _region(self, region: str, prompt: str, seed: int, regions: str) -> Mask:
        spec = parse_regions(regions)
        needs_maps = needs_attention([region])
        looked = attention_blocks(known_sites(self.model.denoiser), self.model.family)
        sites = looked if needs_maps and not spec.models else ()
        picture = self.generator.generate([prompt], [seed], capture=Capture(sites, ("attention",)))
        if needs_maps and spec.models:
            spec.options.check_side(self.model.spec.size)
            with region_provider(spec, locate(spec, offline=self._offline), self.generator) as provider:
                return find_region(region, captured_view(self.generator, prompt, picture, 0), provider)
        finder = provider_without_models(spec, self.generator)
        return find_region(region, captured_view(self.generator, prompt, picture, 0), finder)
