"""Units made again with statements of another run.

It begins with everything as the first run states it. Then one statement after the other becomes the second run's, in
the order of `riebench.difference.causes.CAUSES`, until the numbers are those of the second run: the statements
exchanged by then are why the two differ.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from riebench.blocks import block_set_blocks
from riebench.difference.causes import CAUSES, Cause, Slot, UnitPair, gaps, shared_units, values
from riebench.errors import RiebenchError
from riebench.jobs.repeat import options_of_run
from riebench.jobs.request import RunRequest
from riebench.jobs.run import produce
from riebench.store.folder import RunFolder
from riebench.store.records import RUN_FILE
from riebench.tasks.schema import Setting

UNITS = 4
"""Units that are made again."""
OPTIONS: Mapping[str, tuple[str, ...]] = {
    "model": ("model", "single_file_config", "vae", "vae_tiling", "unet", "lora"), "number format": ("dtype",),
    "steps": ("steps",), "guidance": ("guidance",), "picture size": ("size",), "prompts and brackets": ("suite",),
    "seeds and noise": ("profile",), "masks": ("regions",), "CLIP and its activation": ("scorer", "weights"),
}  # fmt: skip
"""Cause -> options of a run that state it."""
SETTING: Mapping[str, tuple[str, ...]] = {
    "method configuration": ("method", "params", "blocks", "edit_steps"), "SAE": ("sae",),
}  # fmt: skip
"""Cause -> fields of a method configuration that state it."""
FIXED: Mapping[str, str] = {
    "package versions": "only an environment with the other versions can tell",
    "features": "they follow from what stands above",
    "preprocessing": "it belongs to the installed version of riebench",
}
"""Cause that no option of a run exchanges -> why."""


@dataclass(frozen=True)
class Step:
    """One attempt.

    Attributes:
        name: what became as in the second run; empty where everything is as in the first one.
        to_first: largest difference to the first run's numbers, in tolerances: up to 1 they agree; None without any.
        to_second: the same to the second run's.
        problem: why there are no numbers.
    """

    name: str
    to_first: float | None = None
    to_second: float | None = None
    problem: str | None = None


def chosen_units(pairs: Sequence[UnitPair], count: int = UNITS) -> list[UnitPair]:
    """Return a few units of one block set and strength that differ most.

    Args:
        pairs: all that both runs have made.
        count: how many, at most.
    """
    ordered = sorted(pairs, key=lambda pair: (-pair.gap, pair.slot))
    most = ordered[0].slot
    return [pair for pair in ordered if pair.slot[2:4] == most[2:4]][:count]


def recompute(
    folders: tuple[RunFolder, RunFolder], found: Sequence[Cause], units: Sequence[UnitPair], work: Path,
    given: Mapping[str, Any], say: Callable[[str], None],
) -> list[Step]:  # fmt: skip
    """Make a few units again until their numbers are those of the second run.

    Args:
        folders: both runs.
        found: what they state.
        units: those of `chosen_units`.
        work: an empty folder for what is made.
        given: options that hold for all attempts, such as the device.
        say: function that prints a line for people.

    Returns:
        The attempts, in their order.
    """
    steps: list[Step] = []
    exchanged: list[str] = []
    differing = [one.name for one in found if one.differs and one.name not in FIXED]
    for place, name in enumerate(("", *differing)):
        exchanged += [name] if name else []
        say(f"{len(units)} units with {name + ' as in the second run' if name else 'everything as in the first run'}")
        steps.append(_attempt(folders, exchanged, units, work / str(place), given, say))
        if agrees(steps[-1].to_second):
            break
    return steps


def agrees(gap: float | None) -> bool:
    """Return whether a largest difference, in tolerances, is none."""
    return gap is not None and gap <= 1


def _attempt(
    folders: tuple[RunFolder, RunFolder], exchanged: Sequence[str], units: Sequence[UnitPair], work: Path,
    given: Mapping[str, Any], say: Callable[[str], None],
) -> Step:  # fmt: skip
    """Make the units with some statements of the second run."""
    name = exchanged[-1] if exchanged else ""
    try:
        request = _request(folders, exchanged, units, work, given)
        (made,) = produce(request, lambda line: None)
        again = {pair.slot: pair for pair in shared_units(made, made)}
    except RiebenchError as error:
        return Step(name, problem=str(error))
    missing = [pair for pair in units if pair.slot not in again]
    if missing:
        return Step(name, problem=f"{len(missing)} of {len(units)} units were not made")
    first, second = (
        _largest([(values(getattr(pair, side)), values(again[pair.slot].first_scores)) for pair in units])
        for side in ("first_scores", "second_scores")
    )
    return Step(name, first, second)


def _largest(sides: Sequence[tuple[Mapping[str, float], Mapping[str, float]]]) -> float | None:
    found = [gap for first, second in sides for gap in gaps(first, second).values()]
    return max(found, default=None)


def _request(
    folders: tuple[RunFolder, RunFolder], exchanged: Sequence[str], units: Sequence[UnitPair], work: Path,
    given: Mapping[str, Any],
) -> RunRequest:  # fmt: skip
    """Return the request that makes the units with some statements of the second run.

    Raises:
        RiebenchError: if a run does not say where something lies.
    """
    common = {
        **given, "results": str(work), "report": False, "examples": [*dict.fromkeys(pair.slot[1] for pair in units)],
        "seeds": sorted({pair.slot[4] for pair in units}),
    }  # fmt: skip
    ours, theirs = (_options(folder, common) for folder in folders)
    setting = folders[0].spec.setting.model_dump()
    for name in exchanged:
        for option in OPTIONS.get(name, ()):
            ours.pop(option, None)
            ours |= {option: theirs[option]} if option in theirs else {}
        other = folders[1].spec.setting.model_dump()
        setting |= {field: other[field] for field in SETTING.get(name, ())}
    return replace(RunRequest.from_config(ours), given=(_setting(setting, units[0].slot),), progress=False)


def _options(folder: RunFolder, common: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that make units of a run, its configuration apart."""
    model = folder.spec.model
    options = options_of_run(folder.path / RUN_FILE, common)
    stated = {"dtype": model.dtype, "steps": model.steps, "guidance": model.guidance, "size": model.size}
    return {
        **{name: value for name, value in options.items() if name not in ("repeat", "repeat_exactly", "settings")},
        **stated,
    }


