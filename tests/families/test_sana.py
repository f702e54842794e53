"""SANA's and SANA-Sprint's families: names, folders, measures, text behind the instruction, units, whole runs."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderDC, SanaPipeline, SanaSprintPipeline, SanaTransformer2DModel
from edit_landing import check_edit_lands
from tiny_jobs import last_line
from tiny_runs import NO_EDIT, TARGET, picture, task
from tiny_sana import GRID, LAYERS, SIZE, UNITS, WIDTH, tiny_autoencoder, tiny_sana, tiny_sana_folder, tiny_sana_saes
from torch import nn
from transformers import Gemma2Config, Gemma2Model
from typer.testing import CliRunner

from benchmarks.sdxl.counting import _cost
from riebench import blocks
from riebench.cli.main import app
from riebench.errors import RiebenchError
from riebench.generation.edits import Edit, LatentChange, StaticEdit, Term, TextChange, mix_embeddings
from riebench.generation.generator import Capture, Generator
from riebench.generation.hooks import find_site
from riebench.models.families.blocks import BatchLayout
from riebench.models.families.tokens.cross_attention.attention import attention_map
from riebench.models.families.tokens.cross_attention.sana import shape
from riebench.models.families.tokens.cross_attention.sana.family import FAMILY, SPRINT_FAMILY, SanaFamily
from riebench.models.families.tokens.cross_attention.sana.pipeline import instruction
from riebench.models.loading import load_model
from riebench.models.lookup import blocks_on_model, look_up
from riebench.models.parts import put_autoencoder
from riebench.models.spec import ModelOptions
from riebench.registry import MODEL_FAMILIES
from riebench.runs import engines
from riebench.saes.files import block_named_by
from riebench.saes.formats import choose_checkpoints, folder_name
from riebench.saes.sources import load_sources, parse_sources
from riebench.tasks.schema import Setting

ALL = ("block.0", "block.1")
FILES = {Path(file).parts[0]: file for file in FAMILY.config_files}


def copy_of(tmp_path: Path, sprint: bool, changes: dict[str, dict[str, Any]]) -> Path:
    """A copy of a tiny folder with some keys of a file changed: {part: {key: value}}."""
    folder = shutil.copytree(tiny_sana_folder(sprint=sprint), tmp_path / "copy")
    for part, keys in changes.items():
        file = folder / ("model_index.json" if part == "index" else FILES[part])
        file.write_text(json.dumps({**json.loads(file.read_text()), **keys}))
    return folder


def test_blocks_have_names_that_hold_beside_other_families() -> None:
    names = FAMILY.names
    for name, short in (
        ("transformer_blocks.3", "block.3"), ("transformer.transformer_blocks.3", "block.3"), ("block.3", "block.3"),
        ("transformer_blocks.3.ff.conv_point", "block.3.ff.0"), ("block.3/text", None), ("single.3", None),
    ):  # fmt: skip
        assert names.short_name(name) == short
    assert blocks.kind("block.3") == "attention" and blocks.kind("block.3.ff.0") == "units"
    assert blocks.same_block("block.3", "double.3") and not blocks.same_block("block.3", "single.3")
    assert blocks.as_named("transformer_blocks.3", ["block.2", "block.3"]) == "block.3"
    assert find_site(tiny_sana().denoiser, "transformer_blocks.1").module is find_site(
        tiny_sana().denoiser, "block.1").module  # fmt: skip
    assert blocks_on_model(str(tiny_sana_folder()), ("double.1", "block.0")) == ("block.1", "block.0")


@pytest.mark.parametrize("named", ["block.1", "transformer_blocks.1", "transformer.transformer_blocks.1_k9_hidden8"])
def test_saes_are_found_by_short_and_by_long_names(tmp_path: Path, named: str) -> None:
    kept = tiny_sana_saes() / folder_name("block.1", WIDTH, 2 * WIDTH)
    assert block_named_by(kept) == "block.1"
    place = tmp_path / named
    shutil.copytree(kept, place)
    assert choose_checkpoints(tmp_path, ["block.1"]) == {"block.1": place / "final"}
    stated = load_sources(parse_sources(f"{named.split('_k')[0]}={place}"), ["block.1"])
    assert stated["block.1"].block in (None, "block.1")


def test_measures_are_those_of_the_networks() -> None:
    small = {"num_attention_heads": 36, "num_layers": 28, "num_cross_attention_heads": 16,
             "cross_attention_head_dim": 72, "cross_attention_dim": 1152}  # fmt: skip
    distilled = {"guidance_embeds": True, "qk_norm": "rms_norm_across_heads"}

    def count(network: nn.Module) -> int:
        return sum(value.numel() for value in network.parameters())

    with torch.device("meta"):
        for known, keys in ((shape.SANA, {}), (shape.SPRINT_SMALL, {**small, **distilled})):
            network = SanaTransformer2DModel(**keys)
            assert count(network) == known.parameters["transformer"] and FAMILY.sites(network) == known.blocks
            read = shape.config_shape(network.config, {})
            assert replace(read, parameters=known.parameters) == known
        assert count(Gemma2Model(Gemma2Config())) == shape.GEMMA_PARAMETERS
        kinds = ("ResBlock",) * 3 + ("EfficientViTBlock",) * 3
        vae = AutoencoderDC(encoder_block_types=kinds, decoder_block_types=kinds, upsample_block_type="interpolate",
                            downsample_block_type="conv")  # fmt: skip
        assert count(vae) == shape.VAE_PARAMETERS
    assert (shape.SANA.positions("block.0", 512), shape.SANA.positions("block.0", 1024)) == (256, 1024)
    model = tiny_sana()
    found, sites = look_up(str(tiny_sana_folder())).shape, FAMILY.sites(model.denoiser)
    assert found.blocks == sites == ALL and found.native_size == model.spec.size == SIZE
    seen = Generator(model).generate(["a"], [1], capture=Capture((*sites, "block.1.ff.0"))).trace
    for site in seen.sites:
        width = found.units("block.1") if site.endswith("ff.0") else found.width(site)
        assert seen.row(site, 0).shape == (2, found.positions(site, SIZE), width)


@pytest.mark.parametrize("sprint", [False, True])
def test_operations_and_activations_are_those_that_are_counted(sprint: bool) -> None:
    keys = {"num_attention_heads": 12, "num_layers": 2, "num_cross_attention_heads": 3,
            "cross_attention_head_dim": 128, "cross_attention_dim": 384, "guidance_embeds": sprint}  # fmt: skip
    with torch.device("meta"):
        network = nn.Module.to(SanaTransformer2DModel(**keys), torch.bfloat16)

    def run() -> None:
        with torch.device("meta"):
            sides = {"hidden_states": (1, 32, 16, 16), "encoder_hidden_states": (1, 300, 2304)}
            inputs = {name: torch.empty(side, dtype=torch.bfloat16) for name, side in sides.items()}
            scale = {"guidance": torch.empty(1, dtype=torch.bfloat16)} if sprint else {}
            network(**inputs, **scale, timestep=torch.empty(1), encoder_attention_mask=torch.empty(1, 300))

    counted = _cost(run)
    small = replace(shape.config_shape(network.config, {}), vae_width=0)
    assert small.evaluation_teraflop(512) == pytest.approx(counted.operations / 1e12, rel=0.05)
    spec = look_up("sana-sprint" if sprint else "sana").spec.model_copy(update={"size": 512, "guidance": 0.0})
    assert small.activation_bytes(spec, ModelOptions(), 1) == pytest.approx(counted.activation_bytes, rel=0.1)
    guided = spec.model_copy(update={"guidance": 4.5})
    ratio = small.activation_bytes(guided, ModelOptions(), 1) / small.activation_bytes(spec, ModelOptions(), 1)
    assert ratio == pytest.approx(1 if sprint else 2, rel=0.01) == small.calls(4.5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"transformer": {"in_channels": 8, "out_channels": 8}}, "in_channels 8, but latent_channels of vae/con"),
        ({"transformer": {"caption_channels": 8}}, "caption_channels 8, but hidden_size of text_encoder/config.json"),
        ({"transformer": {"cross_attention_dim": 8}}, "cross_attention_dim 8, but the text is projected to 16"),
        ({"transformer": {"patch_size": 2}}, "patch_size 2; a token of SANA is one latent position"),
        ({"transformer": {"guidance_embeds": True}}, "guidance_embeds true, but SANA's pipeline tells"),
        ({"transformer": {"out_channels": None}}, "says out_channels None and in_channels 4; SANA's are 4 or 8"),
        ({"transformer": {"num_attention_heads": 4, "cross_attention_dim": 32}}, r"the shape \[.*32.*\], but"),
        ({"transformer": {"num_layers": 3}}, "lacks .* tensors, such as transformer_blocks.2"),
        (
            {"text_encoder": {"num_key_value_heads": 2}},
            r"text_encoder/config\.json says num_key_value_heads 2; they di",
        ),
        ({"vae": {"scaling_factor": 0}}, "scaling_factor 0; it is a number other than 0"),
        ({"vae": {"decoder_block_out_channels": [8, 8]}}, "gives the encoder 3 levels and the decoder 2"),
        ({"scheduler": {"use_beta_sigmas": True}}, "DPMSolverMultistepScheduler .* not finite"),
        ({"scheduler": {"solver_type": "none"}}, "cannot be used for 2 steps: none is not implemented"),
        ({"index": {"scheduler": ["diffusers", "DDIMScheduler"]}}, "says scheduler DDIMScheduler; SANA's is DPM"),
        ({"index": {"text_encoder": ["transformers", "T5EncoderModel"]}}, "SANA's is a Gemma2Model"),
    ],
    ids=lambda one: str(one)[:60],
)
def test_configurations_that_would_not_be_obeyed_are_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(RiebenchError, match=message):
        load_model(str(copy_of(tmp_path, False, changes)), steps=2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"transformer": {"guidance_embeds": False}}, "guidance_embeds false, but SANA-Sprint's pipeline tells"),
        ({"scheduler": {"prediction_type": "epsilon"}}, r"SCMScheduler .* Unsupported parameterization: epsilon"),
        ({"index": {"scheduler": ["diffusers", "DPMSolverMultistepScheduler"]}}, "SANA-Sprint's is SCMScheduler"),
        ({"index": {"_class_name": "SanaPAGPipeline"}}, "SANA with perturbed-attention guidance"),
    ],
    ids=lambda one: str(one)[:60],
)
def test_configurations_of_sprint_are_refused_likewise(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RiebenchError, match=message):
        load_model(str(copy_of(tmp_path, True, changes)), steps=2)


@pytest.mark.parametrize(
    ("sprint", "steps", "guidance", "changes"),
    [
        (False, 2, 3.0, {"vae": {"scaling_factor": 0.9}}),
        (False, 2, 0.0, {"scheduler": {"flow_shift": 1.0}}),
        (False, 2, 3.0, {"scheduler": {"algorithm_type": "sde-dpmsolver++"}}),
        (False, 2, 0.0, {"transformer": {"timestep_scale": 0.2}}),
        (True, 3, 4.5, {"transformer": {"guidance_embeds_scale": 0.9}}),
    ],
    ids=str,
)
def test_configurations_that_are_not_refused_are_obeyed(
    tmp_path: Path, sprint: bool, steps: int, guidance: float, changes: dict[str, Any]
) -> None:
    folder = copy_of(tmp_path, sprint, changes)
    own = (SanaSprintPipeline if sprint else SanaPipeline).from_pretrained(folder)
    own.set_progress_bar_config(disable=True)
    more = {"intermediate_timesteps": None} if sprint and steps != 2 else {}
    wanted = own(
        "Snow", num_inference_steps=steps, height=SIZE, width=SIZE, guidance_scale=guidance,
        use_resolution_binning=False, generator=torch.Generator("cpu").manual_seed(1), output_type="np", **more,
    ).images  # fmt: skip
    made = Generator(load_model(str(folder), steps=steps, guidance=guidance)).generate(["Snow"], [1]).images
    usual = Generator(tiny_sana(steps, guidance, sprint=sprint)).generate(["Snow"], [1]).images
    assert np.abs(made / 255 - wanted).max() <= 1 / 255 + 1e-6 and not np.array_equal(made, usual)


def test_words_are_found_behind_the_instruction() -> None:
    """The text encoder is exchanged for one that gives each token's number, so that the pipeline's choice shows."""
    model = tiny_sana()
    pipe, prompt = model.pipe, "  A Red HOUSE, a house"

    class Numbers:
        dtype = torch.float32

        def __call__(self, ids: torch.Tensor, attention_mask: torch.Tensor) -> tuple[torch.Tensor]:
            return (ids[..., None].float(),)

    shown = SimpleNamespace(**{name: getattr(pipe, name) for name in ("tokenizer", "_text_preprocessing")})
    shown.text_encoder = Numbers()
    shown._get_gemma_prompt_embeds = lambda **keys: SanaPipeline._get_gemma_prompt_embeds(shown, **keys)
    read, mask, *_ = SanaPipeline.encode_prompt(
        shown, prompt, False, device=torch.device("cpu"), complex_human_instruction=instruction(pipe)
    )
    assert read.shape[1] == 300
    generator = Generator(model)
    for words, text in (("house", ["house", "house"]), ("red", ["red"]), ("A Red HOUSE", ["a red house"])):
        places = generator.token_positions(prompt, words)
        letters = "".join(pipe.tokenizer.convert_ids_to_tokens([int(read[0, place]) for place in places]))
        assert letters == "".join(text) and bool(mask[0, places].all())
    longest = "x" * (FAMILY.token_limit(pipe, pipe.tokenizer) - 1)
    assert FAMILY.count_tokens(pipe, longest) == FAMILY.token_limit(pipe, pipe.tokenizer) == 299
    assert len(generator.token_positions(longest, longest)) == 298
    assert len(generator.token_positions(longest + "yz", longest + "yz")) < 300
    assert FAMILY.token_counter(tiny_sana_folder())[0]("A house") == 8 and FAMILY.token_counter(None)[1] == 299


def test_attention_is_that_of_the_layer_with_its_mask() -> None:
    layer: Any = tiny_sana().denoiser.get_submodule("transformer_blocks.0.attn2")
    generator = torch.Generator().manual_seed(0)
    hidden, text = (torch.randn(2, count, WIDTH, generator=generator) for count in (5, 7))
    mask = torch.zeros(2, 1, 7)
    mask[1, :, 4:] = -10000.0
    query, key = (layer.head_to_batch_dim(part) for part in (layer.to_q(hidden), layer.to_k(text)))
    wanted = layer.get_attention_scores(query, key, mask.repeat_interleave(layer.heads, 0))
    found = attention_map(layer, (hidden,), {"encoder_hidden_states": text, "attention_mask": mask})
    assert torch.allclose(found, wanted.unflatten(0, (2, layer.heads)).mean(1), atol=1e-6)
    assert float(found[1, :, 4:].max()) == 0 < float(found[0, :, 4:].min())


def test_units_are_the_gated_values_and_are_changed_where_they_enter_the_last_layer() -> None:
    model = tiny_sana(1)
    generator, seen = Generator(model), []
    layer = model.denoiser.get_submodule("transformer_blocks.1.ff.conv_depth")
    handle = layer.register_forward_hook(lambda _module, _args, output: seen.append(output))
    units = generator.generate(["snow"], [1], capture=Capture(("block.1.ff.0",))).trace.row("block.1.ff.0", 0)[0]
    handle.remove()
    values, gate = seen[0][0].chunk(2)
    assert torch.equal(units, (values * torch.nn.functional.silu(gate)).flatten(1).T)
    assert FAMILY.unit_layers(model.denoiser.get_submodule("transformer_blocks.1")) == 1 and units.shape[1] == UNITS
    plain = generator.generate(["snow"], [1], keep_latents=True).latents
    where = torch.arange(GRID**2)
    for size in (0.0, 1.0):
        edit = Edit({"block.1.ff.0": StaticEdit((Term(where, size * units[None]),))})
        result = generator.generate(["snow"], [1], edits=[edit], keep_latents=True).latents
        assert plain is not None and result is not None and torch.equal(result, plain) == (size == 0.0)


def test_text_and_its_mask_are_exchanged_between_the_steps() -> None:
    model = tiny_sana(2, 3.0)
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
    negative = generator.embed("a house").negative["negative_prompt_attention_mask"]
    for step, (states, mask) in enumerate(seen):
        for found, one, other in zip((states, mask), source, target, strict=True):
            assert torch.equal(found[2], one[0]) and torch.equal(found[3], other[0] if step else one[0])
        assert torch.equal(mask[:2], negative.repeat(2, 1))
    mixed = mix_embeddings(source, target, 0.5)
    assert torch.equal(mixed[1], torch.maximum(source[1], target[1])) and not torch.equal(mixed[1], source[1])
    whole = generator.generate(["a house"], [1], edits=[Edit(text=TextChange("a very blue dog"))]).images
    assert np.array_equal(whole, generator.generate(["a very blue dog"], [1]).images)


def test_what_is_pasted_after_the_last_step_of_sprint_is_seen() -> None:
    generator = Generator(tiny_sana(2, 4.5, sprint=True))
    runs = generator.generate(["a red house", "a blue dog"], [1, 1], keep_latents=True)
    assert runs.latents is not None
    paste = LatentChange(runs.latents[0], runs.latents[1], torch.ones(GRID, GRID, dtype=torch.bool))
    made = generator.generate(["a red house"], [1], edits=[Edit(latents=paste, window=(1, 2))]).images
    assert np.abs(made[0].astype(int) - runs.images[1]).max() <= 1
    assert not np.array_equal(runs.images[0], runs.images[1])


def test_autoencoders_are_exchanged_and_decode_in_tiles() -> None:
    model = load_model(str(tiny_sana_folder()), steps=1)
    plain = Generator(model).generate(["snow"], [1]).images
    FAMILY.set_tiling(model.pipe, 16)
    tiled = Generator(model).generate(["snow"], [1]).images
    assert tiled.shape == plain.shape and not np.array_equal(tiled, plain)
    assert np.abs(tiled.astype(int) - plain).mean() < 10
    put_autoencoder(model.pipe, tiny_autoencoder(decoder_act_fns="relu"))
    assert model.pipe.vae_scale_factor == 4
    pixels = torch.rand(1, 3, SIZE, SIZE) * 2 - 1
    model = tiny_sana()
    latents = FAMILY.encode(model.pipe, pixels, torch.device("cpu"))
    assert torch.allclose(latents, model.pipe.vae.encode(pixels).latent * 0.41407)
    assert FAMILY.decode(model.pipe, latents).shape == pixels.shape


METHODS = (
    NO_EDIT,
    TARGET,
    Setting(name="patch", method="activation_patch", blocks=ALL, block_mode="both"),
    Setting(name="steering", method="mean_steering", blocks=ALL),
    Setting(name="units", method="neurons", params={"n_units": 10}, blocks=ALL),
    Setting(name="replace", method="replace_patches", blocks=("block.1",)),
    Setting(name="mixture", method="embed_lerp", blocks=(), strengths=(0.5,)),
    Setting(name="paste", method="masked_target", blocks=(), strengths=(0.5,)),
    Setting(name="sae", method="sae", params={"n_features": 5}, blocks=ALL, strengths=(5.0,)),
)


@pytest.mark.parametrize("sprint", [False, True])
def test_methods_that_need_blocks_alone_run(tmp_path: Path, sprint: bool) -> None:
    model = tiny_sana(2, 4.5 if sprint else 3.0, sprint=sprint)
    options = {"results_root": tmp_path, "saes_source": str(tiny_sana_saes()), "progress": False}
    for folder in engines.run("local", [task(1, region="house")], METHODS, model, **options):
        records = folder.records()
        assert [record.status for record in records] == ["ok"] * len(records) and records, folder.path
        for record in records:
            assert record.source_image is not None
            change = np.abs(picture(folder, record) - folder.shared.read_image(record.source_image).astype(int)).mean()
            assert (change > 0) == (folder.spec.setting.name != "no_edit"), folder.spec.setting.name


class PositiveFirst(SanaFamily):
    """Takes the first half of a batch for the conditional one."""

    def layout(self, guided: bool) -> BatchLayout:
        return BatchLayout(guided, ("conditional", "unconditional"))


def test_an_adapter_with_the_halves_exchanged_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_sana(2, 3.0)
    check_edit_lands(model, "block.1")
    monkeypatch.setitem(MODEL_FAMILIES._objects, "sana", PositiveFirst())
    with pytest.raises(AssertionError):
        check_edit_lands(replace(model), "block.1")


def test_what_cannot_work_says_why(tmp_path: Path) -> None:
    file = tmp_path / "p2p.yaml"
    file.write_text("method: p2p\nblocks: []\naccess: P\n")
    words = ("--suite", "toy", "--model", str(tiny_sana_folder()), "--limit", "1", "--dry-run")
    found = CliRunner().invoke(app, ["run", str(file), *words])
    assert found.exit_code == 2 and "p2p cannot be used on SANA (" in last_line(found)
    with pytest.raises(RiebenchError, match=r"img2img cannot be used on SANA-Sprint: .* counts the steps"):
        SPRINT_FAMILY.editing_pipeline("img2img", None)


def test_presets_are_planned_without_their_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    for preset in (*FAMILY.presets, *SPRINT_FAMILY.presets):
        known = look_up(preset.name)
        assert known.shape.native_size == preset.size and known.shape is shape.SHAPES[preset.name]
        assert known.shape.calls(known.spec.guidance) == (1 if "sprint" in preset.name else 2)
        assert known.family.name == preset.family == look_up(preset.source).family.name
    shown = CliRunner().invoke(app, ["model", "blocks", "sana-512"])
    assert shown.exit_code == 0 and "block.19" in shown.stdout and "block.20" not in shown.stdout
    assert len(look_up(str(tiny_sana_folder(sprint=True))).shape.blocks) == LAYERS
