"""The judge's training pictures and its calibration: what is labelled unreadable, and when a value counts as read."""

from __future__ import annotations

import csv
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import riebench
from riebench.errors import RiebenchError
from riebench.scoring.metrics.base import UNREADABLE
from riebench.scoring.metrics.judge_network import (
    ATTRIBUTES,
    UNREADABLE_LABEL,
    WIDE_ATTRIBUTES,
    Judge,
    JudgeNetwork,
    Values,
)
from riebench.tasks.suites import load_suite
from riebench.toyworld.networks.judging import damage
from riebench.toyworld.networks.judging.damage import (
    NO_LABEL,
    Damaged,
    LabelledPool,
    blend,
    damaged_picture,
    erase,
    hue_reading,
)
from riebench.toyworld.networks.judging.edited import FIRST, SECOND, edited_pool, edited_readings, unedited_pools
from riebench.toyworld.networks.judging.labelled import read_labelled
from riebench.toyworld.networks.judging.training import (
    IGNORED,
    READ_UNEDITED,
    calibrate,
    classes,
    threshold,
)
from riebench.toyworld.render import COLORS, render, render_background
from riebench.toyworld.scenes import Scene, is_held_out, random_scene

LABELLED = Path(__file__).parents[2] / "benchmarks" / "labelled"
SCENE = Scene(object="cat", color="red", emblem="heart", background="forest")


