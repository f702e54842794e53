"""Tokenizers, text encoders and the planted roles of the untrained U-Net."""

from __future__ import annotations

import pytest
import torch

from riebench.generation.trace import capture
from riebench.scoring.metrics.judge_network import ATTRIBUTES
from riebench.toyworld.captions import MEANING_WORDS, caption, vocabulary
from riebench.toyworld.networks.diffusion import BLOCK_MODULES, CaptionEmbedder, build_unet
from riebench.toyworld.networks.text import (
    BLOCK_ROLES,
    CONTEXT,
    HIDDEN,
    build_encoders,
    build_tokenizers,
    embedding_table,
)
from riebench.toyworld.scenes import Scene, all_scenes


def test_every_word_of_the_grammar_is_one_token() -> None:
    tokenizer = build_tokenizers()[0]
    for word in vocabulary():
        if word.isalpha():
            assert len(tokenizer(word, add_special_tokens=False).input_ids) == 1, word


def test_tokenizers_agree_but_for_padding_and_know_unknown_words() -> None:
    one, two = build_tokenizers()
    assert one("a red cat").input_ids == two("a red cat").input_ids
    assert one.pad_token_id == one.eos_token_id and two.pad_token == "!"
    assert one.eos_token_id == len(one) - 1
    assert one.unk_token_id not in one("a zebra", add_special_tokens=False).input_ids


def test_no_caption_is_cut() -> None:
    import random

    tokenizer, rng = build_tokenizers()[0], random.Random(0)
    longest = max(len(tokenizer(caption(scene, rng)).input_ids) for scene in list(all_scenes())[::977])
    assert longest <= CONTEXT


def test_encoders_hand_on_the_embedding_table() -> None:
    tokenizers = build_tokenizers()
    encoders = build_encoders(tokenizers)
    ids = tokenizers[0](["a red cat in a forest"], return_tensors="pt").input_ids
    joined = torch.cat([e(ids, output_hidden_states=True).hidden_states[-2] for e in encoders], dim=-1)
    assert torch.allclose(joined, embedding_table(tokenizers[0])[ids], atol=1e-6)
    assert encoders[1](ids).text_embeds.shape == (1, HIDDEN)


def test_each_attribute_lies_in_its_blocks_subspace() -> None:
    assert sorted(a for role in BLOCK_ROLES for a in role.attributes) == sorted(ATTRIBUTES)
    tokenizer = build_tokenizers()[0]
    table = embedding_table(tokenizer)
    for role in BLOCK_ROLES:
        for attribute in role.attributes:
            for word in (word for word, value in MEANING_WORDS[attribute].items() if value in ATTRIBUTES[attribute]):
                token = tokenizer(word, add_special_tokens=False).input_ids[0]
                outside = table[token].clone()
                outside[role.columns] = 0
                assert outside.abs().max() == 0 and table[token].norm() > 4


@pytest.mark.parametrize("attribute", list(ATTRIBUTES))
def test_a_word_reaches_its_own_block_and_no_earlier_one(attribute: str) -> None:
    scene = Scene("house", "red", "dotted", "heart", "hat", "tilted", "sky", "pencil")
    value = next(v for v in ATTRIBUTES[attribute] if v not in ("none", getattr(scene, attribute)))
    embed, unet = CaptionEmbedder(), build_unet().eval()
    texts = embed([caption(scene), caption(scene.with_value(attribute, value))])
    noise = torch.randn(1, 4, 32, 32, generator=torch.Generator().manual_seed(0)).expand(2, -1, -1, -1)
    extra = {"text_embeds": torch.randn(2, HIDDEN), "time_ids": torch.zeros(2, 6)}
    with torch.no_grad(), capture(unet, list(BLOCK_MODULES), steps=1) as trace:
        unet(noise, 999, encoder_hidden_states=texts, added_cond_kwargs=extra)
    changed = [b for b in BLOCK_MODULES if (trace.get(b)[0] - trace.get(b)[1]).abs().max() > 1e-5]
    role = next(role for role in BLOCK_ROLES if attribute in role.attributes)
    assert changed and changed[0] == role.block


def test_planted_zeros_survive_training_steps() -> None:
    unet = build_unet()
    optimizer = torch.optim.AdamW([p for p in unet.parameters() if p.requires_grad], lr=1e-2)
    extra = {"text_embeds": torch.randn(1, HIDDEN), "time_ids": torch.zeros(1, 6)}
    for _ in range(2):
        out = unet(
            torch.randn(1, 4, 32, 32), 500, encoder_hidden_states=torch.randn(1, 8, 128), added_cond_kwargs=extra
        )
        optimizer.zero_grad()
        out.sample.square().mean().backward()
        optimizer.step()
    for role in BLOCK_ROLES:
        for layer in unet.get_submodule(BLOCK_MODULES[role.block]).transformer_blocks:
            weight = layer.attn2.to_v.weight.detach().clone()
            assert weight[:, role.columns].abs().max() > 0
            weight[:, role.columns] = 0
            assert weight.abs().max() == 0
    for block in ("down.2.0", "up.0.2"):
        for layer in unet.get_submodule(BLOCK_MODULES[block]).transformer_blocks:
            assert layer.attn2.to_out[0].weight.abs().max() == 0 and layer.attn2.to_out[0].bias.abs().max() == 0
