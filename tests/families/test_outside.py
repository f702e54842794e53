"""Families of other people's packages: found, used as their own, and without effect on the families that ship."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import outside_cases
import pytest
from tiny_flux import tiny_flux, tiny_flux_folder
from tiny_runs import NO_EDIT, picture, task
from torch import nn
from typer.testing import CliRunner

from riebench import blocks, registry
from riebench.cli.main import app
from riebench.errors import RiebenchError
from riebench.models.families.base import family_of_denoiser
from riebench.models.families.listing import list_blocks
from riebench.models.families.tokens import streams
from riebench.models.families.tokens.streams import StreamPlace
from riebench.models.files import family_of_folder
from riebench.models.loading import load_model
from riebench.models.lookup import look_up
from riebench.models.presets import PRESETS
from riebench.registry import MODEL_FAMILIES
from riebench.runs.runner import run_benchmark
from riebench.tasks.schema import Setting

DERIVED = '''
from diffusers import FluxPipeline
from riebench.models.families.flux.family import FluxFamily

class AcmePipeline(FluxPipeline):
    """A pipeline of its own on FLUX's transformer."""

class AcmeFamily(FluxFamily):
    name = "acme"
    title = "Acme"
    pipeline_class = "AcmePipeline"
    presets = ()
    repositories = ("acme/",)

    def pipeline_type(self):
        return AcmePipeline

FAMILY = AcmeFamily()
'''
GREEDY = '''
from riebench.models.families.flux.family import FluxFamily
from riebench.models.families.tokens.names import BlockList, TokenNames
from riebench.models.families.tokens.weights import NetworkClass

class GreedyFamily(FluxFamily):
    """Claims FLUX's pipeline, its words for blocks at another path, and a preset's name."""
    name = "aaa"
    names = TokenNames([
        BlockList("double", "other_blocks", 19, "ff.net.0"),
        BlockList("single", "single_transformer_blocks", 38, "act_mlp"),
    ])
    networks_of_parts = {**FluxFamily.networks_of_parts, "text_encoder": NetworkClass("UMT5EncoderModel", "UMT5Config")}
    refused_methods = {}

