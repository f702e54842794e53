"""A tiny SDXL in the forms in which people have the real one: hub folder, hub cache, single file, and a hub to ask."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any

import huggingface_hub.utils._http as hub_http
import pytest
import torch
from huggingface_hub import constants, get_session, set_client_factory
from safetensors.torch import load_file, save_file
from tiny import _FOLDER, _vocabulary, tiny_pipeline

from riebench.models.families.sdxl.shape import PARTS

REPO = "someone/tiny-sdxl"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
Tensors = dict[str, torch.Tensor]
HTTP: Any = import_module(type(get_session()).__module__.partition(".")[0])
"""What the installed huggingface_hub asks with: httpx or httpx2."""


@lru_cache(maxsize=1)
def plain_folder() -> Path:
    """A tiny pipeline whose text encoders have different widths, as SDXL's have."""
    return tiny_pipeline(Path(_FOLDER.name) / "two-widths", widths=(8, 24))


def hub_layout(folder: Path, *, half: bool = True, full: bool = True, index: dict[str, Any] | None = None) -> Path:
    """Writes what SDXL Turbo's repository holds, tiny: the same names, keys, configurations and tokenizer files.

    Args:
        folder: gets the files.
        half: whether the files marked fp16 are there.
        full: whether the unmarked ones are.
        index: entries of model_index.json that differ.
    """
    source = plain_folder()
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("*.safetensors", "tokenizer*"))
    change_json(folder / "model_index.json", feature_extractor=[None, None], image_encoder=[None, None], **index or {})
    for part in PARTS:
        (file,) = (source / part).glob("*.safetensors")
        tensors = load_file(file)
        if part == "text_encoder":
            # Newer transformers drops the prefix that the published file has.
            tensors = {f"text_model.{name.removeprefix('text_model.')}": value for name, value in tensors.items()}
        if part.startswith("text"):
            change_json(folder / part / "config.json", torch_dtype="float16", dtype=None)
        if full:
            save_file(tensors, folder / part / file.name, {"format": "pt"})
        if half:
            halved = {name: value.half() if value.is_floating_point() else value for name, value in tensors.items()}
            save_file(halved, folder / part / file.name.replace(".safetensors", ".fp16.safetensors"), {"format": "pt"})
    for name in ("tokenizer", "tokenizer_2"):
        (folder / name).mkdir()
        (folder / name / "vocab.json").write_text(json.dumps(_vocabulary()))
        (folder / name / "merges.txt").write_text("#version: 0.2\n")
        described = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "do_lower_case": True}
        (folder / name / "tokenizer_config.json").write_text(json.dumps(described))
    return folder


def change_json(path: Path, **entries: Any) -> None:
    """Sets entries of a JSON file; None removes one."""
    found = {**json.loads(path.read_text()), **entries}
    path.write_text(json.dumps({name: value for name, value in found.items() if value is not None}))


def change_tensors(path: Path, **tensors: torch.Tensor | None) -> None:
    """Sets tensors of a safetensors file; None removes one. Dots are written as double underscores."""
    named = {name.replace("__", "."): value for name, value in tensors.items()}
    found = {**load_file(path), **named}
    save_file({name: value for name, value in found.items() if value is not None}, path, {"format": "pt"})


def hub_cache(cache: Path, monkeypatch: pytest.MonkeyPatch, **layout: Any) -> Path:
    """A hub's cache that holds the tiny model, as if it had been fetched, and nothing else; returns the snapshot."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    place = cache / f"models--{REPO.replace('/', '--')}"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text(COMMIT)
    return hub_layout(place / "snapshots" / COMMIT, **layout)


@contextmanager
def fake_hub(monkeypatch: pytest.MonkeyPatch, answer: Any) -> Iterator[list[str]]:
    """Answers every request of the hub's library in this process.

    Args:
        monkeypatch: undoes everything.
        answer: request -> response, or raises.

    Yields:
        The paths asked for so far.
    """
    asked: list[str] = []

    def handle(request: Any) -> Any:
        asked.append(request.url.path)
        response = answer(request)
        return response

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    set_client_factory(lambda: HTTP.Client(transport=HTTP.MockTransport(handle), follow_redirects=True))
    try:
        yield asked
    finally:
        set_client_factory(hub_http.default_client_factory)


def serve(folder: Path) -> Any:
    """Answers as the hub does for the repository whose files are in a folder."""
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}

    def answer(request: Any) -> Any:
        path = request.url.path
        if re.fullmatch(rf"/api/models/{REPO}(/revision/[^/]+)?", path):
            return HTTP.Response(200, json={"id": REPO, "sha": COMMIT, "siblings": []})
        if path.startswith(f"/api/models/{REPO}/tree/"):
            entries = [
                {"type": "file", "path": name, "size": file.stat().st_size, "oid": _oid(file)}
                for name, file in files.items()
            ]
            return HTTP.Response(200, json=entries)
        found = files.get(path.removeprefix(f"/{REPO}/resolve/{COMMIT}/"))
        if found is None:
            return refusal(404, "EntryNotFound")(request)
        body = found.read_bytes()
        headers = {"ETag": f'"{_oid(found)}"', "X-Repo-Commit": COMMIT, "Content-Length": str(len(body))}
        return HTTP.Response(200, headers=headers, content=b"" if request.method == "HEAD" else body)

    return answer


def refusal(status: int, code: str) -> Any:
    """Answers everything with one of the hub's refusals."""
    return lambda request: HTTP.Response(status, headers={"X-Error-Code": code}, request=request)


