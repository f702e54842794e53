"""SAEs from the Hugging Face hub: `hf://OWNER/NAME[@REVISION][/SUBFOLDER]`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from riebench.errors import RiebenchError
from riebench.saes.readers import sae_formats
from riebench.saes.readers.mapping import read_mapping
from riebench.saes.stored import MAPPINGS, SaeOptions
from riebench.utils import hub
from riebench.utils.hub import is_offline

SCHEME = "hf://"
_PLACE = re.compile(
    r"hf://(?P<id>[^/@]+/[^/@]+)(?:@(?P<revision>refs/(?:pr|convert)/[^/]+|[^/]+))?(?:/(?P<subfolder>.+?))?/?"
)
_NOTHING = "no such file"
# Written beside sdxl-unbox checkpoints, sometimes far larger than they, and read by nobody here.
_IGNORE = ("act_rate.pt", "topk_vals.pt", "topk_indices.pt", "topk_heatmaps.pt", "optimizer.pt")


@dataclass(frozen=True)
class HubPlace:
    """A place on the hub.

    Attributes:
        id: "OWNER/NAME".
        revision: branch, tag or commit.
        subfolder: the part of the repository that is meant; "" for all.
    """

    id: str
    revision: str | None = None
    subfolder: str = ""


def parse(place: str) -> HubPlace:
    """Reads "hf://OWNER/NAME[@REVISION][/SUBFOLDER]".

    Raises:
        RiebenchError: if it is not of that form.
    """
    match = _PLACE.fullmatch(place)
    if match is None:
        raise RiebenchError(f"{place!r} is no place on the hub; write hf://OWNER/NAME[@REVISION][/SUBFOLDER]")
    return HubPlace(match["id"], match["revision"], match["subfolder"] or "")


def fetch(text: str, options: SaeOptions, *, offline: bool = False) -> Path:
    """Fetches what an SAE needs, or finds it in the cache.

    Args:
        text: see `parse`.
        options: a mapping that is given names the weights.
        offline: never touches the network.

    Returns:
        The folder (or file) in the hub's cache.

    Raises:
        RiebenchError: if there is no such repository, revision or subfolder, no access, or no network.
    """
    place = parse(text)
    folder = _snapshot(place, _patterns(options), offline)
    weights = _mapped_weights(folder / place.subfolder)
    if weights and not offline:
        folder = _snapshot(place, [*_patterns(options), *weights], offline)
    path = folder / place.subfolder
    if not path.exists():
        raise RiebenchError(f"{place.id} has no {place.subfolder} with SAE files; look at its file list on the hub")
    return path


def _patterns(options: SaeOptions) -> list[str]:
    names = [name for one in sae_formats() for name in (*one.needs, *one.fetch)]
    if options.mapping is not None:
        named = read_mapping(options.mapping).weights
        names += [named] if named else ["*.safetensors", "*.pth", "*.bin"]
    return sorted(set(names))


def _mapped_weights(folder: Path) -> list[str]:
    mappings = [path for name in MAPPINGS for path in folder.rglob(name)] if folder.is_dir() else []
    return [weights for path in mappings if (weights := read_mapping(path).weights)]


def download_command(text: str, options: SaeOptions) -> str:
    """The line that brings what `fetch` would into the hub's cache; all formats that are read come along.

    Raises:
        RiebenchError: as `parse`.
    """
    place = parse(text)
    allow, ignore = _allowed(place, _patterns(options))
    parts = [f"--include '{pattern}'" for pattern in allow] + [f"--exclude '{pattern}'" for pattern in ignore]
    return " ".join([f"hf download {place.id}", *([f"--revision {place.revision}"] if place.revision else []), *parts])


def _allowed(place: HubPlace, names: list[str]) -> tuple[list[str], list[str]]:
    inside = f"{place.subfolder}/" if place.subfolder else ""
    wide = [name for name in names if "*" in name]
    # A star matches folders, too; names that a wider pattern brings along would only lengthen messages.
    plain = [f"*{name}" for name in names if not any(fnmatch(name, pattern) for pattern in wide)]
    allow = [f"{inside}{pattern}" for pattern in (*wide, *plain)]
    # The place may be a file.
    return [*allow, *([place.subfolder] if place.subfolder else [])], [f"*{name}" for name in _IGNORE]


def _snapshot(place: HubPlace, names: list[str], offline: bool) -> Path:
    allow, ignore = _allowed(place, names)
    # Without a network, whatever part of the repository is here will do; the reader says if a file is missing.
    wanted = [_NOTHING] if offline or is_offline() else allow
    try:
        return hub.fetch(place.id, place.revision, patterns=wanted, ignore=ignore, named=allow, offline=offline)
    except RiebenchError as error:
        raise RiebenchError(f"SAEs: {error}") from error
