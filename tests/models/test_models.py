"""Models as people have them: hub folders, the hub's cache, a hub, single files; and what is refused of each.

The model is tiny and random; names, keys, configurations and layouts are those of SDXL's own repositories.
"""

from __future__ import annotations

import shutil
import socket
import warnings
from collections.abc import Callable
from logging import getLogger
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from sdxl_files import (
    COMMIT,
    REPO,
    change_json,
    change_tensors,
    fake_hub,
    hub_cache,
    hub_layout,
    plain_folder,
    refusal,
    serve,
    single_file,
    unreachable,
)

from riebench.errors import RiebenchError
from riebench.generation.generator import Generator
from riebench.models.families.sdxl.files import DOWNLOADS
from riebench.models.families.sdxl.shape import SDXL
from riebench.models.loading import load_model
from riebench.models.presets import PRESETS
from riebench.models.spec import ModelOptions
from riebench.utils.terminal import warnings_held

UNET = "diffusion_pytorch_model"
POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 5135149760\n"


def state(model: Any) -> dict[str, torch.Tensor]:
    """All tensors of a loaded model."""
    parts = ("unet", "vae", "text_encoder", "text_encoder_2")
    return {f"{part}.{name}": value for part in parts for name, value in getattr(model.pipe, part).state_dict().items()}


