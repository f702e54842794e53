"""Prompt-to-prompt on a diffusers U-Net.

Attention of one row of a batch is injected into other rows: `inject` does that as an `Injection` says, `align` pairs
the tokens of two prompts, and `p2p` is the editor.

Attention maps are never written out. The source row's map applied to an edited row's values is the attention of the
source row's queries and keys over those values; tokens are moved and weighted by moving and weighting values.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from riebench.errors import RiebenchError
from riebench.generation.hooks import Hooks, hooked
from riebench.methods.editors import EditorContext, Picture, Pictures, editor

Wording = Literal["auto", "replacement", "refinement"]
"""Ways to pair the tokens of two prompts; see `align`."""

_ROUNDING = 1e-9
"""0.3 of 20 steps are 6, though 0.3 * 20 may come out a little above."""
SPECIAL = ("group_norm", "spatial_norm", "norm_cross", "norm_q", "norm_k")
"""Parts of other attention layers that SDXL's lack."""


@dataclass(frozen=True)
class Injection:
    """A plan of injected attention. Row 0 is the source, later rows are edited.

    Attributes:
        text_steps: for each edited row, in how many first steps text attention is injected.
        self_steps: the same of self-attention.
        moved: [source tokens, target tokens], see `Alignment`; None if every token takes over the attention of the
            token at its own position.
        kept: [target tokens], how much of its own attention a token keeps.
        self_positions: self-attention is injected in layers of at most this many positions.
    """

    text_steps: tuple[int, ...]
    self_steps: tuple[int, ...]
    moved: Tensor | None = None
    kept: Tensor | None = None
    self_positions: int = 1024

    def rows(self, steps: Sequence[int], step: int, offset: int) -> list[int]:
        """Return the rows of the batch that are changed at a step.

        The rows of the unconditional half are counted first.
        """
        return [offset + 1 + index for index, count in enumerate(steps) if step < count]


@dataclass(frozen=True)
class PromptTokens:
    """A prompt as a model's tokenizers divide it.

    Attributes:
        words: its words in lower case, as far as they are read.
        counts: tokens of each word.
        length: positions of a whole text, padding included.
    """

    words: tuple[str, ...]
    counts: tuple[int, ...]
    length: int

    @property
    def end(self) -> int:
        """Position of the end token."""
        return 1 + sum(self.counts)

    def positions(self, first: int, last: int) -> list[int]:
        """Return the token positions of words `first` to `last`, the last excluded."""
        start = 1 + sum(self.counts[:first])
        return list(range(start, start + sum(self.counts[first:last])))


@dataclass(frozen=True)
class Alignment:
    """Pairs of positions: the attention of one goes to the other.

    Attributes:
        kind: "replacement" pairs every position with itself; "refinement" leaves new words alone.
        pairs: (source position, target position), at most one per target position.
        length: positions of a whole text.
    """

    kind: Literal["replacement", "refinement"]
    pairs: tuple[tuple[int, int], ...]
    length: int

    @property
    def moved(self) -> Tensor:
        """float32 [source positions, target positions]: 1 where attention moves."""
        found = torch.zeros(self.length, self.length)
        for source, target in self.pairs:
            found[source, target] = 1
        return found

    @property
    def kept(self) -> Tensor:
        """float32 [target positions]: 1 where a position keeps its own attention."""
        return 1 - self.moved.sum(0)


@editor("p2p", access="P", strengths=(0.0, 1.0))
def p2p(
    ctx: EditorContext, *, wording: Wording = "auto", self_share: float = 0.5, self_positions: int = 1024
) -> Pictures:
    """Generate the target prompt with the attention of the source prompt's run.

    This is prompt-to-prompt; both runs start from the same noise.

    The strength is the share of the steps, from the first on, that take over text attention; a step that begins
    before that share is over counts whole, so that a model of 4 steps has 4 levels besides 0. 0 gives the target
    picture exactly. Source and edited pictures run in one batch. Under guidance the conditional half alone is changed.

    Args:
        ctx: the example.
        wording: "replacement" takes over the attention of each token's position; "refinement" that of the tokens that
            both prompts have, and new words keep their own; "auto" replaces where differing words have equally many
            tokens, and refines elsewhere.
        self_share: for this share of those steps, from the first on, self-attention is taken over too.
        self_positions: in layers of at most this many positions. As published, 32 x 32.

    Raises:
        RiebenchError: if the prompts cannot be aligned.
    """
    if not 0 <= self_share <= 1:
        raise RiebenchError(f"p2p: self_share {self_share:g}; give 0 to 1")
    model, example = ctx.model, ctx.example
    counts = {strength: _started_steps(strength, model.spec.steps) for strength in ctx.strengths}
    levels = sorted({count for count in counts.values() if count})
    made: dict[int, Picture] = {0: ctx.pictures["target"]}
    if levels:
        tokenizers = model.family.tokenizers(model.pipe)
        pairing = align(read_tokens(tokenizers, example.source), read_tokens(tokenizers, example.target), wording)
        refined = pairing.kind == "refinement"
        injection = Injection(
            tuple(levels), tuple(_started_steps(self_share, count) for count in levels),
            pairing.moved if refined else None, pairing.kept if refined else None, self_positions,
        )  # fmt: skip
        with inject(model.denoiser, injection, guided=model.guided, steps=model.spec.steps):
            prompts = [example.source, *[example.target] * len(levels)]
            images = ctx.generator.generate(prompts, [ctx.noise] * len(prompts)).images
        made |= dict(zip(levels, images[1:], strict=True))
    return np.stack([made[counts[strength]] for strength in ctx.strengths])


