"""The contract of a model family, with what models of cross-attention share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from riebench.models.families.base import positions_of
from riebench.models.families.blocks import BatchLayout
from riebench.models.families.tokens.cross_attention.text import TOKENS, places_in_plain_text, plain_text
from riebench.models.families.tokens.cross_attention.trial import check_steps
from riebench.models.families.tokens.family import TokenFamily

if TYPE_CHECKING:
    from torch import Tensor, nn


class CrossAttentionFamily(TokenFamily):
    """Models whose transformer reads one encoder's text by cross-attention.

    Padding is masked. The text is the prompt in lower case, without blanks around it.
    """

    unused_parts = ()
    text_names = ("prompt_embeds", "prompt_attention_mask")
    step_text_names: tuple[str, ...] = ("prompt_embeds",)
    step_text_arguments: Mapping[str, str] = {"prompt_attention_mask": "encoder_attention_mask"}

    def check_schedule(self, folder: Path, steps: int, shown: str) -> None:
        """Refuse a folder whose schedule cannot be followed step by step.

        One that draws noise without a picture's seed is refused, too.
        """
        check_steps(folder, steps, shown, self.brand, self.schedulers, self.schedule_arguments(steps))

    def update_width(self, denoiser: nn.Module, name: str) -> int:
        """Return the channels of the image tokens."""
        config: Any = denoiser.config
        return int(config.num_attention_heads * config.attention_head_dim)

    def layout(self, guided: bool) -> BatchLayout:
        """Return one batch, under guidance its unconditional half first."""
        return BatchLayout(guided)

    def text_attention(self, block: nn.Module) -> tuple[nn.Module, ...]:
        """Return the cross-attention of a block."""
        from riebench.models.families.tokens.cross_attention import attention

        return attention.text_attention(block)

    def text_projections(self, denoiser: nn.Module) -> tuple[nn.Module, ...]:
        """Return the text's projection, and those to keys and values of all blocks."""
        from riebench.models.families.tokens.cross_attention import attention

        return attention.text_projections(denoiser)

    def attention_map(self, layer: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
        """Compute how much each image token reads each text token."""
        from riebench.models.families.tokens.cross_attention import attention

        return attention.attention_map(layer, args, kwargs)

    def tokenizers(self, pipe: Any) -> tuple[Any, ...]:
        """Return the only tokenizer."""
        return (pipe.tokenizer,)

    def token_limit(self, pipe: Any, tokenizer: Any) -> int:
        """Return how many tokens of a prompt the pipeline lets the transformer read."""
        return TOKENS

    def token_counter(self, folder: Path | None) -> tuple[Callable[[str], int], int]:
        """Return the count of the model's own tokenizer, and how many tokens are read.

        Without a folder words are counted as CLIP splits them, which is much as the other tokenizers do.
        """
        if folder is None:
            from open_clip.tokenizer import SimpleTokenizer

            clip = SimpleTokenizer()
            return (lambda prompt: len(clip.encode(plain_text(prompt))) + 1), self.token_limit(None, None)
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(str(folder / "tokenizer"), local_files_only=True)
        limit = self.token_limit(None, tokenizer)
        return (lambda prompt: len(tokenizer(plain_text(prompt), verbose=False).input_ids)), limit

    def count_tokens(self, pipe: Any, prompt: str) -> int:
        """Return the tokens of a prompt in lower case; the start or the end counts too."""
        return len(pipe.tokenizer(plain_text(prompt), verbose=False).input_ids)

    def token_positions(self, pipe: Any, prompt: str, characters: Sequence[int]) -> set[int]:
        """Return the positions of characters of a prompt in what the transformer reads."""
        return positions_of(pipe.tokenizer, plain_text(prompt), places_in_plain_text(prompt, characters), TOKENS)
