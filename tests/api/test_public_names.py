"""The names of `import riebench`: lazy, listed, typed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from paths import ROOT

import riebench

if TYPE_CHECKING:
    from typing import assert_type

    from pandas import DataFrame
    from PIL.Image import Image

    from riebench.api.comparison import Comparison
    from riebench.api.edits import EditedPictures
    from riebench.api.functions import FunctionMethod
    from riebench.api.models import Saes
    from riebench.generation.edits import Edit
    from riebench.methods.base import EditContext
    from riebench.models.loading import LoadedModel
    from riebench.scoring.metrics.base import Metric, Sample

HEAVY = ("torch", "pandas", "numpy", "diffusers", "transformers", "pydantic", "matplotlib", "tqdm")


def loaded_after(code: str) -> set[str]:
    """Return the modules that a fresh interpreter has loaded after some code."""
    script = f"{code}\nimport sys\nprint(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(done.stdout.split())


def test_the_import_loads_nothing_heavy() -> None:
    found = loaded_after("import riebench\nassert {'run', 'load_results', 'edit'} <= set(dir(riebench))")
    assert "riebench" in found and found.isdisjoint(HEAVY)


def test_stored_results_are_opened_without_a_model_library() -> None:
    assert loaded_after("import riebench\nriebench.load_results").isdisjoint({"torch", "diffusers", "transformers"})


def test_every_public_name_is_there_and_found_by_the_type_checker() -> None:
    text = (ROOT / "riebench" / "__init__.py").read_text(encoding="utf-8")
    for name in riebench.__all__:
        assert getattr(riebench, name) is not None
        assert name in dir(riebench)
        assert name == "__version__" or f" import {name} as {name}\n" in text
    assert (ROOT / "riebench" / "py.typed").is_file()


def test_other_names_are_unknown_and_packages_stay_importable() -> None:
    with pytest.raises(AttributeError, match=r"no attribute 'nothing'"):
        _ = riebench.nothing  # type: ignore[attr-defined]
    assert loaded_after("from riebench import errors\nerrors.RiebenchError") >= {"riebench.errors"}


def uses_every_name(place: Path) -> None:
    """Is never called: the type checker reads what each call gives."""
    results = riebench.run(["sae"], suite="toy", limit=2, seeds=[0, 1], blocks="each", results=place)
    assert_type(results, riebench.Results)
    assert_type(riebench.load_results("runs").frame(), DataFrame)
    assert_type(results.records, DataFrame)
    assert_type(results.table("per_block"), DataFrame)
    assert_type(results.compare("sae", "no_edit"), Comparison)
    assert_type(results.picture(0, which="source"), Image)
    model = riebench.load_model("toy-turbo")
    assert_type(model, LoadedModel)
    saes = riebench.load_saes(model=model)
    assert_type(saes, Saes)
    assert_type(riebench.edit(model, "a cat", "a dog", saes=saes, features={"mid.0": [3]}), EditedPictures)

    @riebench.method(access="P")
    def mine(ctx: EditContext) -> Edit:
        raise NotImplementedError

    @riebench.metric()
    def measured(sample: Sample) -> float:
        return 0.0

    assert_type(mine, FunctionMethod)
    assert_type(measured, Metric)
    assert_type(riebench.score(results, metrics=[measured]), riebench.Results)
    riebench.run("sae", limits=2)  # type: ignore[call-arg]
    results.picture(0, which="before")  # type: ignore[arg-type]
