"""Z-Image's family: names, folders, presets, measures, texts of different lengths, and whole runs on a tiny model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import ZImagePipeline, ZImageTransformer2DModel
from tiny_jobs import last_line, records_by_setting
from tiny_runs import NO_EDIT, TARGET, picture, task
from tiny_zimage import (
    BLOCKS,
    FILLED,
    GRID,
    SIZE,
    UNITS,
    WIDTH,
    tiny_zimage,
    tiny_zimage_folder,
    tiny_zimage_saes,
)
from torch import nn
from transformers import Qwen3Config, Qwen3Model
from typer.testing import CliRunner

from benchmarks.sdxl.counting import _cost
from riebench import blocks
from riebench.cli.main import app
from riebench.errors import RiebenchError
from riebench.generation.edits import Edit, StaticEdit, Term, TextChange
from riebench.generation.generator import Capture, Generator
from riebench.generation.transfers import PatchReplacement
from riebench.jobs.dry_run import forecast_job
from riebench.jobs.request import RunRequest
from riebench.jobs.run import run_job
from riebench.models.families.base import Family
from riebench.models.families.blocks import BatchLayout, Site
from riebench.models.families.tokens.zimage import network, shape
from riebench.models.families.tokens.zimage.family import FAMILY, ZImageFamily
from riebench.models.loading import load_model
from riebench.models.lookup import blocks_on_model, look_up
from riebench.models.spec import ModelOptions
from riebench.registry import MODEL_FAMILIES
from riebench.runs import engines
from riebench.saes.files import block_named_by
from riebench.tasks.schema import Setting

PROMPT, LONG, SHORT = "a red house", "two dogs on a hill of snow and fire", "snow"
"""Texts of which the last is filled up to 32 tokens and the others to 64."""
FAMILY_FILES = {Path(file).parts[0]: file for file in FAMILY.config_files}


def copy_of(tmp_path: Path, **changes: Any) -> Path:
    """A copy of the tiny folder with some keys of a file changed: {part: {key: value}}."""
    folder = shutil.copytree(tiny_zimage_folder(), tmp_path / "copy")
    for part, keys in changes.items():
        file = folder / ("model_index.json" if part == "index" else FAMILY_FILES[part])
        file.write_text(json.dumps({**json.loads(file.read_text()), **keys}))
    return folder


def command(*words: str) -> Any:
    return CliRunner().invoke(app, list(words))


@pytest.mark.parametrize(
    ("name", "short", "path"),
    [
        ("layers.12", "layers.12", "layers.12"),
        ("transformer.layers.3", "layers.3", "layers.3"),
        ("layers.3/text", "layers.3/text", "layers.3"),
        ("noise_refiner.1", "refiner.1", "noise_refiner.1"),
        ("transformer.context_refiner.1", "refiner.1/text", "context_refiner.1"),
        ("layers.3.feed_forward.w2", "layers.3.ff.0", "layers.3.feed_forward.w2"),
        ("refiner.0.ff.0", "refiner.0.ff.0", "noise_refiner.0.feed_forward.w2"),
    ],
)
def test_blocks_have_short_names_and_paths(name: str, short: str, path: str, tmp_path: Path) -> None:
    assert blocks.short_name(name) == short and blocks.module_path(name) == path
    assert blocks.block_of(short) == short.split("/")[0].split(".ff")[0]
    folder = tmp_path / f"{name.replace('/', '.')}_k32_hidden64"
    folder.mkdir()
    assert short != blocks.block_of(short) or block_named_by(folder) == short


def test_measures_are_those_of_the_networks() -> None:
    with torch.device("meta"):
        full = ZImageTransformer2DModel()
        qwen = Qwen3Model(
            Qwen3Config(
                hidden_size=2560, intermediate_size=9728, num_hidden_layers=36, num_attention_heads=32,
                num_key_value_heads=8, head_dim=128, vocab_size=151_936,
            )
        )  # fmt: skip
    for part, built in (("transformer", full), ("text_encoder", qwen)):
        assert sum(value.numel() for value in built.parameters()) == shape.PARAMETERS[part]
    assert FAMILY.sites(full) == shape.Z_IMAGE.blocks == FAMILY.names.known
    model = tiny_zimage()
    found, sites = look_up(str(tiny_zimage_folder())).shape, FAMILY.sites(model.denoiser)
    assert found.blocks == sites == BLOCKS and found.native_size == model.spec.size == SIZE
    assert found.parameters["transformer"] == sum(value.numel() for value in model.denoiser.parameters())
    wanted = (*sites, "refiner.0/text", "layers.0/text", "layers.1.ff.0")
    seen = Generator(model).generate([PROMPT], [1], capture=Capture(wanted)).trace
    for site in seen.sites:
        width = found.units("layers.1") if site == "layers.1.ff.0" else found.width(site)
        assert seen.row(site, 0).shape == (2, found.positions(site, SIZE), width)


def test_operations_and_activations_are_those_that_are_counted() -> None:
    spec = look_up("z-image").spec.model_copy(update={"size": 512})
    with torch.device("meta"):
        made = nn.Module.to(ZImageTransformer2DModel(n_layers=2, n_refiner_layers=1), torch.bfloat16)

    def run() -> None:
        with torch.device("meta"):
            latents = [torch.empty(16, 1, 64, 64, dtype=torch.bfloat16)] * 2
            texts = [torch.empty(count, 2560, dtype=torch.bfloat16) for count in (60, 40)]
            made(latents, torch.empty(2), texts, return_dict=False)

    counted = _cost(run)
    small = replace(shape.Z_IMAGE, layers=2, refiners=1, vae_width=1)
    assert 2 * small.evaluation_teraflop(512) == pytest.approx(counted.operations / 1e12, rel=0.02)
    assert small.activation_bytes(spec, ModelOptions(), 1) == pytest.approx(counted.activation_bytes, rel=0.05)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"transformer": {"in_channels": 8}}, "in_channels 8, but latent_channels of vae/config.json is 16"),
        ({"transformer": {"cap_feat_dim": 8}}, "cap_feat_dim 8, but hidden_size of text_encoder/config.json is 16"),
        ({"transformer": {"axes_dims": [4, 4, 3]}}, "three even numbers whose sum is dim 24 by n_heads 2"),
        ({"transformer": {"axes_lens": [500, 512, 512]}}, "the first at least 514"),
        ({"transformer": {"all_patch_size": [4]}}, "Z-Image's pipeline takes patches of 2 and 1"),
        ({"transformer": {"siglip_feat_dim": 8}}, "siglip_feat_dim 8, which is Z-Image Omni's"),
        ({"transformer": {"n_layers": 3}}, "transformer/ lacks .* tensors, such as layers.2"),
        ({"text_encoder": {"intermediate_size": 48}}, r"gives .* the shape \[.*48.*\], but the weights have"),
        ({"text_encoder": {"max_position_embeddings": 100}}, "pipeline reads texts of 512 tokens"),
        (
            {"text_encoder": {"num_key_value_heads": 3}},
            r"text_encoder/config\.json says num_key_value_heads 3; they di",
        ),
        ({"vae": {"shift_factor": None}}, "shift_factor None; Z-Image's pipeline needs a number"),
        ({"scheduler": {"stochastic_sampling": True}}, "noise Z-Image's pipeline draws without the picture's seed"),
        ({"index": {"scheduler": ["diffusers", "DDIMScheduler"]}}, "Z-Image's is FlowMatch"),
        ({"index": {"text_encoder": ["transformers", "T5EncoderModel"]}}, "Z-Image's is a Qwen3Model"),
        ({"index": {"_class_name": "ZImageOmniPipeline"}}, "Z-Image Omni, which reads pictures, too"),
    ],
)
def test_configurations_that_would_not_be_obeyed_are_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(RiebenchError, match=message):
        load_model(str(copy_of(tmp_path, **changes)))


def test_a_tokenizer_without_a_chat_template_is_refused(tmp_path: Path) -> None:
    folder = copy_of(tmp_path)
    (folder / "tokenizer" / "chat_template.jinja").unlink()
    with pytest.raises(RiebenchError, match=r"chat_template\.jinja is missing"):
        load_model(str(folder))


@pytest.mark.parametrize(
    "changes",
    [
        {"vae": {"scaling_factor": 0.7, "shift_factor": -0.4}},
        {"scheduler": {"use_dynamic_shifting": True, "base_shift": 1.0}},
        {"transformer": {"t_scale": 10.0}, "scheduler": {"shift": 7.0}},
        {"tokenizer": {"padding_side": "left"}, "index": {"text_encoder": ["transformers", "Qwen3ForCausalLM"]}},
    ],
    ids=str,
)
def test_configurations_that_are_not_refused_are_obeyed(tmp_path: Path, changes: dict[str, Any]) -> None:
    folder = copy_of(tmp_path, **changes)
    if "index" in changes:
        _with_word_head(folder)
    own = ZImagePipeline.from_pretrained(folder)
    own.set_progress_bar_config(disable=True)
    wanted = own(
        PROMPT, num_inference_steps=2, height=SIZE, width=SIZE, guidance_scale=2.0,
        generator=torch.Generator("cpu").manual_seed(1), output_type="np",
    ).images  # fmt: skip
    generator = Generator(load_model(str(folder), steps=2, guidance=2.0))
    made = generator.generate([PROMPT], [1]).images
    assert np.abs(made / 255 - wanted).max() <= 1 / 255 + 1e-6
    # How the text encoder's files are written and texts are padded changes no picture.
    same = "index" in changes
    assert np.array_equal(made, Generator(tiny_zimage(2, 2.0)).generate([PROMPT], [1]).images) == same
    assert generator.token_positions(PROMPT, "red") == [3, 4, 5]


def _with_word_head(folder: Path) -> None:
    """Writes the text encoder as a whole language model, whose head is its token table."""
    from transformers import Qwen3ForCausalLM

    plain = Qwen3Model.from_pretrained(folder / "text_encoder")
    config = Qwen3Config.from_pretrained(folder / "text_encoder", tie_word_embeddings=True)
    whole = Qwen3ForCausalLM(config)
    whole.model.load_state_dict(plain.state_dict())
    shutil.rmtree(folder / "text_encoder")
    whole.save_pretrained(folder / "text_encoder")


def test_presets_say_what_is_missing_and_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    for name, sampling, evaluations in (("z-image-turbo", (8, 0.0), 8), ("z-image", (50, 4.0), 100)):
        known = look_up(name)
        assert known.family is FAMILY and (known.spec.steps, known.spec.guidance) == sampling
        assert known.shape.calls(known.spec.guidance) * known.spec.steps == evaluations
    assert look_up("Tongyi-MAI/Z-Image-Turbo").shape == shape.Z_IMAGE
    with pytest.raises(RiebenchError, match="transformer") as caught:
        load_model("z-image-turbo", offline=True)
    assert "unet" not in str(caught.value) and ".fp16." not in str(caught.value)
    with pytest.raises(RiebenchError, match="is Z-Image Edit, an editor of pictures"):
        look_up("Tongyi-MAI/Z-Image-Edit")
    shown = command("doctor", "no_edit", "--suite", "sdxl", "--model", "z-image-turbo", "--offline")
    assert "hf download Tongyi-MAI/Z-Image-Turbo" in " ".join(shown.stdout.split())
    assert blocks_on_model("z-image", blocks.default_blocks()) == FAMILY.names.default


def test_usual_steps_and_guidance_follow_from_the_schedule(tmp_path: Path) -> None:
    assert look_up(str(tiny_zimage_folder())).spec.steps == 8
    spec = look_up(str(copy_of(tmp_path, scheduler={"shift": 6.0}))).spec
    assert (spec.steps, spec.guidance) == (50, 4.0)


def test_blocks_are_listed_without_weights() -> None:
    shown = json.loads(command("model", "blocks", str(tiny_zimage_folder()), "--json").stdout)
    assert [one["name"] for one in shown["blocks"]] == list(BLOCKS) and all(one["usual"] for one in shown["blocks"])
    assert {(one["channels"], one["positions"], one["units"]) for one in shown["blocks"]} == {(WIDTH, GRID**2, UNITS)}
    table = command("model", "blocks", "z-image-turbo")
    assert "layers.29" in table.stdout and "20.7 GB in bfloat16" in table.stdout


def test_tokens_are_those_of_the_chat_message() -> None:
    count, limit = FAMILY.token_counter(tiny_zimage_folder())
    model = tiny_zimage()
    generator = Generator(model)
    assert (count(PROMPT), limit) == (35, 512) == (35, FAMILY.token_limit(model.pipe, model.pipe.tokenizer))
    assert generator.embed(PROMPT).conditional["prompt_embeds"].shape == (1, 35, 16)
    assert generator.token_positions("a red red", "red") == [3, 4, 5, 7, 8, 9]
    assert generator.word_positions(SHORT) == [1, 2, 3, 4]
    assert FAMILY.token_counter(None)[0]("a red house") == 3 + 8


def test_nothing_depends_on_the_other_texts_of_a_batch() -> None:
    """A longer text beside it pads a row's sequence, and what fills texts and pictures up is no part of a stream."""
    generator = Generator(tiny_zimage(2, 2.0))
    sites = ("refiner.0", "layers.0", "layers.1", "refiner.0/text", "layers.0/text", "layers.1/text", "layers.1.ff.0")
    wanted = [Capture(sites), Capture(("layers.1",), ("attention",))]
    alone = generator.generate([SHORT], [3], capture=wanted, keep_latents=True)
    beside = generator.generate([SHORT, LONG], [3, 5], capture=wanted, keep_latents=True)
    assert alone.latents is not None and beside.latents is not None
    assert torch.allclose(alone.latents, beside.latents[:1], atol=1e-4)
    for site in sites:
        assert torch.allclose(alone.traces[0].get(site), beside.traces[0].get(site)[:1], atol=1e-3), site
        assert alone.traces[0].get(site).abs().mean() > 1e-2
    texts = beside.traces[0].get("layers.1/text").squeeze(3).abs().amax((1, 2))
    assert [int((row > 0).nonzero().max()) + 1 for row in texts] == [32, 64]
    one, other = (found.traces[1].get("layers.1", "attention") for found in (alone, beside))
    tokens = len(generator.embed(SHORT).conditional["prompt_embeds"][0])
    assert torch.allclose(one[0], other[0, :, :, :tokens], atol=1e-4) and not other[0, :, :, tokens:].any()
    assert torch.allclose(other.sum(-1), torch.ones(()), atol=1e-4)


