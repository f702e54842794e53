"""Tiny region models with random weights, in the layout that the hub has them in."""

from __future__ import annotations

import json
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from tiny import _tokenizer, _vocabulary
from transformers import (
    BertConfig,
    BertTokenizer,
    CLIPSegConfig,
    CLIPSegForImageSegmentation,
    CLIPSegProcessor,
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    GroundingDinoImageProcessor,
    GroundingDinoProcessor,
    Sam2Config,
    Sam2HieraDetConfig,
    Sam2ImageProcessor,
    Sam2MaskDecoderConfig,
    Sam2Model,
    Sam2Processor,
    Sam2PromptEncoderConfig,
    Sam2VisionConfig,
    SwinConfig,
    ViTImageProcessor,
)

_FOLDER = tempfile.TemporaryDirectory(prefix="riebench-regions-")
WORDS = ("a", "red", "house", "boat", "foreground", "chain", "star", ",")


def detector_processor() -> GroundingDinoProcessor:
    """Grounding DINO's processor with a small vocabulary; the model counts on four of its numbers."""
    fixed = {"[PAD]": 0, "[UNK]": 100, "[CLS]": 101, "[SEP]": 102, "[MASK]": 103, ".": 1012, "?": 1029}
    free = [number for number in range(1040) if number not in fixed.values()]
    names = [*WORDS, *(f"[unused{number}]" for number in range(len(free) - len(WORDS)))]
    tokenizer = BertTokenizer(vocab={**fixed, **dict(zip(names, free, strict=True))})
    pictures = GroundingDinoImageProcessor(size={"shortest_edge": 96, "longest_edge": 128})
    return GroundingDinoProcessor(pictures, tokenizer)


def segmenter_processor() -> Sam2Processor:
    """SAM 2's processor for pictures of 128 px."""
    return Sam2Processor(Sam2ImageProcessor(size={"height": 128, "width": 128}, mask_size={"height": 32, "width": 32}))


@lru_cache(maxsize=1)
def tiny_detector() -> Path:
    """A folder with a random Grounding DINO."""
    torch.manual_seed(0)
    config = GroundingDinoConfig(
        backbone_config=SwinConfig(
            embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 1, 1], window_size=4, image_size=64,
            out_indices=[2, 3, 4],
        ),
        text_config=BertConfig(
            vocab_size=1040, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
            max_position_embeddings=32,
        ),
        d_model=32, encoder_layers=1, encoder_ffn_dim=32, encoder_attention_heads=2, decoder_layers=2,
        decoder_ffn_dim=32, decoder_attention_heads=2, num_queries=10, max_text_len=32,
    )  # fmt: skip
    model = GroundingDinoForObjectDetection(config)
    with torch.no_grad():
        # Otherwise every score of random weights is 0 or 1.
        model.model.decoder.layer_norm.weight.mul_(0.02)
    return _saved(model, detector_processor(), "detector")


@lru_cache(maxsize=1)
def tiny_segmenter() -> Path:
    """A folder with a random SAM 2, stored as a video model as those of the hub are."""
    torch.manual_seed(0)
    vision = Sam2VisionConfig(
        backbone_config=Sam2HieraDetConfig(
            hidden_size=8, image_size=[128, 128], blocks_per_stage=[1, 2, 2, 1], embed_dim_per_stage=[8, 16, 32, 64],
            num_attention_heads_per_stage=[1, 1, 2, 4], global_attention_blocks=[4],
        ),
        backbone_channel_list=[64, 32, 16, 8], backbone_feature_sizes=[[32, 32], [16, 16], [8, 8]],
        fpn_hidden_size=32,
    )  # fmt: skip
    config = Sam2Config(
        vision_config=vision,
        prompt_encoder_config=Sam2PromptEncoderConfig(
            hidden_size=32, image_size=128, patch_size=16, mask_input_channels=8
        ),
        mask_decoder_config=Sam2MaskDecoderConfig(
            hidden_size=32, mlp_dim=64, num_attention_heads=4, iou_head_hidden_dim=32
        ),
    )
    folder = _saved(Sam2Model(config), segmenter_processor(), "segmenter")
    file = folder / "config.json"
    video = {"model_type": "sam2_video", "architectures": ["Sam2VideoModel"]}
    file.write_text(json.dumps({**json.loads(file.read_text()), **video}))
    return folder


@lru_cache(maxsize=1)
def tiny_clipseg() -> Path:
    """A folder with a random CLIPSeg."""
    torch.manual_seed(0)
    size = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
    words = _vocabulary()
    text = {
        **size, "num_hidden_layers": 2, "vocab_size": len(words), "bos_token_id": words["<|startoftext|>"],
        "eos_token_id": words["<|endoftext|>"], "pad_token_id": words["<|endoftext|>"],
    }  # fmt: skip
    config = CLIPSegConfig(
        text_config=text, vision_config={**size, "num_hidden_layers": 4, "image_size": 32, "patch_size": 8},
        projection_dim=16, extract_layers=[1, 2, 3], reduce_dim=8, decoder_num_attention_heads=2,
        decoder_intermediate_size=16,
    )  # fmt: skip
    pictures = ViTImageProcessor(size={"height": 32, "width": 32})
    return _saved(CLIPSegForImageSegmentation(config), CLIPSegProcessor(pictures, _tokenizer()), "clipseg")


def _saved(model: Any, processor: Any, name: str) -> Path:
    folder = Path(_FOLDER.name) / name
    for part in (model, processor):
        part.save_pretrained(folder)
    return folder