def unreachable(request: Any) -> Any:
    """Answers nothing, as without a network."""
    raise HTTP.ConnectError("[Errno -3] Temporary failure in name resolution", request=request)


def _oid(file: Path) -> str:
    return hashlib.sha1(file.read_bytes()).hexdigest()


def single_file(path: Path, dtype: torch.dtype = torch.float32) -> Path:
    """Writes the tiny model as one file under the names that SDXL was first published with."""
    folder = plain_folder()
    parts = {part: load_file(next((folder / part).glob("*.safetensors"))) for part in PARTS}
    tensors = {
        **{f"model.diffusion_model.{unet_name(name)}": value for name, value in parts["unet"].items()},
        **{f"first_stage_model.{_vae_name(name)}": _vae_value(name, value) for name, value in parts["vae"].items()},
        **{
            f"conditioner.embedders.0.transformer.text_model.{name.removeprefix('text_model.')}": value
            for name, value in parts["text_encoder"].items()
        },
        **{f"conditioner.embedders.1.model.{name}": value for name, value in _open_clip(parts["text_encoder_2"])},
    }
    save_file({name: value.to(dtype).contiguous() for name, value in tensors.items()}, path, {"format": "pt"})
    return path


_UNET_TOP = {
    "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2",
}  # fmt: skip
_RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
    "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
}  # fmt: skip
_LAYERS = 2
"""Residual blocks per level on the way down."""


def unet_name(name: str) -> str:
    top, _, kind = name.rpartition(".")
    if top in _UNET_TOP:
        return f"{_UNET_TOP[top]}.{kind}"
    level, what, index, rest = _parsed(name)
    if what in ("downsamplers", "upsamplers"):
        place = f"input_blocks.{(level + 1) * (_LAYERS + 1)}.0.op" if what == "downsamplers" else (
            # Behind the attention, where there is one.
            f"output_blocks.{level * (_LAYERS + 1) + _LAYERS}.{2 if level == 0 else 1}.conv"
        )  # fmt: skip
        return f"{place}.{rest.removeprefix('conv.')}"
    if name.startswith("mid_block"):
        place = f"middle_block.{2 * index if what == 'resnets' else 1}"
    elif name.startswith("down_blocks"):
        place = f"input_blocks.{level * (_LAYERS + 1) + index + 1}.{0 if what == 'resnets' else 1}"
    else:
        place = f"output_blocks.{level * (_LAYERS + 1) + index}.{0 if what == 'resnets' else 1}"
    if what == "attentions":
        return f"{place}.{rest}"
    layer, _, kind = rest.partition(".")
    return f"{place}.{_RESNET[layer]}.{kind}"


def _parsed(name: str) -> tuple[int, str, int, str]:
    found = re.fullmatch(r"(?:\w+_blocks\.(\d+)|mid_block)\.(\w+)\.(\d+)\.(.+)", name)
    assert found is not None, name
    return int(found[1] or 0), found[2], int(found[3]), found[4]


_VAE_LEVELS = 2
_VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def _vae_name(name: str) -> str:
    name = name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
    name = re.sub(r"down_blocks\.(\d+)\.resnets\.(\d+)", r"down.\1.block.\2", name)
    name = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample", name)
    # The decoder's levels were counted from the finest.
    name = re.sub(r"up_blocks\.(\d+)", lambda found: f"up.{_VAE_LEVELS - 1 - int(found[1])}", name)
    name = re.sub(r"up\.(\d+)\.resnets\.(\d+)", r"up.\1.block.\2", name)
    name = re.sub(r"up\.(\d+)\.upsamplers\.0", r"up.\1.upsample", name)
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda found: f"mid.block_{int(found[1]) + 1}", name)
    for ours, theirs in _VAE_ATTENTION.items():
        name = name.replace(f"mid_block.attentions.0.{ours}.", f"mid.attn_1.{theirs}.")
    return name


def _vae_value(name: str, value: torch.Tensor) -> torch.Tensor:
    # Its attention was written as convolutions of one pixel.
    return value[:, :, None, None] if ".attentions." in name and value.dim() == 2 else value


_OPEN_CLIP = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm.weight": "ln_final.weight", "final_layer_norm.bias": "ln_final.bias",
}  # fmt: skip
_OPEN_CLIP_LAYER = {
    "layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}  # fmt: skip


def _open_clip(tensors: Tensors) -> Iterator[tuple[str, torch.Tensor]]:
    yield "text_projection", tensors["text_projection.weight"].T
    plain = {name.removeprefix("text_model."): value for name, value in tensors.items()}
    for name, value in plain.items():
        found = re.fullmatch(r"encoder\.layers\.(\d+)\.(.+)\.(weight|bias)", name)
        if name in _OPEN_CLIP:
            yield _OPEN_CLIP[name], value
        elif found is not None and found[2] in _OPEN_CLIP_LAYER:
            yield f"transformer.resblocks.{found[1]}.{_OPEN_CLIP_LAYER[found[2]]}.{found[3]}", value
        elif found is not None and found[2] == "self_attn.q_proj":
            joined = torch.cat([plain[name.replace("q_proj", part)] for part in ("q_proj", "k_proj", "v_proj")])
            yield f"transformer.resblocks.{found[1]}.attn.in_proj_{found[3]}", joined
