"""Tiny random models in the hub's layout, of the classes that the named scorers load."""

from __future__ import annotations

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


def hps_file(path: Path, config: dict[str, Any]) -> Path:
    """A CLIP of open_clip, as the file that HPS is published as."""
    import open_clip

    model = spread(open_clip.CLIP(**config), 0.2)
    torch.save({"state_dict": model.state_dict()}, path)
    return path