def _setting(fields: dict[str, Any], slot: Slot) -> Setting:
    """Return a configuration of the block set and strength of some units.

    Raises:
        RiebenchError: if it needs a plug-in, of which a run stores no more than name and hash.
    """
    if fields["plugin"] is not None:
        raise RiebenchError(f"a run does not say where its plug-in {fields['plugin']} lies; it is not made again")
    blocks = tuple(fields["blocks"]) and (_blocks(slot[2], fields["blocks"]))
    try:
        return Setting.model_validate(
            {**fields, "strengths": (slot[3],), "blocks": blocks, "block_mode": "together", "group": None}
        )
    except ValidationError as error:
        why = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise RiebenchError(f"the configuration cannot be made again on {slot[2]}: {why}") from error


def _blocks(block_set: str, blocks: Sequence[str]) -> tuple[str, ...]:
    """Return the blocks of a block set of a configuration."""
    return tuple(blocks) if block_set == "all" else block_set_blocks(block_set)


def conclusion(found: Sequence[Cause], steps: Sequence[Step], pairs: Sequence[UnitPair]) -> str:
    """Return the reason why two runs differ, in a sentence or two.

    Args:
        found: what they state.
        steps: the attempts; empty if nothing was made again.
        pairs: the units that both have made.
    """
    if not any(pair.gaps for pair in pairs):
        return f"The {len(pairs)} shared units have no number that both runs measured; `riebench score` measures them."
    apart = sum(pair.gap > 1 for pair in pairs)
    first = next((one for one in found if one.differs), None)
    if not apart:
        rest = f", although they differ in {first.name}" if first is not None else ""
        return f"The numbers of {_count(len(pairs))} agree{rest}."
    begin = f"The numbers of {apart} of {len(pairs)} shared units differ. "
    if first is None:
        return begin + "Nothing that is stored differs: the device, or a change that no version number states, is left."
    begin += f"The first thing that differs is: {first.name} ({first.first} there, {first.second} here)."
    if not steps:
        return begin
    met = next((place for place, step in enumerate(steps) if agrees(step.to_second)), None)
    if met is None:
        left = ", ".join(one.name for one in found if one.differs and one.name in FIXED)
        return f"{begin} Made again, they do not meet{f'; what was not exchanged is left: {left}' if left else ''}."
    if met == 0:
        again = "Made again here as the first run states, the units have the second run's numbers"
        return f"{begin} {again}: {_not_stated(found)}."
    names = " and ".join(step.name for step in steps[1 : met + 1])
    return f"{begin} Made again, they meet once {names} {'is' if met == 1 else 'are'} as in the second run."


def _count(units: int) -> str:
    return "the only shared unit" if units == 1 else f"all {units} shared units"


def _not_stated(found: Sequence[Cause]) -> str:
    versions = next(one for one in found if one.name == CAUSES[0])
    return "the package versions are the cause" if versions.differs else "the first run was made otherwise than it says"
