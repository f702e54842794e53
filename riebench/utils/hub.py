"""Access to the Hugging Face Hub: its files, its cache, and offline mode.

Files of a repository are downloaded or found in the cache of this machine; every failure says how to correct it.
Offline mode keeps this package and the libraries it uses off the network.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from riebench.errors import MetricError, RiebenchError

OFFLINE_VARIABLES = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")
"""Environment variables that huggingface_hub (and with it diffusers, transformers and open_clip) and datasets read.

They read them once, when they are imported.
"""

_CACHED_FLAGS = (
    ("huggingface_hub.constants", "HF_HUB_OFFLINE"),
    ("diffusers.utils.hub_utils", "HF_HUB_OFFLINE"),
    ("datasets.config", "HF_HUB_OFFLINE"),
    ("datasets.config", "HF_DATASETS_OFFLINE"),
)
"""(module, attribute) in which these libraries keep what they have read."""

_outer: list[dict[str, str | None]] = []
"""Values of these variables before each `offline_mode` that is open; the first are the user's own."""

_TRUE_VALUES = {"1", "ON", "YES", "TRUE"}


def is_offline() -> bool:
    """Return whether the network must not be used.

    This is set by `offline_mode` or by the user's own environment.
    """
    return any(os.environ.get(name, "").upper() in _TRUE_VALUES for name in OFFLINE_VARIABLES[:2])


def offline_variable() -> str | None:
    """Return the user's own variable that keeps the network away.

    It is returned as NAME=VALUE; None if there is none.
    """
    own = _outer[0] if _outer else {name: os.environ.get(name) for name in OFFLINE_VARIABLES}
    return next(
        (f"{name}={own[name]}" for name in OFFLINE_VARIABLES if (own[name] or "").upper() in _TRUE_VALUES), None
    )


def offline_remedy() -> str:
    """Return what to do so that files may be fetched in spite of offline mode."""
    variable = offline_variable()
    if variable is None:
        return "leave --offline out"
    name = variable.partition("=")[0]
    return f"{variable} keeps riebench off the network; unset {name}" + (" and leave --offline out" if _outer else "")


@contextmanager
def offline_mode(enabled: bool = True) -> Iterator[None]:
    """Keep all libraries off the network while the context is open.

    This holds for the libraries imported already and for those imported later.

    Args:
        enabled: False changes nothing.
    """
    if not enabled:
        yield
        return
    variables = {name: os.environ.get(name) for name in OFFLINE_VARIABLES}
    flags = {flag: getattr(sys.modules[flag[0]], flag[1]) for flag in _CACHED_FLAGS if flag[0] in sys.modules}
    previous = is_offline()
    _outer.append(variables)
    os.environ.update(dict.fromkeys(OFFLINE_VARIABLES, "1"))
    for module, name in flags:
        setattr(sys.modules[module], name, True)
    try:
        yield
    finally:
        _outer.pop()
        for variable, value in variables.items():
            if value is None:
                os.environ.pop(variable, None)
            else:
                os.environ[variable] = value
        for module, name in _CACHED_FLAGS:
            if module in sys.modules:
                # A module imported in the meantime has read variables that have since been restored.
                setattr(sys.modules[module], name, flags.get((module, name), previous))


def split_revision(name: str) -> tuple[str, str | None]:
    """Split "OWNER/NAME@REVISION" into id and revision.

    The revision is None where none is given.
    """
    repo, _, revision = name.partition("@")
    return repo, revision or None


