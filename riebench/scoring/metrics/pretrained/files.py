"""Published models in the hub's layout: their folders, identities and loading.

`HubModel` finds the files of a repository on this machine, in a folder of the user's or on the hub.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from riebench.errors import MetricError
from riebench.models.clip import SHORT_COMMIT, folder_digest
from riebench.scoring.metrics.networks import NetworkOptions
from riebench.utils.hub import fetch, from_hub, offline_mode
from riebench.utils.weights import check_weights_file

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
"""File of the weights of a model, and the list of its parts where they are several files."""
COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class HubModel:
    """A model's repository on the hub.

    Attributes:
        name: the registered network, as `--weights` calls it.
        repository: hub id.
        beside: files that it needs beside config and weights, such as those of its processor.
        weights: names that the weights may have, the best first.
        revision: commit; None for the newest, which then is part of the identity.
        config: file with the model's sizes; empty if it needs none.
        optional: further files that a release may have, fetched where they are.
    """

    name: str
    repository: str
    beside: tuple[str, ...] = ()
    weights: tuple[str, ...] = (WEIGHTS,)
    revision: str | None = None
    config: str = "config.json"
    optional: tuple[str, ...] = ()

    @property
    def choices(self) -> list[tuple[str, ...]]:
        """Sets of files that make the model whole, the best first."""
        config = (self.config,) if self.config else ()
        return [(*config, one, *self.beside) for one in self.weights]

    @property
    def about(self) -> str:
        """Description of a folder that `--weights` may name."""
        return f"folder of {self.repository} with {', '.join(self.choices[0])}"

    def folder(self, options: NetworkOptions) -> Path:
        """Return the folder with the model's files, fetching them unless offline.

        Raises:
            MetricError: if they are not there; the message tells the way to get them.
        """
        place = options.weights.get(self.name)
        if place is not None:
            return self._own_folder(place)
        try:
            return self._on_hub(options)
        except MetricError as error:
            hint = f"a folder works too: --weights {self.name}=FOLDER"
            raise MetricError(f"scorer {self.name}: {error}; {hint}") from error

    def _on_hub(self, options: NetworkOptions) -> Path:
        offline, revision = options.offline, self.revision
        folder = from_hub(self.repository, self.choices, revision=revision, offline=offline)
        if self.optional and not offline and not any((folder / name).is_file() for name in self.optional):
            fetch(self.repository, folder.name, patterns=self.optional)
        if (folder / INDEX).is_file() and INDEX in self.weights and not (folder / WEIGHTS).is_file():
            parts = _parts(folder / INDEX)
            folder = from_hub(self.repository, [(*self.choices[-1], *parts)], revision=revision, offline=offline)
        return folder

    def _own_folder(self, place: Path) -> Path:
        whole = [files for files in self.choices if all((place / name).is_file() for name in files)]
        if not whole:
            raise MetricError(f"{place} is no folder of {self.repository}: it needs {', '.join(self.choices[0])}")
        weights = next(name for name in self.weights if name in whole[0])
        for name in _parts(place / weights) if weights == INDEX else [weights]:
            check_weights_file(place / name)
        return place

    def identity(self, options: NetworkOptions) -> str:
        """Return the identity stored with every value.

        It is the repository with the beginning of the commit, or the hash of a local folder's files.
        """
        place = options.weights.get(self.name)
        if place is not None:
            return f"{self.repository.partition('/')[2]}@{folder_digest(place)}"
        commit = self.revision or self.commit()
        return f"{self.repository}@{commit[:SHORT_COMMIT]}" if commit else self.repository

    def commit(self) -> str | None:
        """Return the commit whose files are on this machine, or None."""
        try:
            found = self._on_hub(NetworkOptions(offline=True)).name
        except MetricError:
            return None
        return found if COMMIT.fullmatch(found) else None

    def facts(self, options: NetworkOptions) -> dict[str, str]:
        """Return facts of the origin that are needed to repeat a number."""
        import transformers

        local = options.weights.get(self.name) is not None
        revision = {} if local else {"revision": self.revision or self.commit() or "unknown"}
        return {"package": f"transformers {transformers.__version__}", "model": self.repository, **revision}


def _parts(index: Path) -> list[str]:
    """Return the names of the files that an index of weights lists.

    Raises:
        MetricError: if it cannot be read, or names a file elsewhere.
    """
    try:
        listed = sorted({str(name) for name in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise MetricError(f"{index} is no index of weights; fetch it again") from error
    if not listed or any(Path(name).name != name for name in listed):
        raise MetricError(f"{index} names files outside its folder")
    return listed


def load_model(loader: Callable[..., Any], folder: Path, what: str, **arguments: Any) -> Any:
    """Load a model with transformers' own loader; frozen, and with all its weights.

    Args:
        loader: `from_pretrained` of a class of transformers.
        folder: the model's folder.
        what: the repository, for messages.
        arguments: further arguments of the loader.

    Raises:
        MetricError: if it is another kind of model, or a weight is missing.
    """
    from transformers.utils import logging

    logging.disable_progress_bar()
    with loading_errors(folder, what), offline_mode():
        model, found = loader(folder, output_loading_info=True, **arguments)
    if found["missing_keys"] or found["mismatched_keys"]:
        first = next(iter(sorted(map(str, found["missing_keys"]))), "of another shape")
        raise MetricError(f"{folder} is not {what}: weights are missing, e.g. {first}")
    return model.eval().requires_grad_(False)


def load_processor(loader: Callable[..., Any], folder: Path, what: str) -> Any:
    """Load what turns pictures and texts into a model's inputs.

    Args:
        loader: `from_pretrained` of a class of transformers.
        folder: the model's folder.
        what: the repository, for messages.

    Raises:
        MetricError: if its files are missing or damaged.
    """
    with loading_errors(folder, what), offline_mode():
        return loader(folder)


@contextmanager
def loading_errors(folder: Path, what: str) -> Iterator[None]:
    """Turn whatever goes wrong while files are read into one line.

    Args:
        folder: where the files lie.
        what: the repository.

    Raises:
        MetricError: instead of the libraries' own errors.
    """
    from pickle import UnpicklingError

    from safetensors import SafetensorError

    known = (OSError, ValueError, RuntimeError, KeyError, TypeError, ImportError, UnpicklingError, SafetensorError)
    try:
        yield
    except known as error:
        raise MetricError(f"{folder} cannot be loaded as {what}: {' '.join(str(error).split())}") from error
