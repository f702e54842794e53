"""Folders of a job, compared file by file: what was lost, what was made twice, what differs."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

from riebench.store.records import UnitKey
from riebench.store.run_file import SEAL_FILE, broken_seals, unsealed_lines
from riebench.utils.files import parse_json


def snapshot(place: Path) -> dict[str, bytes]:
    """The whole lines of all records and scores below a folder."""
    found = {}
    for file in sorted(place.rglob("*.jsonl")):
        data = file.read_bytes()
        found[str(file.relative_to(place))] = data[: data.rfind(b"\n") + 1]
    return found


def lost(before: dict[str, bytes], place: Path) -> list[str]:
    """Files whose recorded lines are not all there any more."""
    now = snapshot(place)
    return [name for name, data in before.items() if not now.get(name, b"").startswith(data)]


def recorded(before: dict[str, bytes]) -> set[str]:
    """What a snapshot holds, as `benchmarks.killing.Ending.planned` names it."""
    found = set()
    for name, data in before.items():
        setting = Path(name).parent.name
        for line in map(parse_json, data.splitlines()):
            made = [UnitKey.model_validate(line["key"]).digest] if "key" in line else [line["unit"], line["metric"]]
            found.add(" ".join([setting, *made]))
    return found


def differences(place: Path, reference: Path) -> list[str]:
    """What tells a folder from that of an undisturbed run, one line each; clocks and their hashes apart.

    Args:
        place: the folder of a job.
        reference: another one.
    """
    one, other = _contents(place), _contents(reference)
    found = [f"{name} is only in one of them" for name in sorted(set(one) ^ set(other))]
    found += [f"{name} differs" for name in sorted(set(one) & set(other)) if one[name] != other[name]]
    for file in sorted(place.rglob("*.jsonl")):
        lines = Counter(_identity(json.loads(line)) for line in file.read_text().splitlines())
        twice = [identity for identity, n in lines.items() if n > 1]
        found += [f"{file.name}: {len(twice)} made twice, e.g. {twice[0]}"] if twice else []
    for file in sorted(place.rglob(SEAL_FILE)):
        found += broken_seals(file.parent)
        found += [f"{file.parent.name}: lines without a seal"] if unsealed_lines(file.parent) else []
    return found


def _identity(line: dict[str, Any]) -> str:
    named = line["key"] if "key" in line else [line["unit"], line["metric"], line.get("backbone")]
    return json.dumps(named, sort_keys=True)


def _contents(place: Path) -> dict[str, bytes]:
    found = {}
    for file in sorted(place.rglob("*")):
        if file.is_file() and not file.name.startswith(".lock"):
            found[str(file.relative_to(place))] = _without_clocks(file)
    return found


def _without_clocks(file: Path) -> bytes:
    data = file.read_bytes()
    if file.name == "records.jsonl":
        return re.sub(rb',"seconds":[-+.0-9e]+', b"", data)
    if file.name == "run.json":
        meta = json.loads(data)
        # When it began, and the state of a checkout that may be worked on meanwhile.
        meta["provenance"] = {k: v for k, v in meta["provenance"].items() if k not in ("started", "git")}
        return json.dumps(meta).encode()
    if file.name == SEAL_FILE:
        # Hashes over clocks: that they are right is asked apart, here only what is sealed.
        return json.dumps(sorted(json.loads(data))).encode()
    return data
