"""Models side by side, from stored results of one suite.

Methods are matched by name. What they gain is read at equal LPIPS, as on the leaderboard: the mean gain over LPIPS
budgets, whose edit strength is chosen on one half of the examples and read on the other. So a model whose pictures
change more by the same edit has no advantage. Numbers of two scorers or of two versions of an example are refused.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from statistics import median

from riebench.analysis.configurations import EVERYTHING, configurations
from riebench.analysis.multiple import ALPHA, step_down
from riebench.analysis.standings import (
    DISTANCE,
    ENDS,
    GAIN,
    MIN_EXAMPLES,
    SECOND,
    SWEPT,
    Entry,
    MethodComparison,
    ReadFolder,
    group_entries,
)
from riebench.analysis.stats import BOOTSTRAP_SEED, REPLICATES, Estimate, Replicates
from riebench.analysis.tradeoff import SampleMean, TradeOff
from riebench.blocks import ALL_BLOCKS, NO_BLOCKS, pass_order
from riebench.errors import RiebenchError
from riebench.models.presets import PRESETS
from riebench.models.spec import ModelSpec
from riebench.registry import MODEL_FAMILIES
from riebench.store.folder import RunFolder
from riebench.tasks.schema import ALL_CATEGORIES

MOST_TESTED = 12
"""Blocks of a method up to which all pairs are tested, to tell the best from the others."""


@dataclass(frozen=True)
class GainCell:
    """A mean gain over LPIPS budgets with what stands behind it.

    Attributes:
        gain: with its interval; None where it cannot be computed.
        scored: units with a number.
        expected: units that should have one.
        distance: mean LPIPS where the gain was read; None without.
        note: why there is no gain; "" if there is one.
    """

    gain: Estimate | None
    scored: int
    expected: int
    distance: float | None = None
    note: str = ""


@dataclass(frozen=True)
class BestBlock:
    """The block that gains most by itself in one category.

    Attributes:
        block: its short name.
        cell: its gain.
        of: number of blocks that it was chosen from.
        clear: whether it gains more than each of the others, with p below 0.05, corrected over all pairs of blocks and
            categories of the method on that model.
    """

    block: str
    cell: GainCell
    of: int
    clear: bool


@dataclass(frozen=True)
class ModelCost:
    """Cost of a picture of a model.

    Attributes:
        calls: evaluations of the denoiser, twice a step under classifier-free guidance; None where the model's family
            is not known.
        seconds: method -> median of the recorded wall times of its units, and their number.
        devices: kinds of devices that they were recorded on.
    """

    calls: int | None
    seconds: Mapping[str, tuple[float, int]]
    devices: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class ModelResults:
    """All stored runs of one suite on one model.

    Attributes:
        folders: its run folders.
        replicates: of the bootstrap.
        seed: of its generator.
    """

    folders: tuple[RunFolder, ...]
    replicates: int = REPLICATES
    seed: int = BOOTSTRAP_SEED

    @property
    def spec(self) -> ModelSpec:
        """The model, as its runs state it."""
        return self.folders[0].spec.model

    @property
    def name(self) -> str:
        """The model's name among results."""
        return self.spec.name

    @cached_property
    def _read(self) -> list[ReadFolder]:
        return [(folder, configurations(folder)) for folder in self.folders]

    @cached_property
    def whole(self) -> dict[str, Entry]:
        """Method -> its entry on all blocks of its setting together, or on none.

        Where several have one name, their SAEs and blocks are part of theirs.
        """
        found = group_entries(self._read)
        names = Counter(entry.name for entry in found)
        return {entry.name if names[entry.name] == 1 else f"{entry.name} [{_about(entry)}]": entry for entry in found}

    @cached_property
    def single(self) -> dict[str, dict[str, Entry]]:
        """Method -> block -> its entry on that block alone, for methods with several."""
        found: dict[str, dict[str, Entry]] = {}
        for entry in group_entries(self._read, single_blocks=True):
            if entry.block_set not in (ALL_BLOCKS, NO_BLOCKS) and "+" not in entry.block_set:
                found.setdefault(entry.name, {})[entry.block_set] = entry
        return {
            name: {block: blocks[block] for block in pass_order(blocks)}
            for name, blocks in found.items() if len(blocks) > 1
        }  # fmt: skip

    @cached_property
    def categories(self) -> tuple[str, ...]:
        """Categories with planned units, in their fixed order."""
        planned = {category for folder in self.folders for category, _, _ in folder.expected}
        return tuple(category for category in ALL_CATEGORIES if category in planned)

    def comparison(self, entries: Iterable[Entry]) -> MethodComparison:
        """Return the comparison of some entries on their own examples."""
        return MethodComparison(tuple(entries), self.replicates, self.seed)

    @cached_property
    def blocks(self) -> dict[str, BlockGains]:
        """Method -> the gains of its blocks, each edited alone."""
        return {name: BlockGains(self, entries) for name, entries in self.single.items()}

    def networks(self, metric: str) -> set[str]:
        """Return the networks whose numbers of a metric are read."""
        entries = [*self.whole.values(), *(one for blocks in self.single.values() for one in blocks.values())]
        found = [c for entry in entries for c in entry.configurations if c.counts(metric)[0]]
        return {c.backbones.get(metric, "") for c in found}

    def settings_of(self, method: str) -> str:
        """Return all of a method's settings that change an edit, blocks and SAEs aside."""
        stated = {
            json.dumps([one.name, one.method, one.params, one.edit_steps], sort_keys=True)
            for one in (folder.spec.setting for folder in self.folders)
            if (one.group or one.name) == method
        }
        return "\n".join(sorted(stated))

    @cached_property
    def cost(self) -> ModelCost:
        """Calls of the denoiser and recorded times."""
        seconds: dict[str, list[float]] = {}
        devices = set()
        for folder in self.folders:
            found = [one.seconds for one in folder.records(features=False) if one.status == "ok" and one.seconds > 0]
            name = folder.spec.setting.group or folder.spec.setting.name
            seconds.setdefault(name, []).extend(found)
            devices |= {
                str(one.machine["device"]).split(":")[0] for one in folder.invocations if "device" in one.machine
            }
        medians = {name: (median(found), len(found)) for name, found in seconds.items() if found}
        return ModelCost(denoiser_calls(self.spec), medians, tuple(sorted(devices)))


