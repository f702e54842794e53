"""Single files of token models, written in the names of the first publications from tiny models' folders."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import sdxl_files
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

PREFIX = "model.diffusion_model."
Tensors = dict[str, Tensor]


def part_tensors(folder: Path, part: str) -> Tensors:
    """The tensors of one part of a folder."""
    return load_file(next((folder / part).glob("*.safetensors")))


def single_file(
    path: Path, folder: Path, family: str, *, prefix: str = "", parts: Iterable[str] = (),
    change: Callable[[Tensors], object] = lambda tensors: None, dtype: torch.dtype | None = torch.float32,
) -> Path:  # fmt: skip
    """Writes a tiny model's transformer, and other parts, as one file in the names of the first publication."""
    published = PUBLISHED[family](part_tensors(folder, "transformer"))
    tensors = {f"{prefix}{name}": value for name, value in published.items()}
    for part in parts:
        called = "text_encoder_3" if (family, part) == ("flux", "text_encoder_2") else part
        tensors |= _OTHERS[called](part_tensors(folder, part))
    change(tensors)
    save_file(
        {name: value.to(dtype or value.dtype).contiguous() for name, value in tensors.items()}, path, {"format": "pt"}
    )
    return path


def text_encoder(name: str) -> Callable[[Tensors], Tensors]:
    """Gives names to the tensors of a text encoder in files of whole models."""
    text = "text_model." if name.startswith("clip") else ""

    def named(tensors: Tensors) -> Tensors:
        plain = {one.removeprefix("text_model."): value for one, value in tensors.items()}
        return {
            f"text_encoders.{name}.transformer.{'' if one.startswith('text_projection') else text}{one}": value.clone()
            for one, value in plain.items()
        }

    return named


def _autoencoder(tensors: Tensors) -> Tensors:
    return {
        f"first_stage_model.{sdxl_files._vae_name(name)}": sdxl_files._vae_value(name, value)
        for name, value in tensors.items()
    }


_OTHERS: dict[str, Callable[[Tensors], Tensors]] = {
    "vae": _autoencoder, "text_encoder": text_encoder("clip_l"), "text_encoder_2": text_encoder("clip_g"),
    "text_encoder_3": text_encoder("t5xxl"),
}  # fmt: skip


def renamed(tensors: Tensors, rules: Mapping[str, str]) -> Tensors:
    """Tensors under names that are changed by regular expressions, one after the other."""
    found = {}
    for name, value in tensors.items():
        for old, new in rules.items():
            name = re.sub(old, new, name)
        found[name] = value
    return found


def joined(tensors: Tensors, ends: tuple[str, ...], new: str) -> None:
    """Puts tensors whose names differ in their ends behind one another, under one name."""
    for name in [one for one in tensors if re.search(rf"{re.escape(ends[0])}\.(weight|bias)$", one)]:
        start, kind = name.rsplit(".", 1)
        start = start.removesuffix(ends[0])
        tensors[f"{start}{new}.{kind}"] = torch.cat([tensors.pop(f"{start}{end}.{kind}") for end in ends])


def swapped(tensors: Tensors, layer: str) -> None:
    """Exchanges the halves of a layer's output: shift and scale come in the other order."""
    for kind in ("weight", "bias"):
        scale, shift = tensors[f"{layer}.{kind}"].chunk(2)
        tensors[f"{layer}.{kind}"] = torch.cat([shift, scale])


