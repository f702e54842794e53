"""Methods and metrics made of functions: names, definitions made again, and identity by source."""

from __future__ import annotations

import linecache
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scored_runs import TASKS, stored_run
from tiny_jobs import fake_networks

import riebench
from riebench.api.functions import FunctionMethod, metric_names
from riebench.api.runs import run_request
from riebench.api.source import source_digest
from riebench.jobs.request import RunRequest
from riebench.methods.base import Reuse
from riebench.registry import METHODS, METRICS
from riebench.runs.plan import plan
from riebench.scoring.score import score
from riebench.store.records import RunSpec
from riebench.tasks.schema import Setting

CELL = '''
@riebench.method(access="{access}")
def copied(ctx, *, which: str = "source"):
    """{words}"""
    return Reuse("source")
'''
cells = 0


def execute(code: str, **names: Any) -> dict[str, Any]:
    """Execute code as a notebook's cell, whose source can be found afterwards."""
    global cells
    cells += 1
    file = f"<cell {cells}>"
    linecache.cache[file] = (len(code), None, code.splitlines(keepends=True), file)
    found: dict[str, Any] = {"__name__": "__main__", "riebench": riebench, "Reuse": Reuse, **names}
    exec(compile(code, file, "exec"), found)
    return found


def digest(code: str, **names: Any) -> str:
    """Return the identity of the function `f` that some code defines."""
    return source_digest(execute(code, **names)["f"])


def test_a_cell_that_is_executed_again_replaces_the_method() -> None:
    first = execute(CELL.format(access="", words="First."))["copied"]
    again = execute(CELL.format(access="", words="First."))["copied"]
    assert isinstance(first, FunctionMethod) and METHODS.get("copied") is again
    assert first.source_sha256 == again.source_sha256 and first.setting() == again.setting()
    changed = execute(CELL.format(access="", words="Changed."))["copied"]
    assert METHODS.get("copied") is changed and changed.source_sha256 != first.source_sha256
    assert changed.setting().name != first.setting().name
    assert changed(None) == Reuse("source")


def test_the_source_is_part_of_the_identity(job: RunRequest) -> None:
    specs = []
    for words in ("One.", "Two."):
        setting = execute(CELL.format(access="", words=words))["copied"].setting(name="mine")
        made = replace(job, settings=(), given=(setting,)).plan()[1][0]
        assert made.plugin_sha256 == setting.plugin_sha256 is not None
        specs.append(RunSpec(suite="toy", model=job.recipe.spec, setting=made))
    assert specs[0].run_id != specs[1].run_id and specs[0].identity["plugin_sha256"]


def test_a_configuration_of_an_earlier_definition_is_refused(job: RunRequest) -> None:
    old = execute(CELL.format(access="", words="Old."))["copied"].setting()
    execute(CELL.format(access="", words="New."))
    with pytest.raises(riebench.RiebenchError, match=r"was defined anew since"):
        plan(job.plan()[0], [old])
    stored = old.model_copy(update={"method": "elsewhere"})
    with pytest.raises(riebench.RiebenchError, match=r"is a function of a Python session, and not defined in this one"):
        plan(job.plan()[0], [stored])


def test_names_of_riebench_are_not_taken() -> None:
    for decorator, name in (("method(access='')", "sae"), ("metric()", "lpips")):
        with pytest.raises(riebench.RiebenchError, match=f"{name!r} already"):
            execute(f"@riebench.{decorator}\ndef {name}(ctx):\n    return 0.0\n")
    with pytest.raises(riebench.RiebenchError, match=r"copied2: access"):
        execute(CELL.format(access="X", words="").replace("copied", "copied2"))
    assert "copied2" not in METHODS
    with pytest.raises(riebench.RiebenchError, match=r"write @riebench.metric\(\), with brackets"):
        execute("@riebench.metric\ndef bare(sample):\n    return 0.0\n")


def test_text_that_is_executed_has_no_identity() -> None:
    names: dict[str, Any] = {"riebench": riebench, "Reuse": Reuse, "__name__": "__main__"}
    with pytest.raises(riebench.RiebenchError, match=r"the source of copied3 cannot be found"):
        exec(CELL.format(access="", words="").replace("copied", "copied3"), names)


def test_the_identity_follows_what_the_function_uses() -> None:
    code = "def g(x):\n    return x + {0}\ndef f(x):\n    return [g(one) for one in x]\n"
    assert digest(code.format(1)) == digest(code.format(1)) != digest(code.format(2))
    values = "def f(x):\n    return x * FACTOR\n"
    assert digest(values, FACTOR=1) == digest(values, FACTOR=1) != digest(values, FACTOR=2)
    arrays = [np.zeros(3), np.ones(3), torch.zeros(3), torch.ones(3, dtype=torch.bfloat16), [1], {"a": (1, 2)}]
    assert len({digest(values, FACTOR=one) for one in arrays}) == len(arrays)
    # What it does not use does not matter, and a name that is only an attribute is not used.
    assert digest("def f(x):\n    return x.FACTOR\n", FACTOR=1) == digest("def f(x):\n    return x.FACTOR\n", FACTOR=2)
    assert digest(values, FACTOR=1, other=1) == digest(values, FACTOR=1, other=2)
    for shipped in (np, torch.nn.functional.relu, Path, riebench.Setting, Reuse):
        assert digest(values, FACTOR=shipped) == digest(values, FACTOR=shipped)


