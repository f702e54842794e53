"""Tests of methods from a user's own file.

A setting names the file; the method is checked like any other and is part of the run's identity.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from paths import ROOT
from records import make_spec
from tiny import tiny_model
from typer.testing import CliRunner

from riebench import registry
from riebench.cli.common import friendly
from riebench.cli.main import app
from riebench.errors import RiebenchError, TaskFileError
from riebench.methods.check import check_setting
from riebench.registry import METHODS, METRICS
from riebench.runs import engines
from riebench.scoring.metrics.base import Metric
from riebench.scoring.metrics.networks import Networks
from riebench.tasks import settings
from riebench.tasks.plugins import PACKAGE_PREFIX
from riebench.tasks.schema import EditExample, EditTask, Setting
from riebench.tasks.settings import load_setting_file, load_settings

GUIDE = ROOT / "docs" / "new-method.md"
METHOD = '''
from riebench.generation.edits import Edit
from riebench.methods.base import EditContext, Reuse, method


@method("NAME", access="PA", needs=("updates",))
def nothing(ctx: EditContext, *, often: int = 1) -> Edit:
    """Changes nothing."""
    return Edit({})
'''


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    """Remove plugins, their methods and their modules after each test."""
    before = set(METHODS.names())
    yield
    settings._loaded_plugins.clear()
    for name in [name for name in sys.modules if name.startswith(PACKAGE_PREFIX)]:
        del sys.modules[name]
    for name in set(METHODS.names()) - before:
        METHODS._objects.pop(name)


def write(folder: Path, method: str = "mine", more: str = "", code: str = METHOD) -> Path:
    """Write a plugin and a setting beside it."""
    (folder / "my_methods.py").write_text(code.replace("NAME", "mine"))
    path = folder / "my_setting.yaml"
    path.write_text(f'method: {method}\nplugin: my_methods.py\naccess: "PA"\n{more}')
    return path


def sample() -> Any:
    """Return something that a metric is called with."""
    return object()


def task() -> EditTask:
    """Return a task with one example."""
    example = EditExample(id="e0", source="a red house", target="a red boat")
    return EditTask(name="t", version=1, category="change_object", suite="tiny", examples=(example,))


def test_a_setting_brings_its_method(tmp_path: Path) -> None:
    path = write(tmp_path)
    (setting,) = load_settings("toy", [str(path)])
    assert setting.method == "mine" and len(setting.plugin_sha256 or "") == 64
    check_setting(setting, str(path))
    # The same file may serve several settings.
    assert load_setting_file(write(tmp_path, more="params: {often: 2}\n")).params == {"often": 2}
    (folder,) = engines.run("local", [task()], [setting], tiny_model(), results_root=tmp_path, progress=False)
    (record,) = folder.records()
    assert record.status == "ok" and record.image is not None
    assert np.array_equal(folder.read_image(record.image), folder.shared.read_image(str(record.source_image)))
    assert folder.spec.setting.plugin == "my_methods.py"
    assert str(tmp_path) not in (folder.path / "run.json").read_text()


def test_other_code_is_another_run(tmp_path: Path) -> None:
    first, second = (
        Setting(name="s", method="mine", plugin="my_methods.py", plugin_sha256=digest) for digest in ("a", "b")
    )
    plain = Setting(name="s", method="mine")
    specs = [make_spec().model_copy(update={"setting": setting}) for setting in (plain, first, second)]
    assert len({spec.run_id for spec in specs}) == 3
    assert "plugin_sha256" not in specs[0].identity and "plugin" not in specs[1].identity


@pytest.mark.parametrize(
    ("method", "more", "message"),
    [
        ("mein", "", r"unknown method 'mein' \(did you mean 'mine'\?\)"),
        ("mine", "plugin_sha256: abc\n", "follows from the plugin's file"),
        ("mine", "plugins: x.py\n", r"unknown key \(did you mean 'plugin'\?\)"),
    ],
)
def test_slips_in_the_setting_are_named(tmp_path: Path, method: str, more: str, message: str) -> None:
    with pytest.raises(TaskFileError, match=f"my_setting.yaml.*{message}"):
        load_setting_file(write(tmp_path, method, more))


def test_parameters_and_letters_are_checked_as_those_of_shipped_methods(tmp_path: Path) -> None:
    wrong = load_setting_file(write(tmp_path, more="params: {oftn: 2}\n"))
    with pytest.raises(TaskFileError, match=r"no parameter 'oftn' \(did you mean 'often'\?\)"):
        check_setting(wrong, "here")
    with pytest.raises(TaskFileError, match="access: 'P', but method 'mine' uses 'PA'"):
        check_setting(load_setting_file(write(tmp_path)).model_copy(update={"access": "P"}), "here")


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import nowhere_to_be_found\n", "fails: ModuleNotFoundError: No module named 'nowhere_to_be_found'"),
        ("x = 1 +\n", "fails: SyntaxError"),
        ("x = 1\n", "registers no method"),
        (METHOD.replace("NAME", "sae"), "'sae' is registered twice"),
    ],
)
def test_files_that_cannot_serve_are_refused_in_a_line(tmp_path: Path, code: str, message: str) -> None:
    path = write(tmp_path, code=code)
    with pytest.raises(TaskFileError, match=f"my_setting.yaml: plugin .*{message}"):
        load_setting_file(path)


@pytest.mark.parametrize("named", ["../elsewhere.py", "{root}/elsewhere.py", "link.py", "folder/elsewhere.py"])
def test_a_file_outside_the_settings_folder_is_run_on_request_only(
    tmp_path: Path, named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "received"
    folder.mkdir()
    ran = tmp_path / "ran"
    (tmp_path / "elsewhere.py").write_text(METHOD.replace("NAME", "mine") + f"open({str(ran)!r}, 'w')\n")
    (folder / "link.py").symlink_to(tmp_path / "elsewhere.py")
    (folder / "folder").symlink_to(tmp_path)
    path = folder / "my_setting.yaml"
    path.write_text(f"method: mine\nplugin: {named.format(root=tmp_path)}\naccess: PA\n")
    with pytest.raises(TaskFileError, match=r"outside the configuration's folder, and was not run.*--trust-plugins"):
        load_settings("toy", [str(path)])
    for verb in (["run", "--dry-run"], ["run"], ["doctor"]):
        result = CliRunner().invoke(app, [*verb, str(path), "--results", str(tmp_path / "results")])
        assert result.exit_code == 2 and len(result.stderr.strip().splitlines()) == 1
        assert "--trust-plugins" in result.stderr
    assert not ran.exists() and "running" not in capsys.readouterr().err
    assert load_settings("toy", [str(path)], trust_plugins=True)[0].method == "mine"
    assert ran.exists()
    assert f"running the plug-in {tmp_path / 'elsewhere.py'}, which {path} names" in capsys.readouterr().err


@pytest.mark.parametrize("verb", [["run", "--dry-run"], ["doctor"]])
def test_a_command_says_that_it_runs_a_file_before_it_does(tmp_path: Path, verb: list[str]) -> None:
    path = write(tmp_path, code=METHOD + "import sys\nprint('in the plug-in', file=sys.stderr)\n")
    options = ["--results", str(tmp_path / "results"), "--device", "cpu", "--limit", "1"]
    result = CliRunner().invoke(app, [*verb, str(path), *options])
    assert result.exit_code == 0, result.output
    said, ran, *_ = result.stderr.splitlines()
    assert said == f"running the plug-in {tmp_path / 'my_methods.py'}, which {path} names" and ran == "in the plug-in"
    assert "plug-in" in CliRunner().invoke(app, [verb[0], "--help"]).output.lower()


ENDS = {
    "SystemExit(0)": "raise SystemExit(0)",
    "sys.exit": "import sys; sys.exit()",
    "GeneratorExit": "raise GeneratorExit('x')",
    "own": "raise type('Own', (BaseException,), {})('x')",
}


@pytest.mark.parametrize("code", ENDS.values(), ids=ENDS)
def test_a_file_that_would_end_the_process_is_an_error(tmp_path: Path, code: str) -> None:
    path = write(tmp_path, code=code + "\n" + METHOD)
    for verb in (["run", "--dry-run"], ["doctor"], ["run"]):
        result = CliRunner().invoke(app, [*verb, str(path), "--results", str(tmp_path / "results")])
        assert result.exit_code == 2, verb
        line = result.stderr.splitlines()[-1]
        assert line.startswith(f"riebench: {path}: plugin ") and "would end the process" in line


def test_a_method_that_would_end_the_process_fails_its_unit(tmp_path: Path) -> None:
    code = METHOD.replace("return Edit({})", "raise SystemExit(0)")
    setting = load_setting_file(write(tmp_path, code=code))
    (folder,) = engines.run("local", [task()], [setting], tiny_model(), results_root=tmp_path, progress=False)
    (record,) = folder.records()
    assert record.status == "error" and "method 'mine' would end the process" in str(record.reason)


def test_a_package_that_would_end_the_process_is_unusable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "leaving_module.py").write_text("raise SystemExit(0)")
    monkeypatch.syspath_prepend(tmp_path)
    entries = {"leaving": registry.PackageEntry(registry.Package("leaver", "1.0"), "leaving_module:x")}
    found = {**registry._installed(), "riebench.metrics": entries}
    monkeypatch.setattr(registry, "_installed", lambda: found)
    monkeypatch.setattr(METRICS, "_failed", {})
    with pytest.raises(registry.PackageError, match=r"leaver 1\.0 is unusable: its code would end the process"):
        METRICS.get("leaving")


def test_metrics_and_other_code_may_not_end_the_process(capsys: pytest.CaptureFixture[str]) -> None:
    def leave(*_: object) -> list[Any]:
        raise SystemExit(0)

    one = Metric("mine", "higher", 0, 1, 1, "", leave)
    with pytest.raises(RiebenchError, match="metric 'mine' would end the process"):
        one([sample()], Networks("none"))

    @friendly
    def verb() -> None:
        leave()

    with pytest.raises(typer.Exit) as ended:
        verb()
    assert ended.value.exit_code == 2
    assert capsys.readouterr().err.startswith(
        "riebench: code that riebench called would end the process (SystemExit: 0)"
    )


def test_missing_and_changed_files_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path)
    setting = load_setting_file(path)
    (tmp_path / "my_methods.py").write_text(METHOD.replace("NAME", "mine") + "\n# another\n")
    with pytest.raises(TaskFileError, match="has changed since it was read; start again"):
        load_setting_file(path)
    with pytest.raises(RiebenchError, match="has changed since it was read"):
        engines.run("local", [task()], [setting], tiny_model(), results_root=tmp_path, progress=False)
    (tmp_path / "my_methods.py").unlink()
    with pytest.raises(TaskFileError, match="No such file"):
        load_setting_file(path)


def test_the_guide_is_a_method_that_works(tmp_path: Path) -> None:
    text = GUIDE.read_text(encoding="utf-8")
    files = dict(re.findall(r"`(my_\w+\.\w+|test_my_\w+\.py)`:\n\n```\w+\n(.*?)```", text, flags=re.DOTALL))
    assert set(files) == {"my_methods.py", "my_configuration.yaml", "test_my_methods.py"}
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    setting = load_setting_file(tmp_path / "my_configuration.yaml")
    check_setting(setting, "guide")
    (folder,) = engines.run("local", [task()], [setting], tiny_model(steps=4), results_root=tmp_path, progress=False)
    records = folder.records()
    assert [record.status for record in records] == ["ok"] * len(setting.block_sets) * len(setting.strengths)
    for record in records:
        source = folder.shared.read_image(str(record.source_image)).astype(int)
        assert np.abs(folder.read_image(str(record.image)).astype(int) - source).mean() > 0
    settings._loaded_plugins.clear()
    METHODS._objects.pop(setting.method)
    assert pytest.main(["-q", "-p", "no:cacheprovider", str(tmp_path / "test_my_methods.py")]) == 0