def _flux(tensors: Tensors) -> Tensors:
    double = {name: value for name, value in tensors.items() if name.startswith("transformer_blocks")}
    joined(double, ("attn.to_q", "attn.to_k", "attn.to_v"), "img_attn.qkv")
    joined(double, ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"), "txt_attn.qkv")
    rest = {name: value for name, value in tensors.items() if not name.startswith("transformer_blocks")}
    joined(rest, ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"), "linear1")
    found = renamed(rest | double, {
        r"^single_transformer_blocks\.(\d+)\.norm\.linear": r"single_blocks.\1.modulation.lin",
        r"^single_transformer_blocks\.(\d+)\.attn\.norm_q\.weight": r"single_blocks.\1.norm.query_norm.scale",
        r"^single_transformer_blocks\.(\d+)\.attn\.norm_k\.weight": r"single_blocks.\1.norm.key_norm.scale",
        r"^single_transformer_blocks\.(\d+)\.proj_out": r"single_blocks.\1.linear2",
        r"^single_transformer_blocks": "single_blocks", r"^transformer_blocks": "double_blocks",
        r"norm1\.linear": "img_mod.lin", r"norm1_context\.linear": "txt_mod.lin",
        r"attn\.norm_q\.weight": "img_attn.norm.query_norm.scale",
        r"attn\.norm_k\.weight": "img_attn.norm.key_norm.scale",
        r"attn\.norm_added_q\.weight": "txt_attn.norm.query_norm.scale",
        r"attn\.norm_added_k\.weight": "txt_attn.norm.key_norm.scale",
        r"attn\.to_out\.0": "img_attn.proj", r"attn\.to_add_out": "txt_attn.proj",
        r"ff\.net\.0\.proj": "img_mlp.0", r"ff\.net\.2": "img_mlp.2",
        r"ff_context\.net\.0\.proj": "txt_mlp.0", r"ff_context\.net\.2": "txt_mlp.2",
        r"^time_text_embed\.timestep_embedder": "time_in", r"^time_text_embed\.text_embedder": "vector_in",
        r"^time_text_embed\.guidance_embedder": "guidance_in", r"_in\.linear_1": "_in.in_layer",
        r"_in\.linear_2": "_in.out_layer", r"^context_embedder": "txt_in", r"^x_embedder": "img_in",
        r"^proj_out": "final_layer.linear", r"^norm_out\.linear": "final_layer.adaLN_modulation.1",
    })  # fmt: skip
    swapped(found, "final_layer.adaLN_modulation.1")
    return found


def _sd3(tensors: Tensors) -> Tensors:
    tensors = dict(tensors)
    for layer in ("attn", "attn2"):
        joined(tensors, (f".{layer}.to_q", f".{layer}.to_k", f".{layer}.to_v"), f".x_block.{layer}.qkv")
    joined(tensors, ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"), "context_block.attn.qkv")
    last = max(int(name.split(".")[1]) for name in tensors if name.startswith("transformer_blocks"))
    found = renamed(tensors, {
        r"^transformer_blocks": "joint_blocks",
        r"\.attn(2?)\.norm_(q|k)\.": r".x_block.attn\1.ln_\2.", r"\.attn\.norm_added_(q|k)\.":
            r".context_block.attn.ln_\1.",
        r"\.(attn2?)\.to_out\.0": r".x_block.\1.proj", r"\.attn\.to_add_out": ".context_block.attn.proj",
        r"\.norm1\.linear": ".x_block.adaLN_modulation.1",
        r"\.norm1_context\.linear": ".context_block.adaLN_modulation.1",
        r"\.ff\.net\.0\.proj": ".x_block.mlp.fc1", r"\.ff\.net\.2": ".x_block.mlp.fc2",
        r"\.ff_context\.net\.0\.proj": ".context_block.mlp.fc1", r"\.ff_context\.net\.2": ".context_block.mlp.fc2",
        r"^pos_embed\.pos_embed": "pos_embed", r"^pos_embed\.proj": "x_embedder.proj",
        r"^time_text_embed\.timestep_embedder": "t_embedder.mlp", r"^time_text_embed\.text_embedder": "y_embedder.mlp",
        r"mlp\.linear_1": "mlp.0", r"mlp\.linear_2": "mlp.2",
        r"^proj_out": "final_layer.linear", r"^norm_out\.linear": "final_layer.adaLN_modulation.1",
    })  # fmt: skip
    swapped(found, "final_layer.adaLN_modulation.1")
    swapped(found, f"joint_blocks.{last}.context_block.adaLN_modulation.1")
    return found


def _sana(tensors: Tensors) -> Tensors:
    tensors = dict(tensors)
    joined(tensors, ("attn1.to_q", "attn1.to_k", "attn1.to_v"), "attn.qkv")
    joined(tensors, ("attn2.to_k", "attn2.to_v"), "cross_attn.kv_linear")
    found = renamed(tensors, {
        r"^transformer_blocks": "blocks", r"attn1\.to_out\.0": "attn.proj", r"attn2\.to_out\.0": "cross_attn.proj",
        r"attn2\.to_q": "cross_attn.q_linear", r"ff\.conv_(\w+)\.": r"mlp.\1_conv.conv.",
        r"^patch_embed\.proj": "x_embedder.proj", r"^time_embed\.emb\.timestep_embedder": "t_embedder.mlp",
        r"mlp\.linear_1": "mlp.0", r"mlp\.linear_2": "mlp.2", r"^time_embed\.linear": "t_block.1",
        r"^caption_projection\.linear_": "y_embedder.y_proj.fc", r"^caption_norm": "attention_y_norm",
        r"^proj_out": "final_layer.linear", r"^scale_shift_table": "final_layer.scale_shift_table",
    })  # fmt: skip
    # Both are in the published files, and the pipeline needs neither.
    return found | {"pos_embed": torch.zeros(1, 4, 4), "y_embedder.y_embedding": torch.zeros(4, 12)}


def _zimage(tensors: Tensors) -> Tensors:
    tensors = dict(tensors)
    joined(tensors, (".to_q", ".to_k", ".to_v"), ".qkv")
    return renamed(tensors, {
        r"^all_final_layer\.2-1": "final_layer", r"^all_x_embedder\.2-1": "x_embedder",
        r"attention\.to_out\.0": "attention.out", r"attention\.norm_(q|k)": r"attention.\1_norm",
    }) | {"norm_final.weight": torch.ones(24)}  # fmt: skip


PUBLISHED: dict[str, Callable[[Tensors], Tensors]] = {
    "flux": _flux, "sd3": _sd3, "sana": _sana, "zimage": _zimage, "qwen": dict, "named": dict,
}  # fmt: skip
"""Family -> how its transformer's tensors were first published; "named" keeps the names of diffusers."""
