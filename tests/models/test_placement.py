"""Memory options: what they change and what they leave alone; overflow and too little memory as one line each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import cpu_offload
from sdxl_files import plain_folder
from tiny import SIZE, tiny_folder, tiny_model
from torch import Tensor, nn
from typer.testing import CliRunner

from riebench.cli.main import app
from riebench.errors import RiebenchError
from riebench.generation.edits import Edit, StaticEdit, Term
from riebench.generation.generator import Capture, Generator
from riebench.jobs.request import RunRequest
from riebench.models.families.sdxl.family import FAMILY
from riebench.models.families.sdxl.files import AUTOENCODERS
from riebench.models.loading import LoadedModel, load_model
from riebench.models.placement import place
from riebench.models.spec import ModelOptions, ModelSpec
from riebench.runs.runner import run_benchmark
from riebench.tasks.schema import EditExample, EditTask, Setting

PROMPTS, SEEDS = ["a red house", "a blue cat"], [5, 6]


def load(**options: Any) -> LoadedModel:
    """The tiny model with two steps and some options."""
    return load_model(str(tiny_folder()), steps=2, guidance=0.0, options=ModelOptions(**options))


def pictures(model: LoadedModel, edits: list[Edit | None] | None = None) -> Any:
    """Two pictures, as integers that can be subtracted."""
    return Generator(model).generate(PROMPTS, SEEDS, edits=edits, capture=Capture(("mid.0",))).images.astype(int)


def push() -> Edit:
    """A strong edit of one block."""
    return Edit({"mid.0": StaticEdit((Term(torch.arange(16), torch.full((2, 1, 64), 6.0)),))})


@pytest.mark.parametrize(
    "options",
    [{"attention": "sliced"}, {"attention": "math"}, {"channels_last": True}, {"vae_slicing": True}],
    ids=lambda options: next(iter(options)),
)
def test_options_for_memory_leave_pictures_alone(options: dict[str, Any]) -> None:
    model = load(**options)
    assert np.abs(pictures(model) - pictures(tiny_model())).max() <= 1
    assert model.spec == tiny_model().spec  # and so do not part runs
    assert model.options.placement == options


def test_options_reach_what_they_name() -> None:
    model = load(attention="sliced", channels_last=True, vae_slicing=True)
    kinds = {type(processor).__name__ for processor in model.pipe.unet.attn_processors.values()}
    assert kinds == {"SlicedAttnProcessor"} and model.pipe.vae.use_slicing
    assert model.pipe.unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last)


def test_the_named_kernel_computes_the_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: set[tuple[bool, bool]] = set()
    plain = torch.nn.functional.scaled_dot_product_attention

    def watched(*args: Any, **options: Any) -> Tensor:
        seen.add((torch.backends.cuda.math_sdp_enabled(), torch.backends.cuda.flash_sdp_enabled()))
        return plain(*args, **options)

    model = load(attention="math")
    generator = Generator(model)
    for prompt in PROMPTS:
        generator.embed(prompt)
    latents: list[Tensor] = []
    monkeypatch.setattr(Generator, "decode", lambda self, found: latents.append(found))
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
    generator.generate(PROMPTS, SEEDS)
    assert seen == {(True, False)} and latents
    seen.clear()
    Generator(tiny_model()).generate(PROMPTS, SEEDS)
    assert seen == {(True, True)}


@pytest.mark.parametrize("offload", ["model", "sequential"])
def test_edits_and_captures_work_on_offloaded_weights(offload: str) -> None:
    # Offloading is accelerate's hooks on every module; the device they compute on is the CPU here.
    model = load()
    loaded = model.pipe
    place(loaded, FAMILY, "cpu", ModelOptions(), "tiny")
    if offload == "model":
        loaded.enable_model_cpu_offload(device="cpu")
    else:
        for part in FAMILY.networks(loaded):
            # What diffusers does; its own method would say "cpu:0", which parameters do not survive.
            cpu_offload(part, torch.device("cpu"))
        assert next(model.denoiser.parameters()).is_meta
    offloaded = LoadedModel(loaded, model.spec, None, ModelOptions(offload=offload), torch.device("cpu"))
    assert offloaded.device == torch.device("cpu")
    assert np.abs(pictures(offloaded) - pictures(tiny_model())).max() <= 1
    edited = pictures(offloaded, [push(), None]) - pictures(tiny_model(), [push(), None])
    assert np.abs(edited).max() <= 1
    assert np.abs(pictures(offloaded, [push(), None]) - pictures(offloaded))[0].mean() > 0.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"offload": "modle"}, "--offload 'modle' (did you mean 'model'?)"),
        ({"attention": "flsh"}, "--attention 'flsh' (did you mean 'flash'?)"),
        ({"offload": "model"}, "--offload model keeps weights off a GPU, but the device is cpu"),
        ({"attention": "efficient"}, "--attention efficient cannot be used on cpu in float32"),
        ({"vae_tiling": True}, "--vae-tiling changes nothing at 32 px, which is one tile"),
        ({"vae": "nowhere"}, "--vae 'nowhere': there is no such folder; give fp16-fix, a folder or a hub id"),
    ],
)
def test_options_that_cannot_be_had_are_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(RiebenchError) as caught:
        load(**options)
    assert message in str(caught.value)


def test_tiles_decode_large_pictures_and_part_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("loading", "placement"):
        monkeypatch.setattr(f"riebench.models.{module}.TILE", 16)
    tiled = load(size=64, vae_tiling=True)
    assert tiled.spec.name.endswith("px64-tiled") and tiled.spec.vae_tiling and tiled.spec.identity["vae_tiling"]
    seen: list[tuple[int, ...]] = []
    tiled.pipe.vae.decoder.register_forward_pre_hook(lambda _, args: seen.append(tuple(args[0].shape[-2:])))
    assert Generator(tiled).generate(PROMPTS[:1], SEEDS[:1]).images.shape == (1, 64, 64, 3)
    # The tiny autoencoder halves sides.
    assert len(seen) > 1 and max(side for shape in seen for side in shape) == 8


def write_vae(folder: Path, *, force_upcast: bool) -> Path:
    """The tiny model's autoencoder as a folder of its own, a little brighter."""
    vae = load().pipe.vae
    vae.register_to_config(force_upcast=force_upcast)
    with torch.no_grad():
        vae.decoder.conv_out.bias += 0.1
    vae.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(("force_upcast", "dtype"), [(True, torch.float32), (False, torch.float16)])
