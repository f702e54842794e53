"""Reader of openai/sparse_autoencoder files.

An SAE is one torch file: a dict of tensors with the activation's name among them.

Tensors: encoder.weight [n, d], latent_bias [n], decoder.weight [d, n], pre_bias [d]. With tied weights the encoder's
stand again as decoder.linear.weight [n, d], in place of a decoder's own.
"""

from __future__ import annotations

from riebench.errors import RiebenchError
from riebench.saes.files import Checkpoint, Tensors, build, load_tensors
from riebench.saes.readers import sae_format
from riebench.saes.sae import Normalise, SparseAutoencoder
from riebench.saes.wrappers import plain_state
from riebench.utils.files import content_digest, file_sha256

_STATISTICS = ("stats_last_nonzero", "latents_activation_frequency", "latents_mean_square")
_POSTACT = {"ReLU": "topk", "Identity": "topk-signed"}


def _is_openai(checkpoint: Checkpoint) -> bool:
    path = checkpoint.only_file
    if path is None or path.suffix == ".safetensors" or _starts_with_json(checkpoint):
        return False
    stored = load_tensors(path)
    return isinstance(stored, dict) and isinstance(plain_state(stored, path)[0].get("activation"), str)


def _starts_with_json(checkpoint: Checkpoint) -> bool:
    assert checkpoint.only_file is not None
    with checkpoint.only_file.open("rb") as file:
        return file.read(1) == b"{"


def _left_open(checkpoint: Checkpoint) -> tuple[str, ...]:
    return () if checkpoint.options.normalise else ("normalise",)


@sae_format("openai", when=_is_openai, fetch=("*.pt",), left_open=_left_open)
def read_openai(checkpoint: Checkpoint) -> SparseAutoencoder:
    """Read an autoencoder of the openai/sparse_autoencoder project.

    The file does not say whether inputs are normalised. As the project's own loader does, those with top-k are taken
    to normalise theirs, unless the user says otherwise.

    Raises:
        RiebenchError: on an unknown activation, missing or unknown tensors, or damage.
    """
    path = checkpoint.only_file
    assert path is not None
    tensors = Tensors(load_tensors(path), path, "an openai SAE")
    encoder, latent_bias, pre_bias = tensors.take("encoder.weight", "latent_bias", "pre_bias")
    tied = tensors.optional("decoder.linear.weight")
    directions = tensors.take("decoder.weight")[0].T if tied is None else tied
    tensors.skip(*_STATISTICS)
    tensors.done()
    parts, state = (encoder, directions, pre_bias, pre_bias, latent_bias), tensors.state
    name, stated = state["activation"], checkpoint.options.normalise
    normalise: Normalise = stated or ("layer" if name == "TopK" else "none")
    # What the user says decides what is computed, so it belongs to the identity of a run.
    sha256 = file_sha256(path) if stated is None else content_digest([file_sha256(path), stated])
    if name == "ReLU":
        return build(path, *parts, activation="relu", normalise=normalise, signal=None, sha256=sha256)
    if name != "TopK":
        raise RiebenchError(f"{path}: activation {name!r} is not read; TopK and ReLU are")
    inner = {**(state.get("activation_state_dict") or {})}
    k = inner.get("k", state.get("activation.k"))
    after = inner.get("postact_fn", state.get("activation.postact_fn", "ReLU"))
    if k is None or after not in _POSTACT:
        raise RiebenchError(
            f"{path}: its TopK states k = {k} and postact_fn = {after}; k and ReLU or Identity are needed"
        )
    return build(path, *parts, activation=_POSTACT[after], k=int(k), normalise=normalise, signal=None, sha256=sha256)
