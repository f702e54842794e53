"""Statements in which two stored runs differ, causes before their effects.

A difference further up explains those below it: two versions of a package may give other features, and other features
give other numbers. So the first one is the one to look at.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from riebench.errors import RiebenchError
from riebench.scoring.score import SCORING_FILE
from riebench.store.folder import RunFolder
from riebench.store.records import EditRecord, ScoreRecord
from riebench.utils.files import parse_json

ABSOLUTE, RELATIVE = 1e-3, 1e-2
"""Two numbers agree if they differ by less than `ABSOLUTE` plus this share of the larger one: by what one step of 255
in a picture, which batch sizes may cost, can move them."""
SHOWN = 3
"""Differences of one kind that are written out."""
NONE = "not stated"
_HASH = re.compile(r"[0-9a-f]{40,}")
CAUSES = (
    "package versions", "model", "number format", "steps", "guidance", "picture size", "method configuration",
    "prompts and brackets", "seeds and noise", "masks", "SAE", "features", "CLIP and its activation", "preprocessing",
)  # fmt: skip
"""Names of all statements, in their order."""

Slot = tuple[str, str, str, float, int]
"""Task, example, block set, strength and seed of a unit."""


@dataclass(frozen=True)
class Cause:
    """One statement of two runs.

    Attributes:
        name: one of `CAUSES`.
        first: what the first run states; a few of many.
        second: the same of the second one.
        differs: whether the two statements differ.
    """

    name: str
    first: str
    second: str
    differs: bool


@dataclass(frozen=True)
class UnitPair:
    """One unit that both runs have made.

    Attributes:
        slot: what the two have in common.
        first: the first run's record.
        second: the second one's.
        first_scores: metric -> number.
        second_scores: likewise.
    """

    slot: Slot
    first: EditRecord
    second: EditRecord
    first_scores: Mapping[str, ScoreRecord]
    second_scores: Mapping[str, ScoreRecord]

    @property
    def same_picture(self) -> bool:
        """True if both pictures are the same to the bit."""
        return self.first.image_sha256 is not None and self.first.image_sha256 == self.second.image_sha256

    @property
    def gaps(self) -> dict[str, float]:
        """Metric -> difference of its two numbers, in tolerances."""
        return gaps(values(self.first_scores), values(self.second_scores))

    @property
    def gap(self) -> float:
        """The largest of these: above 1 the numbers differ."""
        return max(self.gaps.values(), default=0.0)


def values(scores: Mapping[str, ScoreRecord]) -> dict[str, float]:
    """Return metric -> number, for those that have one."""
    return {metric: score.value for metric, score in scores.items() if score.value is not None}


def gaps(first: Mapping[str, float], second: Mapping[str, float]) -> dict[str, float]:
    """Return metric -> difference in tolerances, for the metrics that both have.

    Above 1 two numbers differ.
    """
    return {
        metric: abs(first[metric] - second[metric])
        / (ABSOLUTE + RELATIVE * max(abs(first[metric]), abs(second[metric])))
        for metric in first
        if metric in second
    }


def shared_units(first: RunFolder, second: RunFolder) -> list[UnitPair]:
    """Return the units that both runs have made, with their numbers.

    Raises:
        RiebenchError: if there are none.
    """
    (ours, our_scores), (theirs, their_scores) = (_made(folder) for folder in (first, second))
    pairs = [
        UnitPair(slot, ours[slot], theirs[slot], our_scores.get(slot, {}), their_scores.get(slot, {}))
        for slot in ours
        if slot in theirs
    ]
    if not pairs:
        raise RiebenchError(
            f"{first.path} and {second.path} share no unit: {_extent(ours)} there and {_extent(theirs)} here; give two "
            "runs of the same examples, blocks, strengths and seeds"
        )
    return pairs


def _made(folder: RunFolder) -> tuple[dict[Slot, EditRecord], dict[Slot, dict[str, ScoreRecord]]]:
    """Return the finished units of a run, and the numbers of their present pictures."""
    records = {record.key.digest: record for record in folder.records() if record.status == "ok"}
    scores: dict[Slot, dict[str, ScoreRecord]] = {}
    for (unit, metric, _), score in folder.scores().items():
        record = records.get(unit)
        if record is not None and score.picture in ("", record.picture_id):
            scores.setdefault(record.key.slot, {})[metric] = score
    return {record.key.slot: record for record in records.values()}, scores


def _extent(units: Iterable[Slot]) -> str:
    found = list(units)
    if not found:
        return "no finished unit"
    parts = (sorted({str(slot[place]) for slot in found}) for place in (2, 3, 4))
    return "block sets {}, strengths {}, seeds {}".format(*(", ".join(_few(part)) for part in parts))


def _few(texts: Sequence[str]) -> list[str]:
    return [*texts[:SHOWN], *([f"{len(texts) - SHOWN} more"] if len(texts) > SHOWN else [])]


def causes(first: RunFolder, second: RunFolder, pairs: Sequence[UnitPair]) -> list[Cause]:
    """Compare all that two runs state.

    Args:
        first: a run folder.
        second: another one.
        pairs: the units that both have made.

    Returns:
        One row for each of `CAUSES`, in their order.
    """
    found = dict(_of_specs(first, second)) | dict(_of_units(pairs)) | dict(_of_scores(first, second, pairs))
    found["package versions"] = _versions(first, second, pairs)
    found["masks"] = _of_regions(first, second, pairs)
    found["seeds and noise"] = _of_noise(first, second, pairs)
    return [Cause(name, *found[name]) for name in CAUSES]


Row = tuple[str, str, bool]
"""What the first states, what the second states, and whether they differ."""


def _row(first: Any, second: Any) -> Row:
    """Return two statements as text; of two mappings only the keys that differ."""
    if isinstance(first, dict) and isinstance(second, dict) and first != second:
        keys = [key for key in sorted({*first, *second}) if first.get(key) != second.get(key)]
        first, second = ({key: side.get(key) for key in keys if key in side} for side in (first, second))
    return _text(first), _text(second), first != second


def _text(value: Any) -> str:
    if value is None or value in ({}, [], ()):
        return NONE
    if isinstance(value, dict):
        return ", ".join(f"{key} {_text(one)}" for key, one in value.items())
    if isinstance(value, str):
        return _HASH.sub(lambda found: found[0][:12], value)
    return json.dumps(value, ensure_ascii=False)


def _of_specs(first: RunFolder, second: RunFolder) -> Iterator[tuple[str, Row]]:
    """Yield the statements of the runs' identities."""
    ours, theirs = first.spec, second.spec
    weights = ("source", "revision", "vae", "vae_tiling", "unet", "loras")
    setting = ("method", "params", "blocks", "edit_steps", "plugin_sha256")

    def some(names: Sequence[str], stored: Any) -> dict[str, Any]:
        dumped = stored.model_dump(mode="json")
        return {name: dumped[name] for name in names}

    yield "model", _row(some(weights, ours.model), some(weights, theirs.model))
    for name, field in (
        ("number format", "dtype"),
        ("steps", "steps"),
        ("guidance", "guidance"),
        ("picture size", "size"),
    ):
        yield name, _row(getattr(ours.model, field), getattr(theirs.model, field))
    yield "method configuration", _row(some(setting, ours.setting), some(setting, theirs.setting))
    yield "SAE", _row(ours.sae_sha256, theirs.sae_sha256)