def same(first: Any, second: Any) -> bool:
    """Whether two loaded models have the same numbers everywhere."""
    a, b = state(first), state(second)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("kinds", [{}, {"half": False}, {"full": False}], ids=["both", "fp32 only", "fp16 only"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_the_hubs_layout_in_every_precision(tmp_path: Path, kinds: dict[str, Any], dtype: str) -> None:
    model = load_model(str(hub_layout(tmp_path / "turbo", **kinds)), dtype=dtype)
    wanted = getattr(torch, dtype)
    # The stored text encoders say float16, whatever is asked for.
    assert {part.dtype for part in (model.pipe.unet, model.pipe.text_encoder, model.pipe.text_encoder_2)} == {wanted}
    assert model.pipe.vae.dtype == torch.float32
    truth = load_model(str(plain_folder())).pipe.unet.conv_in.weight
    from_full = kinds.get("full", True) if dtype == "float32" else not kinds.get("half", True)
    rounded = truth if from_full else truth.half()
    assert torch.equal(model.pipe.unet.conv_in.weight, rounded.to(wanted))
    assert (model.spec.steps, model.spec.guidance) == (4, 0.0)


def test_no_watermark_whatever_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipelines = "diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl"
    monkeypatch.setattr(f"{pipelines}.is_invisible_watermark_available", lambda: True)
    monkeypatch.setattr(f"{pipelines}.StableDiffusionXLWatermarker", object, raising=False)
    file = single_file(tmp_path / "one.safetensors")
    for name, config in ((plain_folder(), None), (file, str(plain_folder()))):
        assert load_model(str(name), options=ModelOptions(config=config)).pipe.watermark is None


def test_a_layout_from_the_hub_gives_the_same_pictures(tmp_path: Path) -> None:
    # Tokenizers from vocab.json and merges.txt, prefixed keys, empty components: nothing of it may move a pixel.
    first = load_model(str(plain_folder()), steps=1)
    second = load_model(str(hub_layout(tmp_path / "turbo")), steps=1)
    assert same(first, second)
    pictures = [Generator(model).generate(["a red house"], [3]).images for model in (first, second)]
    assert (pictures[0] == pictures[1]).all()


def test_only_the_files_that_are_read_tell_models_apart(tmp_path: Path) -> None:
    cases: list[tuple[str, dict[str, Any], str]] = [
        ("both", {}, "float16"),
        ("half", {"full": False}, "float16"),
        ("full", {"half": False}, "float16"),
    ]
    both, half, full = (
        load_model(str(hub_layout(tmp_path / name / "m", **kinds)), dtype=dtype).spec.revision
        for name, kinds, dtype in cases
    )
    assert both == half != full


def test_a_cached_model_needs_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub_cache(tmp_path, monkeypatch, full=False)

    def refuse(*_: Any) -> None:
        pytest.fail("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    for name in (REPO, f"{REPO}@main", f"{REPO}@{COMMIT}"):
        spec = load_model(name, dtype="float16", offline=True).spec
        assert (spec.source, spec.revision, spec.name) == (REPO, COMMIT, "tiny-sdxl-float16")


def test_a_preset_is_found_at_its_pinned_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = hub_cache(tmp_path, monkeypatch, full=False)
    preset = PRESETS["sdxl-turbo"]
    place = tmp_path / f"models--{preset.source.replace('/', '--')}" / "snapshots" / str(preset.revision)
    shutil.copytree(snapshot, place)
    model = load_model("sdxl-turbo", offline=True, options=ModelOptions(size=32))
    assert model.spec.name == "sdxl-turbo-px32" and model.preset is preset
    assert (model.spec.source, model.spec.revision, model.spec.dtype) == (preset.source, preset.revision, "float16")
    with pytest.raises(RiebenchError, match=r"sdxl-turbo is not on this machine.*hf download .*--revision 7115"):
        shutil.rmtree(place)
        load_model("sdxl-turbo", offline=True)


def test_exactly_the_needed_files_are_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository = hub_layout(tmp_path / "repository")
    (repository / "unet" / "model.onnx").write_text("not wanted")
    (repository / "vae_1_0").mkdir()
    (repository / "vae_1_0" / f"{UNET}.safetensors").write_text("not wanted")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    with fake_hub(monkeypatch, serve(repository)):
        model = load_model(REPO, dtype="float16")
    assert model.spec.revision == COMMIT
    snapshot = tmp_path / "cache" / f"models--{REPO.replace('/', '--')}" / "snapshots" / COMMIT
    weights = {path.relative_to(snapshot).as_posix() for path in snapshot.rglob("*.safetensors")}
    assert weights == {
        f"{part}/{stem}.fp16.safetensors"
        for part, stem in (("unet", UNET), ("vae", UNET), ("text_encoder", "model"), ("text_encoder_2", "model"))
    }
    assert not list(snapshot.rglob("*.onnx"))
    # And from then on it is there without a network.
    assert same(model, load_model(REPO, dtype="float16", offline=True))


def test_a_repository_without_half_precision_gives_its_only_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = hub_layout(tmp_path / "repository", half=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    with fake_hub(monkeypatch, serve(repository)):
        assert load_model(f"{REPO}@main", dtype="float16").pipe.unet.dtype == torch.float16


@pytest.mark.parametrize(
    ("answer", "name", "message"),
    [
        (refusal(401, "RepoNotFound"), REPO, f"the hub has no {REPO}, or it is private: check the spelling"),
        (refusal(403, "GatedRepo"), REPO, f"{REPO} is gated: accept its terms at https://huggingface.co/{REPO}"),
        (refusal(404, "RevisionNotFound"), f"{REPO}@v9", f"{REPO} has no revision 'v9'"),
        (refusal(500, ""), REPO, "the hub cannot be reached"),
        (unreachable, REPO, "the hub cannot be reached, and someone/tiny-sdxl is not on this machine"),
        (unreachable, "sdxl-turbo", "copy the hub's cache folder from a machine that has run `hf download"),
        (unreachable, "a/b..c", "is no hub id; write OWNER/NAME"),
    ],
)
def test_what_the_hub_refuses_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: Any, name: str, message: str
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with fake_hub(monkeypatch, answer), pytest.raises(RiebenchError) as caught:
        load_model(name)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_repository_of_something_else_is_refused_before_it_is_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    other = hub_layout(tmp_path / "other", index={"_class_name": "StableDiffusion3PAGPipeline"})
    with fake_hub(monkeypatch, serve(other)) as asked, pytest.raises(RiebenchError, match="is a StableDiffusion3PAG"):
        load_model(REPO)
    assert not [path for path in asked if path.endswith(".safetensors")]


def test_a_repository_without_a_pipeline_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    other = hub_layout(tmp_path / "other")
    (other / "model_index.json").unlink()
    with fake_hub(monkeypatch, serve(other)), pytest.raises(RiebenchError, match="holds no diffusers model"):
        load_model(REPO)


def test_without_network_the_cache_serves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub_cache(tmp_path, monkeypatch)
    with fake_hub(monkeypatch, unreachable) as asked:
        assert load_model(REPO, dtype="float16").spec.revision == COMMIT
    assert asked


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_single_file_is_the_model_it_was_made_from(tmp_path: Path, dtype: str) -> None:
    file = single_file(tmp_path / "sd_xl_tiny.safetensors")
    model = load_model(str(file), dtype=dtype, steps=1, options=ModelOptions(config=str(plain_folder())))
    folder = load_model(str(plain_folder()), dtype=dtype, steps=1)
    assert same(model, folder) and model.pipe.vae.dtype == torch.float32
    assert type(model.pipe.scheduler) is type(folder.pipe.scheduler) and model.spec.size == folder.spec.size
    assert model.spec.name == f"sd_xl_tiny-steps1-{dtype}" and model.spec.source == file.name


def test_the_configuration_of_a_single_file_is_part_of_what_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = single_file(tmp_path / "one.safetensors")
    snapshot = hub_cache(tmp_path / "cache", monkeypatch)
    # Only the small files of a preset are looked for: its weights need not be there.
    preset = PRESETS["sdxl-base"]
    place = tmp_path / "cache" / f"models--{preset.source.replace('/', '--')}" / "snapshots" / str(preset.revision)
    shutil.copytree(snapshot, place, ignore=shutil.ignore_patterns("*.safetensors"))
    change_json(place / "scheduler" / "scheduler_config.json", timestep_spacing="leading")
    turbo = load_model(str(file), options=ModelOptions(config=f"{REPO}@main"), offline=True).spec
    base = load_model(str(file), options=ModelOptions(config="sdxl-base"), offline=True).spec
    assert turbo.revision != base.revision
    assert (turbo.steps, turbo.guidance, base.steps, base.guidance) == (4, 0.0, 20, 5.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "is a single file, which does not say how it was trained; say with --single-file-config sdxl-turbo"),
        ({"config": "toy-turbo"}, "--single-file-config 'toy-turbo': give sdxl-turbo, sdxl-base"),
        ({"config": "nowhere"}, "--single-file-config 'nowhere': give sdxl-turbo, sdxl-base"),
        ({"config": str(Path(__file__).parent)}, "is no model folder: model_index.json is missing"),
    ],
)
def test_a_single_file_is_never_guessed_at(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(RiebenchError, match=message):
        load_model(str(single_file(tmp_path / "one.safetensors")), options=ModelOptions(**options))


def test_a_folder_takes_no_configuration() -> None:
    with pytest.raises(RiebenchError, match="--single-file-config is for single files"):
        load_model(str(plain_folder()), options=ModelOptions(config="sdxl-turbo"))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["model.diffusion_model.a", "cond_stage_model.c"], "Diffusion checkpoint without its autoencoder"),
        (["model.diffusion_model.joint_blocks.0.a", "first_stage_model.b"], "looks like Stable Diffusion 3"),
        (["lora_unet_down.alpha"], "looks like a LoRA, no whole model"),
        (["weight"], r"is no SDXL checkpoint \(no tensors model.diffusion_model"),
    ],
)
def test_other_single_files_are_refused(tmp_path: Path, names: list[str], message: str) -> None:
    from safetensors.torch import save_file

    save_file({name: torch.zeros(1) for name in names}, tmp_path / "other.safetensors")
    with pytest.raises(RiebenchError, match=message):
        load_model(str(tmp_path / "other.safetensors"), options=ModelOptions(config="sdxl-turbo"))


