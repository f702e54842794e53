"""CLIP scores with a fake encoder (definitions) and with a tiny real open_clip folder (loading)."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from open_clip.transform import image_transform
from PIL import Image
from tiny_clip import tiny_clip_folder
from torchvision.transforms import Compose

from riebench.errors import MetricError
from riebench.models import clip as clip_models
from riebench.models.clip import ClipSpec, load_open_clip
from riebench.scoring.metrics.base import Reason, Sample, strict_float32
from riebench.scoring.metrics.clip import (
    ClipScorer,
    _transformed,
    clean_prompt,
    clip_direction,
    clip_gain,
    clip_image,
    clip_margin,
    clip_margin_2,
    clip_region_gain,
    clip_target,
    region_box,
)
from riebench.scoring.metrics.networks import Networks

WIDTH = 6
ALL = (clip_target, clip_gain, clip_margin, clip_direction, clip_image, clip_region_gain)


class FakeEncoder:
    """Embeds a picture by its first pixels and a text by its letters, and counts what it is asked."""

    def __init__(self) -> None:
        self.pictures: list[np.ndarray] = []
        self.texts: list[str] = []

    def encode_pictures(self, batch: list[np.ndarray]) -> np.ndarray:
        self.pictures += batch
        return np.stack([picture.astype(float).reshape(-1)[:WIDTH] - 100.5 for picture in batch])

    def encode_texts(self, batch: list[str]) -> np.ndarray:
        self.texts += batch
        return np.stack([np.cos(np.arange(WIDTH) * (1 + sum(map(ord, text)) % 97)) for text in batch])

    def scorer(self, **options: Any) -> ClipScorer:
        return ClipScorer(self.encode_pictures, self.encode_texts, **options)  # no network anywhere


def picture(seed: int, side: int = 8) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3)).astype(np.uint8)


def sample(
    edited: np.ndarray, source: np.ndarray, source_prompt: str = "a cat", target_prompt: str = "a dog"
) -> Sample:
    return Sample(edited, source, np.ones(edited.shape[:2], bool), source_prompt, target_prompt)


def unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)


@pytest.mark.parametrize(("side", "pictures"), [(32, 3), (300, 2)])
def test_pictures_reach_the_network_as_the_weights_own_transform_makes_them(side: int, pictures: int) -> None:
    whole = image_transform(48, False, mean=(0.48, 0.45, 0.40), std=(0.26, 0.25, 0.27))
    batch = [picture(seed, side)[: side - 7] for seed in range(pictures)]
    for transform in (whole, Compose(whole.transforms[:-1]), whole.transforms[-2]):
        expected = torch.stack([transform(Image.fromarray(one, "RGB")) for one in batch])
        assert torch.equal(_transformed(batch, transform), expected)


def test_pictures_of_the_networks_own_size_are_not_resized(monkeypatch: pytest.MonkeyPatch) -> None:
    transform = image_transform(48, False, mean=(0.48, 0.45, 0.40), std=(0.26, 0.25, 0.27))
    batch = [picture(seed, 48) for seed in range(3)]
    expected = torch.stack([transform(Image.fromarray(one, "RGB")) for one in batch])
    made, plain = [], Image.fromarray

    def counting(*args: Any) -> Image.Image:
        made.append(args)
        return plain(*args)

    monkeypatch.setattr(Image, "fromarray", counting)
    assert torch.equal(_transformed(batch, transform), expected)
    assert not made
    assert torch.equal(_transformed([batch[0][:, :40]], transform)[0], transform(plain(batch[0][:, :40], "RGB")))
    assert made


@pytest.mark.parametrize(("end", "padding"), [(2, 0), (2, 2)])
def test_only_texts_that_fill_the_context_are_read_whole(end: int, padding: int) -> None:
    asked: list[tuple[int, int]] = []

    def tokenizer(texts: list[str], context_length: int = 6) -> torch.Tensor:
        asked.append((len(texts), context_length))
        rows = [[1, *([5] * len(text.split()))[: context_length - 2], end] for text in texts]
        return torch.tensor([row + [padding] * (context_length - len(row)) for row in rows])

    loaded = clip_models.LoadedClip(None, torch.ones, tokenizer, "fake", {})
    assert loaded.cut(["a", "a b c d", "a b c d e f", "a b"]) == [False, False, True, False]
    assert [n for n, length in asked if length == clip_models.UNLIMITED] == [2]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.integers(1001, 2000), st.text("abc ", min_size=1).filter(str.strip))
def test_definitions(first: int, second: int, target: str) -> None:
    fake = FakeEncoder()
    networks = Networks(ready={"clip": fake.scorer()})
    one = [sample(picture(first), picture(second), "xyz", target)]
    edited, source = (unit(fake.encode_pictures([p])[0]) for p in (picture(first), picture(second)))
    wanted, given_text = (unit(fake.encode_texts([clean_prompt(t)])[0]) for t in (target, "xyz"))
    text = wanted - given_text
    assert clip_target(one, networks) == pytest.approx([edited @ wanted], abs=1e-12)
    assert clip_gain(one, networks) == pytest.approx([(edited - source) @ wanted], abs=1e-12)
    assert clip_image(one, networks) == pytest.approx([edited @ source], abs=1e-12)
    # The margin is the length of the text's change times the projection of the picture's change on its direction.
    length = np.linalg.norm(text)
    assume(length > 1e-3)  # the fake's embeddings of different texts may coincide
    projection = (edited - source) @ (text / length)
    assert clip_margin(one, networks) == pytest.approx([length * projection], abs=1e-12)
    assert clip_direction(one, networks) == pytest.approx([projection / np.linalg.norm(edited - source)], abs=1e-9)
    by_second = Networks(ready={"clip2": fake.scorer()})
    assert clip_margin_2(one, by_second) == clip_margin(one, networks)


def test_identical_pictures() -> None:
    networks = Networks(ready={"clip": FakeEncoder().scorer()})
    one = [sample(picture(0), picture(0))]
    assert clip_gain(one, networks) == [0.0]
    assert clip_margin(one, networks) == [0.0]
    assert clip_region_gain(one, networks) == [0.0]
    assert clip_image(one, networks) == pytest.approx([1.0], abs=1e-12)
    assert clip_direction(one, networks) == [Reason.ZERO_EDIT]


def test_same_prompts_do_not_depend_on_the_method() -> None:
    networks = Networks(ready={"clip": FakeEncoder().scorer()})
    moved = sample(picture(0), picture(1), "a [cat]", "a  cat")
    still = sample(picture(0), picture(0), "a [cat]", "a  cat")
    assert clip_direction([moved, still], networks) == [Reason.SAME_PROMPTS, Reason.SAME_PROMPTS]


def test_each_picture_and_prompt_is_embedded_once() -> None:
    fake = FakeEncoder()
    networks = Networks(ready={"clip": fake.scorer(batch_size=2)})
    samples = [sample(picture(seed), picture(9)) for seed in (1, 2, 3, 1, 9)]
    for metric in ALL:
        metric(samples, networks)
    assert len(fake.pictures) == 4
    assert fake.texts == ["a dog", "a cat"]


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("riebench.scoring.metrics.clip.CACHED_PICTURES", 2)
    fake = FakeEncoder()
    scorer = fake.scorer()
    first = scorer.pictures([picture(seed) for seed in range(5)])
    assert np.array_equal(scorer.pictures([picture(seed) for seed in range(5)]), first)
    assert len(fake.pictures) == 8, "the last two were still known"


def test_order_is_kept() -> None:
    networks = Networks(ready={"clip": FakeEncoder().scorer(batch_size=3)})
    samples = [sample(picture(seed), picture(50 + seed % 3)) for seed in range(7)]
    for metric in ALL:
        assert metric(samples, networks) == [metric([one], networks)[0] for one in samples]


def test_brackets() -> None:
    prompt = " a [red]  car\n"
    assert clean_prompt(prompt) == "a red car"
    assert clean_prompt(prompt, "paper") == prompt
    backbones = set()
    for profile, expected in (("default", "a red car"), ("paper", "a [red] car")):
        fake = FakeEncoder()
        scorer = fake.scorer(profile=profile)
        scorer.texts(["a [red] car"])
        assert fake.texts == [expected]
        backbones.add(scorer.backbone)
    assert len(backbones) == 2, "numbers of the two profiles must not share a cell"


@pytest.mark.parametrize("bad", [np.nan, 0.0])
def test_a_broken_network_is_an_error(bad: float) -> None:
    scorer = ClipScorer(lambda batch: np.full((len(batch), 4), bad), lambda batch: np.ones((len(batch), 4)))
    with pytest.raises(MetricError, match="check the weights"):
        scorer.pictures([picture(0)])


def test_region_box() -> None:
    mask = np.zeros((100, 60), bool)
    mask[40:60, 2:12] = True  # 20 rows and 10 columns: grows by 3 rows and 1.5 columns
    assert region_box(mask) == (slice(37, 63), slice(0, 14))
    mask[99, 59] = True
    assert region_box(mask) == (slice(31, 100), slice(0, 60))
    with pytest.raises(MetricError):
        region_box(np.zeros((4, 4), bool))


def test_region_gain_sees_the_box_only() -> None:
    fake = FakeEncoder()
    networks = Networks(ready={"clip": fake.scorer()})
    mask = np.zeros((40, 40), bool)
    mask[10:20, 10:20] = True
    edited, source = picture(0, 40), picture(1, 40)
    crop = (slice(8, 22), slice(8, 22))
    one = Sample(edited, source, mask, "a cat", "a dog")
    assert clip_region_gain([one], networks) == clip_gain([sample(edited[crop], source[crop])], networks)
    assert all(seen.shape == (14, 14, 3) for seen in fake.pictures)
    empty = Sample(edited, source, np.zeros((40, 40), bool), "a cat", "a dog")
    assert clip_region_gain([empty, one], networks) == [Reason.NO_REGION, *clip_region_gain([one], networks)]


# --- a real open_clip model, tiny and random ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in open_clip's layout with its own vocabulary and 10 text positions."""
    return tiny_clip_folder(tmp_path_factory.mktemp("tiny-clip"))


