"""All SAEs of other people's libraries: those of `library_saes`, and pursued, tied, computed and sharded ones.

`ALL_LAYOUTS` and `ALL_WRITERS` name all of both, `row_names` the rows of the table made of them.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml
from library_saes import (
    _LENS,
    _OVERCOMPLETE,
    LAYOUTS,
    Layout,
    Values,
    Write,
    fill,
    lens,
    lens_write,
)
from sae_files import OVERCOMPLETE, WRITERS, K, Parts
from sae_layout_files import ARCHETYPAL, LAYOUT_WRITERS, PURSUED, archetypal, short_rows, without
from torch import Tensor

from riebench.saes.files import SaeOptions

SIGNED = SaeOptions(signed=True)


def lens_pursuit(**config: Any) -> Write:
    """A matching pursuit, whose decoder's rows have about length one, as its training keeps them."""

    def write(folder: Path, p: Parts, x: Tensor) -> Values:
        return lens_write(folder, "MatchingPursuit", short_rows(p), x, **config)

    return write


def lens_in_shards(folder: Path, p: Parts, x: Tensor) -> Values:
    values = lens_write(folder, "TopK", p, x, k=K, rescale_acts_by_decoder_norm=False)
    state = importlib.import_module("safetensors.torch").load_file(folder / "sae_weights.safetensors")
    (folder / "sae_weights.safetensors").unlink()
    importlib.import_module("huggingface_hub").save_torch_state_dict(
        state, folder, filename_pattern="sae_weights{suffix}.safetensors", max_shard_size=900
    )
    return values


def overcomplete_library() -> Any:
    # Its pictures ask for a function that matplotlib dropped in 3.9; without it not even its SAEs can be imported.
    colors = importlib.import_module("matplotlib.cm")
    vars(colors).setdefault("get_cmap", importlib.import_module("matplotlib").colormaps.get_cmap)
    return importlib.import_module("overcomplete.sae")


def overcomplete_save(folder: Path, model: Any, mapping: dict[str, Any], x: Tensor) -> Values:
    """Save a model as it is after a training step, and compute with the dictionary that it makes for use."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.save({name: tensor.clone() for name, tensor in model.state_dict().items()}, folder / "weights.pt")
    (folder / "mapping.yaml").write_text(yaml.safe_dump(mapping))
    model.eval()
    with torch.no_grad():
        codes = model.encode(x)[1]
        return Values(codes * model.get_dictionary().norm(dim=1), model.decode(codes))


def overcomplete_pursuit(folder: Path, p: Parts, x: Tensor) -> Values:
    model = overcomplete_library().MpSAE(p.d, p.n, k=PURSUED["k"])
    fill(model, **{"dictionary._weights": p.decoder, "dictionary.multiplier": torch.tensor(0.1)})
    return overcomplete_save(folder, model, PURSUED, x)


def overcomplete_tied(folder: Path, p: Parts, x: Tensor) -> Values:
    model = (
        overcomplete_library().TopKSAE(p.d, p.n, top_k=K, dictionary_params={"use_multiplier": True}).tied(bias=True)
    )
    fill(
        model, **{"encoder.bias": p.b_enc, "dictionary._weights": p.decoder, "dictionary.multiplier": torch.tensor(0.3)}
    )
    tensors = {**PURSUED["tensors"], "latent_bias": "encoder.bias"}
    return overcomplete_save(folder, model, {**PURSUED, "activation": "topk", "k": K, "tensors": tensors}, x)


def overcomplete_batch(folder: Path, p: Parts, x: Tensor) -> Values:
    """A batch top-k, whose threshold is no tensor of the model."""
    model = overcomplete_library().BatchTopKSAE(p.d, p.n, top_k=K * len(x))
    fill(model, **{
        "encoder.final_block.0.weight": p.encoder, "encoder.final_block.0.bias": p.b_enc,
        "dictionary._weights": p.decoder, "dictionary.multiplier": torch.tensor(0.3),
    })  # fmt: skip
    model(x)
    tensors = {**OVERCOMPLETE["tensors"], "threshold": float(model.running_threshold)}
    mapping = without(OVERCOMPLETE, "k", activation="jump", threshold_included=True, tensors=tensors)
    return overcomplete_save(folder, model, {**mapping, "unit_rows": ["decoder"]}, x)


def overcomplete_archetypal(name: str, change: Callable[[dict[str, Any]], dict[str, Any]], **options: Any) -> Write:
    def write(folder: Path, p: Parts, x: Tensor) -> Values:
        state = archetypal(p)
        model = getattr(overcomplete_library(), name)(
            p.d, p.n, state["dictionary.C"].clone(), delta=ARCHETYPAL["relaxation_limit"], **options
        )
        more = {"thresholds": p.threshold.log()} if "thresholds" in model.state_dict() else {}
        fill(model, **state, **more)
        return overcomplete_save(folder, model, change(ARCHETYPAL), x)

    return write


def _jump(mapping: dict[str, Any]) -> dict[str, Any]:
    return without(
        mapping, "k", activation="jump", threshold_included=True, logarithms=["multiplier", "threshold"],
        tensors={**mapping["tensors"], "threshold": "thresholds"},
    )  # fmt: skip


ALL_LAYOUTS: dict[str, Layout] = {
    **LAYOUTS,
    "lens abstopk rescaled": Layout(
        *_LENS, "abstopk, rescaled", lens("AbsTopK", k=K, rescale_acts_by_decoder_norm=True), options=SIGNED
    ),
    "lens pursuit": Layout(
        *_LENS, "matching_pursuit", lens_pursuit(residual_threshold=1.5, stop_on_duplicate_support=False),
        "saelens pursuit",
    ),
    "lens pursuit until repeat": Layout(
        *_LENS, "matching_pursuit, 9 steps, b_dec not subtracted",
        lens_pursuit(max_iterations=9, apply_b_dec_to_input=False),
    ),
    "lens in shards": Layout(*_LENS, "topk, in shards", lens_in_shards, "saelens in shards"),
    "overcomplete pursuit": Layout(*_OVERCOMPLETE, "MpSAE", overcomplete_pursuit, "overcomplete pursuit", "mapping"),
    "overcomplete tied": Layout(*_OVERCOMPLETE, "TopKSAE, tied", overcomplete_tied, None, "mapping"),
    "overcomplete batch topk": Layout(*_OVERCOMPLETE, "BatchTopKSAE", overcomplete_batch, None, "mapping"),
    "overcomplete archetypal": Layout(
        *_OVERCOMPLETE, "RATopKSAE", overcomplete_archetypal("RATopKSAE", dict, top_k=K), "overcomplete archetypal",
        "mapping",
    ),
    "overcomplete archetypal jump": Layout(
        *_OVERCOMPLETE, "RAJumpSAE", overcomplete_archetypal("RAJumpSAE", _jump), None, "mapping"
    ),
}  # fmt: skip
"""Name -> layout; own writers are those of `sae_layout_files.LAYOUT_WRITERS`."""
"""Name -> layout."""

ALL_WRITERS = {**WRITERS, **LAYOUT_WRITERS}
"""Name -> the format that must be found, and the writer that needs no library."""

COMPARED = frozenset(layout.own for layout in ALL_LAYOUTS.values() if layout.own is not None)
"""The writers whose layout a library writes, too."""


def row_names() -> set[str]:
    """Names of the rows that the table of formats must have."""
    return {*ALL_LAYOUTS, *(f"own {name}" for name in ALL_WRITERS if name not in COMPARED)}
