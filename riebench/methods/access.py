"""Views of a method's input that refuse what the method does not declare.

A method states by letters what it may look at: P the target prompt and the pictures and latents that follow from it,
A the activations of the target run (which P must go with), M the regions, T other examples, V an inversion of a
picture. The letters decide which methods are ranked together, so they are held to at every call: a view stands in for
what is not declared, and raises when it is looked at.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from riebench.errors import RiebenchError

K = TypeVar("K")
V = TypeVar("V")

LOOKS = {
    "P": "the target prompt or what is generated from it",
    "A": "activations of the target run",
    "M": "the regions",
    "T": "other examples",
    "V": "an inversion of the picture",
}
"""Letter -> what may be looked at."""


@dataclass(frozen=True)
class Access:
    """The letters that one method declares.

    Attributes:
        method: its name.
        letters: those that it declares.
    """

    method: str
    letters: str

    def has(self, letters: str) -> bool:
        """Check that all letters are declared."""
        return set(letters) <= set(self.letters)

    def require(self, letters: str) -> None:
        """Refuse a look that is not declared.

        Args:
            letters: what the look needs; the last one names it.

        Raises:
            RiebenchError: naming the method and what it lacks.
        """
        if not self.has(letters):
            lacking = ", ".join(letter for letter in letters if letter not in self.letters)
            raise RiebenchError(
                f"method {self.method!r} looks at {LOOKS[letters[-1]]}, which its access {self.letters!r} does not "
                f"declare; add {lacking}"
            )


class GuardedMapping(Mapping[K, V]):
    """A mapping some of whose keys need letters.

    Args:
        values: the mapping.
        access: what is declared.
        needed: key -> letters that it takes to read it.
    """

    def __init__(self, values: Mapping[K, V], access: Access, needed: Mapping[K, str]) -> None:
        self._values, self._access, self._needed = values, access, needed

    def __getitem__(self, key: K) -> V:
        self._access.require(self._needed.get(key, ""))
        return self._values[key]

    def __iter__(self) -> Iterator[K]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


class Guarded:
    """An object whose attributes need letters.

    Args:
        value: the object.
        access: what is declared.
        letters: what its attributes need.
        only: names of the attributes that need them; None for all.
    """

    def __init__(self, value: Any, access: Access, letters: str, only: frozenset[str] | None = None) -> None:
        self._value, self._access, self._letters, self._only = value, access, letters, only

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of the object, if it may be looked at."""
        if self._only is None or name in self._only:
            self._access.require(self._letters)
        return getattr(self._value, name)


class GuardedTrace:
    """A trace one of whose rows needs letters.

    Args:
        trace: the trace of both runs.
        access: what is declared.
        row: the row that needs them.
        letters: what it needs.
    """

    def __init__(self, trace: Any, access: Access, row: int, letters: str) -> None:
        self._trace, self._access, self._row, self._letters = trace, access, row, letters

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of the trace."""
        return getattr(self._trace, name)

    def row(self, site: str, index: int, *what: Any) -> Any:
        """Return a row of all steps, if it may be looked at."""
        self._check(index)
        return self._trace.row(site, index, *what)

    def step_row(self, site: str, index: int, step: int, *what: Any) -> Any:
        """Return a row of one step, if it may be looked at."""
        self._check(index)
        return self._trace.step_row(site, index, step, *what)

    def _check(self, row: int) -> None:
        if row == self._row:
            self._access.require(self._letters)
