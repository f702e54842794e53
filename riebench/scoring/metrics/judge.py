"""Metrics by the toy world's judge, a network that reads attributes of pictures.

They tell whether the edited attribute has its target value, whether the others stayed the same, and how many the
edit made unreadable.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from riebench.errors import MetricError, near_match
from riebench.models.assets import asset_folder
from riebench.models.clip import folder_digest
from riebench.models.spec import DEFAULT_JUDGE
from riebench.scoring.metrics.base import UNREADABLE, MetricFormat, Reason, Sample, UInt8, Value, metric, picture_key
from riebench.scoring.metrics.networks import Network, NetworkOptions, Networks, network

SIDE = 64
"""Side in pixels of the pictures that the judge reads; it reads no others."""


class JudgeReader:
    """Reader of the attributes of pictures, which reads each picture once.

    Args:
        read: uint8 [N, 64, 64, 3] -> per picture attribute -> value or `UNREADABLE`.
        backbone: identity stored with every value.
    """

    def __init__(self, read: Callable[[UInt8], list[dict[str, str]]], backbone: str) -> None:
        self.backbone = backbone
        self._read = read
        self._cache: dict[bytes, dict[str, str]] = {}

    @classmethod
    def load(cls, name: str = DEFAULT_JUDGE) -> JudgeReader:
        """Load a shipped judge, checked by its hash."""
        from riebench.scoring.metrics.judge_network import Judge

        return cls(Judge.load(name).read, identity(name))

    def __call__(self, pictures: Sequence[UInt8]) -> list[dict[str, str]]:
        """Read the attributes of each picture.

        Args:
            pictures: uint8 [64, 64, 3] each.

        Returns:
            For each picture attribute -> value or `UNREADABLE`.

        Raises:
            MetricError: for another size.
        """
        for picture in pictures:
            if picture.shape != (SIDE, SIDE, 3):
                raise MetricError(f"the toy judge reads {SIDE} x {SIDE} pictures, got {picture.shape}")
        keys = [picture_key(picture) for picture in pictures]
        new = {key: picture for key, picture in zip(keys, pictures, strict=True) if key not in self._cache}
        if new:
            verdicts = self._read(np.stack(list(new.values())))
            self._cache.update(zip(new, verdicts, strict=True))
        return [self._cache[key] for key in keys]


def identity(name: str = DEFAULT_JUDGE) -> str:
    """Return a shipped judge's identity, without loading it."""
    return f"toy-{name}@{folder_digest(asset_folder(name))}"


@network("judge")
class ToyJudge(Network):
    """Toy world's judge, which ships with the package; each world has its own."""

    @staticmethod
    def load(networks: Networks) -> JudgeReader:
        """Load the judge that the options name."""
        return JudgeReader.load(networks.options.judge)

    @staticmethod
    def identity(options: NetworkOptions) -> str:
        """Return the identity of the judge that the options name."""
        return identity(options.judge)


def _attributes(sample: Sample) -> tuple[dict[str, str], dict[str, str]]:
    if sample.source_attributes is None or sample.target_attributes is None:
        raise MetricError("the judge's verdict needs an example with attributes")
    if sample.source_attributes.keys() != sample.target_attributes.keys():
        raise MetricError(
            f"{sample.target_prompt!r}: source and target attributes must have the same names, found "
            f"{sorted(sample.source_attributes)} and {sorted(sample.target_attributes)}"
        )
    return sample.source_attributes, sample.target_attributes


def _read_attributes(samples: Sequence[Sample], pictures: Sequence[UInt8], networks: Networks) -> list[dict[str, str]]:
    # An example with a misspelt attribute has to be an error, not a score of 0.
    verdicts = networks.get("judge")(pictures)
    for sample, verdict in zip(samples, verdicts, strict=True):
        for name in _attributes(sample)[0]:
            if name not in verdict:
                raise MetricError(
                    f"{sample.target_prompt!r}: the judge knows no attribute {name!r}{near_match(name, verdict)}"
                )
    return verdicts


