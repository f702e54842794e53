"""The second world's wider grammar, and the first world, which stays as it is to the last byte."""

from __future__ import annotations

import hashlib
import itertools
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL

from riebench.models.assets import asset_folder
from riebench.scoring.metrics.judge_network import ATTRIBUTES, JUDGES, WIDE_ATTRIBUTES, JudgeNetwork, Values
from riebench.tasks.suites import load_suite
from riebench.toyworld.captions import CaptionError, caption, parse, training_captions, vocabulary
from riebench.toyworld.data import evenly, held_out_scenes, scene_from_labels
from riebench.toyworld.networks.clip import (
    ClipWithHeads,
    build_tokenizer,
    changed_scene,
    load_known,
    model_config,
    save,
)
from riebench.toyworld.networks.judging.damage import HUES, damaged_picture, hue_reading, through_autoencoder
from riebench.toyworld.networks.judging.training import widened
from riebench.toyworld.networks.text import (
    BLOCK_ROLES,
    CONTEXT,
    SUBSPACE,
    build_tokenizers,
    embedding_table,
    meaning_vectors,
)
from riebench.toyworld.render import COLORS, render
from riebench.toyworld.scenes import CATEGORY_ATTRIBUTE, Scene, all_scenes, is_held_out, random_edit, random_scene
from riebench.toyworld.tasks import SUITES, task_text, value_pairs

NEW = {name: values[len(ATTRIBUTES[name]) :] for name, values in WIDE_ATTRIBUTES.items()}


def digest(content: object) -> str:
    """Return the beginning of a hash of bytes, or of what an object prints as."""
    return hashlib.sha256(content if isinstance(content, bytes) else repr(content).encode()).hexdigest()[:16]


def test_the_first_world_stays_as_it_was() -> None:
    rng = random.Random(5)
    scenes = [random_scene(rng) for _ in range(400)]
    assert digest(scenes) == "4fbceb4b6701ecb4"
    assert digest(b"".join(render(scene, i).image.tobytes() for i, scene in enumerate(scenes))) == "ed0bfa76700f519c"
    assert digest(vocabulary()) == "20c13e6dafbed2b8"
    assert digest("\n".join(training_captions(2000)).encode()) == "b83525826c87f899"
    assert digest([is_held_out(scene) for scene in itertools.islice(all_scenes(), 0, None, 101)]) == "5f85e3723cc0d2dc"
    rng = random.Random(6)
    assert digest([random_edit(category, rng) for category in CATEGORY_ATTRIBUTE] * 3) == "84fdfdf3514f5e1a"
    assert digest("".join(task_text(category) for category in CATEGORY_ATTRIBUTE).encode()) == "95707d2477aa1f20"


def test_tokenizers_and_embeddings_of_the_first_world_stay_as_they_were() -> None:
    tokenizer = build_tokenizers()[0]
    assert digest(sorted(tokenizer.get_vocab().items())) == "965719ee6afdf5e9"
    assert digest(sorted(build_tokenizer().get_vocab().items())) == "609ee9350845a54e"
    # Sums of many squares round differently from machine to machine; the first digits do not.
    table = embedding_table(tokenizer)
    assert table.shape == (len(tokenizer), 128)
    assert float(table.abs().sum()) == pytest.approx(1494.431, rel=1e-4)


def test_every_attribute_has_further_values_behind_those_of_the_first_world() -> None:
    assert sum(map(len, ATTRIBUTES.values())) == 36 and sum(map(len, WIDE_ATTRIBUTES.values())) == 54
    assert all(NEW.values()) and JUDGES == {"judge": ATTRIBUTES, "judge-mixed": WIDE_ATTRIBUTES}
    assert all(WIDE_ATTRIBUTES[name][: len(values)] == values for name, values in ATTRIBUTES.items())
    scene = Scene("fish", "teal", "zigzag", "leaf", "flag", "sideways", "city", "screen")
    assert scene_from_labels(np.array(scene.labels(), dtype=np.uint8)) == scene


def test_words_of_the_first_world_keep_their_vectors_and_new_values_get_axes_of_their_own() -> None:
    first, wide = meaning_vectors(), meaning_vectors(WIDE_ATTRIBUTES)
    assert all(torch.equal(vector, wide[word]) for word, vector in first.items()) and len(wide) > len(first)
    for role in BLOCK_ROLES:
        assert sum(len(WIDE_ATTRIBUTES[name]) for name in role.attributes) <= SUBSPACE
        words = [word for name in role.attributes for word in NEW[name] if word in wide]
        for one, other in itertools.combinations(words, 2):
            cosine = torch.cosine_similarity(wide[one], wide[other], dim=0)
            assert abs(float(cosine)) < 0.2, (one, other)


@pytest.mark.parametrize("attribute", WIDE_ATTRIBUTES)
def test_further_values_can_be_written_read_and_seen(attribute: str) -> None:
    base, tokenizer = Scene("house", "blue"), build_tokenizers(WIDE_ATTRIBUTES)[0]
    for value, words in itertools.product(NEW[attribute], range(20)):
        scene = base.with_value(attribute, value)
        sentence = caption(scene, random.Random(words))
        assert parse(sentence, WIDE_ATTRIBUTES) == scene
        assert set(sentence.replace(",", " , ").split()) <= set(vocabulary(WIDE_ATTRIBUTES))
        assert len(tokenizer(sentence).input_ids) <= CONTEXT
        with pytest.raises(CaptionError):
            parse(sentence)
    pictures = [render(base.with_value(attribute, value), 3).image for value in WIDE_ATTRIBUTES[attribute]]
    for one, other in itertools.combinations(pictures, 2):
        assert np.abs(one.astype(int) - other).mean() > 1


