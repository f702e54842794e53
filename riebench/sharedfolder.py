"""What all settings of a model share: source and target pictures and masks, each written once and read by all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from riebench.errors import StoreError
from riebench.records import UnitKey
from riebench.utils.files import parse_json, write_once
from riebench.utils.images import encode_png, is_whole, read_image


class SharedFolder:
    """Pictures and masks that all settings of one suite and model share.

    Several settings may be run at the same time; what the first of them stores is what all are compared with.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def image_name(self, key: UnitKey, role: Literal["source", "target"]) -> str:
        """Relative path of the source or target picture of a unit's example and seed."""
        return f"images/{key.example_id}.{key.example_hash[:8]}.{key.seed}.{role}.png"

    def mask_name(self, key: UnitKey) -> str:
        """Relative path of the masks of a unit's example and seed."""
        return f"masks/{key.example_id}.{key.example_hash[:8]}.{key.seed}.json"

    def is_whole(self, name: str) -> bool:
        """Whether a picture or a JSON value is stored under a relative path, and undamaged."""
        if not name.endswith(".json"):
            return is_whole(self.path / name)
        try:
            return self.read_json(name) is not None
        except StoreError:
            return False

    def write(self, name: str, data: bytes) -> None:
        """Stores a file under a relative path; one that is there stays (`write_once`)."""
        write_once(self.path / name, data)

    def write_image(self, name: str, pixels: NDArray[np.uint8]) -> None:
        """Stores a picture (uint8 [H, W, 3]) under a relative path; one that is there stays (`write_once`)."""
        self.write(name, encode_png(pixels))

    def read_image(self, name: str) -> NDArray[np.uint8]:
        """A stored picture as uint8 [H, W, 3]."""
        return read_image(self.path / name)

    def write_json(self, name: str, value: Any) -> None:
        """Stores a JSON value (masks as run lengths) under a relative path; one that is there stays."""
        self.write(name, (json.dumps(value, sort_keys=True) + "\n").encode())

    def read_json(self, name: str) -> Any | None:
        """A stored JSON value, or None if there is none."""
        path = self.path / name
        if not path.exists():
            return None
        try:
            return parse_json(path.read_bytes())
        except ValueError as error:
            raise StoreError(f"{path} is damaged ({error}); delete it and repeat `riebench run`") from error