def fetch(
    repo: str,
    revision: str | None = None,
    *,
    patterns: Sequence[str],
    ignore: Sequence[str] = (),
    hint_patterns: Sequence[str] = (),
    offline: bool = False,
    kind: str = "model",
) -> Path:
    """Download files of a repository into the hub's cache if missing there.

    Args:
        repo: "OWNER/NAME".
        revision: branch, tag or commit; None for the newest.
        patterns: the files to fetch, as `fnmatch` patterns.
        ignore: patterns of files to leave out.
        hint_patterns: patterns that an error message tells the user to download, where more files than `patterns`
            will be needed later; `patterns` if empty.
        offline: uses the cache only.
        kind: "model" or "dataset".

    Returns:
        Folder of the snapshot, named after the commit. Files that the repository lacks are missing from it.

    Raises:
        RiebenchError: if neither the hub nor the cache provides the files.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    offline = offline or is_offline()
    try:
        return Path(
            snapshot_download(
                repo, revision=revision, repo_type=kind, allow_patterns=list(patterns), ignore_patterns=list(ignore),
                local_files_only=offline,
            )
        )  # fmt: skip
    except HFValidationError as error:
        raise RiebenchError(f"{repo!r} is no hub id; write OWNER/NAME or OWNER/NAME@REVISION") from error
    except Exception as error:
        # Not all of the hub's errors share a base class, and a timeout is one of the HTTP library's own.
        raise RiebenchError(_explain_failure(error, repo, revision, hint_patterns or patterns, offline)) from error


def from_hub(
    repository: str, choices: Sequence[tuple[str, ...]], *, revision: str | None = None, offline: bool = False
) -> Path:
    """Return the folder of the hub's cache that holds one of several sets of files.

    Files are fetched only if no set is in the cache.

    Args:
        repository: hub id.
        choices: sets of file names, the best first.
        revision: commit, or None for the newest.
        offline: whether to look into the cache alone.

    Raises:
        MetricError: with one line on what is missing and how to get it.
    """
    failed: RiebenchError | None = None
    for local in (True,) if offline or is_offline() else (True, False):
        for files in choices:
            try:
                folder = fetch(repository, revision, patterns=files, offline=local)
            except RiebenchError as error:
                failed = None if local else error
                continue
            if all((folder / name).is_file() for name in files):
                return folder
    if failed is not None:
        # It says what is missing and how to get it.
        raise MetricError(str(failed)) from failed
    pin = f" --revision {revision}" if revision else ""
    line = f"hf download {repository}{pin} {' '.join(choices[0])}"
    why = f": {offline_remedy()}" if offline or is_offline() else ""
    raise MetricError(f"{repository} is not on this machine (`{line}` brings it){why}")


def _explain_failure(error: Exception, repo: str, revision: str | None, patterns: Sequence[str], offline: bool) -> str:
    """Return a message that says why a fetch failed and what to do about it."""
    from huggingface_hub import errors

    page = f"https://huggingface.co/{repo}"
    if isinstance(error, errors.GatedRepoError):
        return f"{repo} is gated: accept its terms at {page}, then log in with `hf auth login`"
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"the hub has no {repo}, or it is private: check the spelling, or log in with `hf auth login`"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{repo} has no revision {revision!r}: see {page}/commits/main, or leave @{revision} out"
    if isinstance(error, errors.LocalEntryNotFoundError):
        at = f" --revision {revision}" if revision else ""
        wanted = " ".join(f"--include '{pattern}'" for pattern in patterns)
        line = f"`hf download {repo}{at} {wanted}`"
        there = "only in part" if isinstance(error, errors.IncompleteSnapshotError) else "not"
        if offline:
            return f"{repo} is {there} on this machine: {offline_remedy()}, or fetch it first with {line}"
        return (
            f"the hub cannot be reached, and {repo} is {there} on this machine: check the network or HTTPS_PROXY, or "
            f"copy the hub's cache folder from a machine that has run {line}"
        )
    if isinstance(error, OSError) and error.strerror:
        return f"cannot store {repo}: {error.strerror} ({error.filename}); HF_HOME names another folder for the cache"
    first = next(iter(str(error).strip().splitlines()), "")
    return f"cannot fetch {repo}: {type(error).__name__} {first}; check the network, then repeat the same command"


def upload_error(name: str, error: Exception) -> RiebenchError:
    """Return the error of one line for an upload that failed.

    Args:
        name: the repository.
        error: what the hub's client raised.
    """
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return RiebenchError(f"{name} could not be uploaded: {reason}; `hf auth login` gives the right to write there")
