"""Reader of any other file, with a key mapping that the user writes.

The mapping is a small YAML or JSON file that says which tensor is what.

It lies beside the weights as `mapping.yaml`, or is named with `--mapping FILE` or `PATH#mapping=FILE`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import torch
from pydantic import Field
from torch import Tensor, nn

from riebench.blocks import short_name
from riebench.errors import RiebenchError, near_match
from riebench.saes.files import MAPPINGS, Checkpoint, Tensors, build, load_safetensors, load_tensors
from riebench.saes.pursuit import PursuitRule
from riebench.saes.readers import sae_format
from riebench.saes.sae import COUNTING, PURSUITS, Activation, Normalise, Signal, SparseAutoencoder
from riebench.saes.shards import is_stored, weights_sha256, whole_path
from riebench.tasks.schema import MAX_WHOLE, StoredModel
from riebench.utils.files import content_digest, file_inside
from riebench.utils.yaml_files import load_yaml, validate

AxisOrder = Literal["features, width", "width, features"]
Matrix = Literal["encoder", "decoder"]
Role = Literal[
    "encoder", "decoder", "latent_bias", "pre_bias", "decoder_bias", "threshold", "gate_bias", "gate_scale",
    "multiplier", "mixture", "points", "relaxation",
]  # fmt: skip


_LATER_ROLES = ("mixture", "points", "relaxation")
_LATER_KEYS = ("tied", "unit_rows", "relaxation_limit", "residual_threshold", "stop_on_repeat")
"""Roles and keys that mappings did not have from the start; each of them is empty or 0 unless it is used."""


class MappedTensors(StoredModel):
    """Names of the tensors in the file, by role; a role left out is zero."""

    encoder: str | None = None
    decoder: str | None = None
    latent_bias: str | None = None
    pre_bias: str | None = None
    decoder_bias: str | None = None
    threshold: str | Annotated[float, Field(strict=True)] | None = None
    """A tensor's name, or the number itself."""
    gate_bias: str | None = None
    gate_scale: str | None = None
    multiplier: str | None = None
    """A number, or one for each feature, that the decoder's rows are multiplied with."""
    mixture: str | None = None
    """[features, points], for a decoder that mixes points of the data; each row's positive parts add up to 1."""
    points: str | None = None
    """[points, width]."""
    relaxation: str | None = None
    """[features, width], added to the mixture of points."""


class MappedAxes(StoredModel):
    """Order of the two axes of the named matrices; never guessed from their lengths."""

    encoder: AxisOrder | None = None
    decoder: AxisOrder | None = None


class KeyMapping(StoredModel):
    """A whole mapping file."""

    tensors: MappedTensors
    axes: MappedAxes
    activation: Activation
    signal: Signal
    """The training signal of the SAE: a block's update (what it adds) or its output."""
    block: str | None = None
    k: int | None = Field(default=None, ge=1, lt=MAX_WHOLE)
    tied: bool = False
    """Encodes with the decoder, or decodes with the encoder: only one of them is stored."""
    unit_rows: tuple[Matrix, ...] = ()
    """Matrices whose rows, one a feature, are brought to length one before anything else."""
    relaxation_limit: float | None = Field(default=None, gt=0)
    """Longest row of the relaxation; longer ones are shortened to it."""
    residual_threshold: float = Field(default=0.0, ge=0)
    """Ends a matching pursuit once what is left of a position is shorter."""
    stop_on_repeat: bool = False
    """Ends a matching pursuit at the first step that finds a feature again."""
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
    mapping = validate(KeyMapping, load_yaml(path), path)
    for fault in (_matrix_fault(mapping), _option_fault(mapping)):
        if fault is not None:
            raise RiebenchError(f"{path}: {fault}")
    return mapping


