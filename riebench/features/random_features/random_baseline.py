"""Features measured against random pictures and random directions.

`FeatureMeasurement` draws features of each block, generates the pictures that show and switch them, and computes the
properties in `riebench.features.random_features.properties` of each feature and of its random counterpart.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from riebench.features.activity import Activity, Float, Picture, PictureActivity, observe
from riebench.features.labels import Labels, enriched_value, enriched_words
from riebench.features.painter import switch
from riebench.features.random_features.properties import (
    active_region,
    color_change,
    locality,
    mean_pairwise_cosine,
    purity,
    random_directions,
    texture_change,
)
from riebench.generation.edits import Edit
from riebench.generation.generator import Generator, NoDecodeGenerator
from riebench.models.loading import LoadedModel
from riebench.saes.sae import SparseAutoencoder
from riebench.scoring.metrics.judge import kept_share
from riebench.scoring.metrics.networks import Networks
from riebench.utils.files import content_digest
from riebench.utils.terminal import ProgressBar

Pictures = NDArray[np.uint8]
Attributes = Mapping[str, str]
Saes = Mapping[str, SparseAutoencoder]
Value = float | None

STRONGEST, EDITED = 8, 3
"""Number of strongest pictures of a feature, and of pictures that each of its edits is made in."""
STRENGTH = 8.0
"""How far a feature is added, as a multiple of its largest value; one feature of many at a position moves little."""
CANDIDATES = 8
"""Number of features looked at for each one that is wanted; some of them are active in too few pictures."""
ADD, ADD_RANDOM, REMOVE, REMOVE_RANDOM = range(4)
"""Edits of each feature, in the order of their pictures."""
PATTERN = ("material", "style")
"""Attributes of the toy world that are seen in a picture's texture."""


@dataclass(frozen=True)
class FeatureOptions:
    """Settings of a measurement.

    Attributes:
        pictures: prompt and noise of every picture.
        count: number of features of each block.
        labels: of a labels file, whose features alone are drawn; None for labels found in pictures or prompts.
        judged: whether the toy world's judge reads the pictures.
        phrase: (attribute, value) -> its words, for labels that the judge finds.
        batch_size: pictures generated at a time.
        progress: shows bars.
    """

    pictures: Sequence[Picture]
    count: int
    labels: Labels | None = None
    judged: bool = False
    phrase: Callable[[str, str], str] = lambda _attribute, value: value
    batch_size: int = 4
    progress: bool = True


@dataclass(frozen=True)
class CleanPictures:
    """All pictures without an edit.

    Attributes:
        images: uint8 [N, H, W, 3].
        embeddings: of CLIP, float64 [N, D] of length 1.
        attributes: attribute -> value of each; none without a judge.
    """

    images: Pictures
    embeddings: NDArray[np.float64]
    attributes: Sequence[Attributes]


@dataclass(frozen=True)
class ChosenFeature:
    """A feature and the pictures it is measured on, by their places among all.

    Attributes:
        index: of the feature.
        active: number of pictures in which it is active.
        value: its largest value.
        strongest: places of its strongest pictures, of different prompts, strongest first.
        heats: float32 [h, w] each, its largest value at each position of the first `EDITED` of them.
        drawn: places of as many random pictures.
        others: places of the pictures that it is added to.
    """

    index: int
    active: int
    value: float
    strongest: tuple[int, ...]
    heats: tuple[Float, ...] = field(repr=False)
    drawn: tuple[int, ...]
    others: tuple[int, ...]


@dataclass(frozen=True)
class FeatureLabel:
    """A feature's label.

    Attributes:
        text: its words.
        meaning: attribute and value, where the judge found it.
    """

    text: str
    meaning: tuple[str, str] | None = None


@dataclass(frozen=True)
class MeasuredFeature:
    """The properties of a feature.

    Attributes:
        chosen: the feature and its pictures.
        label: None if there is none.
        own: property -> value; None for one that the feature has not.
        random: the same of its random counterpart.
        unchanged: the same of pictures without an edit, for properties that they have.
    """

    chosen: ChosenFeature
    label: FeatureLabel | None
    own: Mapping[str, Value]
    random: Mapping[str, Value]
    unchanged: Mapping[str, Value]


class PictureKeeper(Generator):
    """Generator that keeps the pictures that it decodes.

    Args:
        model: generates.

    Attributes:
        kept: uint8 [B, H, W, 3], one for each batch.
    """

    def __init__(self, model: LoadedModel) -> None:
        super().__init__(model)
        self.kept: list[Pictures] = []

    def decode(self, latents: Tensor) -> Pictures:
        """Decode latents and keep the pictures; see `Generator.decode`."""
        self.kept.append(super().decode(latents))
        return self.kept[-1]


