"""The caption grammar: scene to sentence, with paraphrases, and back.

A caption reads `[STYLE of] a [POSE] COLOR [MATERIAL] OBJECT [EMBLEM] [ACCESSORY] [BACKGROUND] [, STYLE]`, for
example "a pencil sketch of a tilted red striped house with a heart on it wearing a hat in a forest". Parts in
brackets may be left out and then mean the attribute's default.
"""

from __future__ import annotations

import difflib
import random
import re
from collections.abc import Iterator
from functools import lru_cache

from riebench.scoring.metrics.judge_network import ATTRIBUTES, Values
from riebench.toyworld.scenes import DEFAULTS, Scene, random_scene

# Attribute -> value -> phrases; the first phrase is the plain wording. No phrase names two values and no word belongs
# to two attributes, so that a word's meaning needs no context.
PHRASES: dict[str, dict[str, tuple[str, ...]]] = {
    "object": {
        "house": ("house", "cottage"), "mushroom": ("mushroom", "toadstool"), "boat": ("boat", "sailboat"),
        "rocket": ("rocket", "spaceship"), "cat": ("cat", "kitten"), "car": ("car", "automobile"),
        "fish": ("fish", "goldfish"), "duck": ("duck", "duckling"), "butterfly": ("butterfly", "moth"),
    },
    "color": {
        "red": ("red", "crimson"), "orange": ("orange", "tangerine"), "yellow": ("yellow", "golden"),
        "green": ("green", "emerald"), "blue": ("blue", "azure"), "purple": ("purple", "violet"),
        "lime": ("lime", "chartreuse"), "teal": ("teal", "turquoise"), "pink": ("pink", "rosy"),
    },
    "material": {
        "plain": ("plain",), "striped": ("striped", "stripy"), "dotted": ("dotted", "spotted"),
        "checkered": ("checkered", "chequered"), "zigzag": ("zigzag", "chevroned"), "ringed": ("ringed", "concentric"),
    },
    "emblem": {
        "heart": ("with a heart on it", "bearing a heart"), "cross": ("with a cross on it", "bearing a cross"),
        "leaf": ("with a leaf on it", "bearing a leaf"), "bolt": ("with a bolt on it", "bearing a bolt"),
    },
    "accessory": {
        "hat": ("wearing a hat", "with a hat on top"), "crown": ("wearing a crown", "with a crown on top"),
        "bow": ("wearing a bow", "with a bow on top"), "flag": ("wearing a flag", "with a flag on top"),
        "flower": ("wearing a flower", "with a flower on top"),
    },
    "pose": {
        "upright": ("upright", "standing"), "tilted": ("tilted", "leaning"), "upside-down": ("upside-down", "inverted"),
        "sideways": ("sideways", "lying"),
    },
    "background": {
        "white": ("on a white background",), "sky": ("in the sky", "among clouds"),
        "forest": ("in a forest", "in the woods"), "night": ("at night", "under the stars"),
        "beach": ("on a beach", "by the sea"), "brick": ("in front of a brick wall", "against bricks"),
        "snow": ("in the snow", "in winter"), "water": ("under water", "among bubbles"),
        "city": ("in a city", "among skyscrapers"),
    },
    "style before": {
        "drawing": ("a drawing of", "a cartoon of"), "pencil": ("a pencil sketch of",),
        "pixel": ("pixel art of",), "watercolor": ("a watercolor of", "a watercolor painting of"),
        "sticker": ("a sticker of",), "screen": ("a television picture of",),
    },
    "style after": {
        "drawing": (", drawn",), "pencil": (", sketched in pencil",), "pixel": (", as pixel art",),
        "watercolor": (", in watercolor",), "sticker": (", as a sticker",), "screen": (", on television",),
    },
}  # fmt: skip

MEANING_WORDS: dict[str, dict[str, str]] = {
    "object": {word: value for value, words in PHRASES["object"].items() for word in words},
    "color": {word: value for value, words in PHRASES["color"].items() for word in words},
    "material": {word: value for value, words in PHRASES["material"].items() for word in words},
    "emblem": {"heart": "heart", "cross": "cross", "leaf": "leaf", "bolt": "bolt"},
    "accessory": {"hat": "hat", "crown": "crown", "bow": "bow", "flag": "flag", "flower": "flower"},
    "pose": {
        "upright": "upright", "standing": "upright", "tilted": "tilted", "leaning": "tilted",
        "upside-down": "upside-down", "inverted": "upside-down", "sideways": "sideways", "lying": "sideways",
    },
    "background": {
        "white": "white", "background": "white", "sky": "sky", "clouds": "sky", "forest": "forest", "woods": "forest",
        "night": "night", "stars": "night", "beach": "beach", "sea": "beach", "brick": "brick", "wall": "brick",
        "bricks": "brick", "snow": "snow", "winter": "snow", "water": "water", "bubbles": "water", "city": "city",
        "skyscrapers": "city",
    },
    "style": {
        "drawing": "drawing", "cartoon": "drawing", "drawn": "drawing", "pencil": "pencil", "sketch": "pencil",
        "sketched": "pencil", "pixel": "pixel", "art": "pixel", "watercolor": "watercolor", "painting": "watercolor",
        "sticker": "sticker", "television": "screen", "picture": "screen",
    },
}  # fmt: skip
"""Attribute -> word -> the value it stands for. All other words of the grammar carry no meaning of their own."""