def _matrix_fault(mapping: KeyMapping) -> str | None:
    """Return what is wrong with the tensors of encoder and decoder, or None."""
    named = mapping.tensors
    has_decoder = named.decoder is not None or named.points is not None
    if (named.points is None) != (named.mixture is None) or (named.relaxation is not None and named.points is None):
        return "tensors: a decoder that mixes points needs mixture and points, and may have a relaxation; name both"
    if named.decoder is not None and named.points is not None:
        return "tensors: decoder is named, and so are the points that it would be mixed of; leave one of them out"
    if mapping.tied and (named.encoder is not None) == has_decoder:
        return "tied: name either the encoder or the decoder under tensors; the other one follows from it"
    if not mapping.tied and named.encoder is None:
        return "tensors.encoder: is missing; for weights shared with the decoder say tied: true"
    if not mapping.tied and not has_decoder:
        return (
            "tensors.decoder: is missing; for weights shared with the encoder say tied: true, and where a library "
            "computes the decoder, save the product: torch.save({**sae.state_dict(), 'decoder': sae.get_dictionary()}, "
            "'sae.pt')"
        )
    unstated = [
        role for role in get_args(Matrix)
        if getattr(named, role) is not None and getattr(mapping.axes, role) is None
    ]  # fmt: skip
    return f"axes.{unstated[0]}: is missing" if unstated else None


def _option_fault(mapping: KeyMapping) -> str | None:
    """Return what is wrong with an option that needs another entry, or None."""
    named = mapping.tensors
    if mapping.relaxation_limit is not None and named.relaxation is None:
        return "relaxation_limit: there is no relaxation among the tensors"
    if mapping.activation not in PURSUITS and (mapping.residual_threshold or mapping.stop_on_repeat):
        key = "residual_threshold" if mapping.residual_threshold else "stop_on_repeat"
        return f"{key}: is for a matching pursuit, not for activation {mapping.activation}"
    if mapping.block is not None:
        try:
            short_name(mapping.block)
        except RiebenchError as error:
            return f"block: {error}"
    return None


def _is_mapped(checkpoint: Checkpoint) -> bool:
    where = checkpoint.mapping_file
    if where is None or checkpoint.options.mapping is None:
        return where is not None
    # One mapping may serve every child of a root; the root itself holds no weights then.
    named = read_mapping(where).weights
    return checkpoint.only_file is not None if named is None else is_stored(whole_path(checkpoint.folder / named))


def _left_open(checkpoint: Checkpoint) -> tuple[str, ...]:
    where = checkpoint.mapping_file
    assert where is not None
    mapping = read_mapping(where)
    stated = mapping.k is not None or checkpoint.options.k is not None
    return () if stated or mapping.activation not in (*COUNTING, *PURSUITS) else ("k",)


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
    tensors.skip(*mapping.ignore, *(_copies(tensors, mapping) if mapping.tied else ()))
    tensors.done()
    encoder, decoder = _matrices(found, mapping, where)
    n, d = encoder.shape
    threshold = found.get("threshold")
    if threshold is not None:
        threshold = threshold.reshape(1).expand(n) if threshold.numel() == 1 else threshold
        if mapping.threshold_included:
            threshold = torch.nextafter(threshold, threshold.new_tensor(-torch.inf))
    k = mapping.k if mapping.k is not None else checkpoint.options.k
    if k is None and mapping.activation in (*COUNTING, *PURSUITS):
        raise RiebenchError(
            f"{where}: k: is missing for activation {mapping.activation}; state it, or add #k=NUMBER; "
            "`riebench sae inspect` with --model tries several"
        )
    return build(
        path, encoder, decoder, found.get("pre_bias", torch.zeros(d)), found.get("decoder_bias", torch.zeros(d)),
        found.get("latent_bias", torch.zeros(n)), k=k, activation=mapping.activation, threshold=threshold,
        gate_bias=found.get("gate_bias"), gate_scale=found.get("gate_scale"), normalise=mapping.normalise,
        signal=mapping.signal, block=None if mapping.block is None else short_name(mapping.block),
        pursuit=_pursuit(mapping, k), sha256=content_digest([weights_sha256(path), _identity(mapping), k]),
    )  # fmt: skip


def _pursuit(mapping: KeyMapping, k: int | None) -> PursuitRule | None:
    if mapping.activation not in PURSUITS or k is None:
        return None
    return PursuitRule(k, mapping.residual_threshold, mapping.stop_on_repeat)