def test_attention_to_text_is_that_of_the_network() -> None:
    """The layer's own softmax over all tokens, cut to the text's columns and scaled to sum to 1."""
    model = tiny_zimage(1)
    calls: list[tuple[Any, Any]] = []
    layer: Any = model.denoiser.get_submodule("layers.1.attention")
    handle = layer.register_forward_pre_hook(lambda _, args, kwargs: calls.append((args, kwargs)), with_kwargs=True)
    try:
        found = Generator(model).generate([PROMPT], [1], capture=Capture(("layers.1",), ("attention",))).trace
    finally:
        handle.remove()
    ((args, kwargs),) = calls
    hidden, turns = args[0], kwargs["freqs_cis"]
    weights = []
    for head in range(2):
        vectors = []
        for project, norm in ((layer.to_q, layer.norm_q), (layer.to_k, layer.norm_k)):
            values = norm(project(hidden)[0].unflatten(-1, (2, -1))[:, head])
            turned = torch.view_as_complex(values.unflatten(-1, (-1, 2)).contiguous()) * turns[0]
            vectors.append(torch.view_as_real(turned).flatten(1))
        weights.append(torch.softmax(vectors[0] @ vectors[1].T / 12**0.5, -1)[: GRID**2, FILLED : FILLED + 35])
    expected = torch.stack([one / one.sum(-1, keepdim=True) for one in weights]).mean(0)
    assert torch.allclose(found.get("layers.1", "attention")[0, 0], expected, atol=1e-5)


