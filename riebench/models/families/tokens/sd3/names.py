"""Short names of the blocks of Stable Diffusion 3's transformer.

All blocks have two streams: `double.0` to `double.23` in the medium models, to `double.37` in the large ones. The text
stream of a block is `double.3/text`; the last block of a model gives none. The feed-forward units of its image tokens
are `double.3.ff.0`.
"""

from __future__ import annotations

from riebench.models.families.tokens.names import BlockList, TokenNames

MEDIUM, LARGE = 24, 38
"""Blocks of the medium and of the large models."""
NAMES = TokenNames((BlockList("double", "transformer_blocks", LARGE, "ff.net.0"),))
"""Experiments take all blocks where none are named: no SAE of single blocks is published."""
