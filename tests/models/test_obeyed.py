"""What a model's own files state is obeyed or refused: every key of every configuration, one at a time.

The reference is the call of diffusers' own pipeline on the same folder.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pipeline_variants import (
    Variant,
    own_pictures,
    own_pipeline,
    variants,
    write_variant,
)
from tiny import SIZE

from riebench.errors import RiebenchError
from riebench.generation.generator import Capture, Generator
from riebench.jobs.inventory import model_checks
from riebench.models.loading import LoadedModel, load_model
from riebench.models.lookup import look_up
from riebench.models.spec import ModelOptions

PROMPTS = (
    "a red cat sits on the old wall!",
    "grey Dog",
    "a blue house with many windows and a long garden that goes on and on, further than all the others",
)
SEEDS = (1, 2, 3)
STEPS = 4
WITHIN = 1 / 255
USUAL_CLASS = "EulerAncestralDiscreteScheduler"

pytestmark = pytest.mark.filterwarnings("ignore")


def with_guidance(model: LoadedModel, guidance: float) -> LoadedModel:
    return dataclasses.replace(model, spec=model.spec.model_copy(update={"guidance": guidance}))


def check(folder: Path, variant: Variant, runs: list[tuple[float, int]]) -> str:
    """Whether a variant is refused in a line that names its key, or gives the pictures of the pipeline's own call."""
    try:
        model = load_model(str(folder), steps=STEPS, guidance=2.0, options=ModelOptions(size=SIZE))
    except RiebenchError as error:
        line = str(error)
        names = [variant.key, variant.base, *(str(value) for value in variant.changes.values() if variant.class_name)]
        assert "\n" not in line and any(name and name in line for name in names), line
        problem = planning_problem(folder)
        assert problem is None or problem in line or "cannot load" in line, (problem, line)
        assert problem is not None or "cannot load" in line, line
        return "refused"
    assert planning_problem(folder) is None
    own = own_pipeline(folder)
    for guidance, count in runs:
        prompts, seeds = PROMPTS[:count], SEEDS[:count]
        wanted = own_pictures(own, prompts, seeds, STEPS, guidance)
        found = Generator(with_guidance(model, guidance)).generate(prompts, seeds).images / 255
        assert found.shape == wanted.shape and np.abs(found - wanted).max() <= WITHIN, (guidance, count)
    check_traces(with_guidance(model, 2.0), own)
    return "obeyed"


def planning_problem(folder: Path) -> str | None:
    """What `--dry-run` and `doctor` say against a folder."""
    options = ModelOptions(size=SIZE)
    try:
        known = look_up(str(folder), steps=STEPS, guidance=2.0, options=options)
    except RiebenchError as error:
        return str(error)
    return next((one.found for one in model_checks(known, options) if one.state == "missing"), None)


def check_traces(model: LoadedModel, own: Any) -> None:
    """Two pictures have two traces, each that of its picture alone, and read from the conditional half."""
    block = next((name for name in model.family.sites(model.denoiser) if "res" not in name), None)
    if block is None:
        return
    both = Generator(model).generate(PROMPTS[:2], SEEDS[:2], capture=Capture((block,))).trace
    assert both.get(block).shape[0] == 2
    module = own.unet.get_submodule(model.family.names.update_path(block))
    seen: list[torch.Tensor] = []
    handle = module.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    own_pictures(own, PROMPTS[1:2], SEEDS[1:2], STEPS, 2.0)
    handle.remove()
    alone = torch.stack([step[-1] for step in seen])
    alone = alone.flatten(2).transpose(1, 2) if alone.dim() == 4 else alone
    assert torch.allclose(both.row(block, 1), alone, atol=1e-3)


ALL = variants()
# Under guidance, three at a time: most that can go wrong does so there. The others are run where it is slow.
CHEAP = [one for one in ALL if not one.base or not one.changes or one.base == USUAL_CLASS]


@pytest.mark.parametrize("variant", CHEAP, ids=str)
def test_what_a_file_states_is_obeyed_or_refused(tmp_path: Path, variant: Variant) -> None:
    check(write_variant(tmp_path / "m", variant), variant, [(2.0, 3)])


@pytest.mark.slow
@pytest.mark.parametrize("variant", ALL, ids=str)
def test_guided_or_not_and_alone_or_not(tmp_path: Path, variant: Variant) -> None:
    check(write_variant(tmp_path / "m", variant), variant, [(2.0, 3), (0.0, 3), (2.0, 1), (0.0, 1)])