@pytest.fixture
def share(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The share of the first picture that all blends have; a test changes it."""
    wanted = [1.0]
    monkeypatch.setattr(damage, "_weights", lambda rng, region: (np.full((64, 64), wanted[0], dtype=np.float32), True))
    return wanted


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_a_background_is_the_render_without_its_object() -> None:
    empty, whole = render_background(SCENE, 5), render(SCENE, 5)
    far = whole.masks["background"] & (np.abs(empty.astype(int) - whole.image).sum(2) == 0)
    assert far.sum() > 0.9 * whole.masks["background"].sum()
    assert (np.abs(empty.astype(int) - whole.image).sum(2)[whole.masks["object"]] > 0).mean() > 0.9


def test_an_erased_object_is_read_until_too_little_of_it_is_left(share: list[float]) -> None:
    found = {}
    for share[0] in (0.95, 0.55, 0.1):
        found[share[0]] = erase(rng(), SCENE, 5).readings
    whole = dict(zip(ATTRIBUTES, SCENE.labels(), strict=True))
    assert found[0.95] == whole
    assert found[0.1] == dict.fromkeys(damage.BODY, UNREADABLE_LABEL) | {k: whole[k] for k in ("background", "style")}
    assert found[0.55]["object"] == NO_LABEL and found[0.55]["color"] == whole["color"]


@pytest.mark.parametrize(
    ("name", "value", "readings"),
    [
        ("object", "boat", ("cat", UNREADABLE, "boat")),
        ("background", "night", ("forest", UNREADABLE, "night")),
        # Between red and yellow lies a color that has a name.
        ("color", "yellow", ("red", "orange", "yellow")),
        ("style", "pixel", ("drawing", UNREADABLE, "pixel")),
    ],
)
def test_a_blend_shows_one_value_or_none(share: list[float], name: str, value: str, readings: tuple[str, ...]) -> None:
    found = []
    for share[0] in (0.97, 0.5, 0.03):
        one = blend(rng(), SCENE, SCENE.with_value(name, value), (5, 5)).readings
        found.append(UNREADABLE if one[name] == UNREADABLE_LABEL else ATTRIBUTES[name][one[name]])
        if name != "object":  # an emblem on two objects is in two places
            others = {other: label for other, label in zip(ATTRIBUTES, SCENE.labels(), strict=True) if other != name}
            assert {other: one[other] for other in others} == others
    assert tuple(found) == readings


def test_a_ghost_of_an_emblem_is_neither_there_nor_absent(share: list[float]) -> None:
    without = SCENE.with_value("emblem", "none")
    found = []
    for share[0] in (0.9, 0.35, 0.05):
        found.append(blend(rng(), SCENE, without, (5, 5)).readings["emblem"])
    assert found == [ATTRIBUTES["emblem"].index("heart"), UNREADABLE_LABEL, ATTRIBUTES["emblem"].index("none")]


def test_colors_are_read_by_hue() -> None:
    for index, name in enumerate(ATTRIBUTES["color"]):
        assert hue_reading(np.array(COLORS[name], dtype=np.float32)) == index
    for between in ((200, 40, 120), (40, 140, 160), (128, 128, 128), (150, 200, 60)):  # magenta, teal, grey, lime
        assert hue_reading(np.array(between, dtype=np.float32)) == UNREADABLE_LABEL


@pytest.mark.parametrize("kind", list(damage.FURTHER))
def test_light_damage_leaves_labels_and_heavy_damage_takes_some(
    kind: Callable[..., None],
) -> None:
    def damaged(amount: float) -> Damaged:
        generator = rng()

        class Random:
            """Draws every amount at one place of its range, all else at random."""

            def uniform(self, low: float, high: float, size: int | None = None) -> object:
                return low + amount * (high - low) if size is None else generator.uniform(low, high, size)

            def __getattr__(self, name: str) -> object:
                return getattr(generator, name)

        whole = render(SCENE, 5)
        readings = dict(zip(ATTRIBUTES, SCENE.labels(), strict=True))
        one = Damaged(whole.image.astype(np.float32), readings, ~whole.masks["background"])
        kind(Random(), one)
        return one

    # What is drawn for `drain` is the share of color that stays.
    light, heavy = (damaged(float(amount)) for amount in ((1, 0) if kind is damage.drain else (0, 1)))
    assert tuple(light.readings.values()) == SCENE.labels()
    assert UNREADABLE_LABEL in heavy.readings.values()
    whole = render(SCENE, 5).image
    assert np.abs(heavy.image - whole).mean() > np.abs(light.image - whole).mean()


def test_damaged_pictures_are_reproducible_and_use_the_scenes_they_may(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Scene] = []

    def noted(scene: Scene, seed: int) -> object:
        drawn.append(scene)
        return render(scene, seed)

    monkeypatch.setattr(damage, "render", noted)
    for held_out in (True, False):
        drawn.clear()
        made = [damaged_picture(seed, held_out=held_out) for seed in range(16)]
        assert {is_held_out(scene) for scene in drawn} == {held_out}
    again, labels = damaged_picture(7, held_out=False)
    assert (again == made[7][0]).all() and labels == made[7][1]
    assert {label for _, some in made for label in some} >= {UNREADABLE_LABEL, NO_LABEL, 0, 1, 2, 3}


def test_classes_put_unreadable_last_and_leave_out_what_has_no_label() -> None:
    labels = torch.tensor([[0, 5, UNREADABLE_LABEL, NO_LABEL, 1, 2, UNREADABLE_LABEL, 3]], dtype=torch.int8)
    assert classes(labels).tolist() == [[0, 5, 4, IGNORED, 1, 2, 6, 3]]


class Guess(JudgeNetwork):
    """Names the first value of every attribute, the surer the brighter the picture."""

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        sure = 10 + 5 * images.mean((1, 2, 3))
        return {n: torch.stack([sure, *[torch.zeros_like(sure)] * len(v)], dim=1) for n, v in ATTRIBUTES.items()}


def grey_pool(brightness: list[int], unreadable: list[int]) -> LabelledPool:
    """Pictures of one grey each, with the first value of every attribute, or none."""
    images = np.repeat(np.array(brightness, dtype=np.uint8), 64 * 64 * 3).reshape(-1, 64, 64, 3)
    labels = np.zeros((len(brightness), len(ATTRIBUTES)), dtype=np.int8)
    labels[unreadable] = UNREADABLE_LABEL
    return LabelledPool(images, labels)


def test_calibration_refuses_what_is_often_unreadable_but_reads_unedited_pictures() -> None:
    by_eye = grey_pool([10 * i for i in range(20)], list(range(12)))
    bright, dark = grey_pool([200] * 20, []), grey_pool([25 + i for i in range(20)], [])
    read = {}
    for name, unedited in {"bright": bright, "dark": dark}.items():
        network = Guess()
        calibrate(network, by_eye, unedited)
        assert (network.temperature > 3).all(), "overconfident logits become milder"
        judge = Judge(network)
        read[name] = (judge.labels(by_eye.images) >= 0)[:, 0]
        assert (judge.labels(unedited.images) >= 0).mean() >= READ_UNEDITED
    assert not read["bright"][:12].any() and read["bright"][12:].all()
    assert read["dark"][4:].all() and not read["dark"][:2].any(), "a judge has to answer, whatever the risk"


def test_the_threshold_lets_as_much_be_read_as_the_risk_allows() -> None:
    likely = np.linspace(1, 0.5, 100).astype(np.float32)
    right = np.ones(100, dtype=np.bool_)
    right[[19, 59, 60, 61, 62, 63]] = False
    assert threshold(likely, right, 0.05) == likely[60], "three of the first 61 values are wrong: 4.9 %"
    assert threshold(likely, right, 0.1) == likely[99]
    assert threshold(likely, ~right, 0.05) == 1.0, "nothing is sure enough"


def labelled_folder(folder: Path, examples: list[str], values: list[dict[str, str]]) -> Path:
    """A folder as `benchmarks/labelled/training`, each picture of one grey."""
    sheet = np.zeros((64, 64 * len(examples), 3), dtype=np.uint8)
    for i in range(len(examples)):
        sheet[:, 64 * i : 64 * (i + 1)] = 10 * i
    Image.fromarray(sheet).save(folder / "pictures.webp", lossless=True)
    names = ("picture", "setting", "example", "seed", "blocks", "strength", *ATTRIBUTES)
    with (folder / "labels.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        for i, (example, changed) in enumerate(zip(examples, values, strict=True)):
            origin = {"picture": i, "setting": "sae", "example": example, "seed": 0, "blocks": "all", "strength": 1}
            writer.writerow(origin | SCENE.as_dict() | changed)
    return folder


def test_pictures_labelled_by_eye_are_split_by_example(tmp_path: Path) -> None:
    examples = [f"toy-{i % 12}" for i in range(24)]
    pictures = read_labelled(labelled_folder(tmp_path, examples, [{"emblem": UNREADABLE}] * 24))
    assert [int(image.max()) for image in pictures.images] == [10 * i for i in range(24)]
    train, held_out = pictures.pools()
    assert len(train.images) + len(held_out.images) == 24 and len(train.images) > len(held_out.images) > 0
    shown = [{int(image.max()) // 10 % 12 for image in pool.images} for pool in (train, held_out)]
    assert not shown[0] & shown[1], "all pictures of an example are on one side"
    wanted = list(SCENE.labels())
    wanted[list(ATTRIBUTES).index("emblem")] = UNREADABLE_LABEL
    assert (train.labels == wanted).all()


def test_what_two_labellers_see_differently_is_not_learned_and_should_not_be_read(tmp_path: Path) -> None:
    examples = [f"toy-{i % 12}" for i in range(24)]
    folder = labelled_folder(tmp_path, examples, [{}] * 24)
    (folder / "labels.csv").rename(folder / "second.csv")
    labelled_folder(tmp_path, examples, [{"pose": "tilted", "color": UNREADABLE}] * 24)
    train, held_out = read_labelled(folder).pools()
    for pool, doubtful in ((train, NO_LABEL), (held_out, UNREADABLE_LABEL)):
        found = dict(zip(ATTRIBUTES, pool.labels.T.tolist(), strict=True))
        kept = dict(zip(ATTRIBUTES, SCENE.labels(), strict=True))
        for name in ATTRIBUTES:
            assert set(found[name]) == {doubtful if name in ("pose", "color") else kept[name]}


def test_a_second_labeller_has_to_label_every_picture(tmp_path: Path) -> None:
    folder = labelled_folder(tmp_path, ["a", "b"], [{}, {}])
    lines = (folder / "labels.csv").read_text().splitlines()
    (folder / "second.csv").write_text("\n".join(lines[:-1]) + "\n")
    with pytest.raises(RiebenchError, match=r"second.csv must have the 2 rows of labels.csv, not 1"):
        read_labelled(folder)


def test_a_label_that_is_no_value_is_named(tmp_path: Path) -> None:
    folder = labelled_folder(tmp_path, ["a", "b"], [{}, {"pose": "sitting"}])
    with pytest.raises(RiebenchError, match=r"picture 1: pose must be upright, tilted, .* not 'sitting'"):
        read_labelled(folder)
    (folder / "labels.csv").unlink()
    with pytest.raises(RiebenchError, match="missing: name a folder"):
        read_labelled(folder)


@pytest.mark.parametrize(("world", "values"), [("", ATTRIBUTES), ("mixed", WIDE_ATTRIBUTES)])
def test_the_shipped_judges_learned_from_none_of_the_pictures_they_are_held_against(world: str, values: Values) -> None:
    tested, learned = (
        {(one["example"], one["seed"]) for one in read_labelled(folder, values).origins}
        for folder in (LABELLED / world, LABELLED / "training" / world)
    )
    assert len(tested) > 50 and len(learned) > 70 and not tested & learned


def test_the_judge_reads_what_is_likely_enough_and_nothing_else() -> None:
    images = np.stack([render(random_scene(random.Random(i)), i).image for i in range(4)])
    network = JudgeNetwork()
    network.load_state_dict(Judge.load().network.state_dict())
    judge = Judge(network)
    likely = judge.probabilities(images)["object"][:, :-1].max(1)
    network.threshold[0] = float(np.sort(likely)[1:3].mean())
    assert [one["object"] == UNREADABLE for one in judge.read(images)] == (
        likely < network.threshold[0].item()
    ).tolist()
    assert [one["object"] != UNREADABLE for one in judge.read(images)] == (judge.labels(images)[:, 0] >= 0).tolist()


def test_the_judge_cannot_read_noise_or_an_empty_scene() -> None:
    noise = np.random.default_rng(1).integers(0, 256, (8, 64, 64, 3), dtype=np.uint8)
    assert all(one["object"] == one["material"] == UNREADABLE for one in Judge.load().read(noise))
    scenes = [random_scene(random.Random(i), held_out=True) for i in range(24)]
    empty = np.stack([render_background(scene, i) for i, scene in enumerate(scenes)])
    read = Judge.load().read(empty)
    assert np.mean([one["object"] == UNREADABLE for one in read]) > 0.9
    kept = [one["background"] == scene.background for one, scene in zip(read, scenes, strict=True)]
    assert np.mean(kept) > 0.9


def edited_by(share: float, noise: float = 0.0) -> dict[str, int]:
    """Labels of a picture on the way from a red to a blue cat, with noise on the object."""
    target = SCENE.with_value("color", "blue")
    one, other = render(SCENE, 5), render(target, 5).image.astype(np.float32)
    picture = (1 - share) * one.image + share * other
    picture += noise * one.masks["object"][..., None] * rng().standard_normal(picture.shape)
    found = edited_readings(
        picture.astype(np.float32), one.image.astype(np.float32), other, SCENE.as_dict(), target.as_dict()
    )
    assert found is not None
    return found


def test_an_edited_picture_is_labelled_by_its_way_from_source_to_target() -> None:
    kept = dict(zip(ATTRIBUTES, SCENE.labels(), strict=True))
    colors = [edited_by(share)["color"] for share in (0.1, 0.5, 0.9)]
    assert colors == [ATTRIBUTES["color"].index("red"), UNREADABLE_LABEL, ATTRIBUTES["color"].index("blue")]
    for share in (0.1, 0.5, 0.9):
        assert edited_by(share) == kept | {"color": edited_by(share)["color"]}


def test_a_spoilt_object_is_unreadable_and_its_background_is_not() -> None:
    found = edited_by(1.0, noise=160)
    assert {found[name] for name in ("object", "color", "material", "emblem")} == {UNREADABLE_LABEL}
    assert found["background"] == ATTRIBUTES["background"].index("forest")
    slightly = edited_by(1.0, noise=60)
    assert UNREADABLE_LABEL not in slightly.values() and slightly["object"] == NO_LABEL


def test_a_picture_without_a_visible_edit_has_no_labels() -> None:
    whole = render(SCENE, 5).image.astype(np.float32)
    target = SCENE.with_value("color", "blue")
    other = render(target, 5).image.astype(np.float32)
    assert edited_readings(whole, whole, other, SCENE.as_dict(), target.as_dict()) is None


def test_a_caption_is_no_label_of_what_the_model_takes_for_something_else() -> None:
    readings = dict(zip(WIDE_ATTRIBUTES, SCENE.with_value("material", "zigzag").labels(), strict=True))
    assert SECOND.keep_shown(readings) == readings | {"material": NO_LABEL}
    for label in (UNREADABLE_LABEL, NO_LABEL, WIDE_ATTRIBUTES["material"].index("plain")):
        assert SECOND.keep_shown(readings | {"material": label}) == readings | {"material": label}
    striped = readings | {"material": ATTRIBUTES["material"].index("striped")}
    assert FIRST.keep_shown(striped) == striped


def test_pictures_of_a_run_teach_what_their_captions_say(tmp_path: Path) -> None:
    riebench.run(["no_edit", "activation_patch"], suite="toy-mixed", limit=1, results=tmp_path, progress=False)
    with pytest.raises(RiebenchError, match="no edited pictures of the suite toy:"):
        edited_pool(tmp_path, frozenset())
    edited = edited_pool(tmp_path, frozenset(), SECOND)
    assert 0 < len(edited.images) == len(edited.labels) and edited.labels.max() < 9
    known = {example.id for task in load_suite("toy-mixed") for example in task.examples}
    with pytest.raises(RiebenchError, match="no edited pictures of the suite toy-mixed"):
        edited_pool(tmp_path, {(name, 0) for name in known}, SECOND)
    train, held_out = unedited_pools(tmp_path, frozenset(), SECOND)
    material = list(ATTRIBUTES).index("material")
    for pool in (train, held_out):
        assert set(pool.labels[:, material].tolist()) <= {0, NO_LABEL}
        assert (np.delete(pool.labels, material, axis=1) >= 0).all()
    assert len(train.images) + len(held_out.images) == 18