FAMILY = GreedyFamily()
'''


def _forget() -> None:
    registry._installed.cache_clear()
    blocks._find.cache_clear()
    vars(PRESETS).pop("_found", None)


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str], None]]:
    """Put a package with one family on the path, as pip would, for one test."""
    site, put = tmp_path / "site", []

    def with_package(name: str, code: str) -> None:
        info = site / f"{name}_family-1.0.dist-info"
        info.mkdir(parents=True)
        (site / f"{name}_family.py").write_text(code)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}-family\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[riebench.model_families]\n{name} = {name}_family:FAMILY\n")
        monkeypatch.syspath_prepend(str(site))
        put.append(name)
        _forget()

    yield with_package
    for name in put:
        MODEL_FAMILIES._objects.pop(name, None)
        MODEL_FAMILIES._failed.pop(name, None)
        sys.modules.pop(f"{name}_family", None)
    _forget()


@pytest.fixture
def acme(install: Callable[[str, str], None], tmp_path: Path) -> Path:
    """A folder of the derived family's pipeline, its package installed."""
    install("acme", DERIVED)
    folder = shutil.copytree(tiny_flux_folder(), tmp_path / "acme-tiny")
    index = folder / "model_index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), "_class_name": "AcmePipeline"}))
    return folder


def test_a_family_of_a_package_is_found_listed_and_edited(acme: Path, tmp_path: Path) -> None:
    shown = json.loads(CliRunner().invoke(app, ["model", "blocks", str(acme), "--json"]).stdout)
    assert shown["family"] == "Acme" and [one["name"] for one in shown["blocks"]][:2] == ["double.0", "double.1"]
    model = load_model(str(acme), steps=2)
    # The class of the transformer is FLUX's, and the pipeline's derives from FLUX's: what is nearest decides.
    assert type(model.pipe).__name__ == "AcmePipeline"
    assert model.family.name == family_of_denoiser(model.denoiser).name == "acme"
    own = tiny_flux()
    assert own.family.name == family_of_denoiser(own.denoiser).name == "flux"
    patch = Setting(name="patch", method="activation_patch", blocks=("single.1",))
    none, patched = run_benchmark([task(1)], [NO_EDIT, patch], model, results_root=tmp_path / "out", progress=False)
    (plain,), (edited,) = none.records(), patched.records()
    assert plain.status == edited.status == "ok" and patched.spec.packages == {"acme-family": "1.0"}
    assert np.abs(picture(none, plain) - picture(patched, edited)).max() > 0


def test_a_family_of_a_package_changes_nothing_of_those_that_ship(install: Callable[[str, str], None]) -> None:
    install("aaa", GREEDY)
    family = MODEL_FAMILIES.get("aaa")
    assert family_of_folder(tiny_flux_folder(), "model").name == "flux"
    assert blocks.module_path("double.3") == "transformer_blocks.3"
    assert blocks.long_name("double.3") == "transformer.transformer_blocks.3"
    # Its own blocks are shown where they are.
    spec = tiny_flux().spec
    assert list_blocks(family, family.full_shape, spec, here=False).blocks[0].path == "other_blocks.0"
    taken = "the package aaa-family 1.0 takes the name of the model preset 'toy-dit'"
    with pytest.raises(RiebenchError, match=taken):
        len(PRESETS)


def test_a_package_that_fails_is_named_where_its_family_is_missed(
    install: Callable[[str, str], None], tmp_path: Path
) -> None:
    install("broken", "import nowhere_to_be_found\n")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model_index.json").write_text(json.dumps({"_class_name": "BrokenPipeline"}))
    why = "left out: model family 'broken' of the package broken-family 1.0 is unusable: ModuleNotFoundError"
    for ask in (
        lambda: look_up(str(tmp_path / "model")), lambda: look_up("broken-preset"),
        lambda: family_of_denoiser(nn.Linear(1, 1)), lambda: blocks.short_name("broken.1"),
    ):  # fmt: skip
        with pytest.raises(RiebenchError, match=why):
            ask()


def test_what_token_families_share_holds_for_those_of_packages(install: Callable[[str, str], None]) -> None:
    install("aaa", GREEDY)
    family: Any = MODEL_FAMILIES.get("aaa")
    # Relatives of T5 have two names of one table as well, of which files hold one.
    family.check_names("text_encoder", {"shared.weight"}, {"shared.weight", "encoder.embed_tokens.weight"}, "model")
    with pytest.raises(RiebenchError, match="img2img cannot be used on"):
        family.editing_pipeline("img2img", None)


class OwnBlock(nn.Module):
    """A block of a class that riebench does not know."""


def test_a_package_says_where_its_blocks_have_their_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "STREAMS", dict(streams.STREAMS))
    with pytest.raises(RiebenchError, match="where OwnBlock gives its image stream is not known"):
        streams.place_of(OwnBlock(), "image")
    place = StreamPlace("tokens", 0, None)
    streams.add_streams("OwnBlock", {"image": place})
    streams.add_streams("OwnBlock", {"image": place})
    assert streams.place_of(OwnBlock(), "image") == place
    with pytest.raises(RiebenchError, match="known already, at other places"):
        streams.add_streams("FluxTransformerBlock", {"image": place})


def test_the_suite_takes_cases_from_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(outside_cases, "_module", outside_cases._module.__wrapped__)
    monkeypatch.delenv(outside_cases.VARIABLE, raising=False)
    assert outside_cases.outside_cases(dict, 2) == outside_cases.wrong_families() == ()
    (tmp_path / "beside_the_case.py").write_text("NAME = 'acme guided'\n")
    file = tmp_path / "case_acme.py"
    file.write_text("from beside_the_case import NAME\nWRONG = [int]\ndef cases(case, steps):\n"
                    "    return [case(name=NAME, steps=steps)]\n")  # fmt: skip
    monkeypatch.setenv(outside_cases.VARIABLE, str(file))
    assert outside_cases.outside_cases(dict, 2) == ({"name": "acme guided", "steps": 2},)
    assert outside_cases.wrong_families() == (int,)
    monkeypatch.setenv(outside_cases.VARIABLE, str(tmp_path / "absent.py"))
    with pytest.raises(FileNotFoundError, match=r"absent\.py: there is no such Python file"):
        outside_cases.outside_cases(dict, 2)
