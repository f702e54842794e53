"""Files of networks that do not ship with the package: found on this machine or fetched once, never guessed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from riebench.errors import MetricError, RiebenchError, near_match
from riebench.utils.hub import fetch, is_offline

DINO, SQUEEZENET = "dino", "squeezenet"
LOCAL_NAMES: dict[str, str] = {
    DINO: "folder of facebook/dino-vitb8 with config.json and model.safetensors",
    SQUEEZENET: "torchvision's squeezenet1_1-b8a52dc0.pth",
}
"""What `--weights NAME=PATH` may name, and what lies there."""

WEIGHT_ENDINGS = (".safetensors", ".bin", ".pt", ".pth")
LFS_POINTER = b"version https://git-lfs"


def parse_weights(entries: Sequence[str]) -> dict[str, Path]:
    """Reads what `--weights` was given.

    Args:
        entries: "NAME=PATH" each, with a name of `LOCAL_NAMES`.

    Returns:
        Name -> path that exists.

    Raises:
        MetricError: for an unknown or repeated name, or a path that is not there.
    """
    found: dict[str, Path] = {}
    for entry in entries:
        name, equals, path = entry.partition("=")
        if name not in LOCAL_NAMES or not equals:
            known = "; ".join(f"{key}=PATH of the {what}" for key, what in LOCAL_NAMES.items())
            raise MetricError(f"--weights {entry!r}{near_match(name, LOCAL_NAMES)}: write {known}")
        if name in found:
            raise MetricError(f"--weights {name} is given twice")
        found[name] = Path(path).expanduser()
        if not found[name].exists():
            raise MetricError(f"--weights {entry}: there is no {path}")
    return found


def check_weights_file(path: Path) -> Path:
    """The path, if it may hold weights.

    Raises:
        MetricError: if there is no such file, it is a Git-LFS pointer, or of a kind that is not read.
    """
    if not path.is_file():
        raise MetricError(f"there is no file {path}")
    if path.suffix not in WEIGHT_ENDINGS:
        raise MetricError(f"{path} is no weights file; it has to end in {', '.join(WEIGHT_ENDINGS)}")
    with path.open("rb") as file:
        if file.read(len(LFS_POINTER)) == LFS_POINTER:
            raise MetricError(f"{path} is a Git-LFS pointer, not the file; run `git lfs pull` in its folder")
    return path


def from_hub(
    repository: str, choices: Sequence[tuple[str, ...]], *, revision: str | None = None, offline: bool = False
) -> Path:
    """The folder of the hub's cache that holds one of several sets of files; fetched only if none is there.

    Args:
        repository: hub id.
        choices: sets of file names, the best first.
        revision: commit, or None for the newest.
        offline: looks into the cache alone.

    Raises:
        MetricError: one line on what is missing and how to bring it.
    """
    why = ""
    for local in (True,) if offline or is_offline() else (True, False):
        for files in choices:
            try:
                folder = fetch(repository, revision, patterns=files, offline=local)
            except RiebenchError as error:
                why = "" if local else f": {error}"
                continue
            if all((folder / name).is_file() for name in files):
                return folder
    pin = f" --revision {revision}" if revision else ""
    line = f"hf download {repository}{pin} {' '.join(choices[0])}"
    raise MetricError(f"{repository} is not on this machine (`{line}` brings it){why}")