def kept_share(before: Mapping[str, str], after: Mapping[str, str], names: Iterable[str]) -> float | None:
    """Compute the share of attributes that a second picture shows as the first.

    What cannot be read in the first picture is left out; what cannot be read in the second is not kept.

    Args:
        before: attribute -> value or `UNREADABLE`, of the first picture.
        after: the same of the second.
        names: the attributes to look at.

    Returns:
        0 to 1; None if none of them can be read in the first picture.
    """
    readable = [name for name in names if before[name] != UNREADABLE]
    return sum(after[name] == before[name] for name in readable) / len(readable) if readable else None


def edited_attributes(sample: Sample) -> tuple[str, ...]:
    """Return the names of the attributes that the edit changes, sorted.

    Raises:
        MetricError: if the sample's attributes are unknown or do not match.
    """
    source, target = _attributes(sample)
    return tuple(sorted(name for name in source if source[name] != target[name]))


@metric(
    direction="higher",
    low=0,
    high=1,
    backbone="judge",
    needs_attributes=True,
    format=MetricFormat("target attribute there, % of pictures (higher is better)", 100, 0),
)
def judge_target(samples: Sequence[Sample], networks: Networks) -> list[Value]:
    """Compute 1 if every edited attribute has the target's value, else 0.

    The attributes are those that the judge reads in the edited picture; one that it cannot read does not have the
    target's value.
    """
    verdicts = _read_attributes(samples, [sample.edited for sample in samples], networks)
    values: list[Value] = []
    for sample, verdict in zip(samples, verdicts, strict=True):
        _, target = _attributes(sample)
        edited = edited_attributes(sample)
        if not edited:
            values.append(Reason.SAME_PROMPTS)
        else:
            values.append(float(all(verdict[name] == target[name] for name in edited)))
    return values


@metric(
    direction="higher",
    low=0,
    high=1,
    backbone="judge",
    needs_attributes=True,
    format=MetricFormat("other attributes kept, % (higher is better)", 100, 0),
)
def judge_kept(samples: Sequence[Sample], networks: Networks) -> list[Value]:
    """Compute the share of the other attributes that stay as in the source picture.

    The comparison is with the attributes that the judge reads in the source picture, not with those in its prompt: an
    edit is not to blame for what the generator got wrong before it. What cannot be read in the source picture is left
    out; what became unreadable is not kept.
    """
    after = _read_attributes(samples, [sample.edited for sample in samples], networks)
    before = _read_attributes(samples, [sample.source for sample in samples], networks)
    values: list[Value] = []
    for sample, new, old in zip(samples, after, before, strict=True):
        edited = edited_attributes(sample)
        others = [name for name in _attributes(sample)[0] if name not in edited]
        if not edited or not others:
            values.append(Reason.SAME_PROMPTS)
        else:
            kept = kept_share(old, new, others)
            values.append(Reason.UNREADABLE if kept is None else kept)
    return values


@metric(
    direction="lower",
    low=0,
    high=1,
    backbone="judge",
    needs_attributes=True,
    format=MetricFormat("made unreadable, % of attributes (lower is better)", 100, 0),
)
def judge_artifact(samples: Sequence[Sample], networks: Networks) -> list[Value]:
    """Compute the share of attributes that the edit made unreadable.

    It is a share of those that the judge can read in the source picture. The judge refuses some readings of spotless
    pictures too, so a share says more than whether there is such an attribute.
    """
    after = _read_attributes(samples, [sample.edited for sample in samples], networks)
    before = _read_attributes(samples, [sample.source for sample in samples], networks)
    values: list[Value] = []
    for sample, new, old in zip(samples, after, before, strict=True):
        readable = [name for name in _attributes(sample)[0] if old[name] != UNREADABLE]
        lost = sum(new[name] == UNREADABLE for name in readable)
        values.append(lost / len(readable) if readable else Reason.UNREADABLE)
    return values