def test_text_is_exchanged_between_the_steps_whatever_its_length() -> None:
    model = tiny_zimage(2, 2.0)
    generator = Generator(model)
    seen: list[Any] = []
    handle = model.denoiser.register_forward_pre_hook(lambda _, args: seen.append(args[2]))
    switch = Edit(text=TextChange(SHORT, switch="last"), strength=0.5)
    try:
        generator.generate([PROMPT] * 2, [1, 2], edits=[None, switch])
    finally:
        handle.remove()
    source, target = (generator.embed(prompt).parts[0][0] for prompt in (PROMPT, SHORT))
    assert [len(text) for text in seen[0]] == [35, 35, 24, 24] and [len(text) for text in seen[1]] == [35, 28, 24, 24]
    assert torch.equal(seen[0][1], source) and torch.equal(seen[1][0], source) and torch.equal(seen[1][1], target)
    whole = generator.generate([PROMPT], [1], edits=[Edit(text=TextChange(SHORT))]).images
    assert np.array_equal(whole, generator.generate([SHORT], [1]).images)
    with pytest.raises(RiebenchError, match="texts differ in length"):
        generator.generate([PROMPT], [1], edits=[Edit(text=TextChange(SHORT), strength=0.5)])


@pytest.mark.parametrize("site", ["refiner.0/text", "layers.0/text"])
def test_a_text_stream_is_read_and_changed_apart_from_the_image_stream(site: str) -> None:
    generator, prompts, block = Generator(tiny_zimage(1)), [PROMPT, SHORT], site.split("/")[0]
    wanted = Capture((site, block), ("input", "output", "update"))
    trace = generator.generate(prompts, [1, 1], capture=wanted).trace
    edit = Edit({site: PatchReplacement(torch.arange(512), trace.row(site, 1))})
    changed = generator.generate(prompts, [1, 1], edits=[edit, None], capture=wanted).trace
    difference = changed.get(site, "output") - changed.get(site, "input")
    # The target's text is filled up to 32 tokens; the update of the others is none.
    assert torch.allclose(difference[0], trace.get(site)[1], atol=1e-4)
    assert not torch.allclose(trace.get(site)[0], trace.get(site)[1], atol=1e-2)
    assert torch.equal(changed.get(block, "output"), trace.get(block, "output"))


