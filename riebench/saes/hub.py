"""SAEs from the Hugging Face hub: `hf://OWNER/NAME[@REVISION][/SUBFOLDER]`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from riebench.errors import RiebenchError
from riebench.saes.readers import sae_formats
from riebench.saes.readers.mapping import read_mapping
from riebench.saes.stored import MAPPINGS, SaeOptions

SCHEME = "hf://"
_PLACE = re.compile(
    r"hf://(?P<id>[^/@]+/[^/@]+)(?:@(?P<revision>refs/(?:pr|convert)/[^/]+|[^/]+))?(?:/(?P<subfolder>.+?))?/?"
)
# Written beside sdxl-unbox checkpoints, sometimes far larger than they, and read by nobody here.
_IGNORE = ("act_rate.pt", "topk_*.pt", "optimizer*", "activations_store_state*")


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
    # A pattern without a wildcard before it would only match at the top.
    allow = [pattern for name in names for pattern in (f"{inside}{name}", f"{inside}*/{name}")]
    if place.subfolder:
        allow.append(place.subfolder)
    return allow, [pattern for name in _IGNORE for pattern in (name, f"*/{name}")]


def _snapshot(place: HubPlace, names: list[str], offline: bool) -> Path:
    allow, ignore = _allowed(place, names)
    try:
        return Path(
            huggingface_hub.snapshot_download(
                place.id, revision=place.revision, allow_patterns=allow, ignore_patterns=ignore,
                local_files_only=offline,
            )
        )  # fmt: skip
    except Exception as error:  # the client lets its HTTP library's own errors through, and that changed by version
        raise RiebenchError(_explain(place, error, offline)) from error


def _explain(place: HubPlace, error: Exception, offline: bool) -> str:
    what = f"cannot fetch the SAEs {place.id}{f'@{place.revision}' if place.revision else ''}"
    if isinstance(error, GatedRepoError):
        return f"{what}: access must be granted; accept its terms at huggingface.co/{place.id}, then `hf auth login`"
    if isinstance(error, RevisionNotFoundError):
        return f"{what}: it has no such revision; leave @{place.revision} out, or look at its branches"
    if isinstance(error, RepositoryNotFoundError):
        return f"{what}: the hub has no such repository, or it is private (then `hf auth login`); check the name"
    if isinstance(error, HFValidationError):
        return f"{what}: {place.id!r} is no valid name; write hf://OWNER/NAME"
    if isinstance(error, LocalEntryNotFoundError):
        if offline:
            return f"{what}: not in the cache, and --offline fetches nothing; run once without it"
        return f"{what}: the hub cannot be reached and the cache does not have it; check the network, or give a folder"
    if isinstance(error, EntryNotFoundError):
        return f"{what}: {_first_line(error)}"
    return f"{what}: {_first_line(error)}; check the network, or give a folder"


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
