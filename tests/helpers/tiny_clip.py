"""A tiny random CLIP in open_clip's own layout, with a vocabulary of seven words and 10 text positions."""

from __future__ import annotations

import json
from pathlib import Path

import torch

WORDS = ("a", "red", "blue", "car", "boat", "[", "]")
VISION = {"image_size": 16, "layers": 1, "width": 16, "head_width": 8, "patch_size": 8}


def tiny_clip_folder(path: Path, seed: int = 0) -> Path:
    """Writes configuration, weights and tokenizer into an existing folder, and returns it."""
    from open_clip import CLIP
    from safetensors.torch import save_file
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: index for index, word in enumerate(("<pad>", "<start>", "<unk>", *WORDS, "<end>"))}
    end = vocabulary["<end>"]
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", 1), ("<end>", end)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<start>", eos_token="<end>", unk_token="<unk>"
    )
    fast.save_pretrained(path)
    text = {"context_length": 10, "vocab_size": end + 1, "width": 16, "heads": 2, "layers": 1}
    own = {"hf_tokenizer_name": "own", "tokenizer_kwargs": {"clean": "lower"}}
    config = {
        "model_cfg": {"embed_dim": 8, "quick_gelu": True, "vision_cfg": VISION, "text_cfg": text | own},
        "preprocess_cfg": {
            "mean": [0.5] * 3, "std": [0.25] * 3, "interpolation": "bicubic", "resize_mode": "squash",
        },
    }  # fmt: skip
    (path / "open_clip_config.json").write_text(json.dumps(config))
    torch.manual_seed(seed)
    model = CLIP(embed_dim=8, vision_cfg=VISION, text_cfg=text, quick_gelu=True)
    save_file(
        {name: value.contiguous() for name, value in model.state_dict().items()}, path / "open_clip_model.safetensors"
    )
    return path
