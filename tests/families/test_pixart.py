"""PixArt-Sigma's family: folders, measures, text and latents between the steps, whole runs on a tiny model."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, PixArtSigmaPipeline, PixArtTransformer2DModel
from edit_landing import check_edit_lands
from tiny_pixart import SIZE, tiny_pixart, tiny_pixart_folder
from tiny_runs import NO_EDIT, picture, task
from torch import nn

from benchmarks.sdxl.counting import _cost
from riebench.errors import RiebenchError
from riebench.generation.edits import Edit, TextChange
from riebench.generation.generator import Capture, Generator
from riebench.models.families.blocks import Site
from riebench.models.families.tokens.cross_attention.pixart import shape
from riebench.models.families.tokens.cross_attention.pixart.family import FAMILY, PixArtFamily
from riebench.models.families.tokens.streams import TokenSite, place_of
from riebench.models.loading import load_model
from riebench.models.lookup import look_up
from riebench.models.spec import ModelOptions
from riebench.registry import MODEL_FAMILIES
from riebench.runs import engines
from riebench.tasks.schema import Setting

ALL = ("block.0", "block.1")
FILES = {Path(file).parts[0]: file for file in FAMILY.config_files}


def copy_of(tmp_path: Path, changes: dict[str, dict[str, Any]]) -> Path:
    """A copy of the tiny folder with some keys of a file changed: {part: {key: value}}."""
    folder = shutil.copytree(tiny_pixart_folder(), tmp_path / "copy")
    for part, keys in changes.items():
        file = folder / ("model_index.json" if part == "index" else FILES[part])
        file.write_text(json.dumps({**json.loads(file.read_text()), **keys}))
    return folder


def test_measures_are_those_of_the_networks() -> None:
    with torch.device("meta"):
        network = PixArtTransformer2DModel(caption_channels=4096, use_additional_conditions=False)
        vae = AutoencoderKL(
            block_out_channels=(128, 256, 512, 512), layers_per_block=2, down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
        )  # fmt: skip
    for part, built in (("transformer", network), ("vae", vae)):
        assert sum(value.numel() for value in built.parameters()) == shape.PIXART.parameters[part]
    assert shape.config_shape(network.config, vae.config) == shape.PIXART
    assert FAMILY.sites(network) == shape.PIXART.blocks == FAMILY.names.known
    model = tiny_pixart()
    found = look_up(str(tiny_pixart_folder())).shape
    assert found.blocks == FAMILY.sites(model.denoiser) == ALL and found.native_size == model.spec.size == SIZE
    seen = Generator(model).generate(["a"], [1], capture=Capture((*ALL, "block.1.ff.0"))).trace
    for site in seen.sites:
        width = found.units("block.1") if site.endswith("ff.0") else found.width(site)
        assert seen.row(site, 0).shape == (2, found.positions(site, SIZE), width)
    for preset in FAMILY.presets:
        known = look_up(preset.name)
        assert known.family is FAMILY and known.shape.native_size == preset.size and known.shape.calls(4.5) == 2


def test_operations_and_activations_are_those_that_are_counted() -> None:
    with torch.device("meta"):
        network = nn.Module.to(
            PixArtTransformer2DModel(
                num_attention_heads=6, cross_attention_dim=432, num_layers=2, caption_channels=1024, sample_size=64
            ),
            torch.bfloat16,
        )

    def run() -> None:
        with torch.device("meta"):
            latents = torch.empty(1, 4, 64, 64, dtype=torch.bfloat16)
            text = torch.empty(1, 300, 1024, dtype=torch.bfloat16)
            network(latents, text, torch.empty(1), {"resolution": None, "aspect_ratio": None},
                    encoder_attention_mask=torch.empty(1, 300))  # fmt: skip

    counted = _cost(run)
    small = replace(shape.config_shape(network.config, {"block_out_channels": (0,) * 4}), vae_width=0)
    assert small.evaluation_teraflop(512) == pytest.approx(counted.operations / 1e12, rel=0.05)
    spec = look_up("pixart-sigma").spec.model_copy(update={"size": 512, "guidance": 0.0})
    assert small.activation_bytes(spec, ModelOptions(), 1) == pytest.approx(counted.activation_bytes, rel=0.1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"transformer": {"use_additional_conditions": True}}, "use_additional_conditions True, but PixArt-Sigma"),
        ({"transformer": {"use_additional_conditions": None, "sample_size": 128}}, "tells the transformer no size"),
        ({"transformer": {"out_channels": None}}, "out_channels None and in_channels 4; PixArt-Sigma's are 8 or 4"),
        ({"transformer": {"caption_channels": 8}}, "caption_channels 8, but d_model of text_encoder/config.json is 12"),
        ({"transformer": {"cross_attention_dim": 8}}, "cross_attention_dim 8, but the text is projected to 16"),
        ({"vae": {"shift_factor": 0.1}}, "shift_factor 0.1, which PixArt-Sigma's pipeline leaves out"),
        ({"vae": {"scaling_factor": 0}}, "scaling_factor 0"),
        ({"scheduler": {"variance_type": "learned"}}, "cannot be used for 2 steps: The size of tensor"),
        ({"scheduler": {"final_sigmas_type": "none"}}, "DPMSolverMultistepScheduler .* cannot be used for 2 steps"),
        ({"index": {"_class_name": "PixArtAlphaPipeline"}}, "PixArt-alpha, which is told the size of the picture"),
    ],
    ids=lambda one: str(one)[:60],
)
def test_configurations_that_would_not_be_obeyed_are_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(RiebenchError, match=message):
        load_model(str(copy_of(tmp_path, changes)), steps=2)


@pytest.mark.parametrize(
    ("guidance", "changes"),
    [
        (0.0, {"vae": {"scaling_factor": 0.3}}),
        (3.0, {"scheduler": {"algorithm_type": "sde-dpmsolver++", "solver_order": 1}}),
        (0.0, {"index": {"scheduler": ["diffusers", "DDIMScheduler"]}, "scheduler": {"_class_name": "DDIMScheduler"}}),
    ],
    ids=str,
)
def test_configurations_that_are_not_refused_are_obeyed(
    tmp_path: Path, guidance: float, changes: dict[str, Any]
) -> None:
    folder = copy_of(tmp_path, changes)
    own = PixArtSigmaPipeline.from_pretrained(folder)
    own.set_progress_bar_config(disable=True)
    wanted = own(
        "Snow", num_inference_steps=2, height=SIZE, width=SIZE, guidance_scale=guidance,
        use_resolution_binning=False, generator=torch.Generator("cpu").manual_seed(1), output_type="np",
        clean_caption=False,
    ).images  # fmt: skip
    made = Generator(load_model(str(folder), steps=2, guidance=guidance)).generate(["Snow"], [1]).images
    usual = Generator(tiny_pixart(2, guidance)).generate(["Snow"], [1]).images
    assert np.abs(made / 255 - wanted).max() <= 1 / 255 + 1e-6 and not np.array_equal(made, usual)


def test_words_are_found_in_lower_case() -> None:
    model = tiny_pixart()
    prompt, tokenizer = "  A Red HOUSE", model.pipe.tokenizer
    read = tokenizer("a red house", padding="max_length", max_length=300).input_ids
    places = Generator(model).token_positions(prompt, "house")
    assert tokenizer.convert_ids_to_tokens([read[place] for place in places]) == list("house")
    assert Generator(model).embed(prompt).conditional["prompt_embeds"].shape == (1, 300, 12)
    # A letter that is two in lower case moves those behind it.
    odd = tokenizer("\u0130 red".lower(), padding="max_length", max_length=300).input_ids
    moved = Generator(model).token_positions("\u0130 red", "red")
    assert tokenizer.convert_ids_to_tokens([odd[place] for place in moved]) == list("red")


def test_text_is_exchanged_in_the_calls_of_the_transformer() -> None:
    model = tiny_pixart(2, 3.0)
    generator, seen = Generator(model), []
    plain = model.denoiser.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        seen.append((kwargs["encoder_hidden_states"], kwargs["encoder_attention_mask"]))
        return plain(*args, **kwargs)

    switch = Edit(text=TextChange("a very blue dog", switch="last"), strength=0.5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(model.denoiser.__dict__, "forward", forward)
        generator.generate(["a house"] * 2, [1, 2], edits=[None, switch])
    source, target = (generator.embed(prompt).parts for prompt in ("a house", "a very blue dog"))
    for step, found in enumerate(seen):
        for values, one, other in zip(found, source, target, strict=True):
            assert torch.equal(values[2], one[0]) and torch.equal(values[3], other[0] if step else one[0])
            assert not torch.equal(values[0], one[0]) and torch.equal(values[0], values[1])
    whole = generator.generate(["a house"], [1], edits=[Edit(text=TextChange("a very blue dog"))]).images
    assert np.array_equal(whole, generator.generate(["a very blue dog"], [1]).images)


METHODS = (
    NO_EDIT,
    Setting(name="patch", method="activation_patch", blocks=ALL, block_mode="both"),
    Setting(name="units", method="neurons", params={"n_units": 10}, blocks=ALL),
    Setting(name="mixture", method="embed_lerp", blocks=(), strengths=(0.5,)),
    Setting(name="paste", method="masked_target", params={"widen": 1.0}, blocks=()),
)


def test_methods_that_need_blocks_alone_run_and_latents_are_pasted(tmp_path: Path) -> None:
    options: dict[str, Any] = {"results_root": tmp_path, "progress": False}
    for folder in engines.run("local", [task(1, region="house")], METHODS, tiny_pixart(2, 3.0), **options):
        records = folder.records()
        assert [record.status for record in records] == ["ok"] * len(records) and records, folder.path
        for record in records:
            assert record.source_image is not None and record.target_image is not None
            source, target = (folder.shared.read_image(one).astype(int)
                              for one in (record.source_image, record.target_image))  # fmt: skip
            made, name = picture(folder, record), folder.spec.setting.name
            assert (np.abs(made - source).mean() > 0) == (name != "no_edit"), name
            # With a mask as wide as the picture, pasting after every step gives the target picture.
            assert np.abs(made - target).max() <= 1 or name != "paste"


class LayerForBlock(PixArtFamily):
    """Changes what a block's feed-forward layer gives, which a gate scales afterwards, for what the block gives."""

    def site(self, denoiser: nn.Module, name: str) -> Site:
        module = denoiser.get_submodule(self.names.module_path(name))
        return TokenSite(module, module.get_submodule("ff"), place_of(module, "image"))


def test_an_adapter_at_another_place_of_a_block_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_pixart(2, 3.0)
    check_edit_lands(model, "block.1")
    monkeypatch.setitem(MODEL_FAMILIES._objects, "pixart", LayerForBlock())
    with pytest.raises(AssertionError):
        check_edit_lands(replace(model), "block.1")
