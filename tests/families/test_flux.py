"""FLUX's family: names, folders, presets, measures, text between the steps, and whole runs on a tiny model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, FluxPipeline, FluxTransformer2DModel
from tiny_flux import GRID, SIZE, TOKENS, WIDTH, tiny_flux, tiny_flux_folder, tiny_flux_saes
from tiny_jobs import last_line, records_by_setting
from tiny_runs import NO_EDIT, TARGET, picture, task
from torch import nn
from typer.testing import CliRunner

from benchmarks.sdxl.counting import _cost
from riebench import blocks
from riebench.api.models import load_saes
from riebench.cli.main import app
from riebench.errors import RiebenchError
from riebench.generation.edits import Edit, TextChange
from riebench.generation.generator import Capture, Generator
from riebench.generation.transfers import PairedEdit, PatchReplacement
from riebench.jobs.dry_run import forecast_job
from riebench.jobs.request import RunRequest
from riebench.jobs.run import run_job
from riebench.models.families.flux import shape
from riebench.models.families.flux.family import FAMILY
from riebench.models.loading import LoadedModel, load_model
from riebench.models.lookup import blocks_on_model, look_up, usual_blocks_of
from riebench.models.spec import ModelOptions
from riebench.runs import engines
from riebench.saes.files import block_named_by
from riebench.scoring.verify import verify
from riebench.store.folder import find_run_folders
from riebench.tasks.schema import Setting
from riebench.tasks.suites import load_suite
from riebench.training.collect import CollectOptions, collect

ALL = ("double.0", "double.1", "single.0", "single.1")


def copy_of(tmp_path: Path, **changes: Any) -> Path:
    """A copy of the tiny folder with some keys of a file changed: {part: {key: value}}."""
    folder = shutil.copytree(tiny_flux_folder(), tmp_path / "copy")
    for part, keys in changes.items():
        file = folder / ("model_index.json" if part == "index" else FAMILY_FILES[part])
        file.write_text(json.dumps({**json.loads(file.read_text()), **keys}))
    return folder


FAMILY_FILES = {Path(file).parts[0]: file for file in FAMILY.config_files}


def command(*words: str) -> Any:
    return CliRunner().invoke(app, list(words))


@pytest.mark.parametrize(
    ("name", "short", "path"),
    [
        ("double.18", "double.18", "transformer_blocks.18"),
        ("transformer_blocks.18", "double.18", "transformer_blocks.18"),
        ("transformer.single_transformer_blocks.9", "single.9", "single_transformer_blocks.9"),
        ("double.3/text", "double.3/text", "transformer_blocks.3"),
        ("transformer.transformer_blocks.3.ff.net.0", "double.3.ff.0", "transformer_blocks.3.ff.net.0"),
        ("single_transformer_blocks.9.act_mlp", "single.9.ff.0", "single_transformer_blocks.9.act_mlp"),
    ],
)
def test_blocks_have_short_names_and_paths(name: str, short: str, path: str) -> None:
    assert blocks.short_name(name) == short and blocks.module_path(name) == path
    assert blocks.block_of(short) == short.split("/")[0].split(".ff")[0]


def test_names_that_are_nearly_blocks_are_refused_with_the_nearest() -> None:
    with pytest.raises(RiebenchError, match=r"unknown block 'dobule.18' \(did you mean 'double.18'"):
        blocks.short_name("dobule.18")
    for name in (
        "double.3.ff.1",
        "transformer_blocks.3.act_mlp",
        "single_transformer_blocks.3.ff.net.0",
        "double.3/txt",
    ):
        with pytest.raises(RiebenchError, match="unknown block"):
            blocks.short_name(name)
    with pytest.raises(RiebenchError, match=r"one of 'single\.0' to 'single\.37'"):
        blocks.short_name("single")
    kinds = [blocks.kind(name) for name in ("double.1", "double.1/text", "single.1.ff.0")]
    assert kinds == ["attention", "text", "units"]


@pytest.mark.parametrize(
    "folder",
    ["double.18", "transformer_blocks.18", "transformer.transformer_blocks.18_k32_hidden12288", "double.18.pt"],
)
def test_folders_of_saes_are_named_for_blocks(tmp_path: Path, folder: str) -> None:
    place = tmp_path / folder
    if place.suffix == ".pt":
        place.write_bytes(b"")
    else:
        place.mkdir()
    assert block_named_by(place) == "double.18"


def test_measures_are_those_of_the_networks() -> None:
    with torch.device("meta"):
        full = [FluxTransformer2DModel(guidance_embeds=guided) for guided in (False, True)]
        vae = AutoencoderKL(
            block_out_channels=(128, 256, 512, 512), latent_channels=16, layers_per_block=2, use_quant_conv=False,
            down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
            use_post_quant_conv=False,
        )  # fmt: skip
    for network, known in zip(full, (shape.FLUX, shape.FLUX_DEV), strict=True):
        assert sum(value.numel() for value in network.parameters()) == known.parameters["transformer"]
        assert FAMILY.sites(network) == known.blocks == FAMILY.names.known
    assert sum(value.numel() for value in vae.parameters()) == shape.PARAMETERS["vae"]
    model = tiny_flux()
    found, sites = look_up(str(tiny_flux_folder())).shape, FAMILY.sites(model.denoiser)
    assert found.blocks == sites == ALL and found.native_size == model.spec.size == SIZE
    assert found.parameters["transformer"] == sum(value.numel() for value in model.denoiser.parameters())
    seen = Generator(model).generate(["a"], [1], capture=Capture((*sites, "double.0/text", "single.1.ff.0"))).trace
    for site in seen.sites:
        width = found.units("single.1") if site == "single.1.ff.0" else found.width(site)
        assert seen.row(site, 0).shape == (2, found.positions(site, SIZE), width)


def test_operations_and_activations_are_those_that_are_counted() -> None:
    spec = look_up("flux-schnell").spec.model_copy(update={"size": 512})
    tokens, places = 256, 1024
    with torch.device("meta"):
        network = nn.Module.to(FluxTransformer2DModel(num_layers=1, num_single_layers=2), torch.bfloat16)

    def run() -> None:
        with torch.device("meta"):
            wide = {"hidden_states": (1, places, 64), "encoder_hidden_states": (1, tokens, 4096),
                    "pooled_projections": (1, 768), "timestep": (1,)}  # fmt: skip
            inputs = {name: torch.empty(sides, dtype=torch.bfloat16) for name, sides in wide.items()}
            network(**inputs, img_ids=torch.empty(places, 3), txt_ids=torch.empty(tokens, 3))

    counted = _cost(run)
    small = replace(shape.FLUX, double=1, single=2, vae_width=1)
    assert small.evaluation_teraflop(512) == pytest.approx(counted.operations / 1e12, rel=0.02)
    assert small.activation_bytes(spec, ModelOptions(), 1) == pytest.approx(counted.activation_bytes, rel=0.05)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"transformer": {"in_channels": 64}},
            r"says in_channels 64, but 4 times latent_channels of vae/config.json is 16",
        ),
        (
            {"transformer": {"joint_attention_dim": 8}},
            "joint_attention_dim 8, but d_model of text_encoder_2/config.json",
        ),
        ({"transformer": {"axes_dims_rope": [4, 4, 2]}}, "three even numbers whose sum is attention_head_dim 12"),
        ({"transformer": {"patch_size": 2}}, "patch_size 2; FLUX's pipeline packs latents itself"),
        ({"transformer": {"num_attention_heads": 3}}, r"gives .* the shape \[.*36.*\], but the weights have"),
        (
            {"transformer": {"num_single_layers": 3}},
            "transformer/ lacks .* tensors, such as single_transformer_blocks.2",
        ),
        ({"vae": {"shift_factor": None}}, "shift_factor None; FLUX's pipeline needs a number"),
        ({"scheduler": {"stochastic_sampling": True}}, "noise FLUX's pipeline draws without the picture's seed"),
        ({"index": {"scheduler": ["diffusers", "DDIMScheduler"]}}, "says scheduler DDIMScheduler; FLUX's is FlowMatch"),
        ({"index": {"text_encoder_2": ["transformers", "CLIPTextModel"]}}, "FLUX's is a T5EncoderModel"),
        ({"index": {"transformer": ["my_code", "FluxTransformer2DModel"]}}, "code of a model's own is not run"),
    ],
)
def test_configurations_that_would_not_be_obeyed_are_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(RiebenchError, match=message):
        load_model(str(copy_of(tmp_path, **changes)))


@pytest.mark.parametrize(
    "changes",
    [
        {"vae": {"scaling_factor": 0.7, "shift_factor": -0.4}},
        {"scheduler": {"shift": 2.5}},
        {"scheduler": {"shift_terminal": 0.3}},
        {"scheduler": {"use_dynamic_shifting": True, "base_shift": 1.0}},
        {"tokenizer_2": {"model_max_length": 9}},
        {"text_encoder_2": {"layer_norm_epsilon": 0.5}},
    ],
    ids=str,
)
def test_configurations_that_are_not_refused_are_obeyed(tmp_path: Path, changes: dict[str, Any]) -> None:
    folder = copy_of(tmp_path, **changes)
    own = FluxPipeline.from_pretrained(folder)
    own.set_progress_bar_config(disable=True)
    tokens = changes.get("tokenizer_2", {}).get("model_max_length", TOKENS)
    wanted = own(
        "a red house on a hill", num_inference_steps=2, height=SIZE, width=SIZE, max_sequence_length=tokens,
        generator=torch.Generator("cpu").manual_seed(1), output_type="np",
    ).images  # fmt: skip
    made = Generator(load_model(str(folder), steps=2, guidance=0.0)).generate(["a red house on a hill"], [1]).images
    usual = Generator(tiny_flux()).generate(["a red house on a hill"], [1]).images
    assert np.abs(made / 255 - wanted).max() <= 1 / 255 + 1e-6 and not np.array_equal(made, usual)


def test_attention_in_slices_is_refused() -> None:
    with pytest.raises(RiebenchError, match="--attention sliced is for U-Nets; the transformer of"):
        load_model(str(tiny_flux_folder()), options=ModelOptions(attention="sliced"))


def test_sides_are_multiples_of_a_token() -> None:
    for action in (load_model, look_up):
        with pytest.raises(RiebenchError, match="picture side 34 is no multiple of 4"):
            action(str(tiny_flux_folder()), options=ModelOptions(size=34))


def test_a_folder_is_known_by_its_class_before_weights_are_missed(tmp_path: Path) -> None:
    folder = copy_of(tmp_path)
    for file in folder.glob("transformer/*.safetensors"):
        file.unlink()
    found = command("run", "no_edit", "--suite", "toy", "--model", str(folder), "--limit", "1", "--offline")
    assert found.exit_code == 2 and "transformer" in last_line(found) and "unet" not in found.stderr


def test_presets_say_what_is_missing_and_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    for name, sampling, evaluations in (("flux-schnell", (4, 0.0), 4), ("flux-dev", (28, 3.5), 28)):
        known = look_up(name)
        assert known.family is FAMILY and (known.spec.steps, known.spec.guidance) == sampling
        assert known.shape.calls(known.spec.guidance) * known.spec.steps == evaluations
        needs = FAMILY.downloads[name]
        stored = sum(2 * known.shape.parameters[part] for part in FAMILY.parts)
        assert stored < needs.download_bytes("bfloat16") < 1.001 * stored
    assert look_up("black-forest-labs/FLUX.1-dev").shape == shape.FLUX_DEV
    with pytest.raises(RiebenchError, match="transformer") as caught:
        load_model("flux-schnell", offline=True)
    assert "unet" not in str(caught.value) and ".fp16." not in str(caught.value)
    with pytest.raises(RiebenchError, match=r"FLUX.1-Fill-dev is FLUX Fill, an inpainting model"):
        look_up("black-forest-labs/FLUX.1-Fill-dev")
    shown = command("doctor", "no_edit", "--suite", "sdxl", "--model", "flux-schnell", "--offline")
    assert "hf download black-forest-labs/FLUX.1-schnell" in " ".join(shown.stdout.split())


def test_blocks_are_listed_without_weights() -> None:
    shown = json.loads(command("model", "blocks", str(tiny_flux_folder()), "--json").stdout)
    assert [one["name"] for one in shown["blocks"]] == list(ALL) and all(one["usual"] for one in shown["blocks"])
    assert {(one["channels"], one["positions"], one["units"]) for one in shown["blocks"]} == {
        (WIDTH, GRID**2, 4 * WIDTH)
    }
    table = command("model", "blocks", "flux-schnell")
    assert "single.37" in table.stdout and "33.9 GB in bfloat16" in table.stdout
    assert command("model", "blocks", "sdxl-turbo").exit_code == 0


def test_usual_blocks_of_configurations_are_those_of_the_model() -> None:
    folder, usual = str(tiny_flux_folder()), blocks.default_blocks()
    assert usual_blocks_of(folder) == blocks_on_model(folder, usual) == ALL
    assert blocks_on_model("flux-schnell", usual) == ("double.18", "single.9")
    assert blocks_on_model("sdxl-turbo", usual) == blocks_on_model("no-such-model", usual) == usual
    assert blocks_on_model(folder, ("mid.0",)) == ("mid.0",)


def test_a_number_of_tokens_is_the_tokenizers_or_that_of_the_model() -> None:
    count, limit = FAMILY.token_counter(tiny_flux_folder())
    model = tiny_flux()
    assert (count("a red house"), limit) == (12, TOKENS) == (12, FAMILY.token_limit(model.pipe, model.pipe.tokenizer_2))
    assert FAMILY.token_counter(None)[1] == 256
    assert Generator(model).embed("a red house").conditional["prompt_embeds"].shape == (1, TOKENS, 16)


def test_all_text_is_exchanged_between_the_steps() -> None:
    """The pipeline holds the pooled text fixed; riebench exchanges it, too."""
    model = tiny_flux()
    generator = Generator(model)
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    switch = Edit(text=TextChange("a blue dog", switch="last"), strength=0.5)
    with texts_of_calls(model, seen):
        generator.generate(["a red house"] * 2, [1, 2], edits=[None, switch])
    source, target = (generator.embed(prompt).parts for prompt in ("a red house", "a blue dog"))
    for step, (embeds, pooled) in enumerate(seen):
        wanted = target if step == 1 else source
        assert torch.equal(embeds[1:], wanted[0]) and torch.equal(pooled[1:], wanted[1])
        assert torch.equal(embeds[:1], source[0]) and torch.equal(pooled[:1], source[1])
    whole = generator.generate(["a red house"], [1], edits=[Edit(text=TextChange("a blue dog"))]).images
    assert np.array_equal(whole, generator.generate(["a blue dog"], [1]).images)


@contextmanager
def texts_of_calls(model: LoadedModel, seen: list[tuple[torch.Tensor, torch.Tensor]]) -> Iterator[None]:
    """The texts that the network itself is called with, after all hooks."""
    network = model.denoiser
    plain = network.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        seen.append((kwargs["encoder_hidden_states"], kwargs["pooled_projections"]))
        return plain(*args, **kwargs)

    network.__dict__["forward"] = forward
    try:
        yield
    finally:
        del network.__dict__["forward"]


def test_a_text_stream_is_read_and_changed_apart_from_the_image_stream() -> None:
    generator, prompts = Generator(tiny_flux(1)), ["a red house", "a blue dog"]
    sites = ("double.0/text", "double.0")
    trace = generator.generate(prompts, [1, 1], capture=Capture(sites, ("input", "output", "update"))).trace
    assert trace.get(sites[0]).shape == (2, 1, WIDTH, 1, TOKENS)
    edit = Edit({sites[0]: PatchReplacement(torch.arange(TOKENS), trace.row(sites[0], 1))})
    changed = generator.generate(
        prompts, [1, 1], edits=[edit, None], capture=Capture(sites, ("input", "output", "update"))
    ).trace
    difference = changed.get(sites[0], "output") - changed.get(sites[0], "input")
    assert torch.allclose(difference[0], trace.get(sites[0])[1], atol=1e-4)
    assert not torch.allclose(trace.get(sites[0])[0], trace.get(sites[0])[1], atol=1e-2)
    assert torch.equal(changed.get(sites[1], "output"), trace.get(sites[1], "output"))


@pytest.mark.parametrize("name", ["double.1", "single.0", "double.1/text"])
def test_a_block_without_its_update_hands_on_what_entered_one_stream(name: str) -> None:
    model = tiny_flux(1)
    site, calls = FAMILY.site(model.denoiser, name), []
    handle = site.module.register_forward_hook(
        lambda _module, args, kwargs, output: calls.append((args, kwargs, output)), with_kwargs=True
    )
    try:
        Generator(model).generate(["a red house"], [1])
    finally:
        handle.remove()
    ((args, kwargs, output),) = calls
    text, image = site.bypass(args, kwargs, output)
    changed, kept = (text, image) if name.endswith("/text") else (image, text)
    entered = kwargs["encoder_hidden_states" if name.endswith("/text") else "hidden_states"]
    assert torch.equal(changed, entered) and torch.equal(kept, output[1 if name.endswith("/text") else 0])
    made = FAMILY.finish_block(
        site.module, kwargs["hidden_states"], output[1].float() - kwargs["hidden_states"].float()
    )
    assert torch.allclose(made[1], output[1], atol=1e-5)


def test_units_copied_between_runs_are_the_same_in_both_calls_of_a_step() -> None:
    generator = Generator(tiny_flux(1, 3.0))
    seen: list[torch.Tensor] = []
    layer = generator.model.denoiser.get_submodule("transformer_blocks.1.ff.net.2")
    handle = layer.register_forward_pre_hook(lambda _module, args: seen.append(args[0].clone()))
    places, units = torch.arange(GRID**2), torch.arange(30)
    copied = PairedEdit(places, places, units, units)
    edit = Edit({"double.1.ff.0": copied}, branch="all", pair=("a red house", "a blue dog"))
    try:
        generator.generate(["a red house"], [1], edits=[edit])
    finally:
        handle.remove()
    conditional, unconditional = (values[0] - values[1] for values in seen)
    assert conditional[:, :30].std() > 0.1 and torch.all(conditional[:, 30:] == 0)
    assert torch.allclose(conditional, unconditional, atol=1e-5)


METHODS = (
    NO_EDIT,
    TARGET,
    Setting(name="patch", method="activation_patch", blocks=ALL, block_mode="both"),
    Setting(name="text", method="activation_patch", blocks=("double.0/text",)),
    Setting(name="steering", method="mean_steering", blocks=ALL),
    Setting(name="units", method="neurons", params={"n_units": 20}, blocks=ALL),
    Setting(name="replace", method="replace_patches", blocks=("double.1",)),
    Setting(name="switch", method="prompt_switch", blocks=(), strengths=(0.5,)),
    Setting(name="mixture", method="embed_lerp", blocks=(), strengths=(0.5,)),
    Setting(name="paste", method="masked_target", blocks=(), strengths=(0.5,)),
    Setting(name="wrong", method="wrong_example", blocks=ALL),
    Setting(name="sae", method="sae", params={"n_features": 5}, blocks=ALL, strengths=(5.0,)),
    Setting(name="random", method="random_features", params={"n_features": 5}, blocks=ALL, strengths=(5.0,)),
)


@pytest.mark.parametrize("guidance", [0.0, 3.0])
def test_methods_that_need_blocks_alone_run_and_a_repetition_makes_nothing(tmp_path: Path, guidance: float) -> None:
    model, made = tiny_flux(2, guidance), []
    original = Generator.generate

    def generate(self: Generator, prompts: Sequence[str], *args: Any, **options: Any) -> Any:
        made.append(len(prompts))
        return original(self, prompts, *args, **options)

    options = {"results_root": tmp_path, "saes_source": str(tiny_flux_saes()), "progress": False}
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
    before = {folder.path: [record.image for record in folder.records()] for folder in folders}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Generator, "generate", generate)
        again = engines.run("local", tasks, METHODS, model, **options)
    assert made == [] and before == {folder.path: [record.image for record in folder.records()] for folder in again}


def test_a_job_makes_what_its_dry_run_says_on_every_block(job: RunRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The configuration names SDXL's usual blocks, which stand for FLUX's; one region is found by joint attention."""
    rows: list[int] = []
    plain = FluxTransformer2DModel.forward

    def forward(self: Any, **inputs: Any) -> Any:
        rows.append(inputs["hidden_states"].shape[0])
        return plain(self, **inputs)

    patch = Setting(name="patch", method="activation_patch", access="PAM", block_mode="both")
    flux = replace(job, model=str(tiny_flux_folder()), settings=("no_edit",), given=(patch,), guidance=3.0)
    planned = forecast_job(flux)
    assert planned.per_picture == 4 and planned.denoiser == "transformer"
    monkeypatch.setattr(FluxTransformer2DModel, "forward", forward)
    run_job(flux, lambda line: None)
    assert sum(rows) == planned.evaluations
    patched = records_by_setting(flux)["patch"]
    assert {record.key.block_set for record in patched} == {*ALL, "all"}
    assert [record.status for record in patched] == ["ok"] * 10