@pytest.fixture(scope="module")
def scorer(folder: Path) -> ClipScorer:
    return ClipScorer.load(f"local-dir:{folder}")


def test_loads_a_folder_and_equals_open_clip(folder: Path, scorer: ClipScorer) -> None:
    import open_clip
    from PIL import Image

    model, transform = open_clip.create_model_from_pretrained(f"local-dir:{folder}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    shown = picture(3, 20)
    with torch.inference_mode():
        expected = model.encode_image(transform(Image.fromarray(shown))[None], normalize=True)[0].numpy()
        text = model.encode_text(tokenizer(["a red car"]), normalize=True)[0].numpy()
    assert scorer.pictures([shown])[0] == pytest.approx(expected, abs=1e-6)
    assert scorer.texts(["a [red]  car"])[0] == pytest.approx(text, abs=1e-6)
    assert np.linalg.norm(scorer.pictures([shown]), axis=1) == pytest.approx([1.0], abs=1e-12)
    assert scorer.details["activation"] == "QuickGELU"
    assert scorer.details["dtype"] == "float32"
    assert scorer.details["package"].startswith("open_clip ")


def test_callers_autocast_has_no_effect(folder: Path, scorer: ClipScorer) -> None:
    again = ClipScorer.load(f"local-dir:{folder}")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = again.pictures([picture(4, 20)]), again.texts(["a blue boat"])
    assert np.array_equal(inside[0], scorer.pictures([picture(4, 20)]))
    assert np.array_equal(inside[1], scorer.texts(["a blue boat"]))


def test_strict_float32_restores_the_switches() -> None:
    before = torch.backends.cudnn.allow_tf32
    with pytest.raises(RuntimeError, match="inside"), strict_float32("cpu"):
        assert not torch.backends.cudnn.allow_tf32
        raise RuntimeError("inside")
    assert torch.backends.cudnn.allow_tf32 == before


def test_long_prompts_are_flagged(scorer: ClipScorer) -> None:
    fits, cut = "a red car a red car a red", "a red car a red car a red car"  # 8 and 9 words, 10 positions
    scorer.texts([fits, cut])
    assert scorer.cut_prompts == {cut}
    networks = Networks(ready={"clip": scorer})
    assert networks.cut_prompts == (cut,)


def test_identity_names_the_weights(folder: Path, tmp_path: Path, scorer: ClipScorer) -> None:
    spec = ClipSpec.parse(f"local-dir:{folder}")
    assert scorer.backbone == clip_models.identity(spec)
    assert str(folder) not in scorer.backbone
    for file in folder.iterdir():
        os.link(file, tmp_path / file.name)
    assert clip_models.identity(ClipSpec(f"local-dir:{tmp_path}")) == scorer.backbone
    (tmp_path / "open_clip_config.json").unlink()
    (tmp_path / "open_clip_config.json").write_text("{}")
    assert clip_models.identity(ClipSpec(f"local-dir:{tmp_path}")) != scorer.backbone
    assert clip_models.identity(clip_models.SCORERS["clip-l14"]) == "ViT-L-14-quickgelu/openai"


def test_wrong_activation_is_refused(folder: Path) -> None:
    with pytest.raises(MetricError, match="need GELU, the model runs QuickGELU"):
        load_open_clip(ClipSpec(f"local-dir:{folder}", activation="GELU"))
    assert clip_models.SCORERS["clip-l14"].activation == "QuickGELU"


def test_mismatch_warning_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    import open_clip

    def warns(*args: object, **kwargs: object) -> None:
        warnings.warn("QuickGELU mismatch between final model config and pretrained tag", UserWarning, stacklevel=1)

    monkeypatch.setattr(open_clip, "create_model_from_pretrained", warns)
    with pytest.raises(MetricError, match="QuickGELU mismatch"):
        load_open_clip(ClipSpec("ViT-L-14", "openai", "QuickGELU"))


def test_a_folder_without_weights_is_refused(folder: Path, tmp_path: Path) -> None:
    for file in folder.iterdir():
        if file.suffix != ".safetensors":
            os.link(file, tmp_path / file.name)
    with pytest.raises(MetricError, match="has no weights; put its open_clip_model"):
        load_open_clip(ClipSpec(f"local-dir:{tmp_path}"))
    (tmp_path / "open_clip_config.json").unlink()
    with pytest.raises(MetricError, match="no open_clip_config"):
        load_open_clip(ClipSpec(f"local-dir:{tmp_path}"))


def test_parsing(tmp_path: Path) -> None:
    weights = tmp_path / "w.safetensors"
    weights.write_bytes(b"")
    assert ClipSpec.parse("ViT-B-32/openai") == ClipSpec("ViT-B-32", "openai")
    assert ClipSpec.parse(f"ViT-L-14-quickgelu@{weights}") == ClipSpec(
        "ViT-L-14-quickgelu", None, "QuickGELU", file=weights
    )
    assert ClipSpec.parse(f"ViT-L-14/laion2b_s32b_b82k@{weights}") == ClipSpec(
        "ViT-L-14", "laion2b_s32b_b82k", file=weights
    )
    with pytest.raises(MetricError, match="did you mean 'clip-l14'"):
        ClipSpec.parse("clip-l41")
    with pytest.raises(MetricError, match="there is no file"):
        ClipSpec.parse("ViT-B-32@/no/such/file.safetensors")
    with pytest.raises(MetricError, match="no folder"):
        ClipSpec.parse("local-dir:/no/such/folder")
    with pytest.raises(MetricError, match="no folder"):
        clip_models.identity(ClipSpec("local-dir:/no/such/folder"))
    for odd in ("a/b/c", "ViT-B-32/", "/openai", "ViT-B-32", "@x"):
        with pytest.raises(MetricError, match="unknown scorer"):
            ClipSpec.parse(odd)
    pointer = tmp_path / "p.safetensors"
    pointer.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(MetricError, match="Git-LFS pointer"):
        ClipSpec.parse(f"ViT-B-32@{pointer}")


def test_every_metric_with_the_real_encoder(scorer: ClipScorer) -> None:
    networks = Networks(ready={"clip": scorer})
    samples = [sample(picture(seed, 20), picture(9, 20), "a red car", "a blue boat") for seed in range(3)]
    for metric in ALL:
        values = metric(samples, networks)
        assert len(values) == 3
        assert all(not isinstance(value, Reason) for value in values)


def test_stored_identities_are_recognised_whatever_the_weights() -> None:
    assert clip_models.is_measured_by("toy-clip@0123456789ab", "toy-clip")
    assert clip_models.is_measured_by(clip_models.identity(ClipSpec.parse("clip-l14")), "ViT-L-14-quickgelu/openai")
    for other in ("", "toy-clip-2@01", "siglip", "toy-clip@0123456789ab (paper prompts)"):
        assert not clip_models.is_measured_by(other, "toy-clip")
