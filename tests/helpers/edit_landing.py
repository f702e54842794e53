"""A check that an edit of a block of one stream lands where it should, under guidance in one batch."""

from __future__ import annotations

import torch
from torch import Tensor

from riebench.generation.edits import Edit, StaticEdit, Term
from riebench.generation.generator import Generator
from riebench.models.loading import LoadedModel


def check_edit_lands(model: LoadedModel, block: str) -> None:
    """Add one to the second picture's block and look at what the block gives: unconditional rows first, by hand."""
    given: list[Tensor] = []
    module = model.denoiser.get_submodule(f"transformer_blocks.{block.split('.')[1]}")
    shape = model.family.shape_of_pipeline(model.pipe)
    ones = torch.ones(model.spec.steps, shape.positions(block, model.spec.size), shape.width(block))
    edit = Edit({block: StaticEdit((Term(torch.arange(ones.shape[1]), ones),))}, branch="conditional")

    def renew(*_: object) -> None:
        # Hooks run in the order in which they were made: this one comes last.
        handles.append(module.register_forward_hook(lambda _module, _args, output: given.append(output)))

    handles = [model.denoiser.register_forward_pre_hook(renew)]
    try:
        Generator(model).generate(["a red house"] * 2, [1, 1], edits=[None, edit])
    finally:
        for handle in handles:
            handle.remove()
    changes = (given[0][1] - given[0][0], given[0][3] - given[0][2])
    for found, wanted in zip(changes, (0.0, 1.0), strict=True):
        assert torch.allclose(found, torch.full_like(found, wanted), atol=1e-4)
