"""Blocks as a model family names them, and as hooks read and change them.

Part of the contract in `riebench.models.families.base`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from riebench.blocks import ATTENTION

if TYPE_CHECKING:
    from torch import Tensor, nn


Half = Literal["conditional", "unconditional"]
"""The two halves of classifier-free guidance; without guidance everything is conditional."""


class BlockNames(ABC):
    """Names of the places in a denoiser that riebench looks at and edits.

    Attributes:
        known: short names of all blocks of the full-size architecture, in the order in which a picture passes them.
        default: the blocks of the published experiments; what "all" stands for.
        prefixes: words that the name of a block may begin with, in any of its forms.
    """

    known: tuple[str, ...]
    default: tuple[str, ...]
    prefixes: tuple[str, ...]

    @abstractmethod
    def short_name(self, name: str) -> str | None:
        """Return the short name of a block in any of its forms.

        Returns None for a block of another family.
        """

    @abstractmethod
    def module_path(self, short: str) -> str:
        """Return the path of the block's module inside the denoiser.

        Raises:
            RiebenchError: if the short name stands for nothing.
        """

    @abstractmethod
    def long_name(self, short: str) -> str:
        """Return the path that SAE folders and files are named by."""

    @abstractmethod
    def update_path(self, short: str) -> str:
        """Return the path of the module that gives a block's update.

        It is the block's own path if no module inside the block gives it.
        """

    @abstractmethod
    def update_block(self, path: str) -> str | None:
        """Return the short name of the block whose `update_path` a path is, or None."""

    @abstractmethod
    def kind(self, short: str) -> str:
        """Return what a site is: a word of `riebench.blocks.KINDS`."""

    @abstractmethod
    def pass_order(self, shorts: Sequence[str]) -> tuple[str, ...]:
        """Return blocks in the order in which a picture passes them."""

    @abstractmethod
    def unit_site(self, block: str, layer: int) -> str:
        """Return the short name of the feed-forward units of one layer of a block."""

    @abstractmethod
    def block_of(self, site: str) -> str:
        """Return the block that a site of units or of the text stream lies in.

        Any other site is its own block.
        """

    def reads_text(self, short: str) -> bool:
        """Return whether attention of a block's positions to the text can be read."""
        return self.kind(short) == ATTENTION


class Site(ABC):
    """One place in a denoiser, as hooks read and change it.

    Attributes:
        module: the block's module; runs once in each call of the denoiser, and what enters it is the input.
        point: the module whose output an edit changes; `module` itself, or one inside it.
        watches: whether `enter` has to see each call of `watched`.
        takes_input: whether the stream is what enters `point`, its first argument, instead of what leaves it.
    """

    module: nn.Module
    point: nn.Module
    watches: ClassVar[bool] = False
    takes_input: ClassVar[bool] = False

    @property
    def watched(self) -> nn.Module:
        """The module whose calls `enter` sees: `module`, or the denoiser."""
        return self.module

    @property
    def context(self) -> Mapping[str, Any]:
        """Further named values for the map of an attention layer of `module`.

        They are those of the running call, known from `enter`.
        """
        return {}

    def enter(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Take from a call of `watched` what a call of `point` does not say.

        Called before each call of `watched` where `watches` is true.
        """
        return None

    @abstractmethod
    def hidden(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
        """Return the image stream that enters `module`, from the arguments of its call."""

    @abstractmethod
    def stream(self, output: Any) -> Tensor:
        """Return the image stream in an output of `module` or `point`."""

    @abstractmethod
    def update(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> Tensor:
        """Return what the block adds to the image stream, from one call of `point`.

        Returns:
            In the layout of the stream at `point`, batch first: [B, C, H, W] or [B, positions, C].
        """

    @abstractmethod
    def with_stream(self, output: Any, changed: Tensor) -> Any:
        """Return an output of `point` with another image stream in it."""

    @abstractmethod
    def bypass(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> Any:
        """Return what `module` would give if it added nothing, from one call of it."""

    @abstractmethod
    def grid(self, hidden: Tensor) -> tuple[int, int]:
        """Return (height, width) of the positions of an input."""

    @abstractmethod
    def as_picture(self, values: Tensor, grid: tuple[int, int]) -> Tensor:
        """Return a stream or update laid out as [B, C, H, W]."""


@dataclass(frozen=True)
class BatchLayout:
    """Layout of one step of the denoiser in calls and rows under guidance.

    Attributes:
        guided: whether there is an unconditional half.
        order: the halves in the order in which they come, in one batch or in calls one after the other.
        together: whether both halves are one batch; otherwise each is a call of its own.
    """

    guided: bool
    order: tuple[Half, Half] = ("unconditional", "conditional")
    together: bool = True

    @property
    def calls(self) -> int:
        """Calls of the denoiser in each step."""
        return 1 if self.together or not self.guided else 2

    def halves(self, call: int) -> tuple[Half, ...]:
        """Return the halves in the batch of a call, in order.

        Args:
            call: of the run, from 0.
        """
        if not self.guided:
            return ("conditional",)
        return self.order if self.together else (self.order[call % 2],)

    def split(self, values: Tensor, call: int) -> dict[Half, Tensor]:
        """Return each half's rows of a batch [B, ...]."""
        halves = self.halves(call)
        return dict(zip(halves, values.chunk(len(halves)), strict=True))

    def offset(self, half: Half, batch: int, call: int) -> int | None:
        """Return how many rows precede a half's rows in a call's batch.

        Returns None if the half is not in that call.

        Args:
            half: the half.
            batch: pictures, so rows of each half.
            call: of the run, from 0.
        """
        halves = self.halves(call)
        return halves.index(half) * batch if half in halves else None


@dataclass(frozen=True)
class Stage:
    """A module that a picture passes through.

    Runs share their beginning stage by stage (`riebench.generation.prefix`).

    Attributes:
        path: inside the denoiser.
        module: the module itself.
        is_skip: whether later stages read its output besides the next one.
        wraps: whether the module gives its output as the first of a tuple.
    """

    path: str
    module: nn.Module
    is_skip: bool
    wraps: bool


@contextmanager
def replaced_forward(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Put another function in place of a module's own; its hooks still run."""
    before = module.__dict__.get("forward")
    module.__dict__["forward"] = forward
    try:
        yield
    finally:
        if before is None:
            del module.__dict__["forward"]
        else:
            module.__dict__["forward"] = before
