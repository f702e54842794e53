"""Shared parts of model families whose transformer reads text by cross-attention.

Their blocks carry one stream, the image tokens, and read the text in `attn2`. Such blocks are named `block.0`,
`block.1` and so on (`names`). `family` holds `CrossAttentionFamily`, `attention` the text attention of a block, `text`
the places of a prompt's words, `trial` tries a schedule step by step, and `sizes` holds measures. The sub-packages are
families.
"""
