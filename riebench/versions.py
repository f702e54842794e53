"""Whether numbers are of the same thing: which version of each example, which generating model."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from riebench.store.records import RunSpec, UnitKey

SHORT_HASH = 8


@dataclass(frozen=True, order=True)
class Origin:
    """Which version of an example a unit was made from.

    Attributes:
        task: its task.
        version: of the task.
        content: hash of what can move a number of the example.
    """

    task: str
    version: int
    content: str

    @classmethod
    def of(cls, key: UnitKey) -> Origin:
        """A unit's."""
        return cls(key.task, key.task_version, key.example_hash)

    def __str__(self) -> str:
        return f"{self.task}@{self.version}"


Origins = Mapping[str, frozenset[Origin]]
"""Example id -> the versions that one entry's units are of: a single one, if all is well."""


def agreed_origins(entries: Iterable[Origins]) -> dict[str, Origin | None]:
    """The version of each example that counts: of its task's newest version, what most entries have.

    Examples that only older versions of their task have are not in it: they are no longer asked for.

    Args:
        entries: one mapping for each entry that is compared.

    Returns:
        Example id -> its version; None where as many entries have one as another, so that nobody can say.
    """
    stated = list(entries)
    newest: dict[str, int] = {}
    votes: dict[str, Counter[Origin]] = {}
    for origins in stated:
        for example, found in origins.items():
            votes.setdefault(example, Counter()).update(found)
            for origin in found:
                newest[origin.task] = max(newest.get(origin.task, origin.version), origin.version)
    agreed: dict[str, Origin | None] = {}
    for example, counted in votes.items():
        new = [(n, origin) for origin, n in counted.items() if origin.version == newest[origin.task]]
        if new:
            most = max(n for n, _ in new)
            first = [origin for n, origin in new if n == most]
            agreed[example] = first[0] if len(first) == 1 else None
    return agreed


def origin_gap(origins: Origins, agreed: Mapping[str, Origin | None]) -> str | None:
    """Why an entry's examples are not those of the others, in words; None if they are.

    Args:
        origins: the entry's.
        agreed: see `agreed_origins`.
    """
    odd = {example for example, found in origins.items() if found != {agreed.get(example)}}
    if not odd:
        return None
    here = sorted({str(origin) for example in odd for origin in origins[example]})
    there = sorted({str(origin) for origin in agreed.values() if origin is not None} - {*here})
    counts = f"{len(odd)} of {len(origins)} examples are of another version"
    newer = [name for name in there if name.split("@")[0] in {one.split("@")[0] for one in here}]
    if newer:
        return f"{counts}: {', '.join(here)}, not {', '.join(newer)}"
    return f"{counts}: their content in {', '.join(here)} is not what others have"


def world(spec: RunSpec) -> str:
    """Everything besides setting and examples that moves pictures, as one text: model, sizes, regions."""
    return json.dumps(
        {"spec_version": spec.spec_version, "regions": spec.regions, **spec.model.identity}, sort_keys=True
    )


def world_gap(worlds: Iterable[str], agreed: str | None) -> str | None:
    """Why an entry's pictures come from another model than the others', in words; None if they do not.

    Args:
        worlds: the entry's.
        agreed: what most entries have; None if as many have another.
    """
    found = sorted(set(worlds))
    if found == [agreed]:
        return None
    if agreed is None:
        return "made by another model of this name than as many others"
    if len(found) > 1:
        return "its levels were made by different models of this name"
    here, there = json.loads(found[0]), json.loads(agreed)
    names = [name for name in sorted({*here, *there}) if here.get(name) != there.get(name)]
    told = "; ".join(f"{name} is {_brief(here.get(name))}, not {_brief(there.get(name))}" for name in names)
    return f"made by another model of this name: {told}"


def agreed_world(entries: Iterable[Iterable[str]]) -> str | None:
    """What most entries were made by; None if there are none or as many have another.

    Args:
        entries: the worlds of each.
    """
    counted = Counter(one for worlds in entries for one in set(worlds)).most_common(2)
    if not counted or (len(counted) > 1 and counted[0][1] == counted[1][1]):
        return None
    return counted[0][0]


def _brief(value: object) -> str:
    text = str(value)
    return text[:SHORT_HASH] if len(text) > 2 * SHORT_HASH and " " not in text and "/" not in text else text