class CaptionError(ValueError):
    """A sentence outside the grammar; the message states what is accepted."""


def phrases_of(slot: str, values: Values) -> dict[str, tuple[str, ...]]:
    """Return the phrases of one slot of `PHRASES` in a world: value -> phrases."""
    return {value: phrases for value, phrases in PHRASES[slot].items() if value in values[slot.split()[0]]}


def vocabulary(values: Values = ATTRIBUTES) -> tuple[str, ...]:
    """Return all words of a world's captions, sorted."""
    words = {"a", "an", ","}
    for slot in PHRASES:
        for phrases in phrases_of(slot, values).values():
            for phrase in phrases:
                words.update(phrase.replace(",", " , ").split())
    return tuple(sorted(words))


def _article(following: str) -> str:
    return "an" if following[0] in "aeiou" else "a"


def caption(scene: Scene, rng: random.Random | None = None) -> str:
    """Describe a scene in one sentence.

    Args:
        scene: the scene to describe.
        rng: picks among paraphrases, and whether a default value is mentioned; None gives the plain sentence, which
            leaves defaults out.

    Returns:
        A sentence that `parse` reads back to the same scene.
    """

    def phrase(slot: str, value: str) -> str:
        phrases = PHRASES[slot].get(value)
        if phrases is None:  # "no emblem" and "no accessory" have no words
            return ""
        attribute = slot.split()[0]
        if value == DEFAULTS.get(attribute) and (rng is None or rng.random() < 0.6):
            return ""
        return phrases[0] if rng is None else rng.choice(phrases)

    style_first = rng is None or rng.random() < 0.6
    before = phrase("style before", scene.style) if style_first else ""
    after = "" if style_first else phrase("style after", scene.style)
    slots = ("pose", "color", "material", "object")
    noun = " ".join(filter(None, (phrase(slot, getattr(scene, slot)) for slot in slots)))
    rest = (phrase(slot, getattr(scene, slot)) for slot in ("emblem", "accessory", "background"))
    return " ".join(filter(None, (before, _article(noun), noun, *rest))) + after


def training_captions(count: int, values: Values = ATTRIBUTES) -> Iterator[str]:
    """Yield captions of random scenes of a world, the same ones in every call.

    Scenes that are kept for the suites' examples are left out.
    """
    rng = random.Random(0)
    for _ in range(count):
        yield caption(random_scene(rng, held_out=False, values=values), rng)


@lru_cache(maxsize=2)
def _pattern(values: tuple[tuple[str, tuple[str, ...]], ...]) -> re.Pattern[str]:
    def part(slot: str) -> str:
        found = (p for phrases in phrases_of(slot, dict(values)).values() for p in phrases)
        phrases = "|".join(re.escape(p) for p in sorted(found, key=len, reverse=True))
        return f"(?P<{slot.replace(' ', '_')}>{phrases})"

    return re.compile(
        rf"(?:{part('style before')} )?an? (?:{part('pose')} )?{part('color')} (?:{part('material')} )?{part('object')}"
        rf"(?: {part('emblem')})?(?: {part('accessory')})?(?: {part('background')})?(?:{part('style after')})?"
    )


@lru_cache(maxsize=1)
def _meaning_of_phrase() -> dict[tuple[str, str], str]:
    return {
        (slot.split()[0], phrase): value
        for slot, values in PHRASES.items()
        for value, phrases in values.items()
        for phrase in phrases
    }


def grammar_help(values: Values = ATTRIBUTES) -> str:
    """Describe the accepted sentences of a world in one line."""
    words = "; ".join(f"{name}: {', '.join(v)}" for name, v in values.items())
    order = "[STYLE of] a [POSE] COLOR [MATERIAL] OBJECT [EMBLEM] [ACCESSORY] [BACKGROUND][, STYLE]"
    return f"accepted: '{order}' with {words}"


def parse(sentence: str, values: Values = ATTRIBUTES) -> Scene:
    """Read a caption back into the scene that it describes.

    Args:
        sentence: any sentence of the grammar; case, square brackets and repeated spaces do not matter.
        values: those of the world.

    Returns:
        The scene; attributes that the sentence leaves out have their defaults.

    Raises:
        CaptionError: if the sentence is outside the grammar; names the first unknown word and its nearest match.
    """
    text = " ".join(re.sub(r"[\[\]]", "", sentence).lower().split()).rstrip(".").replace(" ,", ",")
    match = _pattern(tuple(values.items())).fullmatch(text)
    if match is None or (match["style_before"] and match["style_after"]):
        words = vocabulary(values)
        unknown = next((w for w in text.replace(",", " , ").split() if w not in words), None)
        if unknown is None:
            reason = "its words are known, but not in this order"
        else:
            near = difflib.get_close_matches(unknown, words, n=1)
            reason = f"unknown word {unknown!r}" + (f" (did you mean {near[0]!r}?)" if near else "")
        raise CaptionError(f"not a caption of the toy world: {sentence!r}: {reason}; {grammar_help(values)}")
    meaning = _meaning_of_phrase()
    found = {
        name.split("_")[0]: meaning[name.split("_")[0], phrase] for name, phrase in match.groupdict().items() if phrase
    }
    return Scene(**found)
