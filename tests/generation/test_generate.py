"""Models and generation on a tiny SDXL."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import CHANNELS, GRID, SIZE, tiny_folder, tiny_model

from riebench.errors import RiebenchError
from riebench.generation.edits import Edit, StaticEdit, Term
from riebench.generation.generator import Capture, Generator
from riebench.models.families.sdxl.names import BLOCKS
from riebench.models.loading import load_model
from riebench.models.presets import PRESETS, scorer_for
from riebench.models.spec import ModelOptions
from riebench.tasks.prompts import phrase_spans

PROMPTS = ["a red house", "a blue cat", "a green boat"]
SEEDS = [11, 12, 13]


def push(size: float = 4.0, steps: int = 2) -> Edit:
    """A strong edit of all four blocks."""
    noise = torch.randn(steps, GRID * GRID, CHANNELS, generator=torch.Generator().manual_seed(0))
    return Edit({block: StaticEdit((Term(torch.arange(GRID * GRID), size * noise),)) for block in BLOCKS})


@pytest.mark.parametrize("guidance", [0.0, 3.0])
def test_a_picture_does_not_depend_on_its_batch(guidance: float) -> None:
    generator = Generator(tiny_model(guidance=guidance))
    together = generator.generate(PROMPTS, SEEDS).images
    assert together.shape == (3, SIZE, SIZE, 3) and together.dtype == np.uint8
    for prompt, seed, picture in zip(PROMPTS, SEEDS, together, strict=True):
        alone = generator.generate([prompt], [seed]).images[0]
        assert np.abs(alone.astype(int) - picture).max() <= 1


def test_seeds_and_prompts_matter() -> None:
    pictures = Generator(tiny_model()).generate([PROMPTS[0], PROMPTS[0], PROMPTS[1]], [1, 2, 1]).images.astype(int)
    assert np.abs(pictures[0] - pictures[1]).mean() > 1
    assert np.abs(pictures[0] - pictures[2]).mean() > 0.1


@pytest.mark.parametrize("guidance", [0.0, 3.0])
def test_edits_of_nothing_give_the_same_picture_bit_for_bit(guidance: float) -> None:
    generator = Generator(tiny_model(guidance=guidance))
    plain = generator.generate(PROMPTS, SEEDS).images
    empty = Edit({"mid.0": StaticEdit((Term(torch.arange(0), torch.zeros(2, 0, CHANNELS)),))})
    edited = generator.generate(PROMPTS, SEEDS, edits=[push().scaled(0), empty, None]).images
    assert np.array_equal(plain, edited)


def test_an_edit_reaches_its_picture_and_no_other() -> None:
    generator = Generator(tiny_model())
    plain = generator.generate(PROMPTS, SEEDS).images.astype(int)
    edited = generator.generate(PROMPTS, SEEDS, edits=[None, push(), None]).images.astype(int)
    change = np.abs(plain - edited).mean((1, 2, 3))
    assert change[1] > 0.5 and change[0] == change[2] == 0


def test_several_captures_in_one_generation() -> None:
    captures = [Capture(("mid.0",)), Capture(("up.0.1",), ("attention",)), Capture(())]
    result = Generator(tiny_model()).generate(PROMPTS[:1], SEEDS[:1], capture=captures)
    assert [trace.sites for trace in result.traces] == [("mid.0",), ("up.0.1",), ()]
    with pytest.raises(ValueError, match="unpack"):
        _ = result.trace


def test_captures_see_edited_values() -> None:
    generator, capture = Generator(tiny_model()), Capture(("mid.0",))
    edit = Edit({"mid.0": StaticEdit((Term(torch.arange(GRID * GRID), torch.full((2, 1, CHANNELS), 6.0)),))})
    plain, edited = (generator.generate(PROMPTS[:1], SEEDS[:1], edits=[e], capture=capture).trace for e in (None, edit))
    change = edited.get("mid.0")[:, 0] - plain.get("mid.0")[:, 0]
    torch.testing.assert_close(change, torch.full_like(change, 6.0), atol=1e-4, rtol=1e-4)


def test_embeddings_are_kept_up_to_a_number() -> None:
    generator = Generator(tiny_model(), cached_prompts=2)
    first = generator.embed("a")
    assert generator.embed("a") is first
    generator.embed("b"), generator.embed("c")
    assert generator.embed("a") is not first


def test_unequal_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="2 prompts, 1 seeds"):
        Generator(tiny_model()).generate(PROMPTS[:2], SEEDS[:1])


def test_an_edit_that_overflows_is_reported() -> None:
    with pytest.raises(RiebenchError, match="overflowed"):
        Generator(tiny_model()).generate(PROMPTS[:1], SEEDS[:1], edits=[push(float("inf"))])


def test_words_are_found_among_the_tokens() -> None:
    generator = Generator(tiny_model())
    # The tiny tokenizers have one token a letter, after the start token.
    assert generator.token_positions("a red house", "house") == [5, 6, 7, 8, 9]
    assert generator.token_positions("a  Red house", "red") == [2, 3, 4]
    with pytest.raises(RiebenchError, match="does not contain the region's words 'hous'"):
        generator.token_positions("a red house", "hous")
    with pytest.raises(RiebenchError, match="were cut off"):
        generator.token_positions("x " * 80 + "house", "house")


def test_phrases_are_whole_words() -> None:
    assert phrase_spans("Red house, red boat", "red") == [(0, 3), (11, 14)]
    assert phrase_spans("a heart  on it", "heart on it") == [(2, 14)]
    assert phrase_spans("a carpet", "car") == phrase_spans("anything", " ") == []


def test_presets_are_complete() -> None:
    shipped = {"toy-turbo", "toy-base", "toy-mixed", "toy-dit"}
    pinned = {
        "sdxl-turbo", "sdxl-base", "flux-schnell", "flux-dev", "sd3-medium", "sd3.5-medium", "sd3.5-large",
        "sd3.5-large-turbo", "qwen-image", "sd15", "sd21", "sd-turbo", "z-image-turbo",
        "z-image", "sana", "sana-512", "sana-0.6b", "sana-0.6b-512", "pixart-sigma", "pixart-sigma-512",
        "sana-sprint-0.6b",
    }  # fmt: skip
    # Its repository could not be asked for a revision; the newest one is taken, and stored by its hash.
    newest = {"sana-sprint"}
    assert set(PRESETS) == shipped | pinned | newest
    for preset in PRESETS.values():
        assert preset.source.startswith("asset:") == (preset.name in shipped)
        assert len(preset.revision or "") == (40 if preset.name in pinned else 0)


def test_shipped_models_are_distinguished_and_scored_by_their_own_clip(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def folder(name: str) -> Path:
        asked.append(name)
        return tiny_folder()

    monkeypatch.setattr("riebench.models.assets.asset_folder", folder)
    spec = load_model("toy-turbo", steps=1).spec
    assert asked == ["toy-turbo"]
    assert (spec.name, spec.source, spec.steps) == ("toy-turbo-steps1", "riebench/toy-turbo", 1)
    assert scorer_for(spec) == PRESETS["toy-turbo"].scorer == "toy-clip"


def test_a_folder_is_identified_by_its_content(tmp_path: Path) -> None:
    model = load_model(str(tiny_folder()))
    assert model.spec.steps == 4 and model.spec.guidance == 0 and model.spec.size == SIZE
    assert model.spec.source == model.spec.name == "tiny" and not model.guided
    changed = load_model(str(tiny_folder()), steps=3, guidance=2.0)
    assert changed.spec.name == "tiny-steps3-guidance2" and changed.guided
    assert changed.spec.revision == model.spec.revision
    assert str(tiny_folder()) not in model.spec.model_dump_json()


def test_half_precision_decodes_in_full() -> None:
    model = load_model(str(tiny_folder()), dtype="bfloat16", steps=1)
    assert next(model.denoiser.parameters()).dtype == torch.bfloat16
    assert next(model.pipe.vae.parameters()).dtype == torch.float32
    assert Generator(model).generate(PROMPTS[:1], SEEDS[:1], edits=[push(steps=1)]).images.std() > 0


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("sdxl-trubo", {}, "did you mean 'sdxl-turbo'"),
        ("toy-turbo", {"dtype": "float8"}, "unknown dtype 'float8'"),
        ("/nowhere/at/all", {}, "no model"),
        (str(Path(__file__).parent), {}, "model_index.json is missing"),
        (str(Path(__file__)), {}, "only .safetensors files are read"),
        ("nobody/nothing", {"offline": True}, "nobody/nothing is not on this machine"),
    ],
)
def test_models_that_cannot_be_loaded(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(RiebenchError, match=message):
        load_model(name, **options)


def test_wrong_sizes_and_devices_are_refused() -> None:
    with pytest.raises(RiebenchError, match="no multiple of"):
        load_model(str(tiny_folder()), options=ModelOptions(size=33))
    with pytest.raises(RiebenchError, match=r"device .nowhere. cannot be used"):
        load_model(str(tiny_folder()), device="nowhere")