def test_units_are_what_enters_the_last_layer_and_are_edited_there() -> None:
    model = tiny_zimage(1, 2.0)
    generator, seen = Generator(model), list[torch.Tensor]()
    layer = model.denoiser.get_submodule("layers.1.feed_forward.w2")
    handle = layer.register_forward_pre_hook(lambda _, args: seen.append(args[0].clone()))
    change = torch.randn(1, GRID**2, UNITS, generator=torch.Generator().manual_seed(2))
    edit = Edit({"layers.1.ff.0": StaticEdit((Term(torch.arange(GRID**2), change),))}, branch="conditional")
    try:
        plain = generator.generate([PROMPT], [1], capture=Capture(("layers.1.ff.0",))).trace
        edited = generator.generate([PROMPT], [1], edits=[edit], capture=Capture(("layers.1.ff.0",))).trace
    finally:
        handle.remove()
    handle.remove()
    assert torch.equal(plain.get("layers.1.ff.0")[0, 0], seen[0][0, : GRID**2])
    difference = edited.get("layers.1.ff.0") - plain.get("layers.1.ff.0")
    assert torch.allclose(difference[0], change, atol=1e-4)
    assert torch.equal(seen[0][1], seen[1][1]) and torch.equal(seen[0][0, GRID**2 :], seen[1][0, GRID**2 :])


