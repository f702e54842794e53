"""Comparison of two methods, as `riebench compare` makes it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from riebench.analysis.compare import Difference, comparison_text, few_levels_note
from riebench.analysis.compare import compare as differences_of
from riebench.analysis.export import data_frame
from riebench.store.folder import RunFolder

if TYPE_CHECKING:
    from pandas import DataFrame


@dataclass(frozen=True, repr=False)
class Comparison:
    """Differences of two methods on the same examples, first minus second.

    Printed, it is the table of `riebench compare`.

    Attributes:
        first: a method configuration, or a group of them.
        second: what it is compared with.
        differences: one for each set of blocks and category ("all" for the mean over categories), with its interval and
            adjusted p-value.
        note: paragraphs on what the numbers cannot say; "" for none.
    """

    first: str
    second: str
    differences: tuple[Difference, ...]
    note: str = ""

    @classmethod
    def of(cls, folders: Sequence[RunFolder], first: str, second: str) -> Comparison:
        """Compare two methods of one suite and model.

        Raises:
            RiebenchError: if one is unknown or incomplete, or they have nothing in common.
        """
        made = cls(first, second, tuple(differences_of(folders, first, second)),
                   few_levels_note(folders, (first, second)))  # fmt: skip
        # Nothing in common is an error here, and not when the comparison is printed.
        comparison_text(made.differences, first, second)
        return made

    def frame(self) -> DataFrame:
        """Return the differences as rows.

        The column `clear` is True where the adjusted p-value is below 0.05.
        """
        frame = data_frame([asdict(one) for one in self.differences])
        frame["clear"] = [one.clear for one in self.differences]
        return frame

    def __str__(self) -> str:
        return comparison_text(self.differences, self.first, self.second, self.note).rstrip("\n")

    def __repr__(self) -> str:
        return str(self)

    def _repr_markdown_(self) -> str:
        return str(self)