def _versions(first: RunFolder, second: RunFolder, pairs: Sequence[UnitPair]) -> Row:
    """Return the packages with which the shared units were made and measured."""
    sides: list[dict[str, str]] = []
    for folder, records, scores in (
        (first, [pair.first for pair in pairs], [pair.first_scores for pair in pairs]),
        (second, [pair.second for pair in pairs], [pair.second_scores for pair in pairs]),
    ):
        places = {record.invocation for record in records}
        places |= {score.invocation for one in scores for score in one.values()}
        commands = [folder.invocations[place] for place in places if place is not None]
        found: dict[str, set[str]] = {}
        for command in commands or folder.invocations:
            for package, version in {**command.versions, **folder.spec.packages}.items():
                found.setdefault(package, set()).add(version)
            if command.machine.get("device"):
                found.setdefault("device", set()).add(str(command.machine["device"]))
        sides.append({package: " and ".join(sorted(versions)) for package, versions in sorted(found.items())})
    return _row(*sides)


def _of_units(pairs: Sequence[UnitPair]) -> Iterator[tuple[str, Row]]:
    """Yield what was recorded of the units that both have made."""
    prompts: tuple[dict[str, str], dict[str, str]] = ({}, {})
    features: tuple[dict[str, str], dict[str, str]] = ({}, {})
    for pair in pairs:
        for place, record in enumerate((pair.first, pair.second)):
            prompts[place][pair.slot[1]] = f"hash {record.key.example_hash[:8]}"
            features[place][_label(pair.slot)] = _features(record)
    yield "prompts and brackets", _counted(*prompts, "examples")
    yield "features", _counted(*features, "units")


