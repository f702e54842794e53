"""Shortages of memory, disk space and file size: one line that says what is short and what helps."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from leaderboard_runs import add_run

from riebench.cli.common import friendly
from riebench.errors import MemoryShortageError, RiebenchError
from riebench.utils.machine import free_ram, shortage

MEMORY, DISK, FILE = "memory does not suffice", "the disk is full", "a file would be larger"


def wrapped(inner: Exception, outer: Exception, *, quiet: bool = False) -> Exception:
    """An error as a library raises it while it handles another one."""
    try:
        try:
            raise inner
        except Exception as error:
            if quiet:
                raise outer  # noqa: B904
            raise outer from error
    except Exception as error:
        return error


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (MemoryError(), MEMORY),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), MEMORY),
        (ImportError("libtorch_cpu.so: failed to map segment from shared object"), MEMORY),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 4 bytes"), MEMORY),
        (ValueError("Unable to allocate 3.00 GiB for an array"), MEMORY),
        (wrapped(OSError(errno.ENOMEM, "x"), OSError("Unable to load weights from checkpoint"), quiet=True), MEMORY),
        (OSError(errno.ENOSPC, "No space left on device"), DISK),
        (Exception("Error while serializing: I/O error: No space left on device (os error 28)"), DISK),
        (OSError(errno.EDQUOT, "x"), DISK),
        (OSError(errno.EFBIG, "File too large"), FILE),
        (wrapped(OSError(errno.EFBIG, "File too large"), RiebenchError("no page")), FILE),
        (Exception("I/O error: File too large (os error 27)"), FILE),
        (OSError(errno.EACCES, "Permission denied"), None),
        (RiebenchError("a name in a file: out of memory, file too large"), None),
        (ValueError("x"), None),
    ],
)
def test_shortages_are_known_whatever_reports_them(error: Exception, words: str | None) -> None:
    found = shortage(error)
    assert (found is None) == (words is None)
    assert found is None or words is None or (words in found and "\n" not in found)


def test_the_command_says_it_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    @friendly
    def verb(error: Exception) -> None:
        raise error

    for error, words in (
        (ValueError("Unable to allocate 3.00 GiB"), MEMORY),
        (wrapped(OSError(errno.ENOMEM, "x"), RiebenchError("cannot load it")), "cannot load it"),
        (MemoryShortageError("use --offload model"), "riebench: use --offload model"),
    ):
        with pytest.raises(typer.Exit) as ended:
            verb(error)
        shown = capsys.readouterr().err
        assert ended.value.exit_code == 2 and len(shown.splitlines()) == 1 and words in shown
    with pytest.raises(ValueError, match="a fault"):
        verb(ValueError("a fault of the program"))


def shell(limit: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """The command under a limit of the shell."""
    line = f'ulimit {limit}; exec "$0" -m riebench "$@"'
    return subprocess.run(["bash", "-c", line, sys.executable, *map(str, arguments)], capture_output=True, text=True)


def test_ulimit_v_is_one_line(tmp_path: Path) -> None:
    result = shell("-v 1200000", "run", "no_edit", "--results", tmp_path / "results")
    assert result.returncode == 2, result.stderr
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"riebench: {MEMORY} under the limit of 1.2 GB that `ulimit -v` sets; raise it")


def test_ulimit_f_is_one_line_and_nothing_is_torn(tmp_path: Path) -> None:
    add_run(tmp_path / "results", "good", 0.03, levels=2)
    result = shell("-f 2", "export", "--results", tmp_path / "results", "--out", tmp_path / "out", "--format", "csv")
    assert result.returncode == 2, result.stderr
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"riebench: {FILE} than the limit of 2048 bytes that `ulimit -f` sets; raise it")
    assert not [*(tmp_path / "out").rglob("*.tmp")]
    # Lines that do not fit are taken back.
    code = (
        "import sys; from pathlib import Path; from riebench.utils.files import append_lines; "
        "append_lines(Path(sys.argv[1]), ['x' * 100] * 30)"
    )
    lines = tmp_path / "lines.jsonl"
    lines.write_text("1\n" * 500)
    command = ["bash", "-c", 'ulimit -f 2; exec "$0" -c "$1" "$2"', sys.executable, code, str(lines)]
    assert "File too large" in subprocess.run(command, capture_output=True, text=True).stderr
    assert lines.read_text() == "1\n" * 500


def test_free_memory_is_what_the_shell_leaves() -> None:
    code = "from riebench.utils.machine import free_ram; print(free_ram())"
    line = 'ulimit -v 1000000; exec "$0" -c "$1"'
    done = subprocess.run(["bash", "-c", line, sys.executable, code], capture_output=True, text=True, check=True)
    assert 0 < json.loads(done.stdout) < 1_000_000 * 1024 and free_ram() > 0
