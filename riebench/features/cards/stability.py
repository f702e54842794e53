"""Stability of features over training seeds.

`compare` holds the features of two autoencoders against each other, `block_stability` every pair of several SAEs of one
block, beside random directions in equal numbers; `stored_saes` and `seed_groups` find the SAEs. Definitions:

- Two features are compared by the cosine of their decoder rows; where feature values may be negative, by its size.
- Features are matched one to one so that the sum of cosines is largest (the Hungarian method). A feature counts as
  found again if its match has a cosine of at least `FOUND`, or `FOUND_CLOSE`. Shares are of the SAE with fewer.
- The subspace agreement is the mean squared cosine of the principal angles between the first r principal directions of
  the decoder rows, each row weighted by how often its feature is active.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from riebench.blocks import short_name
from riebench.errors import RiebenchError
from riebench.features.inspect import FILES, load_all, measured_on, read_statistic, signal_meters
from riebench.models.loading import LoadedModel
from riebench.saes.figures import Meter
from riebench.saes.sae import SparseAutoencoder
from riebench.saes.sources import SCHEME, parse_place, parse_sources
from riebench.store.invocations import Invocation
from riebench.tasks.schema import Count, StoredModel

Floats = NDArray[np.float64]
Activity = Literal["measured", "stored", "not known"]

FOUND, FOUND_CLOSE = 0.7, 0.9
"""Least cosines of a feature that is found again: Paulo and Belrose's (2025, arXiv 2501.16615), and a closer one."""
SUBSPACE_SHARE = 0.5
"""Share of the weight of all decoder rows that the compared principal directions hold at least."""
BINS = 20
"""Equal bins of a histogram of cosines from 0 to 1; those below 0 are in the first."""
RANDOM_SEED = 250_116_615
SIGNED: tuple[str, ...] = ("topk-signed", "abstopk", "matching-pursuit-signed")
"""Activations with feature values of both signs, where a direction and its opposite are one feature."""
_SAME_EIGENVALUE = 1e-6
_NO_EIGENVALUE = 1e-9


@dataclass(frozen=True)
class FeatureSet:
    """The features of one SAE that are compared.

    Attributes:
        decoder: [n, d], rows of length 1.
        encoder: [n, d], rows of length 1; a row of zeros stays one.
        weights: [n], above 0: how often each feature is active, or 1 for each.
        signed: whether feature values have both signs.
    """

    decoder: Floats
    encoder: Floats
    weights: Floats
    signed: bool = False

    @classmethod
    def of(cls, sae: SparseAutoencoder, rates: Tensor | None = None) -> FeatureSet:
        """Return the features of an SAE that are ever active.

        Args:
            sae: the autoencoder.
            rates: [n], how often each feature is active, 0 for those that are left out; None for all features alike.
        """
        weights = np.ones(sae.n) if rates is None else rates.double().cpu().numpy()
        alive = weights > 0
        rows = [_unit(part.double().cpu().numpy()[alive]) for part in (sae.directions, sae.encoder)]
        return cls(rows[0], rows[1], weights[alive], sae.activation in SIGNED)

    @classmethod
    def random(cls, like: FeatureSet, generator: np.random.Generator) -> FeatureSet:
        """Return as many random directions, with the same weights."""
        rows = _unit(generator.standard_normal(like.decoder.shape))
        return cls(rows, rows, like.weights, like.signed)


class StabilityFigures(StoredModel):
    """Agreement of the features of two dictionaries.

    Shares are of the features of the smaller one.
    """

    share_found: float = Field(ge=0, le=1)
    """Matched one to one with a cosine of at least `FOUND`."""
    share_close: float = Field(ge=0, le=1)
    """The same with `FOUND_CLOSE`."""
    share_strict: float = Field(ge=0, le=1)
    """Matched with the same feature by decoder and by encoder rows, both with a cosine of at least `FOUND`."""
    share_mutual: float = Field(ge=0, le=1)
    """Each the nearest of the other, with a cosine of at least `FOUND`."""
    mean_cosine: float = Field(ge=-1, le=1)
    """Mean cosine of the matched decoder rows."""
    subspace: float = Field(ge=0, le=1)
    """Agreement of the subspaces."""


class PairStability(StoredModel):
    """Two of the SAEs that are compared."""

    first: Count
    """Number of the one, from 1 on."""
    second: Count
    """Number of the other."""
    compared: Count
    """Features of the one that has fewer; what shares are of."""
    directions: Count
    """Number of principal directions whose subspaces are compared."""
    figures: StabilityFigures
    random: StabilityFigures
    """The same of random directions in equal numbers."""
    histogram: tuple[Count, ...] = Field(min_length=BINS, max_length=BINS)
    """Cosines of the matched decoder rows."""
    random_histogram: tuple[Count, ...] = Field(min_length=BINS, max_length=BINS)