def test_features_are_in_the_blocks_that_all_stands_for(job: RunRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FAMILY.names, "default", ("double.1", "single.1"))
    setting = Setting(name="sae", method="sae", params={"n_features": 5}, access="PAM", strengths=(2.0,))
    flux = replace(job, model=str(tiny_flux_folder()), settings=(), given=(setting,), sae=str(tiny_flux_saes()))
    run_job(flux, lambda line: None)
    (folder,) = find_run_folders(flux.results)
    assert {record.key.block_set for record in folder.records()} == {"all"}
    assert all(set(record.features) == {"double.1", "single.1"} for record in folder.records())
    found = verify(folder.path, load_suite(flux.suite))
    assert not [line for line in found.findings if "features" in line]


@pytest.mark.parametrize("method", ["ledits_pp", "p2p", "img2img"])
def test_methods_that_cannot_work_say_why_before_anything_is_made(tmp_path: Path, method: str) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(f"method: {method}\nblocks: []\naccess: {'PV' if method == 'ledits_pp' else 'P'}\n")
    words = ("run", str(file), "--suite", "toy", "--model", str(tiny_flux_folder()), "--limit", "1")
    for more in ((), ("--dry-run",)):
        found = command(*words, "--results", str(tmp_path / "out"), *more)
        assert found.exit_code == 2 and f"{method} cannot be used on FLUX.1" in last_line(found)
    assert not (tmp_path / "out").exists()


