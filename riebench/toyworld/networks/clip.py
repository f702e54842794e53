"""The toy CLIP and its training.

It is stored in open_clip's own folder layout and loaded by open_clip's own factory.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from open_clip.model import CLIP
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedTokenizerFast

from riebench.scoring.metrics.judge_network import ATTRIBUTES, Values
from riebench.toyworld.captions import caption, vocabulary
from riebench.toyworld.data import Pool, augment
from riebench.toyworld.networks.loop import Stage, fit, step_generator
from riebench.toyworld.scenes import Scene

SEED = 51
CONFIG: dict[str, Any] = {"steps": 1800, "batch": 96, "learning_rate": 1.5e-3, "seed": SEED}
WIDE_CONFIG: dict[str, Any] = {**CONFIG, "steps": 2000, "pictures": 20_000, "seed": SEED + 2}
"""That of the second world's CLIP, which starts from the first's; `pictures` of its own are rendered for it."""
CONTEXT = 32
EMBED_DIM = 96
WEIGHTS = "open_clip_model.safetensors"


def build_tokenizer(values: Values = ATTRIBUTES) -> PreTrainedTokenizerFast:
    """Build a word-level tokenizer over the words of a world's captions.

    The end token has the highest id, since open_clip finds the end of a sentence by the largest id.
    """
    splitter = pre_tokenizers.Whitespace()
    words = sorted({piece for word in vocabulary(values) for piece, _ in splitter.pre_tokenize_str(word)})
    vocab = {token: i for i, token in enumerate(["<pad>", "<unk>", *words, "<start>", "<end>"])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = splitter
    special = [("<start>", vocab["<start>"]), ("<end>", vocab["<end>"])]
    tokenizer.post_processor = processors.TemplateProcessing(single="<start> $A <end>", special_tokens=special)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", bos_token="<start>", eos_token="<end>"
    )


def model_config(values: Values = ATTRIBUTES) -> dict[str, Any]:
    """Return the architecture for a world in open_clip's terms.

    It is a small ResNet for pictures and a small transformer for captions.
    """
    return {
        "embed_dim": EMBED_DIM,
        "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16, "head_width": 64},
        "text_cfg": {
            "context_length": CONTEXT, "vocab_size": len(build_tokenizer(values)), "width": 96, "heads": 4, "layers": 3,
            "hf_tokenizer_name": "toy", "tokenizer_kwargs": {"clean": "lower"},
        },
    }  # fmt: skip


class ClipWithHeads(nn.Module):
    """CLIP with linear heads that predict the attributes from picture features.

    The heads exist in training only.

    Args:
        config: the architecture in open_clip's terms.
        values: those of the world.
    """

    def __init__(self, config: dict[str, Any], values: Values = ATTRIBUTES) -> None:
        super().__init__()
        width = config["embed_dim"]
        self.clip = CLIP(width, vision_cfg=config["vision_cfg"], text_cfg=config["text_cfg"])
        self.heads = nn.ModuleList([nn.Linear(width, len(some)) for some in values.values()])

    def reading_loss(self, features: Tensor, labels: Tensor) -> Tensor:
        """Compute the cross-entropy of the attributes, mean over them.

        Args:
            features: of pictures, float [B, D].
            labels: indices of values, int [B, 8].
        """
        losses = [F.cross_entropy(head(features), labels[:, i]) for i, head in enumerate(self.heads)]
        return torch.stack(losses).mean()


def changed_scene(scene: Scene, rng: random.Random, values: Values = ATTRIBUTES) -> Scene:
    """Return a scene of the same world that differs in one attribute drawn at random."""
    attribute = rng.choice(list(values))
    return scene.with_value(attribute, rng.choice([v for v in values[attribute] if v != getattr(scene, attribute)]))


@torch.no_grad()
def load_known(clip: CLIP, folder: Path, values: Values) -> None:
    """Load the weights of the first world's CLIP into one of a wider world.

    Words that the first world has not keep the embedding that they have.

    Args:
        clip: changed in place.
        folder: of the first world's CLIP.
        values: those of the wider world.
    """
    name = "token_embedding.weight"
    state = {key: value.to(clip.state_dict()[key].dtype) for key, value in load_file(folder / WEIGHTS).items()}
    embedding, places = clip.state_dict()[name].clone(), build_tokenizer(values).get_vocab()
    for word, place in build_tokenizer().get_vocab().items():
        embedding[places[word]] = state[name][place]
    clip.load_state_dict({**state, name: embedding})


def contrastive_sentences(scenes: Sequence[Scene], rng: random.Random, values: Values) -> list[str]:
    """Word captions of scenes, then those of scenes that differ in one attribute."""
    own = [caption(scene, rng) for scene in scenes]
    return own + [caption(changed_scene(scene, rng, values), rng) for scene in scenes]


def train(
    pool: Pool, work: Path, device: torch.device, *, name: str = "clip", config: dict[str, Any] = CONFIG,
    start: Path | None = None,
) -> CLIP:  # fmt: skip
    """Train the CLIP contrastively.

    For every picture, the negatives include a caption that differs from its own in one attribute.

    Args:
        pool: the pictures.
        work: folder that holds the stage's own folder.
        device: trains there.
        name: of the stage.
        config: its settings.
        start: folder of the first world's CLIP to start from; None starts from nothing.
    """
    torch.manual_seed(config["seed"])
    model, seed = ClipWithHeads(model_config(pool.values), pool.values), config["seed"]
    if start is not None:
        load_known(model.clip, start, pool.values)
    model = model.to(device)
    tokenizer = build_tokenizer(pool.values)

    def batch_of(step: int) -> tuple[Tensor, Tensor, Tensor]:
        generator, rng = step_generator(seed, step), random.Random(seed * 10_000_019 + step)
        indices = torch.randint(len(pool.images), (config["batch"],), generator=generator)
        sentences = contrastive_sentences([pool.scene(int(i)) for i in indices], rng, pool.values)
        images = augment(torch.from_numpy(pool.images[indices.numpy()]), generator)
        tokens = tokenizer(sentences, padding="max_length", max_length=CONTEXT, truncation=True, return_tensors="pt")
        labels = torch.from_numpy(pool.labels[indices.numpy()]).long()
        return images.to(device), tokens.input_ids.to(device), labels.to(device)

    def loss(step: int) -> Tensor:
        model.train()
        images, tokens, labels = batch_of(step)
        with torch.autocast(device.type, dtype=torch.bfloat16):
            picture, text = model.clip.encode_image(images).float(), model.clip.encode_text(tokens).float()
        picture_unit, text_unit = F.normalize(picture, dim=1), F.normalize(text, dim=1)
        logits = model.clip.logit_scale.exp().clamp(max=100) * picture_unit @ text_unit.T
        own = torch.arange(len(images), device=device)
        contrast = F.cross_entropy(logits, own) + F.cross_entropy(logits[:, : len(images)].T, own)
        return contrast / 2 + 0.5 * model.reading_loss(picture, labels)

    fit(Stage(name, config, model, loss, config["steps"], config["learning_rate"], ema_decay=0.995), work)
    _recompute_batch_norm(model.clip, [batch_of(step)[0] for step in range(20)])
    return model.clip.eval()


@torch.no_grad()
def _recompute_batch_norm(clip: CLIP, batches: list[Tensor]) -> None:
    """Recompute the batch norms' running statistics as a plain mean over batches.

    The averaged weights need statistics of their own.
    """
    norms = [m for m in clip.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    clip.train()
    for images in batches:
        clip.encode_image(images)


def save(clip: CLIP, config: dict[str, Any], folder: Path, values: Values = ATTRIBUTES) -> None:
    """Write a CLIP in half precision, in open_clip's folder layout.

    `open_clip.create_model_from_pretrained("local-dir:...")` reads it.

    Args:
        clip: the trained network.
        config: its architecture in open_clip's terms.
        folder: gets the files.
        values: those of the world.
    """
    folder.mkdir(parents=True, exist_ok=True)
    stored = {
        "model_cfg": config,
        "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "shortest"},
    }
    (folder / "open_clip_config.json").write_text(json.dumps(stored, indent=2) + "\n")
    state = {k: v.half() if v.is_floating_point() else v for k, v in clip.state_dict().items()}
    save_file({k: v.contiguous() for k, v in state.items()}, folder / WEIGHTS)
    build_tokenizer(values).save_pretrained(folder)
