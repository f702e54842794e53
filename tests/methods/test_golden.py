"""The published algorithm, figure by figure: our methods on the inputs that its own code was run on."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import pytest
import torch
from shared_files import SHARED, load_module, needs

from riebench.blocks import short_name
from riebench.generation.edits import Edit
from riebench.generation.trace import Trace
from riebench.methods.base import EditContext, ExampleRuns, get_method
from riebench.saes.sae import SparseAutoencoder
from riebench.tasks.masks import RegionMasks
from riebench.tasks.schema import EditExample

pytestmark = needs("golden")

BLOCKS = ("down.2.1", "up.0.1", "up.0.0", "mid.0")
"""The order in which the published code joins blocks before it ranks."""
STRENGTH = 2.0
STEPS, CHANNELS, GRID, UNITS, LAYERS = 2, 1280, 16, 5120, 10
PAIR = EditExample(id="golden", source="a", target="b")
RANKS = ("first", "mean")
PLACES = [(own, spatial) for own in (1, 0) for spatial in (1, 0)]


@lru_cache(maxsize=2)
def figures(name: str) -> dict[str, np.ndarray[Any, Any]]:
    """A file of figures."""
    return dict(np.load(SHARED / "golden" / f"{name}.npz"))


@lru_cache(maxsize=1)
def inputs() -> Any:
    """The module that rebuilds the inputs behind the figures."""
    return load_module("golden/inputs.py")


def fingerprint(delta: Any) -> np.ndarray[Any, Any]:
    """[L2 norm, projection on a fixed random direction], as the figures have it."""
    found: np.ndarray[Any, Any] = inputs().fingerprint(delta)
    return found


@lru_cache(maxsize=1)
def sae_context() -> EditContext:
    """The inputs of the SAE and steering figures, as methods get them. Row 0 is the source run, row 1 the target."""
    saes, target, source, target_mask, source_mask = inputs().sae_case(0)
    trace = Trace()
    for block in BLOCKS:
        trace.grids[block] = (GRID, GRID)
        updates = np.concatenate([run[block][1] - run[block][0] for run in (source, target)])
        for step in range(STEPS):
            trace.add(block, "update", {"conditional": torch.from_numpy(updates[:, step])}, unconditional=False)
    loaded = {}
    for block, parts in saes.items():
        tensors = {name: torch.from_numpy(np.asarray(part)) for name, part in parts.items() if name != "k"}
        loaded[block] = SparseAutoencoder(
            tensors["encoder"], tensors["decoder"].T, tensors["pre_bias"], tensors["pre_bias"],
            tensors["latent_bias"], k=parts["k"],
        )  # fmt: skip
    runs = ExampleRuns(PAIR, 0, trace, {"source": 0, "target": 1}, RegionMasks(source_mask, target_mask))
    return EditContext(runs, BLOCKS, loaded)


@lru_cache(maxsize=1)
def neuron_context() -> EditContext:
    """The inputs of the neuron figures."""
    target, source, target_mask, source_mask = inputs().neuron_case(0, LAYERS)
    trace = Trace()
    trace.grids["mid.0"] = (GRID, GRID)
    for layer in range(LAYERS):
        for step in range(STEPS):
            values = np.concatenate([source[layer][:, step], target[layer][:, step]])
            trace.add(f"mid.0.ff.{layer}", "update", {"conditional": torch.from_numpy(values)}, unconditional=False)
    masks = RegionMasks(source_mask, target_mask)
    runs = ExampleRuns(PAIR, 0, trace, {"source": 0, "target": 1}, masks, {"mid.0": LAYERS})
    return EditContext(runs, ("mid.0",))


@lru_cache(maxsize=4)
def neuron_edit(rank: str) -> Edit:
    """The neuron edit of one ranking."""
    params = {"n_units": 50, "rank": rank, "shares": "published"}
    edit = get_method("neurons").edit(neuron_context(), params)
    assert isinstance(edit, Edit)
    return edit.scaled(STRENGTH)


def edit_of(method: str, **params: Any) -> Edit:
    """A method's edit on the SAE inputs, at the figures' strength."""
    edit = get_method(method).edit(sae_context(), params)
    assert isinstance(edit, Edit)
    return edit.scaled(STRENGTH)


def placing(own: int, spatial: int) -> dict[str, str]:
    """The figures' two switches in our words."""
    return {"add_at": "target" if own else "source", "values": "position" if spatial else "mean"}