def _about(entry: Entry) -> str:
    return ", ".join(part for part in (entry.sae, entry.block_set) if part)


def denoiser_calls(spec: ModelSpec) -> int | None:
    """Return the evaluations of the denoiser that a picture takes.

    They follow from steps and guidance, and from the family of the preset with the same weights; None without one.
    """
    for preset in PRESETS.values():
        if preset.spec_source == spec.source:
            shape = MODEL_FAMILIES.get(preset.family).shape_of_preset(preset.name)
            return int(spec.steps * shape.calls(spec.guidance))
    return None


@dataclass(frozen=True, eq=False)
class BlockGains:
    """Gains of a method's blocks, each edited alone, on one model.

    Attributes:
        model: whose results they are.
        entries: block -> entry, in the order of the pass.
    """

    model: ModelResults
    entries: Mapping[str, Entry]

    @cached_property
    def comparison(self) -> MethodComparison:
        """All blocks on their shared examples."""
        return self.model.comparison(self.entries.values())

    @cached_property
    def areas(self) -> dict[tuple[str, str], TradeOff]:
        """(Block, category or "all") -> trade-off, for blocks without gaps."""
        whole = {block: entry for block, entry in self.entries.items() if self.comparison.gap(entry) is None}
        found = {}
        for block, entry in whole.items():
            for category in (*self.comparison.examples.strata, EVERYTHING):
                one = self.comparison.trade_off(entry, category=None if category == EVERYTHING else category)
                if one is not None:
                    found[block, category] = one
        return found

    def cell(self, block: str, category: str) -> GainCell:
        """Return the gain of a block in a category, or in all."""
        entry, found = self.entries[block], self.areas.get((block, category))
        counts = [one.counts(GAIN, category) for one in entry.configurations]
        scored, expected = (sum(count[place] for count in counts) for place in (0, 1))
        if found is None:
            return GainCell(None, scored, expected, note=self.comparison.gap(entry) or "not run")
        return GainCell(self.comparison.estimate(found.area.replicates), scored, expected, found.realised)

    def best(self, category: str) -> BestBlock | None:
        """Return the block with the largest gain in a category; None if none has one."""
        gains = {block: one.area.values[0] for (block, its), one in self.areas.items() if its == category}
        if not gains:
            return None
        block = max(gains, key=lambda name: gains[name])
        others = [other for other in gains if other != block]
        clear = bool(others) and all((category, block, other) in self._wins for other in others)
        return BestBlock(block, self.cell(block, category), len(gains), clear)

    @cached_property
    def _wins(self) -> set[tuple[str, str, str]]:
        """(Category, better block, worse block) of every pair that is told apart."""
        tested = [
            category for category, (first, _) in self.comparison.examples.independent.items()
            if len(first) >= MIN_EXAMPLES
        ]  # fmt: skip
        if len(self.entries) > MOST_TESTED:
            return set()
        pairs: dict[tuple[str, str, str], Replicates] = {}
        for category in (*tested, EVERYTHING) if tested else ():
            means = {block: one.area for (block, its), one in self.areas.items() if its == category}
            pairs |= {
                (category, one, other): (means[one] - means[other]).replicates
                for one, other in combinations(means, 2)
            }  # fmt: skip
        adjusted = step_down({"\n".join(place): found for place, found in pairs.items()})
        return {
            (category, *((one, other) if found.mean > 0 else (other, one)))
            for (category, one, other), found in pairs.items() if adjusted["\n".join((category, one, other))] < ALPHA
        }  # fmt: skip