def lose_tensor(folder: Path) -> None:
    change_tensors(folder / "unet" / f"{UNET}.safetensors", conv_out__bias=None)


def spoil(folder: Path) -> None:
    change_tensors(folder / "unet" / f"{UNET}.safetensors", conv_out__bias=torch.full((4,), float("nan")))


def enlarge(folder: Path) -> None:
    change_tensors(folder / "unet" / f"{UNET}.safetensors", conv_out__bias=torch.full((4,), 3e38))


def as_integers(folder: Path) -> None:
    change_tensors(folder / "vae" / f"{UNET}.safetensors", decoder__conv_out__bias=torch.ones(3, dtype=torch.int64))


def cut_off(folder: Path) -> None:
    file = folder / "vae" / f"{UNET}.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def pointer(folder: Path) -> None:
    (folder / "unet" / f"{UNET}.safetensors").write_text(POINTER)


def without_vae(folder: Path) -> None:
    for file in (folder / "vae").glob("*.safetensors"):
        file.unlink()


def as_sd15(folder: Path) -> None:
    change_json(folder / "model_index.json", _class_name="StableDiffusionPipeline")


def as_sd3_from_pictures(folder: Path) -> None:
    change_json(folder / "model_index.json", _class_name="StableDiffusion3Img2ImgPipeline")


