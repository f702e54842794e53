"""Small makers of stored objects, shared by tests."""

from __future__ import annotations

from typing import Any

import numpy as np

from riebench.models.spec import ModelSpec
from riebench.store.folder import RunFolder
from riebench.store.records import BlockFeatures, EditRecord, RunSpec, ScoreRecord, UnitKey
from riebench.tasks.schema import Setting

PIXELS = np.arange(8 * 8 * 3, dtype=np.uint8).reshape(8, 8, 3)
"""A picture."""


def make_spec(**changes: Any) -> RunSpec:
    """A run of `sae` on the toy model; changes go to the setting, "steps" to the model."""
    steps = changes.pop("steps", 4)
    model = ModelSpec(
        name="toy-turbo", source="toy-turbo", revision="r1", steps=steps, guidance=0.0, size=64, dtype="float32"
    )
    values = {"name": "sae", "method": "sae", "params": {"n_features": 20}, "block_mode": "both", "access": "PAM"}
    return RunSpec(suite="toy", model=model, setting=Setting(**{**values, **changes}), sae_sha256={"mid.0": "ab"})


def make_key(**changes: Any) -> UnitKey:
    """One unit's key."""
    values = {
        "task": "change_object",
        "task_version": 1,
        "category": "change_object",
        "example_id": "e1",
        "example_hash": "0" * 16,
        "block_set": "all",
        "strength": 1.0,
        "seed": 0,
    }
    return UnitKey(**{**values, **changes})


def make_record(key: UnitKey, image: str, digest: str) -> EditRecord:
    """A finished unit with a feature choice in two blocks."""
    features = {"mid.0": BlockFeatures(add=(1, 2, 3), remove=(4,)), "up.0.1": BlockFeatures(add=(9,), remove=(5, 6, 7))}
    return EditRecord(key=key, status="ok", image=image, image_sha256=digest, features=features)


def make_score(record: EditRecord, gain: float, backbone: str = "") -> ScoreRecord:
    """A unit's alignment gain."""
    return ScoreRecord(
        unit=record.key.digest, metric="clip_gain", version=1, backbone=backbone, picture=record.picture_id, value=gain
    )


def add_record(folder: RunFolder, **changes: object) -> str:
    """Store a picture with its record and return the digest of its key."""
    key = make_key(**changes)
    name, digest = folder.write_image(key, PIXELS)
    folder.append(make_record(key, name, digest))
    return key.digest
