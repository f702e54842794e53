"""A small scored run of the toy world that the tests of the Python interface share."""

from __future__ import annotations

import pytest

import riebench
from riebench.api.models import Saes
from riebench.models.loading import LoadedModel


@pytest.fixture(scope="session")
def toy_results(tmp_path_factory: pytest.TempPathFactory) -> riebench.Results:
    """Two method configurations on two examples of one category, as docs/python.md runs them."""
    return riebench.run(
        ["sae", "random_features"], suite="toy", limit=2, categories="change_color", device="cpu", progress=False,
        results=tmp_path_factory.mktemp("api") / "runs",
    )  # fmt: skip


@pytest.fixture(scope="session")
def toy_model() -> LoadedModel:
    """The toy model."""
    return riebench.load_model("toy-turbo", device="cpu")


@pytest.fixture(scope="session")
def toy_saes(toy_model: LoadedModel) -> Saes:
    """Its SAEs."""
    return riebench.load_saes(model=toy_model, prompts=["a red house in the woods"], progress=False)
