"""Invocations: the commands that wrote to a run folder.

A run folder may be filled by several commands, on several machines and months apart. run.json keeps one entry for each
of them, and records and scores name theirs by its place in that list, so that no later command can pass for the maker
of earlier numbers.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import Field, JsonValue

from riebench.tasks.schema import StoredModel
from riebench.utils.files import package_folder

PACKAGES = (
    "riebench", "torch", "torchvision", "diffusers", "transformers", "accelerate", "open_clip_torch", "lpips", "numpy",
)  # fmt: skip
"""Packages that can move a number."""
MACHINE = ("python", "platform", "cpus", "device", "engine", "workers")
"""Notes that describe where a command ran."""


_ABSOLUTE = re.compile(r"(?<![^\s=:,'\"(])(?:[A-Za-z]:)?[/\\](?:[^\s/\\,]+[/\\])+(?P<name>[^\s/\\,]+)")
"""An absolute path of two parts or more in a command."""


class Invocation(StoredModel):
    """One command that wrote records or scores of a run."""

    command: str = ""
    """The command as given, with options."""
    started: str = ""
    """Start of the process, ISO 8601 in UTC."""
    ended: str | None = None
    """Time at which it last closed the folder; None if it was killed, or still runs."""
    versions: dict[str, str] = Field(default_factory=dict)
    """Package -> installed version, for those that can move a number."""
    commit: str | None = None
    """Git commit of riebench's own checkout; None for an installed package."""
    uncommitted: bool | None = None
    """True if the checkout had changes that were not committed."""
    machine: dict[str, JsonValue] = Field(default_factory=dict)
    """Python, platform, number of CPUs, device and workers."""
    options: dict[str, JsonValue] = Field(default_factory=dict)
    """Options that change rounding at most, such as batch size and placement."""
    request: dict[str, JsonValue] | None = None
    """Options of the run, as `riebench run --config` reads them; None for other commands."""

    @classmethod
    def from_notes(cls, notes: Mapping[str, Any]) -> Invocation:
        """Sort the notes of a process into an invocation.

        Args:
            notes: flat entries: "command", "started", "versions", "git", "request", those of `MACHINE`, and any others,
                which count as options. A run.json from before invocations were kept holds such notes as "provenance".
        """
        git = notes.get("git") or {}
        known = {"command", "started", "ended", "versions", "git", "request", *MACHINE}
        return cls(
            command=str(notes.get("command", "")),
            started=str(notes.get("started", "")),
            versions=notes.get("versions") or {},
            commit=git.get("commit"),
            uncommitted=git.get("dirty"),
            machine={name: notes[name] for name in MACHINE if name in notes},
            options={name: value for name, value in notes.items() if name not in known},
            request=notes.get("request"),
        )

    @property
    def notes(self) -> dict[str, Any]:
        """The entries as flat notes, see `from_notes`; empty ones are left out."""
        git = None if self.commit is None else {"commit": self.commit, "dirty": bool(self.uncommitted)}
        stated = {"command": self.command, "started": self.started, "versions": self.versions, "git": git}
        return {
            **{name: value for name, value in stated.items() if value},
            **self.machine,
            **self.options,
            **({} if self.request is None else {"request": self.request}),
        }

    def without_folders(self) -> Invocation:
        """Return the entry without the folders of absolute paths.

        They say much about a machine and its owner.
        """

        def shorten(value: JsonValue) -> JsonValue:
            if isinstance(value, str):
                return _ABSOLUTE.sub(lambda found: f".../{found['name']}", value)
            if isinstance(value, list):
                return [shorten(one) for one in value]
            return {name: shorten(one) for name, one in value.items()} if isinstance(value, dict) else value

        return Invocation.model_validate(shorten(self.model_dump(mode="json")))

    def is_same(self, other: Invocation) -> bool:
        """Return whether two entries are of one process.

        A process may open a folder several times.
        """
        return (self.command, self.started) == (other.command, other.started)


class _Current:
    """The invocation of this process."""

    command: str | None = None
    started: str | None = None
    request: dict[str, Any] | None = None


def begin_invocation(command: str, request: dict[str, Any] | None = None) -> None:
    """Start an invocation, for callers from Python.

    Each command has one without it.

    Args:
        command: the call as a person would write it.
        request: options of the run (`Invocation.request`).
    """
    _Current.command, _Current.request = command, request
    _Current.started = datetime.now(UTC).isoformat(timespec="milliseconds")


def invocation_notes(**more: Any) -> dict[str, Any]:
    """Describe this process, for run.json.

    Args:
        **more: further notes, such as device and batch size.

    Returns:
        Notes that `Invocation.from_notes` sorts.
    """
    if _Current.command is None:
        begin_invocation(" ".join(["riebench", *sys.argv[1:]]), _Current.request)
    request = {} if _Current.request is None else {"request": _Current.request}
    return {
        "command": _Current.command,
        "started": _Current.started,
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "cpus": os.cpu_count(),
        "versions": dict(_versions()),
        "git": _checkout_state(package_folder().parent),
        **request,
        **more,
    }


@lru_cache
def _versions() -> dict[str, str]:
    """Return the versions of this process's packages, looked up once."""
    return package_versions()


def package_versions(packages: Sequence[str] = PACKAGES) -> dict[str, str]:
    """Return the versions of packages; those not installed are left out.

    Args:
        packages: names of distributions.
    """
    versions = {}
    for name in packages:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


@lru_cache(maxsize=1)
def _checkout_state(folder: Path) -> dict[str, Any] | None:
    """Return a checkout's state, looked up once per process.

    What is running does not change when files do.
    """
    return git_state(folder)


def git_state(folder: Path) -> dict[str, Any] | None:
    """Return the commit of a checkout and whether it has uncommitted changes.

    None if the folder is not the root of a checkout.
    """

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")) != folder:
            return None
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain", "-uno"))}
    except (OSError, subprocess.SubprocessError):
        return None


def now() -> str:
    """Return the time, ISO 8601 in UTC, in whole seconds."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def mixed_versions(invocations: Iterable[Invocation]) -> str:
    """Return which packages several invocations had in different versions, in words.

    Args:
        invocations: those behind the numbers of one row.

    Returns:
        For example "torch 2.14.1 and 2.15.0"; "" if all agree.
    """
    found: dict[str, set[str]] = {}
    for one in invocations:
        for package, version in one.versions.items():
            found.setdefault(package, set()).add(version)
    return "; ".join(
        f"{package} {' and '.join(sorted(versions))}"
        for package, versions in sorted(found.items())
        if len(versions) > 1
    )
