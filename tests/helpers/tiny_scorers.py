"""Tiny random models in the hub's layout, of the classes that the named scorers load."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

WORDS = ("a", "red", "blue", "car", "boat", "on", "the")


def word_tokenizer(context: int) -> Any:
    """A tokenizer of seven words for a CLIP, whose last token has the highest number."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: index for index, word in enumerate(("<pad>", "<start>", "<unk>", *WORDS, "<end>"))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", 1), ("<end>", vocabulary["<end>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<start>", eos_token="<end>", unk_token="<unk>",
        model_max_length=context,
    )  # fmt: skip


def spread(model: Any, deviation: float = 0.3) -> Any:
    """Give a model weights that are large enough to tell pictures apart."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            if parameter.ndim > 0 and "norm" not in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * deviation)
    return model


def pickscore_folder(path: Path) -> Path:
    """A CLIP of transformers with its processor."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor

    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    end = len(WORDS) + 3
    config = CLIPConfig(
        text_config={**sizes, "vocab_size": end + 1, "max_position_embeddings": 10, "eos_token_id": end,
                     "bos_token_id": 1, "pad_token_id": 0},
        vision_config={**sizes, "image_size": 16, "patch_size": 8},
        projection_dim=8,
    )  # fmt: skip
    spread(CLIPModel(config)).save_pretrained(path)
    images = CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    CLIPProcessor(images, word_tokenizer(10)).save_pretrained(path)
    # Releases write the image processor's settings under different names.
    images.save_pretrained(path)
    return path


def dino_folder(path: Path, kind: str) -> Path:
    """A DINOv2 or DINOv3 with its image processor; `kind` is its class in transformers."""
    import transformers

    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    extra = {"mlp_ratio": 2} if kind == "Dinov2Model" else {"intermediate_size": 32, "num_register_tokens": 2}
    config = getattr(transformers, kind.replace("Model", "Config"))(**sizes, **extra)
    spread(getattr(transformers, kind)(config)).save_pretrained(path)
    transformers.BitImageProcessor(
        size={"shortest_edge": 32}, crop_size={"height": 28, "width": 28}, image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
    ).save_pretrained(path)  # fmt: skip
    return path


def dreamsim_folder(path: Path, width: int = 24, depth: int = 12) -> Path:
    """DreamSim's ensemble as its authors publish it, with narrower towers."""
    generator = torch.Generator().manual_seed(5)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator) * 0.2

    def layer(name: str, *shape: int) -> dict[str, torch.Tensor]:
        return {f"{name}.weight": random(*shape), f"{name}.bias": random(shape[0])}

    def tower() -> dict[str, torch.Tensor]:
        found = {"cls_token": random(1, 1, width), "pos_embed": random(1, 1 + 14 * 14, width)}
        found |= layer("patch_embed.proj", width, 3, 16, 16) | layer("norm", width)
        for block in (f"blocks.{number}" for number in range(depth)):
            found |= layer(f"{block}.norm1", width) | layer(f"{block}.norm2", width)
            found |= layer(f"{block}.attn.qkv", 3 * width, width) | layer(f"{block}.attn.proj", width, width)
            found |= layer(f"{block}.mlp.fc1", 4 * width, width) | layer(f"{block}.mlp.fc2", width, 4 * width)
        return found

    (path / "ensemble_lora").mkdir(parents=True)
    dino = tower()
    teacher = {f"backbone.{name}": value for name, value in dino.items()}
    # The authors' package reads the head of the student, whose features it does not use.
    head = {f"module.head.mlp.{place}.{part}": random(2) for place in (0, 2, 4) for part in ("weight", "bias")}
    torch.save(
        {"teacher": teacher, "student": {**head, "module.head.last_layer.weight": random(2)}},
        path / "dino_vitb16_pretrain.pth",
    )
    for name in ("clip", "open_clip"):
        weights = {**tower(), **layer("pos_drop", width), "proj": random(width, 16)}
        torch.save({"state_dict": weights}, path / f"{name}_vitb16_pretrain.pth.tar")
    start = "base_model.model.extractor_list"
    lora = {
        f"{start}.{place}.model.blocks.{block}.attn.qkv.lora_{side}.weight": random(*shape)
        for place in range(3)
        for block in range(depth)
        for side, shape in (("A", (4, width)), ("B", (3 * width, 4)))
    }
    torch.save(lora, path / "ensemble_lora" / "adapter_model.bin")
    settings = {"r": 4, "lora_alpha": 2, "lora_dropout": 0.3, "bias": "none", "target_modules": ["qkv"],
                "peft_type": "LORA", "base_model_name_or_path": None, "task_type": None}  # fmt: skip
    (path / "ensemble_lora" / "adapter_config.json").write_text(json.dumps(settings))
    return path


def hps_file(path: Path, config: dict[str, Any]) -> Path:
    """A CLIP of open_clip, as the file that HPS is published as."""
    import open_clip

    model = spread(open_clip.CLIP(**config), 0.2)
    torch.save({"state_dict": model.state_dict()}, path)
    return path


SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>",
           "<|video_pad|>")  # fmt: skip
CHAT = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{% for part in message.content %}"
    "{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def byte_tokenizer() -> Any:
    """A tokenizer of bytes with the special tokens of Qwen, and the words Yes and No as tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("Y", "e"), ("Ye", "s"), ("N", "o")]
    words = [*alphabet, *(a + b for a, b in merges)]
    tokenizer = Tokenizer(models.BPE({word: index for index, word in enumerate(words)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([*SPECIAL])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template=CHAT,
        extra_special_tokens={"image_token": "<|image_pad|>", "video_token": "<|video_pad|>",
                              "vision_start_token": "<|vision_start|>", "vision_end_token": "<|vision_end|>"},
    )  # fmt: skip


def qwen3_vl_folder(path: Path, readable: bool = True) -> Path:
    """A Qwen3-VL with its processor.

    Args:
        path: where it is put.
        readable: whether every answer begins with Yes or No, and not with any token.
    """
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration, Qwen3VLProcessor
    from transformers.models.qwen2_vl import Qwen2VLImageProcessor
    from transformers.models.qwen3_vl import Qwen3VLVideoProcessor

    tokenizer = byte_tokenizer()
    number = tokenizer.convert_tokens_to_ids
    config = Qwen3VLConfig(
        text_config={"vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2,
                     "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16,
                     "rope_scaling": {"rope_type": "default", "mrope_section": [4, 2, 2], "mrope_interleaved": True}},
        vision_config={"depth": 2, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 32,
                       "num_position_embeddings": 16, "deepstack_visual_indexes": [0], "patch_size": 16},
        image_token_id=number("<|image_pad|>"), video_token_id=number("<|video_pad|>"),
        vision_start_token_id=number("<|vision_start|>"), vision_end_token_id=number("<|vision_end|>"),
    )  # fmt: skip
    model = spread(Qwen3VLForConditionalGeneration(config), 0.2)
    if readable:
        with torch.no_grad():
            direction = model.lm_head.weight[number("Yes")].clone()
            model.lm_head.weight.zero_()
            model.lm_head.weight[number("Yes")], model.lm_head.weight[number("No")] = direction, -direction
    model.save_pretrained(path)
    images = {"patch_size": 16, "merge_size": 2, "size": {"shortest_edge": 64 * 64, "longest_edge": 128 * 128}}
    processor = Qwen3VLProcessor(
        Qwen2VLImageProcessor(**images), tokenizer, Qwen3VLVideoProcessor(patch_size=16), chat_template=CHAT
    )
    processor.save_pretrained(path)
    processor.image_processor.save_pretrained(path)
    return path