@dataclass(frozen=True)
class ModelDifference:
    """Difference of a method's gains on two models, on the same examples.

    Attributes:
        method: its name.
        first: name of a model.
        second: name of the model whose gain is taken off.
        difference: of the mean gains, with its interval.
        p: corrected over all differences of the comparison.
    """

    method: str
    first: str
    second: str
    difference: Estimate
    p: float


@dataclass(frozen=True, eq=False)
class ModelComparison:
    """Models side by side.

    Attributes:
        suite: name of the suite, as runs store it.
        models: in the order of the columns.
    """

    suite: str
    models: tuple[ModelResults, ...]

    @classmethod
    def of(
        cls, groups: Mapping[str, Sequence[RunFolder]], replicates: int = REPLICATES, seed: int = BOOTSTRAP_SEED
    ) -> ModelComparison:
        """Compare models.

        Args:
            groups: model -> its run folders.
            replicates: of the bootstrap.
            seed: of its generator.

        Raises:
            RiebenchError: if there are fewer than two models, or their suites, scorers or examples differ.
        """
        models = tuple(ModelResults(tuple(folders), replicates, seed) for folders in groups.values())
        if len(models) < 2:
            names = ", ".join(groups) or "none"
            raise RiebenchError(f"models are compared from two on, and there is {names}; name further results folders")
        suites = sorted({folder.spec.suite for one in models for folder in one.folders})
        if len(suites) > 1:
            raise RiebenchError(
                f"results of several suites ({', '.join(suites)}) cannot be compared; choose with --suite"
            )
        for metric in (GAIN, DISTANCE):
            _check_networks(models, metric)
        _check_examples(models)
        return cls(suites[0], models)

    @cached_property
    def methods(self) -> tuple[str, ...]:
        """Methods of any model by name, the ends of the scale last."""
        found = {name: entry for one in self.models for name, entry in one.whole.items()}
        return tuple(sorted(found, key=lambda name: (found[name].method in ENDS, name)))

    @cached_property
    def block_methods(self) -> tuple[str, ...]:
        """Methods whose blocks were edited one at a time; those of most models first."""
        counts: dict[str, int] = {}
        for one in self.models:
            for name in one.single:
                counts[name] = counts.get(name, 0) + 1
        entries = {name: next(iter(blocks.values())) for one in self.models for name, blocks in one.single.items()}
        return tuple(sorted(counts, key=lambda name: (-counts[name], entries[name].method != SWEPT, name)))

    @cached_property
    def run_once(self) -> Mapping[str, tuple[str, ...]]:
        """Model -> methods that it alone has, with all blocks together or one at a time.

        Nothing is compared of them. Empty where no method has run on two models: then there is nothing else.
        """
        runs = {one.name: {*one.whole, *one.single} for one in self.models}
        found = {
            name: tuple(sorted(own.difference(*(other for of, other in runs.items() if of != name))))
            for name, own in runs.items()
        }
        shared = any(len(found[name]) < len(own) for name, own in runs.items())
        return {name: names for name, names in found.items() if names} if shared else {}

    def compared(self, methods: Sequence[str]) -> tuple[str, ...]:
        """Return those of some methods that two models have, in their order."""
        alone = {name for names in self.run_once.values() for name in names}
        return tuple(name for name in methods if name not in alone)

    @cached_property
    def categories(self) -> tuple[str, ...]:
        """Categories of any model, in their fixed order."""
        planned = {category for one in self.models for category in one.categories}
        return tuple(category for category in ALL_CATEGORIES if category in planned)

    @cached_property
    def has_second(self) -> bool:
        """True if the same second scorer measured on all models."""
        found = [one.networks(SECOND) for one in self.models]
        return all(len(networks) == 1 and networks == found[0] for networks in found)

    @cached_property
    def unlike(self) -> dict[str, str]:
        """Methods that are not the same on all models that have them -> why."""
        found = {}
        for name in self.methods:
            settings = {one.settings_of(one.whole[name].name) for one in self.models if name in one.whole}
            ids = dict.fromkeys(
                one.comparison([one.whole[name]]).examples.ids for one in self.models if name in one.whole
            )
            if len(settings) > 1:
                found[name] = "its parameters differ between the models"
            elif len(ids) > 1:
                found[name] = f"its examples differ between the models ({' and '.join(str(len(one)) for one in ids)})"
        return found

    def _area(self, model: ModelResults, method: str, read: str) -> TradeOff | None:
        entry = model.whole.get(method)
        if entry is None:
            return None
        comparison = model.comparison([entry])
        return None if comparison.gap(entry) is not None else comparison.trade_off(entry, read)

    @cached_property
    def _areas(self) -> dict[tuple[str, str, str], TradeOff]:
        """(Method, model, metric read) -> trade-off."""
        reads = (GAIN, SECOND) if self.has_second else (GAIN,)
        found = {
            (method, model.name, read): self._area(model, method, read)
            for method in self.methods for model in self.models for read in reads
        }  # fmt: skip
        return {place: one for place, one in found.items() if one is not None}

    def gain(self, method: str, model: ModelResults, read: str = GAIN) -> GainCell | None:
        """Return a method's gain with all its blocks on a model; None if it was not run."""
        entry = model.whole.get(method)
        if entry is None:
            return None
        comparison, found = model.comparison([entry]), self._areas.get((method, model.name, read))
        counts = [one.counts(read) for one in entry.configurations]
        scored, expected = (sum(count[place] for count in counts) for place in (0, 1))
        if found is None:
            return GainCell(None, scored, expected, note=comparison.gap(entry) or "not scored")
        return GainCell(comparison.estimate(found.area.replicates), scored, expected, found.realised)

    @cached_property
    def differences(self) -> dict[tuple[str, str], ModelDifference]:
        """(Method, model) -> its gain there minus that on the first model, paired."""
        first = self.models[0]
        means: dict[tuple[str, str], SampleMean] = {}
        for method in self.methods:
            base = self._areas.get((method, first.name, GAIN))
            for model in self.models[1:]:
                other = self._areas.get((method, model.name, GAIN))
                if base is not None and other is not None and method not in self.unlike:
                    means[method, model.name] = other.area - base.area
        adjusted = step_down({"\n".join(place): one.replicates for place, one in means.items()})
        found = {}
        for (method, name), mean in means.items():
            low, high = mean.replicates.interval() or (None, None)
            value = Estimate(mean.replicates.mean, low, high, len(mean.examples.ids))
            found[method, name] = ModelDifference(method, name, first.name, value, adjusted[f"{method}\n{name}"])
        return found


