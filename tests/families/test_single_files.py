"""Single files of token models, held against the folders that they were written from."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from safetensors.torch import save_file
from sdxl_files import plain_folder
from tiny_flux import tiny_flux_folder
from tiny_jobs import last_line
from tiny_pixart import tiny_pixart_folder
from tiny_qwen import tiny_qwen_folder
from tiny_sana import tiny_sana_folder
from tiny_sd3 import tiny_sd3_folder, tiny_sd3_pipeline
from tiny_zimage import tiny_zimage_folder
from token_files import PREFIX, PUBLISHED, Tensors, part_tensors, single_file
from typer.testing import CliRunner

from riebench.cli.main import app
from riebench.errors import RiebenchError
from riebench.generation.generator import Generator
from riebench.jobs.inventory import model_checks
from riebench.models.families.flux.family import FAMILY as FLUX
from riebench.models.families.flux.files import PUBLISHED_WIDTH
from riebench.models.families.single_file import FileParts
from riebench.models.families.tokens.family import TokenFamily
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


PREFIXES = {"flux": PREFIX, "sd3": PREFIX, "zimage": PREFIX}
"""What names begin with in the first test of a family; in the second they begin otherwise."""


@everywhere
def test_a_transformer_alone_gives_the_folders_picture(tmp_path: Path, family: str) -> None:
    folder = without(FOLDERS[family](), tmp_path / "folder", "transformer")
    prefix = PREFIXES.get(family, "")
    file = single_file(tmp_path / "one.safetensors", FOLDERS[family](), family, prefix=prefix)
    made = load_model(str(file), steps=1, options=options(family, folder))
    assert same(made, own(family)) and same_picture(made, own(family))
    assert made.spec.source == file.name and made.spec.name == "one-steps1" + ("-px32" if family in SIZES else "")
    planned = look_up(str(file), steps=1, options=options(family, folder))
    assert planned.family is made.family
    assert planned.spec == made.spec.model_copy(update={"revision": None, "source": planned.spec.source})
    assert planned.shape.blocks == blocks_of(str(file)) == made.family.shape_of_folder(FOLDERS[family]()).blocks
    assert planned.shape.width(planned.shape.blocks[0]) == own(family).family.update_width(made.denoiser, "")


@everywhere
def test_names_of_diffusers_are_read_in_the_number_formats_of_folders(tmp_path: Path, family: str) -> None:
    folder, prefix = FOLDERS[family](), "" if family in PREFIXES else PREFIX
    file = single_file(tmp_path / "one.safetensors", folder, "named", prefix=prefix)
    made = load_model(str(file), steps=1, dtype="float16", options=options(family, folder))
    assert same(made, own(family, "float16")) and made.pipe.vae.dtype == torch.float32


@pytest.mark.parametrize("family", [name for name in FOLDERS if name != "flux"])
def test_diffusers_own_call_reads_the_same(tmp_path: Path, family: str) -> None:
    """FLUX is left out: diffusers splits its single blocks at the published width alone."""
    folder, prefix = FOLDERS[family](), "" if family == "qwen" else PREFIX
    file = single_file(tmp_path / "one.safetensors", folder, family, prefix=prefix)
    theirs = getattr(diffusers, own(family).family.denoiser_class).from_single_file(
        str(file), config=str(folder), subfolder="transformer", local_files_only=True
    )
    ours = own(family).denoiser.state_dict()
    assert all(torch.equal(value, ours[name]) for name, value in theirs.state_dict().items())


def whole_sd3(folder: Path) -> Path:
    """A tiny SD3 whose first CLIP is read without its projection, as that of all published models."""
    folder = tiny_sd3_pipeline(folder, pooled=(16, 8))
    file = next((folder / "text_encoder").glob("*.safetensors"))
    save_file(part_tensors(folder, "text_encoder") | {"text_projection.weight": torch.eye(16)}, file, {"format": "pt"})
    return folder


@pytest.mark.parametrize(("family", "dtype"), [("flux", "float16"), ("sd3", "float32")])
def test_a_whole_model_needs_configurations_alone(tmp_path: Path, family: str, dtype: str) -> None:
    folder = FOLDERS[family]() if family == "flux" else whole_sd3(tmp_path / "model")
    parts = [path.name for path in folder.iterdir() if list(path.glob("*.safetensors"))]
    described = without(folder, tmp_path / "described", *parts)
    others = [part for part in parts if part != "transformer"]
    file = single_file(tmp_path / "one.safetensors", folder, family, prefix=PREFIX, parts=others, change=add_unread)
    made = load_model(str(file), steps=1, dtype=dtype, options=options(family, described))
    theirs = load_model(str(folder), steps=1, dtype=dtype)
    assert same(made, theirs)
    planned = look_up(str(file), options=options(family, described)).shape
    assert planned.parameters == theirs.family.shape_of_folder(folder).parameters


def add_unread(tensors: Tensors) -> None:
    """Adds what text encoders of whole models hold beside what is read."""
    tensors |= {"text_encoders.clip_l.logit_scale": torch.zeros(1)}
    tensors |= {"text_encoders.clip_l.transformer.text_model.embeddings.position_ids": torch.arange(4)[None]}


def test_what_a_file_lacks_comes_from_the_model_that_describes_it(tmp_path: Path) -> None:
    folder = tiny_sd3_folder()
    described = without(folder, tmp_path / "described", "transformer", "vae", "text_encoder_3")
    file = single_file(tmp_path / "one.safetensors", folder, "sd3", prefix=PREFIX, parts=["vae", "text_encoder_3"])
    made = load_model(str(file), steps=1, options=options("sd3", described))
    assert same(made, own("sd3"))
    # Another encoder of the same shapes is another model; weights that are not read are none.
    encoder = next((described / "text_encoder").glob("*.safetensors"))
    other = {name: value + 0.01 for name, value in part_tensors(described, "text_encoder").items()}
    (described / "vae" / "diffusion_pytorch_model.safetensors").write_bytes(b"not read")
    assert load_model(str(file), steps=1, options=options("sd3", described)).spec == made.spec
    save_file(other, encoder, {"format": "pt"})
    changed = load_model(str(file), steps=1, options=options("sd3", described))
    assert changed.spec.revision != made.spec.revision and not same(changed, made)
    encoder.unlink()
    with pytest.raises(RiebenchError, match=r"described lacks weights: no \.safetensors file in text_encoder/;"):
        load_model(str(file), steps=1, options=options("sd3", described))


def test_another_autoencoder_takes_the_place_of_the_files(tmp_path: Path) -> None:
    folder = tiny_zimage_folder()
    described = without(folder, tmp_path / "described", "transformer", "vae")
    file = single_file(tmp_path / "one.safetensors", folder, "zimage", prefix=PREFIX)
    made = load_model(str(file), steps=1, options=options("zimage", described, vae=str(folder / "vae")))
    assert same(made, own("zimage")) and made.spec.vae is not None


def lose(name: str) -> Callable[[Tensors], object]:
    return lambda tensors: tensors.pop(name)


def put(name: str, value: torch.Tensor | None = None) -> Callable[[Tensors], object]:
    return lambda tensors: tensors.update({name: torch.zeros(2) if value is None else value})


NARROW, EIGHT = torch.zeros(4, 16), torch.zeros(24, 16, dtype=torch.float8_e4m3fn)
CONFIG = "transformer/config.json"
REFUSED: dict[str, tuple[str, Callable[[Tensors], object], str]] = {
    "flux lacks a tensor": ("flux", lose("txt_in.bias"), r"x\.safetensors .*lacks txt_in\.bias of its transformer"),
    "flux left over": ("flux", put("double_blocks.0.more"), "holds 1 tensors of the transformer that diffusers does "
                       r"not read, such as double_blocks\.0\.more"),
    "flux of another width": ("flux", put("img_in.weight", NARROW), rf"x\.safetensors with --single-file-config .*: "
                              rf"{CONFIG} gives x_embedder\.weight the shape \[24, 16\], but the weights have \[4"),
    "flux in 8 bits": ("flux", put("img_in.weight", EIGHT),
                       r"holds weights of 8 or fewer bits \(img_in\.weight: F8_E4M3\); fetch it in float16"),
    "flux in scaled 8 bits": ("flux", put("scaled_fp8"), r"weights packed to 8 or fewer bits \(scaled_fp8\)"),
    "flux in 4 bits": ("flux", put("img_in.weight", torch.zeros(9, dtype=torch.uint8)), "numbers of the type U8"),
    "a lora of flux": ("flux", put("double_blocks.0.img_mod.lin.lora_A.weight"), "is a LoRA, no model; merge it"),
    "flux told the scale": ("flux dev", lambda tensors: None, rf"lacks 4 tensors of the transformer that {CONFIG} "
                            r"describes, such as time_text_embed\.guidance"),
    "sd3 lacks a tensor": ("sd3", lose("pos_embed"), "lacks pos_embed of its transformer; it is not whole"),
    "sd3 of one more block": ("sd3", lambda tensors: deepen(tensors), f"holds 32 tensors that {CONFIG} has no place "
                              r"for, such as transformer_blocks\.2\."),
    "sana lacks a tensor": ("sana", lose("blocks.1.attn.qkv.weight"), r"lacks blocks\.1\.attn\.qkv\.weight of its tr"),
    "sana with an autoencoder": ("sana", put("first_stage_model.decoder.conv_in.weight"), "holds 1 tensors of the tra"),
    "zimage lacks a tensor": ("zimage", lose("layers.1.attention.qkv.weight"), "lacks 3 tensors of the transformer .*, "
                              r"such as layers\.1\.attention\.to_k"),
    "zimage left over": ("zimage", put("more.weight"), f"holds 1 tensors that {CONFIG} has no place for, such as more"),
    "qwen lacks a tensor": ("qwen", lose("img_in.bias"), r"lacks 1 tensors of the transf.*, such as img_in\.bias"),
}  # fmt: skip


def deepen(tensors: Tensors) -> None:
    """Adds a block before the last one of SD3."""
    last = {name: value for name, value in tensors.items() if name.startswith("joint_blocks.2.")}
    tensors |= {name.replace(".2.", ".3.", 1): value.clone() for name, value in last.items()}
    tensors |= {
        name.replace(".1.", ".2.", 1): value.clone()
        for name, value in tensors.items()
        if name.startswith("joint_blocks.1.")
    }


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused_in_one_line(tmp_path: Path, case: str) -> None:
    family, change, message = REFUSED[case]
    dev, family = family.endswith("dev"), family.split()[0]
    described = tiny_flux_folder(dev=True) if dev else FOLDERS[family]()
    file = single_file(tmp_path / "x.safetensors", FOLDERS[family](), family, change=change, dtype=None)
    for find in (look_up, load_model):
        with pytest.raises(RiebenchError, match=message) as caught:
            find(str(file), options=options(family, described))
        assert "\n" not in str(caught.value) and "x.safetensors" in str(caught.value)


def test_what_diffusers_cannot_load_says_so(tmp_path: Path) -> None:
    pixart, folder = tmp_path / "pixart.safetensors", tiny_pixart_folder()
    save_file(part_tensors(folder, "transformer"), pixart)
    told = put("cfg_embedder.mlp.0.weight")
    sprint = single_file(tmp_path / "sprint.safetensors", tiny_sana_folder(), "sana", change=told)
    flux = single_file(tmp_path / "flux.safetensors", tiny_flux_folder(), "flux")
    (tmp_path / "flux.gguf").write_bytes(b"GGUF")
    (tmp_path / "flux.ckpt").write_bytes(b"pickle")
    cases: list[tuple[str, Path | None, str]] = [
        (
            "pixart.safetensors",
            folder,
            "diffusers' PixArtTransformer2DModel reads no single files; give the model's fo",
        ),
        ("sprint.safetensors", tiny_sana_folder(sprint=True), r"holds \d+ tensors of the transformer that diffusers d"),
        ("flux.safetensors", None, "say with --single-file-config flux-schnell, flux-dev, or the folder of its model"),
        ("flux.safetensors", tiny_sd3_folder(), "is a checkpoint of FLUX.1, but .* describes Stable Diffusion 3; give"),
        ("flux.safetensors", plain_folder(), "is a checkpoint of FLUX.1, but --single-file-config .* describes SDXL"),
        (
            "flux.gguf",
            tiny_flux_folder(),
            r"flux\.gguf holds weights packed to fewer bits \(GGUF\), which are not read",
        ),
        ("flux.ckpt", tiny_flux_folder(), r"flux\.ckpt: only \.safetensors files are read, since others can run code"),
    ]
    assert sprint.name == "sprint.safetensors" and flux.name == "flux.safetensors"
    for name, config, message in cases:
        with pytest.raises(RiebenchError, match=message) as caught:
            load_model(str(tmp_path / name), options=ModelOptions(config=None if config is None else str(config)))
        assert "\n" not in str(caught.value)


def test_sprint_is_read_under_the_names_of_diffusers(tmp_path: Path) -> None:
    folder = tiny_sana_folder(sprint=True)
    file = single_file(tmp_path / "one.safetensors", folder, "named")
    made = load_model(str(file), steps=1, options=options("sana", folder))
    assert made.family.name == "sana-sprint" and same(made, load_model(str(folder), steps=1))
    assert look_up(str(file), options=options("sana", folder)).family is made.family


@pytest.mark.parametrize("family", ["flux", "zimage"])
def test_another_transformer_is_put_into_a_model(tmp_path: Path, family: str) -> None:
    folder = FOLDERS[family]()
    file = single_file(tmp_path / "other.safetensors", folder, family, prefix=PREFIX, change=halve)
    made = load_model(str(folder), steps=1, options=options(family, unet=str(file)))
    alone = load_model(str(file), steps=1, options=options(family, folder))
    assert same(made, alone) and not same(made, own(family))
    assert str(made.spec.unet).startswith("other.safetensors@")


def halve(tensors: Tensors) -> None:
    tensors |= {name: value / 2 for name, value in tensors.items() if "attention.out" in name or "img_mlp" in name}


def test_files_that_are_no_transformer_alone_are_not_put_into_a_model(tmp_path: Path) -> None:
    folder = tiny_flux_folder()
    whole = single_file(tmp_path / "whole.safetensors", folder, "flux", prefix=PREFIX, parts=["vae"])
    wide = single_file(tmp_path / "wide.safetensors", folder, "flux", change=put("img_in.weight", NARROW))
    other = single_file(tmp_path / "other.safetensors", tiny_sana_folder(), "sana")
    for file, message in (
        (whole, "--unet whole.safetensors is a whole checkpoint, no transformer alone; give it as the model"),
        (wide, rf"--unet wide.safetensors: {CONFIG} gives x_embedder\.weight the shape"),
        (other, r"--unet other.safetensors is no FLUX checkpoint \(no tensors double_blocks\.0\.img_mod\.lin\.\*\)"),
    ):
        with pytest.raises(RiebenchError, match=message):
            load_model(str(folder), options=ModelOptions(unet=str(file)))
    with pytest.raises(RiebenchError, match="PixArt-Sigma's transformer is read from the model's folder alone"):
        load_model(str(tiny_pixart_folder()), options=ModelOptions(unet=str(other)))


# Full-size models

PUBLISHED_CONFIGS: dict[str, dict[str, Any]] = {
    "flux": {"guidance_embeds": True},
    "sd3": {"num_layers": 24, "num_attention_heads": 24, "caption_projection_dim": 1536, "pos_embed_max_size": 384,
            "dual_attention_layers": tuple(range(13)), "qk_norm": "rms_norm"},
    "sana": {}, "zimage": {}, "qwen": {},
}  # fmt: skip
"""Arguments of the transformers of FLUX.1-dev, SD 3.5 medium, SANA 1.6B, Z-Image and Qwen-Image."""


@everywhere
def test_full_size_files_are_whole(tmp_path: Path, family: str) -> None:
    """The layout in which a full-size transformer is published, converted by its header, has all of its tensors."""
    found = own(family).family
    assert isinstance(found, TokenFamily)
    with torch.device("meta"):
        network = getattr(diffusers, found.denoiser_class)(**PUBLISHED_CONFIGS[family])
    tensors = PUBLISHED[family](dict(network.state_dict()))
    converted = parts_of(found).converted("transformer", tensors, dict(network.config), "it")
    wanted = {name: value.shape for name, value in network.state_dict().items()}
    assert {name: value.shape for name, value in converted.items()} == wanted


def parts_of(family: TokenFamily) -> FileParts:
    assert family.file_layout is not None
    return FileParts(family.file_layout, family.networks_of_parts, family.configs, family.plain_name)


def test_single_blocks_are_split_as_diffusers_splits_those_of_the_published_width() -> None:
    tensors = PUBLISHED["flux"](part_tensors(tiny_flux_folder(), "transformer"))
    layer = torch.randn(7 * PUBLISHED_WIDTH, 2)
    tensors |= {"single_blocks.1.linear1.weight": layer, "single_blocks.1.linear1.bias": layer[:, 0].clone()}
    found = parts_of(FLUX).converted("transformer", tensors, {}, "it")
    block = "single_transformer_blocks.1"
    for kind, value in (("weight", layer), ("bias", layer[:, 0])):
        names = ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")
        assert torch.equal(torch.cat([found[f"{block}.{name}.{kind}"] for name in names]), value)
        assert len(found[f"{block}.attn.to_k.{kind}"]) == PUBLISHED_WIDTH
    narrow = found["single_transformer_blocks.0.attn.to_k.weight"]
    assert torch.equal(narrow, own("flux").denoiser.state_dict()["single_transformer_blocks.0.attn.to_k.weight"])


# Commands


def test_blocks_and_sizes_are_those_of_the_file(tmp_path: Path) -> None:
    folder = tiny_flux_folder()
    file, described = tmp_path / "one.safetensors", without(folder, tmp_path / "described", "transformer")
    single_file(file, folder, "flux")
    assert blocks_of(str(file)) == ("double.0", "double.1", "single.0", "single.1")
    words = ("model", "blocks", str(file), "--single-file-config", str(described), "--json")
    found, own_words = json.loads(run(*words).stdout), ("model", "blocks", str(folder), "--json")
    assert {**found, "model": ""} == {**json.loads(run(*own_words).stdout), "model": ""}
    assert "say with --single-file-config flux-schnell" in last_line(run("model", "blocks", str(file)))


def run(*words: str) -> Any:
    return CliRunner().invoke(app, list(words))


def test_doctor_names_what_the_file_does_not_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folder = tiny_flux_folder()
    file = single_file(tmp_path / "one.safetensors", folder, "flux", prefix=PREFIX, parts=["vae"])
    described = without(folder, tmp_path / "described", "text_encoder_2")

    def checks(config: str) -> dict[str, Any]:
        known = look_up(str(file), options=ModelOptions(config=config))
        return {check.what: check for check in model_checks(known, ModelOptions(config=config))}

    what = "configuration and other parts for one.safetensors"
    here = checks(str(folder))[what]
    assert here.state == "ok" and "(text_encoder, text_encoder_2: " in here.found
    assert re.search(r"described lacks weights: no .* in text_encoder_2/", checks(str(described))[what].found)
    hub = checks("flux-dev")[what]
    assert hub.state == "missing" and hub.mend.startswith("hf download black-forest-labs/FLUX.1-dev --revision")
    assert "'text_encoder_2/*.safetensors'" in hub.mend and "'transformer/*.safetensors'" not in hub.mend
    assert "'vae/*.safetensors'" not in hub.mend and hub.nbytes == 2 * (123_060_480 + 4_762_310_656)


@pytest.mark.slow
def test_a_run_from_a_single_file_is_stored_as_its_own(tmp_path: Path) -> None:
    folder = tiny_zimage_folder()
    file = single_file(tmp_path / "one.safetensors", folder, "zimage", prefix=PREFIX)
    words = (
        "run", "no_edit", "--suite", "toy", "--limit", "1", "--seeds", "0", "--model", str(file),
        "--single-file-config", str(folder), "--steps", "1", "--guidance", "0", "--size", "24", "--device", "cpu",
        "--results", str(tmp_path / "runs"), "--scorer", "toy-clip",
    )  # fmt: skip
    assert "no_edit" in run(*words, "--dry-run").stdout
    done = run(*words)
    assert done.exit_code == 0, done.stderr
    (stored,) = (tmp_path / "runs").rglob("run.json")
    model = json.loads(stored.read_text())["spec"]["model"]
    assert model["source"] == "one.safetensors" and len(model["revision"]) == 64