def test_the_identity_follows_defaults_closures_classes_and_circles() -> None:
    default = "def f(x=DEFAULT):\n    return x\n"
    assert digest(default, DEFAULT=1) != digest(default, DEFAULT=2)
    closure = "def make(a):\n    def f(x):\n        return x + a\n    return f\nf = make({0})\n"
    assert digest(closure.format(1)) != digest(closure.format(2))
    circle = "def g(x):\n    return f(x) + {0} if x else 0\ndef f(x):\n    return g(x - 1)\n"
    assert digest(circle.format(1)) == digest(circle.format(1)) != digest(circle.format(2))
    method = "class Box:\n    size = 1\n    def grow(self):\n        return {0}\ndef f(x):\n    return Box().grow()\n"
    assert digest(method.format(1)) == digest(method.format(1)) != digest(method.format(2))
    assert digest(method.format(1)) != digest(method.format(1).replace("size = 1", "size = 2"))


@dataclass
class Options:
    """Values that a method may read."""

    size: int


def test_objects_count_by_their_content_or_are_refused() -> None:
    code = "def f(x):\n    return x * OPTIONS.size\n"
    assert digest(code, OPTIONS=Options(1)) == digest(code, OPTIONS=Options(1)) != digest(code, OPTIONS=Options(2))
    with pytest.raises(riebench.RiebenchError, match=r"f reads 'OPTIONS', a Linear, whose content cannot enter"):
        digest(code, OPTIONS=torch.nn.Linear(2, 2))


def test_modules_of_the_user_count_by_their_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    found = []
    for number in (1, 2):
        (tmp_path / "own_helpers.py").write_text(f"SIZE = {number}\n")
        import own_helpers  # type: ignore[import-not-found]

        found.append(digest("def f(x):\n    return x * helpers.SIZE\n", helpers=own_helpers))
    assert found[0] != found[1]


def test_a_metric_of_a_function_is_scored_on_request_alone(tmp_path: Path) -> None:
    run = stored_run(tmp_path)
    code = (
        "@riebench.metric(direction='lower', low=0)\ndef spread(sample):\n    return float(sample.edited.std()) * {0}\n"
    )
    first = execute(code.format(1))["spread"]
    networks = fake_networks("clip", device="cpu")
    report = score([run], TASKS, metrics=metric_names([first]), networks=networks, progress=False)
    assert report.computed == {"spread": 2}
    assert riebench.load_results(tmp_path).frame()["spread"].gt(0).all()
    # The same function again computes nothing, a changed one all.
    again = execute(code.format(1))["spread"]
    assert score([run], TASKS, metrics=metric_names(again), networks=networks, progress=False).computed == {}
    with pytest.raises(riebench.RiebenchError, match=r"'spread' was defined anew since"):
        metric_names([first])
    before = riebench.load_results(tmp_path).frame()["spread"]
    doubled = execute(code.format(2))["spread"]
    assert score([run], TASKS, metrics=metric_names([doubled]), networks=networks, progress=False).computed == {
        "spread": 2
    }
    assert np.allclose(riebench.load_results(tmp_path).frame()["spread"], 2 * before)
    assert "spread" not in score([run], TASKS, networks=networks, progress=False).computed and "spread" in METRICS


def test_a_metric_may_take_batches_with_networks_and_nothing_else(tmp_path: Path) -> None:
    code = "@riebench.metric()\ndef counted(samples, networks):\n    return [float(len(samples))] * len(samples)\n"
    run, networks = stored_run(tmp_path), fake_networks("clip", device="cpu")
    names = metric_names(execute(code)["counted"])
    score([run], TASKS, metrics=names, networks=networks, progress=False)
    assert list(riebench.load_results(tmp_path).frame()["counted"]) == [2.0, 2.0]
    with pytest.raises(riebench.RiebenchError, match=r"counted has 3 parameters; a metric has one, sample, or two"):
        execute(code.replace("networks)", "networks, more)"))
    with pytest.raises(riebench.RiebenchError, match=r"is no metric; put @riebench.metric"):
        metric_names([len])  # type: ignore[list-item]


def test_parameters_blocks_and_strengths_of_a_configuration() -> None:
    made = execute(CELL.format(access="", words="").replace("copied", "copied4"))["copied4"]
    setting = made.setting(params={"which": "target"}, strengths=[1, 2], edit_steps="0:0.5", description="Words.")
    assert (setting.params, setting.strengths, setting.edit_steps) == ({"which": "target"}, (1.0, 2.0), (0.0, 0.5))
    assert setting.name == f"copied4-{made.source_sha256[:8]}" and setting.blocks == ()
    with pytest.raises(riebench.RiebenchError, match=r"copied4: blocks: "):
        made.setting(blocks=["nonsense"])
    request = run_request([made, "no_edit"], {"results": "runs"})
    assert request.settings == ("no_edit",) and [one.name for one in request.given] == [setting.name]
    assert isinstance(request.given[0], Setting)
    with pytest.raises(riebench.RiebenchError, match=r"functions defined here are not known to workers"):
        run_request([made], {"results": "runs", "engine": "ray"})