def delta_of(edit: Edit, site: str, positions: int, width: int) -> Any:
    """What the edit adds at one site, [T, positions, width]."""
    dense: Any = edit.sites[site]
    return edit.strength * dense.dense(STEPS, positions, width).numpy()


@pytest.mark.parametrize("rank", RANKS)
def test_features_chosen_are_the_published_ones(rank: str) -> None:
    chosen = edit_of("sae", n_features=20, rank=rank).features
    for block in BLOCKS:
        assert list(chosen[block][0]) == figures("selection_and_deltas")[f"{rank}/add/{block}"].tolist()
        assert list(chosen[block][1]) == figures("selection_and_deltas")[f"{rank}/remove/{block}"].tolist()


@pytest.mark.parametrize(("own", "spatial"), PLACES)
@pytest.mark.parametrize("rank", RANKS)
def test_feature_edits_are_the_published_ones(rank: str, own: int, spatial: int) -> None:
    edit = edit_of("sae", n_features=20, rank=rank, **placing(own, spatial))
    for block in BLOCKS:
        expected = figures("selection_and_deltas")[f"{rank}/sae/sub{own}/spatial{spatial}/{block}"]
        # The figures' layout is channels first.
        delta = delta_of(edit, block, GRID * GRID, CHANNELS).transpose(0, 2, 1)
        np.testing.assert_allclose(fingerprint(delta), expected, rtol=1e-4)


@pytest.mark.parametrize(("own", "spatial"), PLACES)
def test_patches_are_the_published_steering(own: int, spatial: int) -> None:
    edit = edit_of("activation_patch", **placing(own, spatial))
    for block in BLOCKS:
        delta = delta_of(edit, block, GRID * GRID, CHANNELS).transpose(0, 2, 1)
        for rank in RANKS:
            expected = figures("selection_and_deltas")[f"{rank}/steering/sub{own}/spatial{spatial}/{block}"]
            np.testing.assert_allclose(fingerprint(delta), expected, rtol=1e-4)


@pytest.mark.parametrize("rank", RANKS)
def test_units_and_their_edits_are_the_published_ones(rank: str) -> None:
    edit, stored = neuron_edit(rank), figures("neurons")
    layers = [key.removeprefix(f"{rank}/add/") for key in stored if key.startswith(f"{rank}/add/")]
    assert len(layers) == LAYERS
    for layer in layers:
        placed: Any = edit.sites[short_name(layer)]
        added, removed = placed.terms
        assert added.columns.tolist() == stored[f"{rank}/add/{layer}"].tolist()
        assert removed.columns.tolist() == stored[f"{rank}/remove/{layer}"].tolist()
        delta = delta_of(edit, short_name(layer), GRID * GRID, UNITS)
        expected = stored[f"{rank}/neurons/sub1/spatial1/{layer}"]
        np.testing.assert_allclose(fingerprint(delta), expected, rtol=1e-4)


def test_every_stored_figure_is_looked_at() -> None:
    features, units = figures("selection_and_deltas"), figures("neurons")
    assert len(features) == len(RANKS) * len(BLOCKS) * (2 + 2 * len(PLACES))
    assert len(units) == len(RANKS) * LAYERS * 3


def test_neuron_edit_is_small() -> None:
    dense = LAYERS * STEPS * GRID * GRID * UNITS * 4
    assert neuron_edit("first").nbytes < dense / 500