class SeedFacts(StoredModel):
    """One of the SAEs that are compared."""

    place: str
    sha256: str
    features: Count
    alive: Count
    """Features that are compared: those that are ever active, as far as that is known."""
    activity: Activity
    """Where that is known from: measured on a model, or stored with the SAE."""


class BlockStability(StoredModel):
    """All pairs of several SAEs of one block."""

    block: str | None
    k: Count | None
    width: Count
    measured: str
    """Model and steps that the activity of features was measured on; "" if it was not."""
    saes: tuple[SeedFacts, ...]
    pairs: tuple[PairStability, ...]

    def range_of(self, name: str, *, random: bool = False) -> tuple[float, float, float]:
        """Return mean, least and largest value of a figure over all pairs."""
        values = [float(getattr(pair.random if random else pair.figures, name)) for pair in self.pairs]
        return float(np.mean(values)), min(values), max(values)


@dataclass(frozen=True)
class StoredSae:
    """One SAE of a comparison.

    Attributes:
        place: what the user calls the place that holds it.
        path: its checkpoint.
        sae: the autoencoder.
    """

    place: str
    path: Path
    sae: SparseAutoencoder

    @property
    def title(self) -> str:
        """Its block and k, in words."""
        k = "" if self.sae.k is None else f", k = {self.sae.k}"
        return f"{self.sae.block or 'no stated block'}{k}"


class StabilityReport(StoredModel):
    """The comparison of SAEs of several training seeds, one entry for each block."""

    version: Literal[1] = 1
    blocks: tuple[BlockStability, ...]
    left_out: tuple[str, ...] = ()
    """SAEs of the first place that another place lacks, in words."""
    invocation: Invocation


def stored_saes(place: str, blocks: Sequence[str] = (), *, offline: bool = False) -> list[StoredSae]:
    """Load the SAEs of a place.

    Args:
        place: as the user names it (`riebench.saes.sources`).
        blocks: only those of these blocks; empty for all.
        offline: downloads nothing.

    Raises:
        RiebenchError: if there are none, or one cannot be read.
    """
    found = [StoredSae(place, path, sae) for path, sae in load_all(parse_sources(place), offline=offline)]
    wanted = {short_name(block) for block in blocks}
    missing = sorted(wanted - {one.sae.block for one in found})
    if missing:
        raise RiebenchError(f"{place} has no SAE for {', '.join(missing)}")
    return [one for one in found if not wanted or one.sae.block in wanted]


def place_name(place: str) -> str:
    """Return a name for a place of SAEs, without the folders around it."""
    names = []
    for source in parse_sources(place):
        if source.place.startswith(SCHEME):
            on_hub = parse_place(source.place)
            names.append("/".join(part for part in (on_hub.id, on_hub.subfolder) if part))
        else:
            names.append(Path(source.place).expanduser().resolve().name)
    return ", ".join(dict.fromkeys(names))


def seed_groups(
    first: Sequence[StoredSae], others: Sequence[Sequence[StoredSae]]
) -> tuple[list[tuple[StoredSae, ...]], list[str]]:
    """Put SAEs of one block from several places together.

    Where any place has several for a block, those with the same k belong together.

    Args:
        first: SAEs of the first place.
        others: those of each other place.

    Returns:
        One group for each SAE of the first place that every other place has one for, and lines about those left out.

    Raises:
        RiebenchError: if a place has several SAEs that could be meant.
    """
    groups, left_out = [], []
    for one in first:
        several = sum(other.sae.block == one.sae.block for other in first) > 1
        partners = [_partner(one, place, several=several) for place in others]
        group = tuple(partner for partner in partners if partner is not None)
        if len(group) == len(others):
            groups.append((one, *group))
        else:
            pairs = zip(others, partners, strict=True)
            lacking = [place_name(place[0].place) for place, partner in pairs if partner is None]
            left_out.append(f"{one.title}: there is none in {', '.join(lacking)}")
    return groups, left_out


def _partner(one: StoredSae, place: Sequence[StoredSae], *, several: bool) -> StoredSae | None:
    found = [other for other in place if other.sae.block == one.sae.block]
    if several or len(found) > 1:
        found = [other for other in found if other.sae.k == one.sae.k]
    if len(found) > 1:
        raise RiebenchError(f"{found[0].place} has several SAEs for {one.title}; name one of them: BLOCK=PLACE")
    return found[0] if found else None


