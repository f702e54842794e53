"""`.ci/run` ends at the first failure, tests as the README says, and pre-commit makes the same checks."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from paths import ROOT

SCRIPT = ROOT / ".ci" / "run"
PYTHON = """#!/bin/sh
mkdir -p .ci-venv/bin
for name in pip python ruff mypy lint-imports mkdocs riebench; do
    printf '#!/bin/sh\\necho %s >> ran\\n[ "$FAILS" != %s ]\\n' $name $name > .ci-venv/bin/$name
    chmod +x .ci-venv/bin/$name
done
"""
"""Makes an environment whose programs only say that they ran, and fail if they are the one that is to fail."""


@pytest.mark.parametrize(("fails", "ran"), [
    ("pip", ["pip"]), ("python", ["pip", "python"]), ("ruff", ["pip", "python", "ruff"]),
    ("mypy", ["pip", "python", "ruff", "ruff", "mypy"]),
    ("lint-imports", ["pip", "python", "ruff", "ruff", "mypy", "lint-imports"]), ("nothing", None),
])  # fmt: skip
def test_the_first_failure_ends_it(fails: str, ran: list[str] | None, tmp_path: Path) -> None:
    (tmp_path / ".ci").mkdir()
    shutil.copy(SCRIPT, tmp_path / ".ci" / "run")
    (tmp_path / "programs").mkdir()
    python = tmp_path / "programs" / "python3"
    python.write_text(PYTHON)
    python.chmod(0o755)
    path = f"{python.parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        [tmp_path / ".ci" / "run"], env={**os.environ, "PATH": path, "FAILS": fails}, capture_output=True, text=True
    )
    assert (done.returncode == 0) == ("all good" in done.stdout) == (ran is None)
    if ran is not None:
        assert (tmp_path / "ran").read_text().split() == ran


def test_it_tests_with_the_command_of_the_readme() -> None:
    (command,) = [line for line in (ROOT / "README.md").read_text().splitlines() if line.endswith("-m pytest")]
    called = [line for line in SCRIPT.read_text().splitlines() if "pytest" in line and not line.startswith("#")]
    plain = [line.replace(".ci-venv", ".venv").replace(" --quiet", "").removesuffix(" || exit") for line in called]
    assert plain == [command]


def test_pre_commit_makes_the_same_checks() -> None:
    lines = [line.removeprefix(".ci-venv/bin/") for line in SCRIPT.read_text().splitlines() if "ci-venv/bin" in line]
    checks = [line for line in lines if "pytest" not in line]
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    assert len(checks) > 8
    assert [hook["entry"] for hook in hooks] == checks