@pytest.mark.parametrize("name", ["layers.1", "refiner.0", "layers.1/text"])
def test_a_block_without_its_update_hands_on_what_entered_one_stream(name: str) -> None:
    from riebench.paper.measure import ablate_block

    generator = Generator(tiny_zimage(1))
    other = name.removesuffix("/text") if name.endswith("/text") else f"{name}/text"
    wanted = Capture((name, other), ("input", "output"))
    if name == "refiner.0":
        # The two refiners are two modules.
        wanted = Capture((name,), ("input", "output"))
    with ablate_block(generator.model.denoiser, name, steps=1):
        trace = generator.generate([PROMPT], [1], capture=wanted).trace
    assert torch.equal(trace.get(name, "output"), trace.get(name, "input"))
    assert name == "refiner.0" or not torch.equal(trace.get(other, "output"), trace.get(other, "input"))


METHODS = (
    NO_EDIT,
    TARGET,
    Setting(name="patch", method="activation_patch", blocks=BLOCKS, block_mode="both"),
    Setting(name="text", method="activation_patch", blocks=("layers.0/text", "refiner.0/text")),
    Setting(name="steering", method="mean_steering", blocks=BLOCKS),
    Setting(name="units", method="neurons", params={"n_units": 20}, blocks=BLOCKS),
    Setting(name="replace", method="replace_patches", blocks=("layers.1",)),
    Setting(name="switch", method="prompt_switch", blocks=(), strengths=(0.5,)),
    Setting(name="paste", method="masked_target", blocks=(), strengths=(0.5,)),
    Setting(name="sae", method="sae", params={"n_features": 5}, blocks=BLOCKS, strengths=(5.0,)),
)