def test_another_autoencoder_is_part_of_what_a_run_is(tmp_path: Path, force_upcast: bool, dtype: torch.dtype) -> None:
    folder = write_vae(tmp_path / "brighter", force_upcast=force_upcast)
    model = load_model(str(tiny_folder()), steps=1, dtype="float16", options=ModelOptions(vae=str(folder)))
    # One that was made for float16 decodes in it; the usual ones would overflow.
    assert model.pipe.vae.dtype == dtype
    assert model.spec.name == "tiny-steps1-float16-vae-brighter"
    assert model.spec.vae is not None and model.spec.vae.startswith("brighter@") and str(tmp_path) not in model.spec.vae
    assert model.spec.identity["vae"] == model.spec.vae
    usual = load_model(str(tiny_folder()), steps=1, dtype="float16")
    assert "vae" not in usual.spec.identity and "vae_tiling" not in usual.spec.identity
    bright, plain = (Generator(one).generate(PROMPTS[:1], SEEDS[:1]).images.mean() for one in (model, usual))
    assert bright > plain


def test_the_autoencoder_for_half_precision_is_pinned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    fix = AUTOENCODERS["fp16-fix"]
    place = tmp_path / f"models--{fix.source.replace('/', '--')}" / "snapshots" / fix.revision
    write_vae(place, force_upcast=False)
    model = load_model(str(tiny_folder()), dtype="float16", offline=True, options=ModelOptions(vae="fp16-fix"))
    assert model.spec.vae == f"{fix.source}@{fix.revision}" and model.pipe.vae.dtype == torch.float16
    assert model.spec.name == "tiny-float16-vae-fp16-fix"
    full = load_model(str(tiny_folder()), dtype="float32", offline=True, options=ModelOptions(vae="fp16-fix"))
    assert full.pipe.vae.dtype == torch.float32


def test_identities_from_before_these_options_hold() -> None:
    spec = ModelSpec(name="x", source="s", revision="r", steps=4, guidance=0.0, size=512, dtype="float16")
    assert spec.identity == {
        "source": "s", "revision": "r", "steps": 4, "guidance": 0.0, "size": 512, "dtype": "float16",
    }  # fmt: skip


def poison(module: torch.nn.Module, value: float) -> None:
    """Makes a layer overflow, as half precision does."""
    module.register_forward_hook(lambda _module, _args, output: torch.full_like(output, value))


@pytest.mark.parametrize(
    ("part", "value", "message"),
    [
        ("vae.decoder.conv_out", float("inf"), "the autoencoder gave numbers that are no colours"),
        ("vae.decoder.conv_out", float("nan"), "the autoencoder gave numbers that are no colours"),
        ("unet.conv_out", float("inf"), "the generation overflowed; use a smaller strength, or --dtype bfloat16"),
    ],
)
def test_overflow_is_never_stored_as_a_picture(tmp_path: Path, part: str, value: float, message: str) -> None:
    model = load()
    owner, _, path = part.partition(".")
    poison(getattr(model.pipe, owner).get_submodule(path), value)
    example = EditExample(id="one", source="a red cat", target="a blue cat")
    task = EditTask(name="change_color", version=1, category="change_color", suite="mine", examples=(example,))
    setting = Setting(name="patch", method="activation_patch", blocks=("mid.0",))
    (folder,) = run_benchmark([task], [setting], model, results_root=tmp_path, progress=False)
    (record,) = folder.records()
    assert record.status == "error" and message in str(record.reason) and "\n" not in str(record.reason)
    assert not list(tmp_path.rglob("*.png"))