class FeatureMeasurement:
    """The measurement of features of one model.

    Args:
        model: generates.
        saes: block -> SAE.
        networks: CLIP, and the judge if pictures are judged.
        options: settings.
    """

    def __init__(self, model: LoadedModel, saes: Saes, networks: Networks, options: FeatureOptions) -> None:
        self.model = model
        self.saes = saes
        self.networks = networks
        self.options = options

    def run(self) -> Iterator[tuple[str, list[MeasuredFeature]]]:
        """Measure the features of every block.

        Yields:
            Block, and its features by number; fewer than `count` where too few are active.

        Raises:
            MetricError: if CLIP is missing.
        """
        # Loaded first, so that a missing network is an error before hours of work.
        self.networks.get("clip")
        keeper, sums = PictureKeeper(self.model), {block: Activity(sae) for block, sae in self.saes.items()}
        self._observe(keeper, sums)
        clean = self._clean(np.concatenate(keeper.kept))
        # Several noises of one prompt may be among the strongest pictures, of which one counts.
        prompts = {picture.prompt for picture in self.options.pictures}
        top = STRONGEST * -(-len(self.options.pictures) // len(prompts))
        activities = {
            block: Activity(sae, self._candidates(block, sums[block]), top=top, weak=1)
            for block, sae in self.saes.items()
        }
        self._observe(NoDecodeGenerator(self.model), activities)
        for block, activity in activities.items():
            chosen = self._choose(block, activity)
            edited = self._edited(block, chosen)
            measured = [self._measure(clean, block, one, own) for one, own in zip(chosen, edited, strict=True)]
            yield block, sorted(measured, key=lambda one: one.chosen.index)

    def _observe(self, generator: Generator, activities: Mapping[str, Activity]) -> None:
        options = self.options
        observe(
            generator, activities, options.pictures, batch_size=options.batch_size, progress=options.progress
        )  # fmt: skip

    def _clean(self, images: Pictures) -> CleanPictures:
        return CleanPictures(images, self.networks.get("clip").pictures(list(images)), self._read(images))

    def _read(self, images: Pictures) -> list[Attributes]:
        """Return what the judge reads in pictures; nothing without a judge."""
        found: list[Attributes] = self.networks.get("judge")(list(images)) if self.options.judged else []
        return found

    def _candidates(self, block: str, sums: Activity) -> list[int]:
        """Return the features to look at, in the order in which they are drawn."""
        sae, labels = self.saes[block], self.options.labels
        order = _random("features", sae.sha256).permutation(sae.n).tolist()
        found = [i for i in order if sums.counts[i] >= STRONGEST and (labels is None or i in labels[block])]
        return found[: CANDIDATES * self.options.count]

    def _choose(self, block: str, activity: Activity) -> list[ChosenFeature]:
        """Return the first candidates that are active in pictures of enough prompts."""
        pictures = self.options.pictures
        places = {picture: place for place, picture in enumerate(pictures)}
        found: list[ChosenFeature] = []
        for index, one in activity.features.items():
            by_prompt: dict[str, PictureActivity] = {}
            for item in one.strongest.items:
                by_prompt.setdefault(item.picture.prompt, item)
            items = list(by_prompt.values())[:STRONGEST]
            if len(items) < STRONGEST or len(found) == self.options.count:
                continue
            rng = _random("pictures", self.saes[block].sha256, index)
            chosen = ChosenFeature(
                index=index,
                active=one.pictures,
                value=float(activity.largest[index]),
                strongest=tuple(places[item.picture] for item in items),
                heats=tuple(item.heat for item in items[:EDITED]),
                drawn=_draw(pictures, STRONGEST, rng),
                others=_draw(pictures, EDITED, rng, {item.picture.prompt for item in items}),
            )
            found.append(chosen)
        return found

    def _edited(self, block: str, chosen: Sequence[ChosenFeature]) -> Sequence[Pictures]:
        """Generate the edited pictures of features, uint8 [4, `EDITED`, H, W, 3] each."""
        if not chosen:
            return []
        sae = self.saes[block]
        directions = {block: sae}, {block: random_directions(sae, [one.index for one in chosen])}
        plan = [edit for one in chosen for edit in _edits(block, one, directions)]
        generator, size, images = Generator(self.model), self.options.batch_size, []
        steps = self.model.spec.steps
        title = f"{steps} step{'' if steps == 1 else 's'}, {block}"
        with ProgressBar[None](title=title, unit="picture", total=len(plan), shown=self.options.progress) as bar:
            for first in range(0, len(plan), size):
                some = plan[first : first + size]
                edits, pictures = [edit for edit, _ in some], [self.options.pictures[place] for _, place in some]
                made = generator.generate([p.prompt for p in pictures], [p.seed for p in pictures], edits=edits)
                images.append(made.images)
                bar.update(len(some))
        every = np.concatenate(images)
        return list(every.reshape(len(chosen), 4, EDITED, *every.shape[1:]))

    def _measure(self, clean: CleanPictures, block: str, one: ChosenFeature, edited: Pictures) -> MeasuredFeature:
        """Compute the properties of a feature.

        Args:
            clean: all pictures without an edit.
            block: the feature's.
            one: the feature.
            edited: uint8 [4, `EDITED`, H, W, 3].
        """
        label = self._label(clean, one, block)
        own = self._of_pictures(clean, one.strongest) | self._of_edits(clean, one, label, edited[ADD], edited[REMOVE])
        random = self._of_pictures(clean, one.drawn)
        random |= self._of_edits(clean, one, label, edited[ADD_RANDOM], edited[REMOVE_RANDOM])
        unchanged = self._of_label(label, clean.images[list(one.others)])
        return MeasuredFeature(one, label, own, random, unchanged)

    def _label(self, clean: CleanPictures, one: ChosenFeature, block: str) -> FeatureLabel | None:
        """Return the label of a feature: the file's, the judge's, or words of prompts."""
        if self.options.labels is not None:
            return FeatureLabel(self.options.labels[block][one.index])
        if self.options.judged:
            meaning = enriched_value([clean.attributes[place] for place in one.strongest], clean.attributes)
            return None if meaning is None else FeatureLabel(self.options.phrase(*meaning), meaning)
        prompts = [picture.prompt for picture in self.options.pictures]
        words = enriched_words([prompts[place] for place in one.strongest], prompts)
        return None if words is None else FeatureLabel(words)

    def _of_pictures(self, clean: CleanPictures, places: Sequence[int]) -> dict[str, Value]:
        """Compute the properties of some pictures: specificity and, with a judge, purity."""
        found: dict[str, Value] = {"specificity": mean_pairwise_cosine(clean.embeddings[list(places)])}
        if self.options.judged:
            found["purity"] = purity([clean.attributes[place] for place in places])
        return found

    def _of_label(self, label: FeatureLabel | None, images: Pictures) -> dict[str, Value]:
        """Compute how far pictures show a label, by CLIP and by the judge if it found it."""
        found: dict[str, Value] = {"causality": None}
        if label is not None:
            clip = self.networks.get("clip")
            found["causality"] = float((clip.pictures(list(images)) @ clip.texts([label.text])[0]).mean())
        if self.options.judged:
            meaning = label.meaning if label is not None else None
            read = [] if meaning is None else [one[meaning[0]] == meaning[1] for one in self._read(images)]
            found["label_there"] = _mean(read)
        return found

    def _of_edits(
        self, clean: CleanPictures, one: ChosenFeature, label: FeatureLabel | None, added: Pictures, removed: Pictures
    ) -> dict[str, Value]:
        """Compute the properties of an edit.

        Args:
            clean: all pictures without an edit.
            one: the feature.
            label: its label.
            added: uint8 [`EDITED`, H, W, 3], the other pictures with the feature added.
            removed: the same of its strongest pictures with the feature removed.
        """
        strongest, others = clean.images[list(one.strongest[:EDITED])], clean.images[list(one.others)]
        side = (clean.images.shape[1], clean.images.shape[2])
        regions = [active_region(heat, side) for heat in one.heats]
        found = self._of_label(label, added)
        found["locality"] = _mean(map(locality, strongest, removed, regions))
        found["color"] = _mean(map(color_change, others, added))
        found["texture"] = _mean(map(texture_change, others, added))
        if self.options.judged:
            pairs = list(zip([clean.attributes[place] for place in one.others], self._read(added), strict=True))
            for name, attributes in (("color_changed", ("color",)), ("pattern_changed", PATTERN)):
                kept = [kept_share(was, now, attributes) for was, now in pairs]
                found[name] = _mean(None if share is None else share < 1 for share in kept)
        return found


def _edits(block: str, one: ChosenFeature, directions: tuple[Saes, Saes]) -> Iterator[tuple[Edit, int]]:
    """Yield a feature's edits, each with the place of its picture.

    Args:
        block: the feature's.
        one: the feature.
        directions: the SAE, and the one in which the feature writes along a random direction.
    """
    feature = (block, one.index)
    added = {feature: STRENGTH * one.value}
    for on, off, places in ((added, {}, one.others), ({}, {feature: 1.0}, one.strongest[:EDITED])):
        for saes in directions:
            edit = switch(saes, on, off)
            yield from ((edit, place) for place in places)


def _random(*parts: str | int) -> np.random.Generator:
    """Return a random generator that is the same for the same words and numbers."""
    return np.random.default_rng(int(content_digest(list(parts))[:16], 16))


def _draw(
    pictures: Sequence[Picture], count: int, rng: np.random.Generator, excluded: Collection[str] = ()
) -> tuple[int, ...]:
    """Draw places of pictures of different prompts, none of them excluded."""
    drawn: dict[str, int] = {}
    for place in rng.permutation(len(pictures)).tolist():
        if pictures[place].prompt not in excluded:
            drawn.setdefault(pictures[place].prompt, place)
    return tuple(drawn.values())[:count]


def _mean(values: Iterable[float | None]) -> Value:
    """Return the mean of the numbers among some values; None if there is none."""
    known = [float(value) for value in values if value is not None]
    return sum(known) / len(known) if known else None
