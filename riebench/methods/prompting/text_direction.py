"""A direction among prompts' embeddings, learned from other examples' prompts.

The direction is the difference of means of Ekin and Gandelsman (arXiv 2603.17998): embeddings are averaged over the
tokens that name a concept, in prompts with the concept and in prompts without, and the difference is added to the
tokens that are to change. Here the prompts are those of the training examples, and the tokens are the words in which a
prompt differs from the other one of its example, where the paper lets a language model write and choose them. The
paper's elastic range, a search for the strengths at which neighbouring pictures are about equally far apart, is not
part of the method: `riebench.elastic` finds it for any method with strengths, and the configuration
`text_direction_elastic` has strengths that were found so. A benchmark has one list of strengths for all pictures, where
the paper searches for each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from riebench.generation.edits import Edit, Picture, TextParts, TextReader
from riebench.methods.base import EditContext, method
from riebench.methods.supervised.concepts import (
    Contrast,
    Learned,
    TrainingPair,
    check_folds,
    describe_training,
    find_contrasts,
    training_pairs,
)
from riebench.tasks.prompts import changed_words
from riebench.tasks.schema import EditExample


@dataclass(frozen=True)
class PromptPair:
    """A prompt that names a concept and one that does not.

    Attributes:
        present: the prompt that names it.
        absent: the prompt of the same example that does not.
        weight: of their difference.
    """

    present: str
    absent: str
    weight: float


@dataclass(frozen=True)
class TextShift:
    """A direction that is added to the embeddings of some of a prompt's words.

    A pooled vector of the whole prompt, where the model reads one, is shifted as well.

    Attributes:
        pairs: prompts whose weighted differences are the direction.
        words: words of the edited prompt that are shifted; all words if there are none.
    """

    pairs: tuple[PromptPair, ...]
    words: frozenset[str]
    _kept: list[TextParts] = field(default_factory=list, repr=False, compare=False)

    def weight(self, step: int, steps: int, strength: float) -> float:
        """Return the strength: every step reads the same text."""
        return strength

    def picture(self, acting: Sequence[bool], strength: float) -> Picture | None:
        """Return "source" where nothing is changed; see `TextEdit.picture`."""
        return None if any(acting) and strength else "source"

    @property
    def nbytes(self) -> int:
        """Bytes of tensors kept."""
        return sum(part.numel() * part.element_size() for parts in self._kept for part in parts)

    def read(self, reader: TextReader, prompt: str, weight: float) -> TextParts:
        """Return the shifted prompt; see `riebench.generation.edits.TextEdit.read`."""
        parts = reader.text_parts(prompt)
        if not weight:
            return parts
        if not self._kept:
            self._kept.append(self.direction(reader))
        positions = word_positions(reader, prompt, self.words)
        shifted = []
        for part, direction in zip(parts, self._kept[0], strict=True):
            changed = part.float()
            if part.dim() == 3:
                changed = changed.clone()
                changed[:, positions] += weight * direction
            elif is_pooled(part):
                changed = changed + weight * direction
            shifted.append(changed.to(part.dtype))
        return tuple(shifted)

    def direction(self, reader: TextReader) -> TextParts:
        """Compute the direction of each part of a prompt, float32 [width]."""
        totals: list[Tensor] = []
        for pair in self.pairs:
            new, old = changed_words(pair.absent, pair.present)
            with_concept, without = (
                pooled(reader, prompt, words) for prompt, words in ((pair.present, new), (pair.absent, old))
            )
            differences = [pair.weight * (one - other) for one, other in zip(with_concept, without, strict=True)]
            totals = [one + other for one, other in zip(totals, differences, strict=True)] if totals else differences
        return tuple(totals)


def is_pooled(part: Tensor) -> bool:
    """Return whether a part of a prompt is one vector of the whole, [1, width].

    Masks of tokens are not.
    """
    return part.dim() == 2 and part.is_floating_point()


def word_positions(reader: TextReader, prompt: str, words: frozenset[str]) -> list[int]:
    """Return the positions of some words among a prompt's tokens.

    Without words, those of all words.
    """
    if not words:
        return reader.word_positions(prompt)
    return sorted({position for word in words for position in reader.token_positions(prompt, word)})


def pooled(reader: TextReader, prompt: str, words: frozenset[str]) -> list[Tensor]:
    """Compute the mean embedding of some of a prompt's words.

    Args:
        reader: reads prompts.
        prompt: the prompt.
        words: words of it; all if there are none.

    Returns:
        float32 [width] for each part of the prompt; pooled vectors as they are.
    """
    positions = word_positions(reader, prompt, words)
    return [
        part[0, positions].float().mean(0) if part.dim() == 3 else part[0].float() for part in reader.text_parts(prompt)
    ]


@method("text_direction", access="PT", needs=("others",))
def text_direction(ctx: EditContext, *, examples: int = 16, folds: int = 3) -> Edit:
    """Add a concept's difference of means to the prompt's embeddings.

    It is learned from other examples' prompts.

    The direction of a concept is the mean, over the training prompts that name it, of the mean embedding of their
    changed words minus that of the other prompt of the same example. The edit adds the direction of what it puts in
    and takes away that of what it takes out, in equal parts, at the words of the source prompt that are to change, or
    at all words where none is. At strength 1 the direction has the length that it has between the training prompts.
    Pooled vectors are shifted likewise; under guidance the unconditional half stays as it is.

    Args:
        ctx: the example.
        examples: how many to learn from, at most.
        folds: number of folds; examples of the scored example's own one are left out.

    Raises:
        RiebenchError: if there is nothing to learn from.
    """
    check_folds("text_direction", examples, folds)
    training, pairs = training_pairs(ctx.runs.others, examples, folds)
    contrasts = find_contrasts(ctx.runs.example, pairs)
    chosen = tuple(pair for one in contrasts for pair in _prompt_pairs(one, pairs, len(contrasts)))
    learned: list[Learned[None]] = []
    return Edit(
        text=TextShift(chosen, _changing_words(ctx.runs.example)),
        training=describe_training(training, pairs, learned, runs=False),
    )


def _changing_words(example: EditExample) -> frozenset[str]:
    """Return the words of the source prompt that the target prompt lacks."""
    return changed_words(example.source, example.target)[1]


def _prompt_pairs(contrast: Contrast, pairs: Sequence[TrainingPair], parts: int) -> list[PromptPair]:
    """Return the prompts of a contrast, each with its weight."""
    weight = contrast.sign / (len(contrast.present) * parts)
    places = zip(contrast.present, contrast.partners, strict=True)
    return [
        PromptPair(getattr(pairs[index].example, role), getattr(pairs[index].example, other), weight)
        for (index, role), (_, other) in places
    ]