def _of_regions(first: RunFolder, second: RunFolder, pairs: Sequence[UnitPair]) -> Row:
    """Return the regions' providers, or the shares of the picture that they cover."""
    providers = first.spec.regions, second.spec.regions
    if providers[0] != providers[1]:
        return _row(*providers)
    ours = {_label(pair.slot): _shares(pair.first) for pair in pairs}
    theirs = {_label(pair.slot): _shares(pair.second) for pair in pairs}
    first_text, second_text, differs = _counted(ours, theirs, "units")
    return (first_text, second_text, True) if differs else (*providers, False)


def _shares(record: EditRecord) -> str:
    """Return the shares of the picture that an example's regions cover."""
    share = record.mask_share
    return NONE if share is None else f"source {share.source:.3f}, target {share.target:.3f} of the picture"


def _of_noise(first: RunFolder, second: RunFolder, pairs: Sequence[UnitPair]) -> Row:
    """Return the seeds of the shared units, and whether examples share a noise."""
    seeds = sorted({pair.slot[4] for pair in pairs})
    return _row(
        *(
            {"noise": "one for all examples" if one.spec.model.fixed_noise else "of each example", "seeds": seeds}
            for one in (first, second)
        )
    )


def _label(slot: Slot) -> str:
    return f"{slot[1]} ({slot[2]}, strength {slot[3]:g}, seed {slot[4]})"


def _features(record: EditRecord) -> str:
    """Return the features or the number of units that a record switches."""
    if record.neurons is not None:
        return f"{record.neurons} units"
    sides = (
        f"{block} {side} {' '.join(map(str, features))}"
        for block, found in sorted(record.features.items())
        for side, features in (("on", found.add), ("off", found.remove))
        if features
    )
    return "; ".join(sides) or "none"


def _counted(first: Mapping[str, str], second: Mapping[str, str], what: str) -> Row:
    """Return how many of some statements differ, and the first that does."""
    different = [name for name in first if first[name] != second[name]]
    if not different:
        return f"{len(first)} {what}", f"{len(second)} {what}", False
    name = different[0]
    count = f"{len(different)} of {len(first)} {what} differ, such as {name}: "
    return f"{count}{first[name]}", second[name], True


def _of_scores(first: RunFolder, second: RunFolder, pairs: Sequence[UnitPair]) -> Iterator[tuple[str, Row]]:
    """Yield the networks that measured, and what prepared their input."""
    networks: list[dict[str, str]] = []
    prepared: list[dict[str, str]] = []
    for folder, side in ((first, "first_scores"), (second, "second_scores")):
        scores = [score for pair in pairs for score in getattr(pair, side).values()]
        notes = _scoring_notes(folder)
        used = sorted({score.backbone for score in scores if score.backbone})
        networks.append({
            one: _text({key: value for key, value in notes["networks"].get(one, {}).items()
                        if key in ("activation", "dtype", "pretrained") and value})
            for one in used
        })  # fmt: skip
        prepared.append(
            {
                **{score.metric: f"version {score.version}" for score in scores},
                **{one: notes["networks"].get(one, {}).get("package", NONE) for one in used},
                "prompts cut off": str(len(notes["cut_prompts"])),
            }
        )
    # A run that was not scored yet states nothing that could differ.
    ours, theirs, differs = _row(*networks)
    yield "CLIP and its activation", (ours, theirs, differs and all(networks))
    metrics = set(prepared[0]) & set(prepared[1])
    # A metric that only one run has is no difference of a number.
    yield "preprocessing", _row(*({name: side[name] for name in sorted(metrics)} for side in prepared))


def _scoring_notes(folder: RunFolder) -> dict[str, Any]:
    try:
        found = parse_json((folder.path / SCORING_FILE).read_bytes())
    except (FileNotFoundError, ValueError):
        found = {}
    found = found if isinstance(found, dict) else {}
    networks, cut = found.get("networks"), found.get("cut_prompts")
    return {
        "networks": networks if isinstance(networks, dict) else {}, "cut_prompts": cut if isinstance(cut, list) else [],
    }  # fmt: skip