def test_saes_are_collected_trained_and_used(tmp_path: Path) -> None:
    prompts = [f"a picture of number {number}" for number in range(3)]
    (tmp_path / "prompts.txt").write_text("\n".join(prompts))
    folder = str(tiny_flux_folder())
    made = command(
        "sae", "collect", "--model", folder, "--prompts", str(tmp_path / "prompts.txt"), "--out", str(tmp_path / "u"),
        "--steps", "1",
    )  # fmt: skip
    assert made.exit_code == 0, made.stderr
    trained = command(
        "sae", "train", str(tmp_path / "u"), "--out", str(tmp_path / "saes"), "--blocks", "double.1,single.0",
        "--k", "4", "--width", "32", "--steps", "2", "--batch-size", "64",
    )  # fmt: skip
    assert trained.exit_code == 0, trained.stderr
    names = {block_named_by(path) for path in (tmp_path / "saes").iterdir()}
    assert {"double.1", "single.0"} <= names
    wanted = ("double.1", "single.0")
    found = load_saes(tmp_path / "saes", model=tiny_flux(1), blocks=wanted, prompts=prompts[:2], progress=False)
    assert set(found) == {"double.1", "single.0"} and found["double.1"].d == WIDTH
    for block, message in (("double.0.ff.0", "names units inside a block"), ("double.0/text", "is a text stream")):
        with pytest.raises(RiebenchError, match=message):
            collect(tiny_flux(1), prompts, tmp_path / "no", CollectOptions((block,)), progress=False)


@pytest.mark.parametrize(
    ("flag", "message"), [("--unet", "is no FLUX checkpoint"), ("--lora", "LoRAs are added to SDXL")]
)
def test_files_that_are_not_put_into_flux_are_refused(tmp_path: Path, flag: str, message: str) -> None:
    file = tmp_path / "x.safetensors"
    shutil.copy(next(tiny_flux_folder().glob("vae/*.safetensors")), file)
    found = command(
        "run", "no_edit", "--suite", "toy", "--model", str(tiny_flux_folder()), flag, str(file), "--dry-run"
    )
    assert found.exit_code == 2 and message in last_line(found)