def as_inpainting(folder: Path) -> None:
    change_json(folder / "unet" / "config.json", in_channels=9)


def broken_json(folder: Path) -> None:
    (folder / "unet" / "config.json").write_text("{")


def other_width(folder: Path) -> None:
    change_json(folder / "unet" / "config.json", cross_attention_dim=40)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lose_tensor, "unet/ lacks 1 tensors, such as conv_out.bias; download it again"),
        (spoil, r"holds numbers that are not finite \(UNet2DConditionModel, conv_out.bias\); download it again"),
        (enlarge, r"holds 3e\+38 in conv_out.bias of its UNet2DConditionModel, with which no picture stays finite"),
        (as_integers, r"vae/.*decoder.conv_out.bias holds numbers of the type I64, which no weight has"),
        (cut_off, r"vae/diffusion_pytorch_model.safetensors is damaged or cut off .*; download it again"),
        (pointer, r"unet/diffusion_pytorch_model.safetensors is a Git.LFS pointer.*git lfs pull"),
        (without_vae, "lacks weights: no .safetensors file in vae/"),
        (as_sd15, "U-Net of another kind .*'text_time'.*; Stable Diffusion has None and 4"),
        (as_sd3_from_pictures, r"Img2ImgPipeline \(Stable Diffusion 3 from pictures\); riebench edits SDXL"),
        (as_inpainting, "U-Net of another kind .*in_channels 9.*; SDXL has 'text_time' and 4"),
        (broken_json, "unet/config.json is no JSON"),
        (other_width, r"unet/config.json says cross_attention_dim 40, but the texts are 32 wide together"),
    ],
)
def test_damaged_and_foreign_folders_are_one_line(tmp_path: Path, damage: Callable[[Path], None], message: str) -> None:
    folder = hub_layout(tmp_path / "m", half=False)
    damage(folder)
    with pytest.raises(RiebenchError, match=message) as caught:
        load_model(str(folder))
    assert "\n" not in str(caught.value)


def test_an_autoencoder_without_safetensors_is_refused_in_one_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = hub_layout(tmp_path / "m", half=False)
    shutil.copytree(folder / "vae", tmp_path / "other")
    weights = tmp_path / "other" / f"{UNET}.safetensors"
    torch.save(load_file(weights), weights.with_suffix(".bin"))
    weights.unlink()
    with pytest.raises(RiebenchError, match=r"--vae .*other holds no \*.safetensors of an autoencoder"):
        load_model(str(folder), options=ModelOptions(vae=str(tmp_path / "other")))
    assert capfd.readouterr() == ("", "")


def test_a_library_warns_after_a_success_only(caplog: pytest.LogCaptureFixture) -> None:
    def work(fails: bool) -> None:
        with warnings_held("some.library"):
            warnings.warn("pickle protocol 4", stacklevel=1)
            getLogger("some.library").warning("defaulting to something")
            if fails:
                raise ValueError

    with warnings.catch_warnings(), pytest.raises(ValueError):
        warnings.simplefilter("always")
        work(True)
    assert not caplog.records
    with pytest.warns(UserWarning, match="pickle protocol 4"):
        work(False)
    assert [record.message for record in caplog.records] == ["defaulting to something"]


def test_a_file_without_ending_is_refused_before_it_breaks_the_loader(tmp_path: Path) -> None:
    folder = hub_layout(tmp_path / "m")
    (folder / "unet" / "LICENSE").write_text("free")
    with pytest.raises(RiebenchError, match=r"unet/LICENSE has no ending, which diffusers cannot read; move it out"):
        load_model(str(folder), dtype="float16")


def test_presets_and_what_they_need_agree() -> None:
    for name, needs in DOWNLOADS.items():
        assert (needs.source, needs.revision) == (PRESETS[name].source, PRESETS[name].revision)
        assert needs.download_bytes("float16") == pytest.approx(6.94e9, rel=0.01)
        assert needs.download_bytes("float32") == pytest.approx(13.88e9, rel=0.01)
        assert SDXL.weight_bytes("float16") == pytest.approx(7.1e9, rel=0.01)
        assert f"--revision {needs.revision}" in needs.download_command("bfloat16")
        assert ".fp16." not in needs.download_command("float32")