def align(source: PromptTokens, target: PromptTokens, wording: Wording = "auto") -> Alignment:
    """Pair the tokens of two prompts.

    Equal words are paired in order, as are start, end and padding. Differing words that have equal numbers of tokens
    are paired by replacement; if any have not, refinement leaves the target's words with their own attention.

    Args:
        source: the source prompt.
        target: the target prompt.
        wording: "auto" chooses; the other two are what is asked for.

    Raises:
        RiebenchError: if replacement is asked for and the numbers of tokens differ.
    """
    changes = SequenceMatcher(None, source.words, target.words, autojunk=False).get_opcodes()
    parts = [(tag, source.positions(a, b), target.positions(c, d)) for tag, a, b, c, d in changes]
    odd = [(len(left), len(right)) for _, left, right in parts if len(left) != len(right)]
    if not odd and wording != "refinement":
        return Alignment("replacement", tuple((i, i) for i in range(source.length)), source.length)
    if wording == "replacement":
        raise RiebenchError(
            f"replacement needs differing words of equally many tokens, not {odd[0][0]} and {odd[0][1]}; "
            "use refinement, or auto"
        )
    pairs = [(0, 0), *(pair for tag, left, right in parts if tag == "equal" for pair in zip(left, right, strict=True))]
    # End token to end token, then padding in order; what the longer padding has besides keeps its own attention.
    pairs += zip(range(source.end, source.length), range(target.end, target.length), strict=False)
    return Alignment("refinement", tuple(pairs), source.length)


def read_tokens(tokenizers: Sequence[Any], prompt: str) -> PromptTokens:
    """Read a prompt with a model's tokenizers.

    Args:
        tokenizers: of all text encoders; the denoiser gets them joined position by position.
        prompt: the whole prompt.

    Raises:
        RiebenchError: if the tokenizers divide it differently: no position would then stand for one word.
    """
    limit = min(int(tokenizer.model_max_length) for tokenizer in tokenizers)
    spans = [
        tokenizer(prompt, truncation=True, max_length=limit, return_offsets_mapping=True)["offset_mapping"]
        for tokenizer in tokenizers
    ]
    if any(list(map(tuple, one)) != list(map(tuple, spans[0])) for one in spans):
        raise RiebenchError(
            f"the model's tokenizers divide {prompt!r} differently, so that its words cannot be aligned; "
            "reword it, without '!'"
        )
    found: list[tuple[str, int]] = []
    for word in re.finditer(r"\S+", prompt):
        count = sum(word.start() <= start < word.end() for start, _ in spans[0][1:-1])
        if count:
            found.append((word.group().lower(), count))
    return PromptTokens(tuple(word for word, _ in found), tuple(count for _, count in found), limit)


@contextmanager
def inject(denoiser: nn.Module, injection: Injection, *, guided: bool, steps: int | None = None) -> Iterator[None]:
    """Inject attention in every denoiser call made inside the `with` block.

    The processors before are always put back.

    Under guidance only conditional rows are changed.

    Args:
        denoiser: a U-Net like SDXL's.
        injection: what is injected where.
        guided: whether the batch holds an unconditional half (before the conditional one).
        steps: the number of calls there must be, if known.

    Raises:
        RiebenchError: if the layers are not like SDXL's, the batch has another size, or the number of calls is wrong.
    """
    model: Any = denoiser
    before = dict(model.attn_processors)
    with hooked(denoiser, (), steps, guided=guided) as hooks:
        try:
            model.set_attn_processor(
                {
                    name: _InjectionProcessor(usual, injection, hooks, text=name.endswith("attn2.processor"))
                    for name, usual in before.items()
                }
            )
            yield
        finally:
            # The setter empties the dictionary that it is given.
            model.set_attn_processor(dict(before))


class _InjectionProcessor:
    """The attention of one layer; where nothing is injected, the processor before it."""

    def __init__(self, usual: Any, injection: Injection, hooks: Hooks, *, text: bool) -> None:
        self.usual = usual
        self.injection = injection
        self.hooks = hooks
        self.text = text

    def __call__(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None, temb: Tensor | None = None, *args: Any, **kwargs: Any,
    ) -> Any:  # fmt: skip
        offset = self._offset(hidden_states)
        rows = self._rows(hidden_states, offset)
        if not rows:
            return self.usual(attn, hidden_states, encoder_hidden_states, attention_mask, temb, *args, **kwargs)
        _check_layer(attn, hidden_states, attention_mask)
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query, key, value = (
            part.unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            for part in (attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context))
        )
        mixed = self._attend(query, key, value, rows, offset)
        return attn.to_out[1](attn.to_out[0](mixed.transpose(1, 2).flatten(2)))

    def _offset(self, hidden: Tensor) -> int | None:
        """Return how many rows precede the conditional half, or None.

        None if that half is not in this call.
        """
        layout, call = self.hooks.layout, self.hooks.call
        pictures, halves = 1 + len(self.injection.text_steps), len(layout.halves(call))
        if hidden.shape[0] != pictures * halves:
            raise RiebenchError(f"{pictures} pictures for a batch of {hidden.shape[0] // halves}")
        return layout.offset("conditional", pictures, call)

    def _rows(self, hidden: Tensor, offset: int | None) -> list[int]:
        """Return the rows to change in this call."""
        injection = self.injection
        if offset is None:
            return []
        if not self.text and hidden.shape[1] > injection.self_positions:
            return []
        steps = injection.text_steps if self.text else injection.self_steps
        return injection.rows(steps, self.hooks.step, offset)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, rows: list[int], source: int | None) -> Tensor:
        """Compute attention of all rows, [B, heads, positions, width]."""
        injection = self.injection
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


def _started_steps(share: float, steps: int) -> int:
    """Return the number of steps that begin before a share of them is over."""
    return math.ceil(share * steps - _ROUNDING)
