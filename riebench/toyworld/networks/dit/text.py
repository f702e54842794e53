"""The tokenizers and text encoders of the toy transformer, constructed and exact.

FLUX reads a caption twice: T5 gives one state a token to the joint attention, and CLIP gives one pooled vector to the
modulation of all blocks. Here T5's state of a word is its meaning vector, the same that toy-turbo's encoders have, and
the pooled vector holds the global look alone, background and style. So what is local can only come in by attention.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, T5Config, T5EncoderModel, T5Tokenizer

from riebench.scoring.metrics.judge_network import ATTRIBUTES
from riebench.toyworld.captions import MEANING_WORDS, vocabulary
from riebench.toyworld.networks.text import CONTEXT, build_tokenizers, meaning_vectors, token_of

TOKENS = 28
"""Text tokens of every caption, with padding; the longest caption has 26 with the end token."""
STATE = 128
POOLED = 64
POOLED_ATTRIBUTES = ("background", "style")
"""Attributes that the pooled vector tells."""
POOLED_SEED = 89
PAD, END, UNKNOWN = "<pad>", "</s>", "<unk>"
_SPACE = "▁"


def build_state_tokenizer() -> T5Tokenizer:
    """Build T5's tokenizer: every word of the grammar is one token.

    A comma is one too. Any other word is split into letters. A word may begin with a capital.
    """
    words = sorted({form for word in vocabulary() if word.isascii() for form in (word, word.capitalize())})
    letters = f"{_SPACE},.-'0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
    pieces = [(PAD, 0.0), (END, 0.0), (UNKNOWN, 0.0)]
    pieces += [(_SPACE + word, -1.0) for word in words if word != ","]
    pieces += [(letter, -10.0) for letter in letters]
    return T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=TOKENS)


def build_encoders(
    pooled_tokenizer: CLIPTokenizer, state_tokenizer: T5Tokenizer
) -> tuple[CLIPTextModel, T5EncoderModel]:
    """Build both text encoders."""
    return _pooled_encoder(pooled_tokenizer), _state_encoder(state_tokenizer)


def _state_encoder(tokenizer: T5Tokenizer) -> T5EncoderModel:
    """Build a T5 of one layer that adds nothing.

    So a state is the normalised meaning vector of its word.
    """
    config = T5Config(
        vocab_size=len(tokenizer), d_model=STATE, d_kv=8, d_ff=8, num_layers=1, num_heads=1,
        feed_forward_proj="gated-gelu", pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    encoder = T5EncoderModel(config).eval().requires_grad_(False)
    attention, feed_forward = encoder.encoder.block[0].layer
    attention.SelfAttention.o.weight.zero_()
    feed_forward.DenseReluDense.wo.weight.zero_()
    table = encoder.shared.weight.zero_()
    for word, vector in meaning_vectors().items():
        for form in (word, word.capitalize()):
            table[tokenizer.convert_tokens_to_ids(_SPACE + form)] = vector
    return encoder


def _pooled_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """Build a CLIP of one layer whose end token sums the words before it.

    All attention weights are equal, since queries are zero; values are the normalised embeddings.
    """
    config = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=POOLED, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1,
        max_position_embeddings=CONTEXT, projection_dim=POOLED, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    encoder = CLIPTextModel(config).eval().requires_grad_(False)
    text = getattr(encoder, "text_model", encoder)
    layer = text.encoder.layers[0]
    for linear in (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.mlp.fc2):
        linear.weight.zero_()
    for linear in (layer.self_attn.v_proj, layer.self_attn.out_proj):
        linear.weight.copy_(torch.eye(POOLED))
    for name, parameter in encoder.named_parameters():
        if name.endswith("bias"):
            parameter.zero_()
    text.embeddings.position_embedding.weight.zero_()
    text.embeddings.token_embedding.weight.zero_()
    meanings = {
        name: {word: value for word, value in MEANING_WORDS[name].items() if value in ATTRIBUTES[name]}
        for name in POOLED_ATTRIBUTES
    }
    values = [(name, value) for name, words in meanings.items() for value in sorted({*words.values()})]
    generator = torch.Generator().manual_seed(POOLED_SEED)
    axes = torch.linalg.qr(torch.randn(POOLED, POOLED, generator=generator)).Q
    for name, words in meanings.items():
        for word, value in words.items():
            text.embeddings.token_embedding.weight[token_of(tokenizer, word)] = axes[values.index((name, value))]
    return encoder


class CaptionEncoder:
    """Both encoders with their tokenizers, as FLUX's pipeline calls them.

    Attributes:
        tokenizers: CLIP's and T5's.
        encoders: CLIP's and T5's.
    """

    def __init__(self) -> None:
        self.tokenizers = (build_tokenizers()[0], build_state_tokenizer())
        self.encoders = build_encoders(*self.tokenizers)

    @torch.no_grad()
    def __call__(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Encode captions.

        Returns:
            States, float [B, 28, 128], and pooled vectors, float [B, 64].
        """
        ids = [
            tokenizer(
                list(captions), padding="max_length", max_length=length, truncation=True, return_tensors="pt"
            ).input_ids
            for tokenizer, length in zip(self.tokenizers, (CONTEXT, TOKENS), strict=True)
        ]
        pooled, states = (encoder(some) for encoder, some in zip(self.encoders, ids, strict=True))
        return states[0], pooled.pooler_output
