"""The tokenizers and text encoders of the toy SDXL.

They are small, exact, and laid out so that each block's role is known.

The U-Net of SDXL gets the penultimate hidden states of two frozen text encoders, joined. Here both encoders have one
layer, so the penultimate state is their embedding table. Every word that means something has its place in one of
four subspaces of the joined 128 dimensions, and every block's cross-attention can read one subspace only
(`diffusion.py`): this plants the roles of `BLOCK_ROLES`.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from riebench.scoring.metrics.judge_network import ATTRIBUTES, Values
from riebench.toyworld.captions import MEANING_WORDS, vocabulary

CONTEXT = 32
HIDDEN = 64
SUBSPACE = 32
TEXT_SEED, FURTHER_SEED = 7, 8
BOS, EOS, PAD_2 = "<|startoftext|>", "<|endoftext|>", "!"


@dataclass(frozen=True)
class BlockRole:
    """The planted role of one block.

    Attributes:
        block: short name.
        attributes: those whose words it reads.
        subspace: number of their subspace of the text embedding.
    """

    block: str
    attributes: tuple[str, ...]
    subspace: int

    @property
    def columns(self) -> slice:
        """The dimensions of the joined text embedding that the block reads."""
        return slice(self.subspace * SUBSPACE, (self.subspace + 1) * SUBSPACE)


BLOCK_ROLES: tuple[BlockRole, ...] = (
    BlockRole("down.2.1", ("object", "pose"), 0),
    BlockRole("mid.0", ("background",), 1),
    BlockRole("up.0.0", ("accessory", "emblem"), 2),
    BlockRole("up.0.1", ("color", "material", "style"), 3),
)
"""Composition, scene, local detail, surface: the planted truth to compare per-block tables with."""


def _split(word: str) -> list[str]:
    """Split a word like CLIP's pre-tokenizer: letters and punctuation apart."""
    pieces: list[str] = []
    current = ""
    for char in word:
        if char.isalpha():
            current += char
        else:
            pieces.extend(filter(None, (current, char)))
            current = ""
    return pieces + ([current] if current else [])


def _bpe(word: str, merges: list[tuple[str, str]]) -> list[str]:
    symbols = [*word[:-1], word[-1] + "</w>"]
    ranks = {pair: rank for rank, pair in enumerate(merges)}
    while len(symbols) > 1:
        pairs = [(ranks.get(pair, len(merges)), i) for i, pair in enumerate(itertools.pairwise(symbols))]
        rank, i = min(pairs)
        if rank == len(merges):
            break
        symbols[i : i + 2] = ["".join(symbols[i : i + 2])]
    return symbols


def _vocabulary_and_merges(values: Values) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Build a byte-pair encoding in which every word of the grammar is one token.

    Any other word is split into letters.

    Returns:
        Token -> id, and the merges in order.
    """
    merges: list[tuple[str, str]] = []
    words = sorted({piece for word in vocabulary(values) for piece in _split(word)})
    for word in words:
        pieces = _bpe(word, merges)
        for i in range(1, len(pieces)):
            merges.append(("".join(pieces[:i]), pieces[i]))
    characters = [PAD_2, *"abcdefghijklmnopqrstuvwxyz0123456789,.-'?:;()/"]
    tokens = [*characters, *(c + "</w>" for c in characters), *(a + b for a, b in merges), BOS, EOS]
    return {token: i for i, token in enumerate(dict.fromkeys(tokens))}, merges


def build_tokenizers(values: Values = ATTRIBUTES) -> tuple[CLIPTokenizer, CLIPTokenizer]:
    """Build the two tokenizers of a world, as in SDXL.

    They have the same words; one pads with the end token, the other with "!".
    """
    vocab, merges = _vocabulary_and_merges(values)
    made = []
    for pad in (EOS, PAD_2):
        made.append(CLIPTokenizer(vocab=dict(vocab), merges=list(merges), pad_token=pad, model_max_length=CONTEXT))
    return made[0], made[1]


def token_of(tokenizer: CLIPTokenizer, piece: str) -> int:
    """Return the id of a piece that is one token.

    Raises:
        ValueError: if it is several.
    """
    ids = tokenizer(piece, add_special_tokens=False).input_ids
    if len(ids) != 1:
        raise ValueError(f"{piece!r} is {len(ids)} tokens; a word of the grammar must be one")
    return int(ids[0])


def meaning_vectors(values: Values = ATTRIBUTES) -> dict[str, Tensor]:
    """Return the vector of every word with a meaning: word -> float [128].

    Values of one subspace are orthogonal; words for the same value share its vector up to a little noise. A word of the
    first world has the same vector in every world: further values get the axes and the noise that it leaves.

    Args:
        values: those of the world.
    """
    first, further = (torch.Generator().manual_seed(seed) for seed in (TEXT_SEED, FURTHER_SEED))
    vectors: dict[str, Tensor] = {}
    for role in BLOCK_ROLES:
        axes = torch.linalg.qr(torch.randn(SUBSPACE, SUBSPACE, generator=first)).Q
        taken: list[tuple[str, str]] = []
        for of_first, generator in ((True, first), (False, further)):
            words = [
                (attribute, word, value)
                for attribute in role.attributes
                for word, value in MEANING_WORDS[attribute].items()
                if value in values[attribute] and (value in ATTRIBUTES[attribute]) == of_first
            ]
            meant = {(attribute, value) for attribute, _, value in words}
            taken += sorted(meant, key=lambda one: (role.attributes.index(one[0]), one[1]))
            for attribute, word, value in words:
                noise = torch.randn(SUBSPACE, generator=generator) * (0.15 / SUBSPACE**0.5)
                vectors[word] = torch.zeros(2 * HIDDEN)
                vectors[word][role.columns] = 5.0 * (axes[taken.index((attribute, value))] + noise)
    return vectors


def embedding_table(tokenizer: CLIPTokenizer, values: Values = ATTRIBUTES) -> Tensor:
    """Return the meaning vectors of all tokens of a world: float [vocab, 128].

    They are zero for words that mean nothing by themselves.
    """
    table = torch.zeros(len(tokenizer), 2 * HIDDEN)
    for word, vector in meaning_vectors(values).items():
        # "upside-down" is three pieces to the tokenizer; the first one carries the meaning
        table[token_of(tokenizer, _split(word)[0])] = vector
    return table


def build_encoders(
    tokenizers: tuple[CLIPTokenizer, CLIPTokenizer], values: Values = ATTRIBUTES
) -> tuple[CLIPTextModel, CLIPTextModelWithProjection]:
    """Build the two text encoders of a world.

    One holds the first half of `embedding_table`, the other the second.
    """
    torch.manual_seed(TEXT_SEED)
    tables = embedding_table(tokenizers[0], values).split(HIDDEN, dim=1)
    encoders = []
    kinds = ((CLIPTextModel, "quick_gelu"), (CLIPTextModelWithProjection, "gelu"))
    for (kind, activation), table, tokenizer in zip(kinds, tables, tokenizers, strict=True):
        config = CLIPTextConfig(
            vocab_size=len(tokenizer), hidden_size=HIDDEN, intermediate_size=2 * HIDDEN, num_hidden_layers=1,
            num_attention_heads=2, max_position_embeddings=CONTEXT, projection_dim=HIDDEN, hidden_act=activation,
            bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )  # fmt: skip
        encoder = kind(config).eval().requires_grad_(False)
        text = getattr(encoder, "text_model", encoder)
        text.embeddings.token_embedding.weight.copy_(table)
        text.embeddings.position_embedding.weight.zero_()
        encoders.append(encoder)
    return encoders[0], encoders[1]
