"""`constraints.txt` and `.ci/versions`: versions of results, newest and lowest."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType

import pytest
from packaging.requirements import Requirement
from packaging.version import Version
from paths import ROOT


@pytest.fixture(scope="module")
def script() -> ModuleType:
    """`.ci/versions` as a module."""
    loader = SourceFileLoader("ci_versions", str(ROOT / ".ci" / "versions"))
    spec = importlib.util.spec_from_loader("ci_versions", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    loader.exec_module(module)
    sys.dont_write_bytecode = before
    return module


def test_constraints_are_the_versions_of_the_committed_results() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    stated = dict(line.split("==") for line in lines if not line.startswith("#"))
    others: dict[str, dict[str, str]] = {}
    for settings, versions in re.findall(r"^# except ([\w ]+): (.+)$", "\n".join(lines), re.MULTILINE):
        others |= {name: dict(version.split("==") for version in versions.split()) for name in settings.split()}
    runs = sorted((ROOT / "results").glob("*/*/*/run.json"))
    assert runs
    for path in runs:
        wanted = stated | others.pop(path.parent.name, {})
        for made in json.loads(path.read_text(encoding="utf-8"))["invocations"]:
            assert {name: version for name, version in made["versions"].items() if name != "riebench"} == wanted, path
    assert not others


def test_the_lowest_versions_are_those_of_the_project_file(script: ModuleType) -> None:
    wanted = script.requirements(ROOT / "pyproject.toml")
    bounds = script.lower_bounds(wanted)
    for text in wanted:
        requirement = Requirement(text)
        lowest = [Version(one.version) for one in requirement.specifier if one.operator == ">="]
        assert [Version(bounds[requirement.name])] == lowest if lowest else requirement.name not in bounds
    assert "torch==" in script.constraints(bounds)
    with pytest.raises(ValueError, match=r"lower bounds 1\.0 and 2\.0"):
        script.lower_bounds(["torch>=1.0", "torch>=2.0,<3"])
    with pytest.raises(ValueError, match="cannot be read"):
        script.lower_bounds(["?"])
    assert script.lower_bounds(["a[x]>=1.5,!=1.6; python_version > '3'", "b", "c<2"]) == {"a": "1.5"}


def test_only_the_lowest_environment_is_constrained(script: ModuleType, tmp_path: Path) -> None:
    lowest, newest = (
        script.install_command(Path("python"), kind, tmp_path / "c.txt", dry_run=True) for kind in ("lowest", "newest")
    )
    assert lowest[lowest.index("-c") + 1] == str(tmp_path / "c.txt") and "--upgrade" not in lowest
    assert "-c" not in newest and "--upgrade" in newest and "--dry-run" in newest


def test_an_environment_that_cannot_be_made_is_reported_and_the_other_still_runs(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def make(folder: Path, kind: str, *, dry_run: bool) -> Path:
        if kind == "lowest":
            raise script.EnvironmentFailed("the lowest environment cannot be made; pip says:\n    no matching torch")
        return Path("python")

    monkeypatch.setattr(script, "make_environment", make)
    monkeypatch.setattr(script, "installed", lambda python: {"torch": "9.0"})
    monkeypatch.setattr(script, "run_suite", lambda *arguments: {"t::a": "passed"})
    assert script.compare(tmp_path, script.KINDS, [], dry_run=False) == 2
    printed = capsys.readouterr().out
    assert "no matching torch" in printed and "newest: 1 passed, 0 failed, 0 skipped" in printed
    assert printed.rstrip().endswith("the lowest environment cannot be made; pip says:")


def test_tests_that_differ_are_listed_with_both_outcomes(script: ModuleType, tmp_path: Path) -> None:
    report = tmp_path / "report.xml"
    report.write_text(
        '<testsuites><testsuite><testcase classname="t" name="a"/>'
        '<testcase classname="t" name="b"><failure/></testcase>'
        '<testcase classname="t" name="c"><skipped/></testcase></testsuite></testsuites>'
    )
    found = script.outcomes(report)
    assert found == {"t::a": "passed", "t::b": "failed", "t::c": "skipped"}
    # Cases that are named in another way are the same cases, unless their outcomes differ.
    one, two = {"t::d[x]": "passed", "t::d[y]": "failed"}, {"t::d[text0]": "failed", "t::d[text1]": "passed"}
    assert script.differing(one, two) == []
    assert len(script.differing(one, {**two, "t::d[text0]": "passed"})) == 4
    assert len(script.differing({**one, "t::d[z]": "passed"}, {**two, "t::d[z]": "failed"})) == 5
    lines = script.differing(found, {"t::a": "passed", "t::b": "passed"})
    assert lines == [
        "t::b: failed with the newest versions, passed with the lowest",
        "t::c: skipped with the newest versions, absent with the lowest",
    ]