def test_too_little_memory_while_generating_names_what_helps(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = Generator(tiny_model())

    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has ...")

    monkeypatch.setattr(generator.model.pipe.unet, "forward", full)
    with pytest.raises(
        RiebenchError, match=r"not enough memory on cpu for 2 pictures of 32 px.*--batch-size 1 or less"
    ):
        generator.generate(PROMPTS, SEEDS)
    with pytest.raises(RiebenchError, match=r"for 1 pictures of 32 px at once; use --offload model, then --vae fp16"):
        generator.generate(PROMPTS[:1], SEEDS[:1])


def test_other_errors_while_generating_stay_what_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = Generator(tiny_model())

    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(generator.model.pipe.unet, "forward", broken)
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        generator.generate(PROMPTS, SEEDS)


@pytest.mark.parametrize(
    ("offload", "advice"), [("none", "use --offload model"), ("model", "use --offload sequential")]
)
def test_too_little_memory_while_loading_names_what_helps(
    monkeypatch: pytest.MonkeyPatch, offload: str, advice: str
) -> None:
    pipe = load().pipe

    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(type(pipe), "to", full)
    monkeypatch.setattr(type(pipe), "enable_model_cpu_offload", full)
    with pytest.raises(RiebenchError, match=r"not enough memory on meta: the weights alone are 0\.0 GB") as caught:
        place(pipe, FAMILY, "meta", ModelOptions(offload=offload), "tiny")
    assert advice in str(caught.value)


def test_half_precision_pictures_are_near_the_full_ones() -> None:
    full = pictures(tiny_model())
    for dtype in ("float16", "bfloat16"):
        half = load_model(str(tiny_folder()), steps=2, guidance=0.0, dtype=dtype)
        assert half.spec.size == SIZE
        assert np.abs(pictures(half) - full).mean() < 12 < np.abs(full[0] - full[1]).mean()


def test_the_two_tokenizers_positions_are_joined() -> None:
    # "!" pads the second tokenizer and is a token of its own there, so the words behind it lie elsewhere.
    from transformers import CLIPTokenizer

    model = load_model(str(plain_folder()), steps=1)
    pieces = ["!", "!</w>", "c", "c</w>", "a", "t", "t</w>", ",", ",</w>", "x</w>", "!,", "!,</w>"]
    vocabulary = {piece: index for index, piece in enumerate([*pieces, "<|startoftext|>", "<|endoftext|>"])}
    merges = [("!", ",</w>")]
    for name, pad in (("tokenizer", "<|endoftext|>"), ("tokenizer_2", "!")):
        made = CLIPTokenizer(vocab=vocabulary, merges=merges, pad_token=pad, model_max_length=77)
        model.pipe.register_modules(**{name: made})
    generator = Generator(model)
    separate = [[tokenizer("cat!, x").char_to_token(6)] for tokenizer in (model.pipe.tokenizer, model.pipe.tokenizer_2)]
    assert separate[0] != separate[1]
    assert generator.token_positions("cat!, x", "x") == sorted({*separate[0], *separate[1]})


def test_flags_reach_the_job(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: list[RunRequest] = []
    monkeypatch.setattr("riebench.jobs.run.run_job", lambda request, say: seen.append(request))
    line = (
        "run no_edit --size 768 --single-file-config sdxl-base --vae fp16-fix --offload model --vae-slicing "
        "--vae-tiling --attention math --channels-last --results"
    )
    assert CliRunner().invoke(app, [*line.split(), str(tmp_path)]).exit_code == 0
    assert seen[0].options == ModelOptions(768, "sdxl-base", "fp16-fix", "model", True, True, "math", True)
    assert CliRunner().invoke(app, ["run", "no_edit", "--results", str(tmp_path)]).exit_code == 0
    assert seen[1].options == ModelOptions()
    refused = CliRunner().invoke(app, ["run", "no_edit", "--offload", "sequental", "--results", str(tmp_path)])
    assert refused.exit_code == 2 and "--offload 'sequental' (did you mean 'sequential'?)" in refused.stderr


def test_a_pipeline_says_the_device_of_its_denoiser_without_a_search(monkeypatch: pytest.MonkeyPatch) -> None:
    model = load()
    place(model.pipe, FAMILY, "cpu", ModelOptions(), "tiny")
    searched: list[nn.Module] = []
    plain = nn.Module.named_modules

    def walk(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        searched.append(module)
        return plain(module, *args, **kwargs)

    monkeypatch.setattr(nn.Module, "named_modules", walk)
    assert model.pipe.device == model.pipe._execution_device == torch.device("cpu")
    assert searched and not {model.pipe.vae, model.pipe.text_encoder} & set(searched)
    model.denoiser.to("meta")
    # What holds no numbers is somebody's offloading: the other networks are asked, as diffusers does.
    assert model.pipe._execution_device == torch.device("cpu")