def _check_networks(models: Sequence[ModelResults], metric: str) -> None:
    """Refuse numbers of different networks, or none."""
    found = {one.name: one.networks(metric) for one in models}
    for name, networks in found.items():
        if not networks:
            raise RiebenchError(f"no picture of {name} has a {metric}; `riebench score` computes what is missing")
        if len(networks) > 1:
            raise RiebenchError(f"the {metric} of {name} is by several scorers ({', '.join(sorted(networks))}); "
                                "score all its runs with one: riebench score --scorer NAME")  # fmt: skip
    if len({frozenset(networks) for networks in found.values()}) > 1:
        stated = ", ".join(f"{name} by {next(iter(networks)) or 'an unnamed one'}" for name, networks in found.items())
        raise RiebenchError(
            f"scorers differ, and their numbers have scales of their own ({metric}: {stated}); score all results with "
            "one: riebench score --scorer NAME"
        )


def _check_examples(models: Sequence[ModelResults]) -> None:
    """Refuse examples of which two models have different versions."""
    known: dict[str, tuple[str, object]] = {}
    for model in models:
        for entry in model.whole.values():
            for example, origins in entry.origins.items():
                for origin in origins:
                    other, found = known.setdefault(example, (model.name, origin))
                    if found != origin and other != model.name:
                        raise RiebenchError(
                            f"suites differ: {example} is of {found} on {other} and of {origin} on {model.name}, with "
                            "other content; run the same version of the suite on both"
                        )
