"""Attention of one row of a batch, injected into other rows: what prompt-to-prompt does to a diffusers U-Net.

Attention maps are never written out. The source row's map applied to an edited row's values is the attention of the
source row's queries and keys over those values; tokens are moved and weighted by moving and weighting values.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from riebench.errors import RiebenchError
from riebench.generation.hooks import Hooks, hooked

SPECIAL = ("group_norm", "spatial_norm", "norm_cross", "norm_q", "norm_k")
"""Parts of other attention layers that SDXL's have not."""


@dataclass(frozen=True)
class Injection:
    """What is injected. Row 0 of the batch is the source; the rows behind it are edited.

    Attributes:
        text_steps: for each edited row, in how many first steps text attention is injected.
        self_steps: the same of self-attention.
        moved: [source tokens, target tokens], see `riebench.methods.alignment.Alignment`; None if every token takes
            over the attention of the token at its own position.
        kept: [target tokens], how much of its own attention a token keeps.
        self_positions: self-attention is injected in layers of at most this many positions.
    """

    text_steps: tuple[int, ...]
    self_steps: tuple[int, ...]
    moved: Tensor | None = None
    kept: Tensor | None = None
    self_positions: int = 1024

    def rows(self, steps: Sequence[int], step: int, offset: int) -> list[int]:
        """Rows of the batch that are changed at a step, those of the unconditional half counted first."""
        return [offset + 1 + index for index, count in enumerate(steps) if step < count]


@contextmanager
def inject(unet: nn.Module, injection: Injection, *, guided: bool, steps: int | None = None) -> Iterator[None]:
    """Injects attention in every U-Net call made inside the `with` block; the processors before are always put back.

    Under guidance only conditional rows are changed.

    Args:
        unet: a `UNet2DConditionModel` like SDXL's.
        injection: what is injected where.
        guided: whether the batch holds an unconditional half (before the conditional one).
        steps: the number of calls there must be, if known.

    Raises:
        RiebenchError: if the layers are not like SDXL's, the batch has another size, or the number of calls is wrong.
    """
    model: Any = unet
    before = dict(model.attn_processors)
    with hooked(unet, (), steps) as hooks:
        try:
            model.set_attn_processor(
                {
                    name: _Injecting(usual, injection, hooks, guided, text=name.endswith("attn2.processor"))
                    for name, usual in before.items()
                }
            )
            yield
        finally:
            # The setter empties the dictionary that it is given.
            model.set_attn_processor(dict(before))


class _Injecting:
    """The attention of one layer; where nothing is injected, the processor before it."""

    def __init__(self, usual: Any, injection: Injection, hooks: Hooks, guided: bool, *, text: bool) -> None:
        self.usual = usual
        self.injection = injection
        self.hooks = hooks
        self.guided = guided
        self.text = text

    def __call__(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None, temb: Tensor | None = None, *args: Any, **kwargs: Any,
    ) -> Any:  # fmt: skip
        rows = self._rows(hidden_states)
        if not rows:
            return self.usual(attn, hidden_states, encoder_hidden_states, attention_mask, temb, *args, **kwargs)
        _check_layer(attn, hidden_states, attention_mask)
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query, key, value = (
            part.unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            for part in (attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context))
        )
        mixed = self._attend(query, key, value, rows)
        return attn.to_out[1](attn.to_out[0](mixed.transpose(1, 2).flatten(2)))

    def _rows(self, hidden: Tensor) -> list[int]:
        """Rows to change in this call."""
        injection = self.injection
        pictures = 1 + len(injection.text_steps)
        if hidden.shape[0] != pictures * (2 if self.guided else 1):
            raise RiebenchError(f"{pictures} pictures for a batch of {hidden.shape[0] // (2 if self.guided else 1)}")
        if not self.text and hidden.shape[1] > injection.self_positions:
            return []
        steps = injection.text_steps if self.text else injection.self_steps
        return injection.rows(steps, self.hooks.step, pictures if self.guided else 0)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, rows: list[int]) -> Tensor:
        """Attention of all rows, [B, heads, positions, width]."""
        injection = self.injection
        source = query.shape[0] - 1 - len(injection.text_steps)
        moved, kept = (injection.moved, injection.kept) if self.text else (None, None)
        values, queries, keys = (part.clone() for part in (value, query, key))
        queries[rows], keys[rows] = query[source], key[source]
        if moved is not None:
            values[rows] = moved.to(value.device, value.dtype) @ value[rows]
        mixed = scaled_dot_product_attention(queries, keys, values)
        if kept is not None and bool(kept.any()):
            own = kept.to(value.device, value.dtype)[:, None] * value[rows]
            mixed[rows] = mixed[rows] + scaled_dot_product_attention(query[rows], key[rows], own)
        return mixed


def _check_layer(attn: Any, hidden: Tensor, mask: Tensor | None) -> None:
    special = [name for name in SPECIAL if getattr(attn, name, None) is not None and getattr(attn, name) is not False]
    if special or mask is not None or hidden.dim() != 3 or attn.residual_connection or attn.rescale_output_factor != 1:
        what = ", ".join(special) or "a mask, a residual or a scale"
        raise RiebenchError(f"attention can be injected into U-Nets like SDXL's only; this one's layers have {what}")
