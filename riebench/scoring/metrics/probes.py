"""Selectivity of an edit by CLIP.

It is the change along the wish against changes along other attributes. An attribute's probes are captions that differ
in its value alone. The direction of one of them is its embedding minus the mean of all of them, so that it says nothing
of what they share. All words are in the toy world's grammar, too, so that one set of probes serves every model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from riebench.scoring.metrics.base import Float, Reason, Sample, Value, metric
from riebench.scoring.metrics.clip import MIN_CHANGE, ClipScorer
from riebench.scoring.metrics.networks import Networks

PROBES: Mapping[str, tuple[str, ...]] = {
    "object": ("a red house", "a red mushroom", "a red boat", "a red rocket", "a red cat", "a red car"),
    "color": (
        "a red house", "an orange house", "a yellow house", "a green house", "a blue house", "a purple house",
    ),
    "material": ("a red plain house", "a red striped house", "a red dotted house", "a red checkered house"),
    "content": ("a red house", "a red house with a heart on it", "a red house with a cross on it"),
    "accessory": (
        "a red house", "a red house wearing a hat", "a red house wearing a crown", "a red house wearing a bow",
    ),
    "pose": ("an upright red house", "a tilted red house", "an upside-down red house"),
    "background": (
        "a red house on a white background", "a red house in the sky", "a red house in a forest",
        "a red house at night", "a red house on a beach", "a red house in front of a brick wall",
    ),
    "style": (
        "a drawing of a red house", "a pencil sketch of a red house", "pixel art of a red house",
        "a watercolor of a red house",
    ),
}  # fmt: skip
"""Attribute -> captions that differ in it alone."""

EDITED: Mapping[str, str] = {
    "change_object": "object",
    "add_object": "accessory",
    "delete_object": "accessory",
    "change_content": "content",
    "change_pose": "pose",
    "change_color": "color",
    "change_material": "material",
    "change_background": "background",
    "change_style": "style",
}
"""Category -> the attribute that its edits change; edits of other categories change none of them."""


def probe_directions(scorer: ClipScorer) -> dict[str, Float]:
    """Return attribute -> its probes' directions of length 1, [captions, D]."""
    found = {}
    for attribute, captions in PROBES.items():
        texts = scorer.texts(captions)
        apart = texts - texts.mean(axis=0)
        found[attribute] = apart / np.linalg.norm(apart, axis=1, keepdims=True)
    return found


@metric(direction="higher", low=-4, high=4, backbone="clip")
def clip_selectivity(samples: Sequence[Sample], networks: Networks) -> list[Value]:
    """Compute the change along the wish minus the changes along other attributes.

    The wish is the prompts' change. All changes are lengths along directions of length 1. The latter are the mean, over
    the attributes that the edit's category does not change, of the mean absolute change along their probes (`PROBES`).
    """
    scorer: ClipScorer = networks.get("clip")
    directions = probe_directions(scorer)
    pictures = scorer.pictures(s.edited for s in samples) - scorer.pictures(s.source for s in samples)
    texts = scorer.texts(s.target_prompt for s in samples) - scorer.texts(s.source_prompt for s in samples)
    values: list[Value] = []
    for sample, picture, text in zip(samples, pictures, texts, strict=True):
        length = float(np.linalg.norm(text))
        if length < MIN_CHANGE:
            values.append(Reason.SAME_PROMPTS)
            continue
        own = EDITED.get(sample.category)
        unwished = [np.abs(its @ picture).mean() for attribute, its in directions.items() if attribute != own]
        values.append(float(picture @ text / length - np.mean(unwished)))
    return values
