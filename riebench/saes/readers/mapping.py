"""Reader of any other file, with a key mapping that the user writes.

The mapping is a small YAML or JSON file that says which tensor is what.

It lies beside the weights as `mapping.yaml`, or is named with `--mapping FILE` or `PATH#mapping=FILE`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from riebench.errors import RiebenchError, near_match
from riebench.saes.files import MAPPINGS, Checkpoint, Tensors, build, load_safetensors, load_tensors
from riebench.saes.readers import sae_format
from riebench.saes.sae import COUNTING, Activation, Normalise, Signal, SparseAutoencoder
from riebench.tasks.schema import MAX_WHOLE, StoredModel
from riebench.utils.files import content_digest, file_inside, file_sha256
from riebench.utils.yaml_files import load_yaml, validate

AxisOrder = Literal["features, width", "width, features"]
Role = Literal[
    "encoder", "decoder", "latent_bias", "pre_bias", "decoder_bias", "threshold", "gate_bias", "gate_scale",
    "multiplier",
]  # fmt: skip


class MappedTensors(StoredModel):
    """Names of the tensors in the file, by role; a role left out is zero."""

    encoder: str
    decoder: str
    latent_bias: str | None = None
    pre_bias: str | None = None
    decoder_bias: str | None = None
    threshold: str | None = None
    gate_bias: str | None = None
    gate_scale: str | None = None
    multiplier: str | None = None
    """A number, or one for each feature, that the decoder's rows are multiplied with."""


class MappedAxes(StoredModel):
    """Order of the two axes of the matrices; never guessed from their lengths."""

    encoder: AxisOrder
    decoder: AxisOrder


class KeyMapping(StoredModel):
    """A whole mapping file."""

    tensors: MappedTensors
    axes: MappedAxes
    activation: Activation
    signal: Signal
    """The training signal of the SAE: a block's update (what it adds) or its output."""
    block: str | None = None
    k: int | None = Field(default=None, ge=1, lt=MAX_WHOLE)
    threshold_included: bool = False
    """Keeps values equal to the threshold too."""
    normalise: Normalise = "none"
    logarithms: tuple[Role, ...] = ()
    """Roles whose tensors are stored as logarithms."""
    ignore: tuple[str, ...] = ()
    """Tensors that say nothing about what the SAE computes."""
    weights: str | None = None
    """The file, if more than one lies there."""
    inside: str | None = None
    """The entry that holds the tensors, where the file nests them ("a.b" goes two levels down)."""


def read_mapping(path: Path) -> KeyMapping:
    """Read a mapping file.

    Raises:
        RiebenchError: naming the key, with the nearest match for an unknown one.
    """
    return validate(KeyMapping, load_yaml(path), path)


def _is_mapped(checkpoint: Checkpoint) -> bool:
    where = checkpoint.mapping_file
    if where is None or checkpoint.options.mapping is None:
        return where is not None
    # One mapping may serve every child of a root; the root itself holds no weights then.
    named = read_mapping(where).weights
    return checkpoint.only_file is not None if named is None else (checkpoint.folder / named).is_file()


def _left_open(checkpoint: Checkpoint) -> tuple[str, ...]:
    where = checkpoint.mapping_file
    assert where is not None
    mapping = read_mapping(where)
    return ("k",) if mapping.activation in COUNTING and mapping.k is None and checkpoint.options.k is None else ()


@sae_format("mapping", when=_is_mapped, fetch=MAPPINGS, left_open=_left_open)
def read_mapped(checkpoint: Checkpoint) -> SparseAutoencoder:
    """Read an SAE as a mapping file explains it.

    Raises:
        RiebenchError: on a mapping that does not fit the file, missing or unexplained tensors, or damage.
    """
    where = checkpoint.mapping_file
    assert where is not None
    mapping = read_mapping(where)
    path = _weights(checkpoint, mapping, where)
    tensors = Tensors(_state(path, mapping, where), path, f"what {where.name} says")
    found = _roles(tensors, mapping, where)
    tensors.skip(*mapping.ignore)
    tensors.done()
    encoder, decoder = (
        found[role].T if getattr(mapping.axes, role) == "width, features" else found[role]
        for role in ("encoder", "decoder")
    )
    if encoder.shape != decoder.shape:
        raise RiebenchError(
            f"{where}: axes: as features x width the encoder is {[*encoder.shape]} and the decoder {[*decoder.shape]}; "
            "one of them lies the other way round"
        )
    n, d = encoder.shape
    if "multiplier" in found:
        decoder = decoder * found["multiplier"].reshape(-1, 1)
    threshold = found.get("threshold")
    if threshold is not None:
        threshold = threshold.reshape(1).expand(n) if threshold.numel() == 1 else threshold
        if mapping.threshold_included:
            threshold = torch.nextafter(threshold, threshold.new_tensor(-torch.inf))
    k = mapping.k if mapping.k is not None else checkpoint.options.k
    if k is None and mapping.activation in COUNTING:
        raise RiebenchError(
            f"{where}: k: is missing for activation {mapping.activation}; state it, or add #k=NUMBER; "
            "`riebench sae inspect` with --model tries several"
        )
    return build(
        path, encoder, decoder, found.get("pre_bias", torch.zeros(d)), found.get("decoder_bias", torch.zeros(d)),
        found.get("latent_bias", torch.zeros(n)), k=k, activation=mapping.activation, threshold=threshold,
        gate_bias=found.get("gate_bias"), gate_scale=found.get("gate_scale"), normalise=mapping.normalise,
        signal=mapping.signal, block=mapping.block,
        sha256=content_digest([file_sha256(path), mapping.model_dump(mode="json"), k]),
    )  # fmt: skip


def _roles(tensors: Tensors, mapping: KeyMapping, where: Path) -> dict[str, Tensor]:
    named = {role: name for role, name in mapping.tensors.model_dump().items() if name is not None}
    found = {role: tensors.take(name)[0].float() for role, name in named.items()}
    for role in mapping.logarithms:
        if role not in found:
            raise RiebenchError(
                f"{where}: logarithms: {role!r} is not among the mapped tensors{near_match(role, found)}"
            )
        found[role] = found[role].exp()
    return found


def _weights(checkpoint: Checkpoint, mapping: KeyMapping, where: Path) -> Path:
    if mapping.weights is not None:
        path = file_inside(checkpoint.folder, mapping.weights, f"{where}: weights:", "its folder", allow_links=True)
        if not path.is_file():
            raise RiebenchError(f"{where}: weights: there is no {mapping.weights} in {checkpoint.folder}")
        return path
    only = Checkpoint(checkpoint.folder).only_file if checkpoint.path == where else checkpoint.only_file
    if only is None:
        raise RiebenchError(f"{where}: weights: {checkpoint.folder} does not hold exactly one file of them; name it")
    return only


def _state(path: Path, mapping: KeyMapping, where: Path) -> Any:
    state = load_safetensors(path) if path.suffix == ".safetensors" else load_tensors(path)
    for step in mapping.inside.split(".") if mapping.inside else ():
        if not isinstance(state, dict) or step not in state:
            known = near_match(step, map(str, state)) if isinstance(state, dict) else ""
            raise RiebenchError(f"{where}: inside: {path.name} has no entry {step!r}{known}")
        state = state[step]
    return state
