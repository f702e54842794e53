"""Versions and models, which decide the results that may be compared.

Examples must be of the same version (`Origin`) and pictures of the same model (`model_identity`).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from riebench.store.records import RunSpec, UnitKey

SHORT_HASH = 8
"""Characters of a hash that are printed."""


@dataclass(frozen=True, order=True)
class Origin:
    """The version of an example that a unit was made from.

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
        """Return the origin of a unit."""
        return cls(key.task, key.task_version, key.example_hash)

    def __str__(self) -> str:
        return f"{self.task}@{self.version}"


Origins = Mapping[str, frozenset[Origin]]
"""Example id -> the versions that one entry's units are of: a single one, if all is well."""


def majority_origins(entries: Iterable[Origins]) -> dict[str, Origin | None]:
    """Return the version of each example that counts.

    It is the version that most entries have, among those of the newest version of its task.

    Examples that only older versions of their task have are not in it: they are no longer asked for.

    Args:
        entries: one mapping for each entry that is compared.

    Returns:
        Example id -> its version; None where two versions are equally frequent.
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
    """Return the reason why an entry's examples differ from the others', or None.

    Args:
        origins: the entry's.
        agreed: see `majority_origins`.
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


def model_identity(spec: RunSpec) -> str:
    """Return all that moves pictures besides setting and examples, as one text.

    It holds the model with its sizes and the way regions are found.
    """
    return json.dumps(
        {"spec_version": spec.spec_version, "regions": spec.regions, **spec.model.identity}, sort_keys=True
    )


def model_gap(identities: Iterable[str], agreed: str | None) -> str | None:
    """Return the reason why an entry's pictures come from another model, or None.

    Args:
        identities: the entry's.
        agreed: what most entries have; None if as many have another.
    """
    found = sorted(set(identities))
    if found == [agreed]:
        return None
    if agreed is None:
        return "made by another model of this name than as many others"
    if len(found) > 1:
        return "its edit strengths were made by different models of this name"
    here, there = json.loads(found[0]), json.loads(agreed)
    names = [name for name in sorted({*here, *there}) if here.get(name) != there.get(name)]
    changes = "; ".join(f"{name} is {_shorten(here.get(name))}, not {_shorten(there.get(name))}" for name in names)
    return f"made by another model of this name: {changes}"


def majority_model(entries: Iterable[Iterable[str]]) -> str | None:
    """Return the identity of the model that most entries were made by.

    It is None if there are no entries or if two models are equally frequent.

    Args:
        entries: the identities of each.
    """
    counted = Counter(one for identities in entries for one in set(identities)).most_common(2)
    if not counted or (len(counted) > 1 and counted[0][1] == counted[1][1]):
        return None
    return counted[0][0]


def _shorten(value: object) -> str:
    """Return a value as text, a hash cut to its first characters."""
    text = str(value)
    return text[:SHORT_HASH] if len(text) > 2 * SHORT_HASH and " " not in text and "/" not in text else text