def test_methods_that_need_blocks_alone_run_and_a_repetition_makes_nothing(tmp_path: Path) -> None:
    model, made = tiny_zimage(2, 2.0), list[int]()
    original = Generator.generate

    def generate(self: Generator, prompts: Sequence[str], *args: Any, **options: Any) -> Any:
        made.append(len(prompts))
        return original(self, prompts, *args, **options)

    options = {"results_root": tmp_path, "saes_source": str(tiny_zimage_saes()), "progress": False}
    tasks = [task(2, region="house")]
    folders = engines.run("local", tasks, METHODS, model, **options)
    for folder in folders:
        records = folder.records()
        assert [record.status for record in records] == ["ok"] * len(records) and records, folder.path
        for record in records:
            assert record.source_image is not None
            source = folder.shared.read_image(record.source_image).astype(int)
            change = np.abs(picture(folder, record) - source).mean()
            assert (change > 0) == (record.key.block_set != "none" or folder.spec.setting.name != "no_edit")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Generator, "generate", generate)
        engines.run("local", tasks, METHODS, model, **options)
    assert made == []


def test_a_job_makes_what_its_dry_run_says(job: RunRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The configuration names SDXL's usual blocks, which stand for Z-Image's; one region is found by attention."""
    rows: list[int] = []
    plain = ZImageTransformer2DModel.forward

    def forward(self: Any, *inputs: Any, **named: Any) -> Any:
        rows.append(len(inputs[0]))
        return plain(self, *inputs, **named)

    patch = Setting(name="patch", method="activation_patch", access="PAM", block_mode="both")
    mine = replace(job, model=str(tiny_zimage_folder()), settings=("no_edit",), given=(patch,), guidance=0.5, steps=2)
    planned = forecast_job(mine)
    assert planned.per_picture == 4 and planned.denoiser == "transformer"
    monkeypatch.setattr(ZImageTransformer2DModel, "forward", forward)
    run_job(mine, lambda line: None)
    assert sum(rows) == planned.evaluations
    patched = records_by_setting(mine)["patch"]
    assert {record.key.block_set for record in patched} == {*BLOCKS, "all"}
    assert {record.status for record in patched} == {"ok"}


@pytest.mark.parametrize("method", ["ledits_pp", "p2p", "img2img", "embed_lerp"])
def test_methods_that_cannot_work_say_why_before_anything_is_made(tmp_path: Path, method: str) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(f"method: {method}\nblocks: []\naccess: {'PV' if method == 'ledits_pp' else 'P'}\n")
    words = ("run", str(file), "--suite", "toy", "--model", str(tiny_zimage_folder()), "--limit", "1", "--dry-run")
    found = command(*words, "--results", str(tmp_path / "out"))
    assert found.exit_code == 2 and f"{method} cannot be used on Z-Image" in last_line(found)


def test_pictures_larger_than_the_rotary_positions_are_refused() -> None:
    model = tiny_zimage()
    large = replace(model, spec=model.spec.model_copy(update={"size": 8208}))
    with pytest.raises(RiebenchError, match="picture side 8208 is more than 8192"):
        Generator(large).generate([PROMPT], [1])


class FilledPicture(ZImageFamily):
    """Takes what fills the image tokens up for image tokens."""

    def site(self, denoiser: nn.Module, name: str) -> Site:
        made: Any = super().site(denoiser, name)
        lengths = type("Filled", (network.Lengths,), {"image": property(lambda _: FILLED)})
        return replace(made, lengths=lengths())


class TextFirst(ZImageFamily):
    """Takes the first tokens for the text and the last ones for the picture."""

    def site(self, denoiser: nn.Module, name: str) -> Site:
        made: Any = super().site(denoiser, name)
        return type("Last", (type(made),), {"stream": lambda _, output: output[:, -(GRID**2) :]})(
            made.module, made.point, made.place, transformer=denoiser
        )  # fmt: skip


class HalvesSwapped(ZImageFamily):
    """Takes the first half of the batch for the unconditional one."""

    def layout(self, guided: bool) -> BatchLayout:
        return BatchLayout(guided)


def check_edit_lands() -> None:
    """An edit of the second of three rows is added to its image tokens in the conditional half, which comes first."""
    model, seen = tiny_zimage(1, 2.0), list[torch.Tensor]()
    generator = Generator(replace(model))
    values = torch.randn(1, GRID**2, WIDTH, generator=torch.Generator().manual_seed(2))
    edit = Edit({"layers.1": StaticEdit((Term(torch.arange(GRID**2), values),))}, branch="conditional")
    for edits in (None, [None, edit, None]):
        # The block is looked at from within the call, so that the edit's own hook comes before.
        begin = model.denoiser.register_forward_pre_hook(lambda *_: seen_after(model.denoiser, seen))
        try:
            generator.generate([PROMPT, LONG, SHORT], [1, 2, 3], edits=edits)
        finally:
            begin.remove()
    wanted = torch.zeros_like(seen[0])
    wanted[1, : GRID**2] = values[0]
    assert torch.allclose(seen[1] - seen[0], wanted, atol=1e-4)


def check_capture() -> None:
    """As many image tokens are captured as the picture has."""
    found = Generator(replace(tiny_zimage(1, 2.0))).generate([PROMPT], [1], capture=Capture(("layers.1",))).trace
    assert found.row("layers.1", 0).shape == (1, GRID**2, WIDTH)


def seen_after(denoiser: nn.Module, seen: list[torch.Tensor]) -> None:
    """Keep what layer 1 gives in the call that begins."""
    block = denoiser.get_submodule("layers.1")

    def keep(_module: nn.Module, _args: Any, output: torch.Tensor) -> None:
        seen.append(output)
        handle.remove()

    handle = block.register_forward_hook(keep)


@pytest.mark.parametrize("check", [check_edit_lands, check_capture], ids=lambda one: one.__name__)
def test_edits_and_captures_are_those_of_the_image_tokens(check: Callable[[], None]) -> None:
    check()


@pytest.mark.parametrize(
    ("wrong", "check"),
    [(FilledPicture, check_capture), (TextFirst, check_edit_lands), (HalvesSwapped, check_edit_lands)],
    ids=lambda one: one.__name__,
)
def test_wrong_adapters_are_found(
    wrong: type[Family], check: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(MODEL_FAMILIES._objects, "zimage", wrong())
    with pytest.raises((AssertionError, RiebenchError, RuntimeError, IndexError)):
        check()
