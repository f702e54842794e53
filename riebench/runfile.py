"""run.json of a run folder: which run it is, how many units were planned, and what ran last."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from riebench.errors import IdentityError, StoreError
from riebench.records import RUN_FILE, RunMeta, UnitKey
from riebench.seal import announce
from riebench.tasks.schema import RunSpec
from riebench.utils.files import parse_json, write_atomic

CellKey = tuple[str, str, float]
"""Category, block set, strength."""


class RunFile:
    """What a folder's run.json says; nothing if there is none yet.

    Args:
        folder: the run folder.

    Raises:
        StoreError: if the file is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._stored = self._read()
        self._meta = self._checked(self._stored)

    def _read(self) -> dict[str, Any]:
        file = self.folder / RUN_FILE
        if not file.exists():
            return {}
        try:
            stored = parse_json(file.read_bytes())
        except ValueError as error:
            raise StoreError(f"{file} is damaged ({error}); delete it and repeat `riebench run`") from error
        if not isinstance(stored, dict) or "spec" not in stored:
            raise StoreError(f"{file} is not a run file; delete it and repeat `riebench run`")
        return stored

    def _checked(self, stored: dict[str, Any]) -> RunMeta:
        try:
            return RunMeta.model_validate({name: stored[name] for name in RunMeta.model_fields if name in stored})
        except ValidationError as error:
            raise self._bad("", error) from error

    def _bad(self, prefix: str, error: ValidationError) -> StoreError:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        file = self.folder / RUN_FILE
        return StoreError(f"{file}: {prefix}{where}: {first['msg']}; was it made by another version?")

    def agreed(self, spec: RunSpec | None) -> RunSpec:
        """The run that the folder holds or is to hold.

        Args:
            spec: what it is to hold; None reads what is there.

        Raises:
            IdentityError: if it holds a run of another identity; the message names the differing fields.
            StoreError: if it holds none (with spec None), or one that cannot be read.
        """
        stored = self._spec()
        if spec is None:
            if stored is None:
                raise StoreError(f"{self.folder} holds no run ({RUN_FILE} is missing)")
            return stored
        if stored is not None and stored.run_id != spec.run_id:
            differences = "; ".join(_differences(stored.identity, spec.identity))
            raise IdentityError(
                f"{self.folder} holds another run: {differences}; use another --results folder or delete it"
            )
        return spec

    def _spec(self) -> RunSpec | None:
        if not self._stored:
            return None
        try:
            return RunSpec.model_validate_json(json.dumps(self._stored["spec"]))
        except ValidationError as error:
            raise self._bad("spec.", error) from error

    @property
    def provenance(self) -> dict[str, Any]:
        """Versions, device and command of the last run that wrote here."""
        return dict(self._meta.provenance)

    @property
    def expected(self) -> dict[CellKey, int]:
        """Category, block set and strength -> units that were planned."""
        return {(cell.category, cell.block_set, cell.strength): cell.n for cell in self._meta.expected}

    def write(self, spec: RunSpec, provenance: dict[str, Any] | None, planned: Iterable[UnitKey]) -> None:
        """Replaces the file if it changes; the folder is locked by the caller.

        Args:
            spec: the run.
            provenance: what runs now; None keeps what is there.
            planned: the units that are expected; of several in one slot the last counts.
        """
        keys = {key.slot: key for key in planned}.values()
        counts = Counter((key.category, key.block_set, key.strength) for key in keys)
        content = {
            "spec": spec.model_dump(mode="json"),
            "run_id": spec.run_id,
            "provenance": self.provenance if provenance is None else provenance,
            "expected": [
                {"category": c, "block_set": b, "strength": s, "n": n} for (c, b, s), n in sorted(counts.items())
            ],
        }
        if content != self._stored:
            data = (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode()
            announce(self.folder, RUN_FILE, data)
            write_atomic(self.folder / RUN_FILE, data)
            self._stored, self._meta = content, self._checked(content)


def _differences(there: Any, here: Any, prefix: str = "") -> Iterator[str]:
    if isinstance(there, dict) and isinstance(here, dict):
        for name in sorted({*there, *here}):
            label = f"{prefix}.{name}" if prefix else str(name)
            yield from _differences(there.get(name), here.get(name), label)
    elif there != here:
        yield f"{prefix} is {json.dumps(there)} there and {json.dumps(here)} here"