def _identity(mapping: KeyMapping) -> dict[str, Any]:
    """Return what of a mapping decides what the SAE computes.

    Keys that came later count only where they say something, so that older runs keep their names.
    """
    stated: dict[str, Any] = mapping.model_dump(mode="json")
    for part, later in ((stated["tensors"], _LATER_ROLES), (stated, _LATER_KEYS)):
        for key in later:
            if not part[key]:
                del part[key]
    return stated


def _matrices(found: dict[str, Tensor], mapping: KeyMapping, where: Path) -> tuple[Tensor, Tensor]:
    """Return encoder and decoder, features first."""
    parts: dict[str, Tensor] = {}
    for role in get_args(Matrix):
        if role in found:
            parts[role] = found[role].T if getattr(mapping.axes, role) == "width, features" else found[role]
    if "points" in found:
        parts["decoder"] = _mixed(found, mapping, where)
    for role in mapping.unit_rows:
        if role not in parts:
            raise RiebenchError(f"{where}: unit_rows: {role!r} is not among the mapped tensors")
        parts[role] = nn.functional.normalize(parts[role], dim=-1)
    decoder = parts["decoder"] if "decoder" in parts else parts["encoder"]
    encoder = parts.get("encoder", decoder)
    if encoder.shape != decoder.shape:
        raise RiebenchError(
            f"{where}: axes: as features x width the encoder is {[*encoder.shape]} and the decoder {[*decoder.shape]}; "
            "one of them lies the other way round"
        )
    if "multiplier" in found:
        decoder = decoder * found["multiplier"].reshape(-1, 1)
    return parts.get("encoder", decoder), decoder


def _mixed(found: dict[str, Tensor], mapping: KeyMapping, where: Path) -> Tensor:
    """Return a decoder that mixes points of the data, [n, d]."""
    mixture, points = found["mixture"].relu(), found["points"]
    relaxation = found.get("relaxation", torch.zeros(len(mixture), points.shape[-1]))
    shapes = [[*one.shape] for one in (mixture, points, relaxation)]
    if any(len(shape) != 2 for shape in shapes) or shapes[0][1] != shapes[1][0] or shapes[2] != [
        shapes[0][0], shapes[1][1]
    ]:  # fmt: skip
        raise RiebenchError(
            f"{where}: tensors: mixture {shapes[0]}, points {shapes[1]} and relaxation {shapes[2]} do not fit; they "
            "are [features, points], [points, width] and [features, width]"
        )
    mixture = mixture / (mixture.sum(dim=-1, keepdim=True) + 1e-8)
    if mapping.relaxation_limit is not None:
        lengths = relaxation.norm(dim=-1, keepdim=True)
        relaxation = relaxation * (mapping.relaxation_limit / lengths).clamp(max=1)
    return mixture @ points + relaxation


def _roles(tensors: Tensors, mapping: KeyMapping, where: Path) -> dict[str, Tensor]:
    named = {role: name for role, name in mapping.tensors.model_dump().items() if isinstance(name, str)}
    found = {role: tensors.take(name)[0].float() for role, name in named.items()}
    if isinstance(mapping.tensors.threshold, float):
        found["threshold"] = torch.tensor([mapping.tensors.threshold])
    for role in mapping.logarithms:
        if role not in found:
            raise RiebenchError(
                f"{where}: logarithms: {role!r} is not among the mapped tensors{near_match(role, found)}"
            )
        found[role] = found[role].exp()
    return found


def _copies(tensors: Tensors, mapping: KeyMapping) -> list[str]:
    """Return the names under which a file holds parts of its one matrix again.

    Modules that share a parameter are each saved with it.
    """
    named = mapping.tensors
    roles = [name for name in (named.encoder, named.decoder, named.multiplier) if name is not None]
    shared = tensors.take(*roles)
    return [
        name for name, value in tensors.state.items()
        if isinstance(value, Tensor) and any(torch.equal(value, one) for one in shared)
    ]  # fmt: skip


def _weights(checkpoint: Checkpoint, mapping: KeyMapping, where: Path) -> Path:
    if mapping.weights is not None:
        path = file_inside(checkpoint.folder, mapping.weights, f"{where}: weights:", "its folder", allow_links=True)
        path = whole_path(path)
        if not is_stored(path):
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
