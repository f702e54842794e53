"""Networks that metrics share, each loaded when a metric first asks for it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from riebench.errors import MetricError, foreign_code, near_match
from riebench.models.spec import DEFAULT_JUDGE
from riebench.registry import NETWORKS, PackageError
from riebench.utils.terminal import warnings_held

T = TypeVar("T")
N = TypeVar("N", bound="type[Network]")


@dataclass(frozen=True)
class NetworkOptions:
    """Options that choose the networks to load, their sources and their device.

    Attributes:
        scorer: the CLIP that scores, as `ClipSpec.parse` reads it.
        second: the independent CLIP that gives `clip_gain_2` and `clip_margin_2`, or None for none.
        device: torch device.
        weights: name of a network -> path of its weights (`--weights NAME=PATH`).
        offline: whether nothing may be fetched.
        judge: the shipped judge that reads pictures of the toy worlds.
    """

    scorer: str = "clip-l14"
    second: str | None = None
    device: str = "cpu"
    weights: Mapping[str, Path] = field(default_factory=dict)
    offline: bool = False
    judge: str = DEFAULT_JUDGE


class Network(ABC):
    """Base of the classes that find, identify and load one network each.

    Subclasses are registered with `@network(NAME)` and never instantiated.

    Attributes:
        weights: description of what lies at the path of `--weights NAME=PATH`; empty if the network takes no such path.
    """

    weights: str = ""

    @staticmethod
    @abstractmethod
    def load(networks: Networks) -> Any:
        """Load the network.

        If the result has attributes `backbone`, `details` (what must be known to repeat a number) or `cut_prompts`
        (prompts that lost their end), they are stored with the scores.

        Args:
            networks: holds the options, and other networks that this one may be made of.

        Raises:
            MetricError: if it cannot be loaded.
        """

    @staticmethod
    @abstractmethod
    def identity(options: NetworkOptions) -> str:
        """Return the identity stored as `backbone` with every value.

        The network is not loaded for it.
        """

    @staticmethod
    def locate(options: NetworkOptions) -> None:
        """Check that the network's files are here, fetching them unless offline.

        Only networks that do not ship need this: metrics whose network is not found are left out with a note.

        Raises:
            MetricError: with one line on what is missing and how to get it.
        """
        return


def network(name: str) -> Callable[[N], N]:
    """Register a `Network` under the name that metrics give as their `backbone`."""
    return NETWORKS.register(name)


def parse_weights(entries: Sequence[str]) -> dict[str, Path]:
    """Parse the entries of `--weights`.

    Args:
        entries: "NAME=PATH" each, with the name of a network that takes a path.

    Returns:
        Name -> path that exists.

    Raises:
        MetricError: for an unknown or repeated name, or a path that is not there.
    """
    found: dict[str, Path] = {}
    if not entries:
        return found
    local = {name: found.weights for name, found in NETWORKS.usable().items() if found.weights}
    for entry in entries:
        name, equals, path = entry.partition("=")
        if name not in local or not equals:
            known = "; ".join(f"{key}=PATH of the {what}" for key, what in local.items())
            raise MetricError(f"--weights {entry!r}{near_match(name, local)}: write {known}")
        if name in found:
            raise MetricError(f"--weights {name} is given twice")
        found[name] = Path(path).expanduser()
        if not found[name].exists():
            raise MetricError(f"--weights {entry}: there is no {path}")
    return found


class Networks:
    """Lazily loaded networks on one device.

    Args:
        scorer: see `NetworkOptions`.
        second: likewise.
        device: likewise.
        weights: likewise.
        offline: likewise.
        ready: name of a network -> a loaded network to use instead.
        judge: see `NetworkOptions`.
    """

    def __init__(
        self, scorer: str = "clip-l14", *, device: str = "cpu", second: str | None = None,
        weights: Mapping[str, Path] | None = None, offline: bool = False, ready: Mapping[str, Any] | None = None,
        judge: str = DEFAULT_JUDGE,
    ) -> None:  # fmt: skip
        self.options = NetworkOptions(scorer, second, device, dict(weights or {}), offline, judge)
        self._loaded: dict[str, Any] = dict(ready or {})
        self._parts: dict[Any, Any] = {}
        self._identities: dict[str, str] = {}
        self._missing: dict[tuple[str, bool], str | None] = {}
        self._raw: WeakKeyDictionary[Any, dict[str, dict[str, float | str]]] = WeakKeyDictionary()

    def get(self, name: str) -> Any:
        """Return a network, loading it at the first call.

        Raises:
            MetricError: if it cannot be loaded.
        """
        if name not in self._loaded:
            with foreign_code(f"network {name!r}"), warnings_held("transformers", ""):
                self._loaded[name] = NETWORKS.get(name).load(self)
        return self._loaded[name]

    def note(self, sample: object, name: str, outputs: Mapping[str, float | str]) -> None:
        """Keep the raw outputs of a network about a sample, to be stored.

        Args:
            sample: the `Sample` whose values are made of them.
            name: of the network.
            outputs: name of an output -> the raw number or text.
        """
        self._raw.setdefault(sample, {}).setdefault(name, {}).update(outputs)

    def raw_outputs(self, sample: object) -> dict[str, dict[str, float | str]]:
        """Return identity of a network -> its outputs, as they were noted for a sample."""
        return {self.identity(name): outputs for name, outputs in self._raw.get(sample, {}).items()}

    def part(self, key: Any, load: Callable[[], T]) -> T:
        """Return a part that several networks share, loading it at its first use.

        Args:
            key: identifies the part.
            load: loads it.
        """
        if key not in self._parts:
            self._parts[key] = load()
        part: T = self._parts[key]
        return part

    def missing(self, name: str, *, fetch: bool) -> str | None:
        """Return the reason why a network cannot be used, or None if it can.

        Only networks that do not ship can be missing. The reason is one line.

        Args:
            name: as registered; empty for the metrics that need none.
            fetch: whether it may be fetched now; otherwise only this machine is searched.
        """
        key = name, fetch and not self.options.offline
        if key not in self._missing:
            self._missing[key] = self._look_for(*key)
        return self._missing[key]

    def _look_for(self, name: str, fetch: bool) -> str | None:
        if not name or name in self._loaded:
            return None
        try:
            NETWORKS.get(name).locate(replace(self.options, offline=not fetch))
        except (MetricError, PackageError) as error:
            return str(error)
        return None

    def known_missing(self, name: str) -> str | None:
        """Return the last result of `missing` for a network, without searching again.

        It is the result for a network that could be fetched unless offline; None also if `missing` was not called.
        """
        return self._missing.get((name, not self.options.offline))

    def identity(self, name: str) -> str:
        """Return the identity of a network, which is stored as `backbone` with values.

        It is empty for metrics without a network. Nothing is loaded, so that a run that is scored already stays quick.
        """
        if not name:
            return ""
        if name not in self._identities:
            own = getattr(self._loaded.get(name), "backbone", None)
            self._identities[name] = own or NETWORKS.get(name).identity(self.options)
        return self._identities[name]

    @property
    def details(self) -> dict[str, dict[str, str]]:
        """Facts needed to repeat the numbers, by identity, for the networks loaded so far."""
        return {one.backbone: one.details for one in self._loaded.values() if hasattr(one, "details")}

    @property
    def cut_prompts(self) -> tuple[str, ...]:
        """Prompts that a CLIP saw without their end, sorted."""
        return tuple(sorted(set().union(*(getattr(one, "cut_prompts", ()) for one in self._loaded.values()))))