def measured_rates(
    saes: Sequence[StoredSae], model: LoadedModel, prompts: Sequence[str], *, batch_size: int = 4, progress: bool = True
) -> dict[Path, Tensor]:
    """Measure how often each feature of some SAEs is active on a model.

    Args:
        saes: of any blocks.
        model: generates.
        prompts: one generation each.
        batch_size: pictures at a time.
        progress: shows a bar.

    Returns:
        Path -> rates [n].

    Raises:
        RiebenchError: if an SAE does not fit the model.
    """
    tried = measured_on([(one.path, one.sae) for one in saes], model)
    meters = signal_meters(tried, model, prompts, batch_size=batch_size, progress=progress)
    return {one.path: best_meter(found).densities for one, found in zip(saes, meters, strict=True)}


def best_meter(found: Mapping[Any, Meter]) -> Meter:
    """Return the meter of the signal that an SAE explains most of."""
    return max(found.values(), key=lambda meter: meter.figures().explained_variance)


def block_stability(
    group: Sequence[StoredSae], rates: Mapping[Path, Tensor] | None = None, measured: str = ""
) -> BlockStability:
    """Compare every pair of some SAEs of one block.

    Args:
        group: two or more, of one width.
        rates: path -> how often each feature is active, [n]; None for what is stored beside each SAE.
        measured: what the rates were measured on, in words.

    Raises:
        RiebenchError: if there are fewer than two, their widths differ, or one has no active feature.
    """
    if len(group) < 2:
        raise RiebenchError("stability takes two SAEs or more; name SAEs of several training seeds")
    widths = [(one.sae.encoder.shape[1], one.sae.directions.shape[1]) for one in group]
    odd = next((i for i, width in enumerate(widths) if width != widths[0]), None)
    if odd is not None:
        raise RiebenchError(
            f"{group[odd].place} has width {widths[odd][1]}, but {group[0].place} has {widths[0][1]}; compare SAEs of "
            "one block"
        )
    known = [stored_rates(one) if rates is None else rates[one.path] for one in group]
    sets = [FeatureSet.of(one.sae, found) for one, found in zip(group, known, strict=True)]
    for one, features in zip(group, sets, strict=True):
        if not len(features.weights):
            raise RiebenchError(f"{one.place}: no feature is ever active, so there is nothing to compare")
    kinds: list[Activity] = ["not known" if one is None else "stored" if rates is None else "measured" for one in known]
    facts = [
        SeedFacts(
            place=place_name(one.place),
            sha256=one.sae.sha256,
            features=one.sae.n,
            alive=len(part.weights),
            activity=kind,
        )
        for one, part, kind in zip(group, sets, kinds, strict=True)
    ]
    pairs = [_pair(i, j, sets[i], sets[j]) for i, j in combinations(range(len(sets)), 2)]
    return BlockStability(
        block=group[0].sae.block, k=group[0].sae.k, width=widths[0][1], measured=measured, saes=tuple(facts),
        pairs=tuple(pairs),
    )  # fmt: skip


def _pair(i: int, j: int, one: FeatureSet, other: FeatureSet) -> PairStability:
    found = compare(one, other)
    # The same draw for each pair of equal shapes: the baseline then differs only where the dictionaries do.
    generator = np.random.default_rng(RANDOM_SEED)
    chance = compare(FeatureSet.random(one, generator), FeatureSet.random(other, generator), found.directions)
    return PairStability(
        first=i + 1, second=j + 1, compared=len(found.cosines), directions=found.directions, figures=found.figures,
        random=chance.figures, histogram=cosine_histogram(found.cosines),
        random_histogram=cosine_histogram(chance.cosines),
    )  # fmt: skip


@dataclass(frozen=True)
class Comparison:
    """Result of comparing two feature sets.

    Attributes:
        figures: all shares and agreements.
        cosines: [smaller n], of the matched decoder rows.
        directions: number of principal directions whose subspaces were compared.
    """

    figures: StabilityFigures
    cosines: Floats
    directions: int


