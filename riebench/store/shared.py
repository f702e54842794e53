"""The folder that the run folders of one suite and model share.

It holds source and target pictures, and masks.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from riebench.errors import StoreError
from riebench.store.records import UnitKey
from riebench.utils.files import parse_json, read_regular, write_once
from riebench.utils.images import encode_png, is_intact, picture_path, read_image, stored_picture

SHARED_NAME = "shared"
"""Name of the shared folder beside the run folders."""

MODEL_FILE = "model.json"
"""Name of the shared file that says which model and regions the shared pictures and masks belong to."""


class SharedFolder:
    """Pictures and masks that all configurations of one suite and model share.

    Several configurations may be run at the same time; the file that the first of them stores is the one that all are
    compared with.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def image_name(self, key: UnitKey, role: Literal["source", "target"]) -> str:
        """Return the relative path of a unit's source or target picture.

        It depends on the unit's example and seed only.
        """
        return f"images/{key.example_id}.{key.example_hash[:8]}.{key.seed}.{role}.png"

    def mask_name(self, key: UnitKey) -> str:
        """Return the relative path of the masks of a unit's example and seed."""
        return f"masks/{key.example_id}.{key.example_hash[:8]}.{key.seed}.json"

    def is_intact(self, name: str) -> bool:
        """Return whether a picture or a JSON value is stored undamaged.

        It is looked for under a relative path.
        """
        if not name.endswith(".json"):
            return is_intact(picture_path(self.path, name))
        try:
            return self.read_json(name) is not None
        except StoreError:
            return False

    def write(self, name: str, data: bytes) -> None:
        """Store a file under a relative path; an existing one stays."""
        write_once(picture_path(self.path, name), data)

    def write_image(self, name: str, pixels: NDArray[np.uint8]) -> None:
        """Store a picture (uint8 [H, W, 3]); an existing one stays."""
        self.write(name, encode_png(pixels))

    def read_image(self, name: str) -> NDArray[np.uint8]:
        """Read a stored picture as uint8 [H, W, 3]."""
        return read_image(self.path, name)

    def picture(self, name: str | None) -> Path | None:
        """Return the file of a picture that a record names.

        Returns:
            Its path; None if the record names none, or there is no such file.

        Raises:
            StoreError: see `stored_picture`.
        """
        return None if name is None else stored_picture(self.path, name)

    def write_json(self, name: str, value: Any) -> None:
        """Store a JSON value (masks as run lengths); an existing one stays."""
        self.write(name, (json.dumps(value, sort_keys=True) + "\n").encode())

    def read_json(self, name: str) -> Any | None:
        """Return a stored JSON value, or None if there is none.

        Raises:
            StoreError: if the file is damaged.
        """
        path = picture_path(self.path, name)
        if not path.exists():
            return None
        try:
            return parse_json(read_regular(path))
        except ValueError as error:
            raise StoreError(f"{path} is damaged ({error}); delete it and repeat `riebench run`") from error
