"""Single files of token models, held against the folders that they were written from."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from sdxl_files import plain_folder
from tiny_flux import tiny_flux_folder
from tiny_jobs import last_line
from tiny_pixart import tiny_pixart_folder
from tiny_qwen import tiny_qwen_folder
from tiny_sana import tiny_sana_folder
from tiny_sd3 import tiny_sd3_folder
from tiny_zimage import tiny_zimage_folder
from token_files import PREFIX, PUBLISHED, Tensors, part_tensors, single_file

from riebench.errors import RiebenchError
from riebench.generation.generator import Generator
from riebench.models.loading import LoadedModel, load_model
from riebench.models.lookup import blocks_of, look_up
from riebench.models.spec import ModelOptions

FOLDERS: dict[str, Callable[[], Path]] = {
    "flux": lambda: tiny_flux_folder(), "sd3": tiny_sd3_folder, "sana": lambda: tiny_sana_folder(),
    "zimage": tiny_zimage_folder, "qwen": tiny_qwen_folder,
}  # fmt: skip
SIZES = {"qwen": 32}
"""Sides of pictures of models that do not say theirs."""
everywhere = pytest.mark.parametrize("family", FOLDERS)


def options(family: str, folder: Path | None = None, **more: Any) -> ModelOptions:
    return ModelOptions(size=SIZES.get(family), config=None if folder is None else str(folder), **more)


def without(folder: Path, copy: Path, *parts: str) -> Path:
    """A copy of a folder without the weights of some parts."""
    shutil.copytree(folder, copy)
    for part in parts:
        for file in (copy / part).glob("*.safetensors"):
            file.unlink()
    return copy


def same(one: LoadedModel, other: LoadedModel) -> bool:
    """Whether all networks of two models have the same numbers in the same formats."""
    networks = zip(one.family.networks(one.pipe), other.family.networks(other.pipe), strict=True)
    states = [tuple(one.state_dict() | dict(one.named_buffers()) for one in pair) for pair in networks]
    return all(
        a.keys() == b.keys() and all(a[name].dtype == b[name].dtype and torch.equal(a[name], b[name]) for name in a)
        for a, b in states
    )


def same_picture(one: LoadedModel, other: LoadedModel) -> bool:
    found = [Generator(model).generate(["a red house"], [3]).images for model in (one, other)]
    return bool((found[0] == found[1]).all())


@lru_cache(maxsize=8)
def own(family: str, dtype: str = "float32") -> LoadedModel:
    return load_model(str(FOLDERS[family]()), steps=1, dtype=dtype, options=options(family))


@pytest.mark.parametrize("prefix", ["", PREFIX], ids=["bare", "prefixed"])
@everywhere
def test_a_transformer_alone_gives_the_folders_picture(tmp_path: Path, family: str, prefix: str) -> None:
    folder = without(FOLDERS[family](), tmp_path / "folder", "transformer")
    file = single_file(tmp_path / "one.safetensors", folder=FOLDERS[family](), family=family, prefix=prefix)
    made = load_model(str(file), steps=1, options=options(family, folder))
    assert same(made, own(family)) and same_picture(made, own(family))
    assert made.spec.source == file.name and made.spec.name == "one-steps1" + ("-px32" if family in SIZES else "")
    planned = look_up(str(file), steps=1, options=options(family, folder))
    assert planned.family is made.family
    assert planned.spec == made.spec.model_copy(update={"revision": None, "source": planned.spec.source})
    assert planned.shape.blocks == blocks_of(str(file)) == made.family.shape_of_folder(FOLDERS[family]()).blocks
    assert planned.shape.width(planned.shape.blocks[0]) == own(family).family.update_width(made.denoiser, "")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@everywhere
def test_number_formats_are_those_of_folders(tmp_path: Path, family: str, dtype: str) -> None:
    file = single_file(tmp_path / "one.safetensors", folder=FOLDERS[family](), family=family)
    made = load_model(str(file), steps=1, dtype=dtype, options=options(family, FOLDERS[family]()))
    assert same(made, own(family, dtype)) and made.pipe.vae.dtype == torch.float32


@everywhere
def test_names_of_diffusers_are_read_too(tmp_path: Path, family: str) -> None:
    folder = FOLDERS[family]()
    file = single_file(tmp_path / "one.safetensors", folder=folder, family="named", prefix=PREFIX)
    assert same(load_model(str(file), steps=1, options=options(family, folder)), own(family))
