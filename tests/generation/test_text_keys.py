"""Keys and values of the text: once for each prompt, and the same pictures."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from tiny import tiny_model
from torch import Tensor, nn

from riebench.generation.edits import Edit, TextChange
from riebench.generation.generator import Generator

STEPS = 3
ROWS = ["a red house", "a blue cat", "a red house", "a red house"]
SEEDS = [1, 2, 3, 4]


@contextmanager
def computed_rows(unet: nn.Module, *, shared: bool = True) -> Iterator[list[int]]:
    """Rows of every call that one layer of the text computes; `shared` False lets each call compute all."""
    seen: list[int] = []
    layer = unet.get_submodule("mid_block.attentions.0.transformer_blocks.0.attn2.to_k")
    plain = nn.Linear.forward

    def forward(module: nn.Linear, values: Any) -> Any:
        if module is layer:
            seen.append(len(values))
        return plain(module, values)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.Linear, "forward", forward)
        if not shared:
            patch.setattr(type(tiny_model().family), "text_projections", lambda family, denoiser: ())
        yield seen


def latents(generator: Generator, prompts: list[str]) -> Tensor:
    """Latents of all rows and steps."""
    found = generator.generate(prompts, SEEDS, keep_latents=True).latents
    assert found is not None
    return found


@pytest.mark.parametrize(("guidance", "expected"), [(0.0, [2]), (3.0, [4])])
def test_each_prompt_is_read_once_in_all_steps_and_rows(guidance: float, expected: list[int]) -> None:
    generator = Generator(tiny_model(STEPS, guidance))
    unet = generator.model.denoiser
    with computed_rows(unet) as rows:
        shared = latents(generator, ROWS)
    with computed_rows(unet, shared=False) as all_rows:
        plain, other = latents(generator, ROWS), latents(generator, ROWS[1:] + ROWS[:1])
    assert rows == expected and all_rows == [2 * len(ROWS) if guidance else len(ROWS)] * STEPS * 2
    # Another prompt in any of the rows would change it more.
    assert (shared - plain).abs().max() <= 1e-5 < (shared - other).abs().max() / 10
    assert not any("forward" in module.__dict__ for module in unet.modules())


def test_rows_of_one_prompt_share_its_values_without_a_copy() -> None:
    generator = Generator(tiny_model(STEPS))
    with computed_rows(generator.model.denoiser) as rows:
        pictures = generator.generate(ROWS[:1] * 3, SEEDS[:3]).images
    alone = [generator.generate(ROWS[:1], [seed]).images[0].astype(int) for seed in SEEDS[:3]]
    assert rows == [1] and np.abs(pictures - np.stack(alone)).max() <= 1


def test_without_memory_they_are_computed_in_each_step(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = Generator(tiny_model(STEPS))
    kept = generator.generate(ROWS, SEEDS).images
    monkeypatch.setattr("riebench.models.families.text_keys.MOST_KEPT", 0)
    with computed_rows(generator.model.denoiser) as rows:
        again = generator.generate(ROWS, SEEDS).images
    assert rows == [2] * STEPS and np.array_equal(kept, again)


def test_a_batch_whose_text_changes_between_the_steps_shares_nothing() -> None:
    generator = Generator(tiny_model(STEPS))
    switch = Edit(text=TextChange("a blue cat", "last"), strength=2 / 3)
    with computed_rows(generator.model.denoiser) as rows:
        changed = generator.generate(ROWS[:1] * 2, SEEDS[:1] * 2, edits=[switch, None]).images
    assert rows == [2] * STEPS
    assert not np.array_equal(changed[0], changed[1])
