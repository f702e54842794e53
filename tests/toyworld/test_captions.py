from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from riebench.scoring.metrics.judge_network import ATTRIBUTES
from riebench.toyworld.captions import MEANING_WORDS, PHRASES, CaptionError, caption, parse, vocabulary
from riebench.toyworld.scenes import Scene, all_scenes

SCENES = st.builds(Scene, **{name: st.sampled_from(values) for name, values in ATTRIBUTES.items()})


def test_every_scene_survives_its_plain_caption() -> None:
    # One in seven of all scenes: 7 shares no factor with any attribute's number of values, so all pairs occur.
    for scene in itertools.islice(all_scenes(), 0, None, 7):
        assert parse(caption(scene)) == scene


@settings(max_examples=300, deadline=None)
@given(scene=SCENES, seed=st.integers(0, 2**32))
def test_paraphrases_say_the_same(scene: Scene, seed: int) -> None:
    sentence = caption(scene, random.Random(seed))
    assert parse(sentence) == scene
    assert set(sentence.replace(",", " , ").split()) <= set(vocabulary())


@settings(max_examples=100, deadline=None)
@given(scene=SCENES, seed=st.integers(0, 2**32), data=st.data())
def test_brackets_case_and_spaces_do_not_matter(scene: Scene, seed: int, data: st.DataObject) -> None:
    words = caption(scene, random.Random(seed)).split()
    place = data.draw(st.integers(0, len(words) - 1))
    words[place] = f"[{words[place]}]"
    assert parse("  ".join(words).upper()) == scene


def test_every_phrase_can_be_written_and_read() -> None:
    base = Scene("cat", "red")
    for slot, values in PHRASES.items():
        attribute = slot.split()[0]
        for value, phrases in values.items():
            scene = base.with_value(attribute, value)
            sentences = {caption(scene, random.Random(seed)) for seed in range(200)}
            for phrase in phrases:
                assert any(phrase in sentence for sentence in sentences), phrase


def test_every_meaning_word_belongs_to_one_attribute() -> None:
    words = [word for values in MEANING_WORDS.values() for word in values]
    assert len(words) == len(set(words))
    assert set(itertools.chain(*(word.split("-") for word in words))) >= {"upside", "down"}


@pytest.mark.parametrize(
    ("sentence", "message"),
    [
        ("a red horse", "unknown word 'horse'"),
        ("a red haus", r"unknown word 'haus' \(did you mean 'house'\?\)"),
        ("house red a", "not in this order"),
        ("a pencil sketch of a red cat, as pixel art", "not in this order"),
        ("", "not in this order"),
    ],
)
def test_sentences_outside_the_grammar_say_what_is_accepted(sentence: str, message: str) -> None:
    with pytest.raises(CaptionError, match=message) as caught:
        parse(sentence)
    assert "accepted:" in str(caught.value)