def test_no_caption_of_the_wider_world_is_cut() -> None:
    tokenizer, rng = build_tokenizers(WIDE_ATTRIBUTES)[0], random.Random(0)
    longest = max(
        len(tokenizer(caption(random_scene(rng, values=WIDE_ATTRIBUTES), rng)).input_ids) for _ in range(3000)
    )
    assert longest <= CONTEXT


def test_training_draws_new_values_about_half_of_the_time() -> None:
    rng, values = random.Random(2), evenly(WIDE_ATTRIBUTES)
    drawn = [random_scene(rng, False, values) for _ in range(2000)]
    assert evenly(ATTRIBUTES) == ATTRIBUTES and not any(map(is_held_out, drawn))
    for name, new in NEW.items():
        assert sum(getattr(scene, name) in new for scene in drawn) / 2000 == pytest.approx(0.5, abs=0.13), name


def test_scenes_and_edits_stay_in_their_world() -> None:
    assert {scene.object for scene in held_out_scenes(300, 1)} == set(ATTRIBUTES["object"])
    assert {scene.object for scene in held_out_scenes(300, 1, WIDE_ATTRIBUTES)} == set(WIDE_ATTRIBUTES["object"])
    rng = random.Random(4)
    changed = {changed_scene(Scene("cat", "red"), rng, WIDE_ATTRIBUTES) for _ in range(400)}
    assert {scene.style for scene in changed} == set(WIDE_ATTRIBUTES["style"])
    assert {changed_scene(Scene("cat", "red"), rng).style for _ in range(200)} == set(ATTRIBUTES["style"])


@pytest.mark.parametrize("category", CATEGORY_ATTRIBUTE)
def test_the_suite_shows_every_new_value(category: str) -> None:
    attribute, pairs = CATEGORY_ATTRIBUTE[category], value_pairs(category, "toy-mixed")
    counts = Counter(value for pair in pairs for value in pair)
    assert len(pairs) == 12 and set(counts) == set(WIDE_ATTRIBUTES[attribute])
    assert all(one != other for one, other in pairs)


def test_the_suite_is_what_the_script_makes_and_says_what_it_states() -> None:
    for task in load_suite("toy-mixed"):
        for example in task.examples:
            assert example.attributes is not None
            for sentence, stated in (
                (example.source, example.attributes.source), (example.target, example.attributes.target)
            ):  # fmt: skip
                assert parse(sentence, SUITES["toy-mixed"]) == Scene(**stated) and is_held_out(Scene(**stated))


def test_a_wider_clip_starts_with_what_the_first_knows(tmp_path: Path) -> None:
    torch.manual_seed(1)
    first = ClipWithHeads(model_config()).clip.eval()
    save(first, model_config(), tmp_path)
    wide = ClipWithHeads(model_config(WIDE_ATTRIBUTES), WIDE_ATTRIBUTES)
    load_known(wide.clip, tmp_path, WIDE_ATTRIBUTES)
    sentences = ["a red cat in a forest", "an inverted crimson striped boat at night"]
    found = []
    for clip, values in ((first, ATTRIBUTES), (wide.clip.eval(), WIDE_ATTRIBUTES)):
        tokens = build_tokenizer(values)(sentences, padding="max_length", max_length=CONTEXT, return_tensors="pt")
        with torch.no_grad():
            found.append(clip.encode_text(tokens.input_ids))
    assert torch.allclose(found[0], found[1], atol=2e-2) and found[0].std() > 0.1
    assert [head.out_features for head in wide.heads] == [len(values) for values in WIDE_ATTRIBUTES.values()]


def test_a_wider_judge_starts_with_what_the_first_knows() -> None:
    torch.manual_seed(2)
    first, picture = JudgeNetwork().eval(), torch.randn(3, 3, 64, 64)
    wide = widened(first.state_dict()).eval()
    with torch.no_grad():
        before, after = first(picture), wide(picture)
    for name, values in ATTRIBUTES.items():
        assert after[name].shape[1] == len(WIDE_ATTRIBUTES[name]) + 1
        torch.testing.assert_close(after[name][:, : len(values)], before[name][:, :-1])
        torch.testing.assert_close(after[name][:, -1], before[name][:, -1])


@pytest.mark.parametrize(("values", "known"), [(ATTRIBUTES, False), (WIDE_ATTRIBUTES, True)])
def test_hues_of_new_colors_are_read_in_the_wider_world_alone(values: Values, known: bool) -> None:
    for name in NEW["color"]:
        label = hue_reading(np.array(COLORS[name], dtype=np.float32), values)
        assert label == (WIDE_ATTRIBUTES["color"].index(name) if known else -1)
    bands = sorted((first % 360, last % 360) for first, last in HUES.values())
    assert all(last < first for (_, last), (first, _) in itertools.pairwise(bands))


def test_damaged_pictures_of_the_wider_world_show_new_values() -> None:
    shown = {damaged_picture(seed, held_out=False, values=WIDE_ATTRIBUTES)[1][0] for seed in range(40)}
    assert max(shown) >= len(ATTRIBUTES["object"])
    assert max(damaged_picture(seed, held_out=False)[1][0] for seed in range(40)) < len(ATTRIBUTES["object"])


def test_the_autoencoder_keeps_the_shape_of_pictures() -> None:
    vae = AutoencoderKL.from_pretrained(asset_folder("toy-turbo") / "vae", torch_dtype=torch.float32).eval()
    picture = render(Scene("duck", "pink", background="snow"), 1).image[None]
    decoded = through_autoencoder(vae, picture)
    assert decoded.shape == picture.shape and np.abs(decoded.astype(int) - picture).mean() < 15
