"""What ran: versions, machine and command, stored beside the results and never part of their identity."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from riebench.utils.files import package_folder

PACKAGES = (
    "riebench", "torch", "torchvision", "diffusers", "transformers", "accelerate", "open_clip_torch", "lpips", "numpy",
)  # fmt: skip


def package_versions() -> dict[str, str]:
    """Version of each package that can move a number; absent ones are left out."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def git_state(folder: Path) -> dict[str, Any] | None:
    """Commit of the checkout that a folder lies in and whether it has uncommitted changes; None outside of one."""

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


def provenance(**more: Any) -> dict[str, Any]:
    """What a run folder says about how it was made.

    Args:
        **more: further entries, such as device and batch size.
    """
    return {
        "command": " ".join(["riebench", *sys.argv[1:]]),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "cpus": os.cpu_count(),
        "versions": package_versions(),
        "git": git_state(package_folder().parent),
        **more,
    }
