"""The toy suites' task files: nine categories, balanced over attribute values.

Balanced means over the values that an edit goes from and to.

Every example is drawn from scenes that no model was trained on. Source and target captions use the same words except
where the edit is, so that a change of wording cannot pass for a change of content.
"""

from __future__ import annotations

import itertools
import random
import re
from pathlib import Path

from riebench.scoring.metrics.judge_network import ATTRIBUTES, WIDE_ATTRIBUTES, Values
from riebench.toyworld.captions import MEANING_WORDS, PHRASES, caption
from riebench.toyworld.scenes import CATEGORY_ATTRIBUTE, Scene, random_edit
from riebench.utils.files import write_atomic

EXAMPLES = 12
"""Examples a category; every ordered pair of values occurs equally often where 12 allows it."""

SUITES: dict[str, Values] = {"toy": ATTRIBUTES, "toy-mixed": WIDE_ATTRIBUTES}
"""Suite -> attributes of its world."""

SEED = 20_240_601
TASK_VERSION = 1

HEADER = """\
# Made by `python -m riebench.toyworld tasks{option}` from scenes kept out of all training; \
edit riebench/toyworld/tasks.py
# and make it anew instead of editing this file.
category: {category}
version: {version}
examples:
"""


def value_pairs(category: str, suite: str = "toy") -> list[tuple[str, str]]:
    """List the source and target value of each example's edited attribute.

    Returns:
        `EXAMPLES` pairs, in a mixed order that is the same at every call.
    """
    values = SUITES[suite][CATEGORY_ATTRIBUTE[category]]
    if category in ("add_object", "delete_object"):
        pairs = [("none", value) for value in values if value != "none"]
        pairs = pairs if category == "add_object" else [(after, before) for before, after in pairs]
    elif len(values) > 4:  # too many ordered pairs: each value equally often as source and as target, or nearly so
        pairs = [(value, values[(i + shift) % len(values)]) for shift in (1, 4, 2) for i, value in enumerate(values)]
    else:
        pairs = list(itertools.permutations(values, 2))
    shuffled = list(itertools.islice(itertools.cycle(pairs), EXAMPLES))
    # In mixed order, so that the first few examples alone (`--limit`) are varied too.
    _random(suite, category, "order").shuffle(shuffled)
    return shuffled


def _random(suite: str, *names: str) -> random.Random:
    return random.Random(":".join([str(SEED), *([] if suite == "toy" else [suite]), *names]))


def _edit(category: str, pair: tuple[str, str], rng: random.Random, values: Values) -> tuple[Scene, Scene]:
    attribute = CATEGORY_ATTRIBUTE[category]
    while True:
        source, target = random_edit(category, rng, held_out=True, values=values)
        if (getattr(source, attribute), getattr(target, attribute)) == pair:
            return source, target


def without_attribute(sentence: str, attribute: str) -> str:
    """Remove one attribute's phrases from a caption, to compare the rest."""
    slots = [slot for slot in PHRASES if slot.split()[0] == attribute]
    phrases = sorted((p for slot in slots for v in PHRASES[slot].values() for p in v), key=len, reverse=True)
    bare = re.sub(rf"(?<![\w-])(?:{'|'.join(map(re.escape, phrases))})(?![\w-])", "", sentence)
    # The article follows the word after it.
    return re.sub(r"\ban\b", "a", " ".join(bare.split()))


def matched_captions(source: Scene, target: Scene, attribute: str, rng: random.Random) -> tuple[str, str]:
    """Word two scenes alike except for the phrase of one attribute."""
    while True:
        seed = rng.random()
        before, after = caption(source, random.Random(seed)), caption(target, random.Random(seed))
        if before != after and without_attribute(before, attribute) == without_attribute(after, attribute):
            # A style named before one sentence and after the other would move every word.
            if attribute == "style" and ("," in before) != ("," in after):
                continue
            return before, after


def word_for(attribute: str, sentence: str) -> str | None:
    """Return the word of a caption that names an attribute's value, if any."""
    words = re.findall(r"[\w-]+", sentence)
    return next((word for word in words if word in MEANING_WORDS[attribute]), None)


def regions(category: str, source: str, target: str) -> dict[str, str]:
    """Return the region keys of an example.

    They hold the words of the prompts whose regions the edit may change.
    """
    if category in ("change_background", "change_style"):
        return {"source_region": "whole", "target_region": "whole"}
    if category == "add_object":
        return {"target_region": _local_word("accessory", target)}
    if category == "delete_object":
        return {"source_region": _local_word("accessory", source)}
    attribute = "emblem" if category == "change_content" else "object"
    return {"source_region": _local_word(attribute, source), "target_region": _local_word(attribute, target)}


def noun_phrase(sentence: str) -> str:
    """Return the words of a caption from the color to the object.

    Together they mark the whole object: composition and surface words are read by different blocks, and attention
    locates either alone less well.
    """
    color, noun = word_for("color", sentence), word_for("object", sentence)
    match = re.search(rf"\b{color}\b.*\b{noun}\b", sentence)
    if color is None or noun is None or match is None:
        raise ValueError(f"{sentence!r} names no object")
    return match[0]


def _local_word(attribute: str, sentence: str) -> str:
    # Where a picture has no emblem yet, it will come to lie on the object.
    word = None if attribute == "object" else word_for(attribute, sentence)
    return word or noun_phrase(sentence)


def task_text(category: str, suite: str = "toy") -> str:
    """Return a task file's text; the same at every call."""
    rng, values = _random(suite, category), SUITES[suite]
    option = "" if suite == "toy" else f" --suite {suite}"
    parts = [HEADER.format(category=category, version=TASK_VERSION, option=option)]
    seen: set[tuple[Scene, Scene]] = set()
    for number, pair in enumerate(value_pairs(category, suite), start=1):
        scenes = _edit(category, pair, rng, values)
        while scenes in seen:
            scenes = _edit(category, pair, rng, values)
        seen.add(scenes)
        source, target = matched_captions(*scenes, CATEGORY_ATTRIBUTE[category], rng)
        lines = [
            f"  - id: {suite}-{category.replace('_', '-')}-{number:02d}",
            f"    source: {source}",
            f"    target: {target}",
        ]
        lines += [f"    {key}: {word}" for key, word in regions(category, source, target).items()]
        lines.append("    attributes:")
        lines += [f"      {side}: {_flow(scene)}" for side, scene in zip(("source", "target"), scenes, strict=True)]
        parts.append("\n".join(lines) + "\n")
    return "".join(parts)


def _flow(scene: Scene) -> str:
    return "{" + ", ".join(f"{name}: {value}" for name, value in scene.as_dict().items()) + "}"


def write_tasks(folder: Path, suite: str = "toy") -> list[Path]:
    """Write all nine task files of a suite.

    Args:
        folder: `tasks/toy` or `tasks/toy-mixed`.
        suite: a key of `SUITES`.

    Returns:
        The files.
    """
    paths = []
    for category in CATEGORY_ATTRIBUTE:
        path = folder / f"{category}.yaml"
        write_atomic(path, task_text(category, suite).encode())
        paths.append(path)
    return paths