def compare(one: FeatureSet, other: FeatureSet, directions: int | None = None) -> Comparison:
    """Compare the features of two SAEs.

    Args:
        one: of any number of features.
        other: of any number, of the same width.
        directions: principal directions to compare the subspaces of; None for as many as hold `SUBSPACE_SHARE`.
    """
    signed = one.signed or other.signed
    cosines = _cosines(one.decoder, other.decoder, signed=signed)
    rows, columns = _assign(cosines)
    matched = cosines[rows, columns]
    in_encoder = _cosines(one.encoder, other.encoder, signed=signed)
    partner = dict(zip(*(part.tolist() for part in _assign(in_encoder)), strict=True))
    agreed = np.array([partner.get(row) == column for row, column in zip(rows.tolist(), columns.tolist(), strict=True)])
    strict = agreed & (matched >= FOUND) & (in_encoder[rows, columns] >= FOUND)
    nearest, back = cosines.argmax(1), cosines.argmax(0)
    mutual = (back[nearest] == np.arange(len(cosines))) & (cosines.max(1) >= FOUND)
    agreement, used = subspace_agreement(one, other, directions)
    smaller = len(matched)
    figures = StabilityFigures(
        share_found=_share(matched >= FOUND), share_close=_share(matched >= FOUND_CLOSE), share_strict=_share(strict),
        share_mutual=round(int(mutual.sum()) / smaller, 6), mean_cosine=round(float(matched.mean()), 6),
        subspace=agreement,
    )  # fmt: skip
    return Comparison(figures, matched, used)


def subspace_agreement(one: FeatureSet, other: FeatureSet, directions: int | None = None) -> tuple[float, int]:
    """Compute the agreement of the subspaces that two dictionaries use most.

    It is the mean squared cosine of the principal angles between the first r principal directions of each: 1 for one
    and the same subspace, about r / d for two random ones.

    Args:
        one: of any number of features.
        other: of any number, of the same width d.
        directions: r; None for the larger number of directions that hold `SUBSPACE_SHARE` of the weight of either. It
            grows where the next direction weighs as much as the last, which leaves no choice of one, and is at most
            what the rows of either span.

    Returns:
        The agreement, and r.
    """
    (values, axes), (other_values, other_axes) = _principal(one), _principal(other)
    r = directions or _direction_count([values, other_values])
    overlap = axes[:, :r].T @ other_axes[:, :r]
    return round(float(np.clip(np.square(overlap).sum() / r, 0, 1)), 6), r


def _principal(features: FeatureSet) -> tuple[Floats, Floats]:
    """Decompose the weighted second moment of the decoder rows.

    Returns:
        Eigenvalues, largest first, and eigenvectors as columns.
    """
    weights = features.weights / features.weights.sum()
    values, axes = np.linalg.eigh((features.decoder.T * weights) @ features.decoder)
    return values[::-1], axes[:, ::-1]


def _direction_count(spectra: Sequence[Floats]) -> int:
    spanned = min(int((values > _NO_EIGENVALUE * values[0]).sum()) for values in spectra)
    # Half of a sum of two equal parts is held by one of them, whatever the last digits are.
    held = [int(np.searchsorted(np.cumsum(v) / v.sum(), SUBSPACE_SHARE - _NO_EIGENVALUE)) + 1 for v in spectra]
    r = min(max(held), spanned)
    while r < spanned and any(values[r - 1] - values[r] <= _SAME_EIGENVALUE * values[0] for values in spectra):
        r += 1
    return r


def block_title(found: BlockStability) -> str:
    """Return a block's name with the k of its SAEs, in words."""
    k = "" if found.k is None else f", k = {found.k}"
    return f"{found.block or 'block not stated'}{k}"


def cosine_histogram(cosines: Floats) -> tuple[int, ...]:
    """Count cosines in `BINS` equal bins from 0 to 1."""
    counts, _ = np.histogram(np.clip(cosines, 0, 1), bins=BINS, range=(0, 1))
    return tuple(int(count) for count in counts)


def _cosines(one: Floats, other: Floats, *, signed: bool) -> Floats:
    found = np.clip(one @ other.T, -1, 1)
    return np.abs(found) if signed else found


def _assign(cosines: Floats) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Match rows with columns one to one, so that the sum of their cosines is largest."""
    from scipy.optimize import linear_sum_assignment

    rows, columns = linear_sum_assignment(cosines, maximize=True)
    return rows, columns


def _unit(rows: Floats) -> Floats:
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(lengths > 0, lengths, 1)


def _share(flags: NDArray[np.bool_]) -> float:
    return round(float(flags.mean()), 6)


def stored_rates(one: StoredSae) -> Tensor | None:
    """Return which features are ever active, by means that an SAE's files state.

    Returns:
        float32 [n], 1 or 0; None if no file states them.

    Raises:
        RiebenchError: if such a file is damaged.
    """
    for folder in (one.path, one.path / "final") if one.path.is_dir() else (one.path.parent,):
        if (mean := read_statistic(folder / FILES[0], one.sae)) is not None:
            return (mean != 0).to(torch.float32)
    return None
