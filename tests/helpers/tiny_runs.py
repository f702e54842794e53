"""Settings, tasks and pictures of runs on a tiny random SDXL."""

from __future__ import annotations

from typing import Any

import numpy as np

from riebench.store.folder import RunFolder
from riebench.store.records import EditRecord
from riebench.tasks.schema import EditExample, EditTask, Setting

NO_EDIT = Setting(name="no_edit", method="no_edit", blocks=())
TARGET = Setting(name="target_prompt", method="target_prompt", blocks=())
SAE = Setting(name="sae", method="sae", params={"n_features": 10}, blocks=("mid.0", "up.0.1"), block_mode="both",
              strengths=(0.0, 3.0))  # fmt: skip
PATCH = Setting(name="patch", method="activation_patch", strengths=(1.0, 2.0))


def task(count: int = 2, region: str = "whole", **changes: Any) -> EditTask:
    """Return a task of a few examples."""
    examples = tuple(
        EditExample(
            id=f"e{i}", source=f"a red house {i}", target=f"a red boat {i}", source_region=region,
            target_region=region if region == "whole" else "boat",
        )
        for i in range(count)
    )  # fmt: skip
    values = {"name": "t", "version": 1, "category": "change_object", "suite": "tiny", "examples": examples}
    return EditTask(**{**values, **changes})


def picture(folder: RunFolder, record: EditRecord) -> np.ndarray[Any, Any]:
    """Read the picture of a record as integers."""
    assert record.image is not None
    return folder.read_image(record.image).astype(int)
