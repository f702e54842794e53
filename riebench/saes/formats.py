"""Reading and writing stored autoencoders; the native layout is that of the sdxl-unbox project.

A checkpoint folder holds `state_dict.pth` and `config.json`, and may hold `mean.pt` and `std.pt` (per feature, over
the positions where it is active). A root folder holds one checkpoint per block, under the block's long or short name,
each with or without a `final` folder inside.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from riebench.blocks import SDXL_BLOCKS, long_name, module_path, short_name
from riebench.errors import RiebenchError
from riebench.files import file_sha256, write_atomic
from riebench.presets import ASSET
from riebench.registry import SAE_FORMATS
from riebench.saes.core import SparseAutoencoder

if TYPE_CHECKING:
    from riebench.models import LoadedModel

WEIGHTS, CONFIG = "state_dict.pth", "config.json"
_TENSORS = ("encoder.weight", "decoder.weight", "pre_bias", "latent_bias")
_COUNTERS = ("stats_last_nonzero",)


def load_sae(path: Path) -> SparseAutoencoder:
    """Loads one checkpoint, whatever its format.

    Args:
        path: the checkpoint folder, or the folder around its `final`.

    Raises:
        RiebenchError: if the format is not known or the checkpoint is damaged.
    """
    folder = _checkpoint(path)
    if folder is None:
        raise RiebenchError(
            f"{path} holds no SAE that riebench can read ({WEIGHTS} with {CONFIG}); known formats: "
            f"{', '.join(SAE_FORMATS.names())}"
        )
    reader: Any = SAE_FORMATS.get("sdxl-unbox")
    sae: SparseAutoencoder = reader(folder)
    return sae


def load_saes(root: Path, blocks: Iterable[str], *, k: int | None = None) -> dict[str, SparseAutoencoder]:
    """Loads one SAE per block from a root folder (or a checkpoint folder, if one block is asked for).

    Args:
        root: the folder.
        blocks: short names.
        k: takes the checkpoint with this k where the root has several for a block.

    Returns:
        Block -> SAE in evaluation mode.

    Raises:
        RiebenchError: if a block has no checkpoint, or several and k does not tell them apart.
    """
    names = [short_name(block) for block in blocks]
    if not root.is_dir():
        raise RiebenchError(f"no SAE folder {root}; give a folder with one checkpoint per block")
    if _checkpoint(root) is not None:
        if len(names) != 1:
            raise RiebenchError(f"{root} is a single SAE, but blocks {', '.join(names)} are asked for; name its root")
        return {names[0]: load_sae(root).eval()}
    return {name: load_sae(_find(root, name, k)).eval() for name in names}


def available(root: Path) -> dict[str, list[Path]]:
    """Block -> its checkpoint folders below a root."""
    found: dict[str, list[Path]] = {}
    for child in sorted(path for path in root.iterdir() if path.is_dir()):
        folder = _checkpoint(child)
        block = _block_of(child.name)
        if folder is not None and block is not None:
            found.setdefault(block, []).append(folder)
    return found


def resolve_root(source: str, *, offline: bool = False) -> tuple[Path, int | None]:
    """Where SAEs named by the user lie on this machine.

    Args:
        source: "FOLDER" or "hf://OWNER/NAME[@REVISION]", either with "#k=N" behind it to choose among several.
        offline: uses only what is in the cache.

    Returns:
        The folder, and k if it was given.

    Raises:
        RiebenchError: if there is no such folder, or the hub does not give it.
    """
    place, _, choice = source.partition("#")
    if choice and not (choice.startswith("k=") and choice[2:].isdigit()):
        raise RiebenchError(f"SAE source {source!r}: after '#' only k=NUMBER is known")
    k = int(choice[2:]) if choice else None
    if not place.startswith("hf://"):
        path = Path(place).expanduser()
        if not path.is_dir():
            raise RiebenchError(f"no SAE folder {place}; give a folder, or hf://OWNER/NAME[@REVISION]")
        return path, k
    from huggingface_hub import snapshot_download

    name, _, revision = place.removeprefix("hf://").partition("@")
    patterns = [f"*{WEIGHTS}", f"*{CONFIG}", "*mean.pt", "*std.pt"]
    try:
        folder = snapshot_download(name, revision=revision or None, allow_patterns=patterns, local_files_only=offline)
    except (OSError, ValueError) as error:
        raise RiebenchError(f"cannot fetch SAEs {place}: {str(error).splitlines()[0]}") from error
    return Path(folder), k


def model_saes(
    source: str | None, model: LoadedModel, blocks: Iterable[str], *, offline: bool = False
) -> dict[str, SparseAutoencoder]:
    """SAEs for some blocks of a model, on its device.

    Args:
        source: see `resolve_root`; None for the model preset's own.
        model: the generating model.
        blocks: short names.
        offline: fetches nothing.

    Raises:
        RiebenchError: if there are none, one is damaged, or one was made for another width or signal.
    """
    named = source or (model.preset.saes if model.preset else None)
    if named is None:
        raise RiebenchError(f"{model.spec.name} has no SAEs of its own; give a folder or hf://OWNER/NAME")
    if named.startswith(ASSET):
        from riebench.toyworld.assets import asset_folder

        asset, _, choice = named.removeprefix(ASSET).partition("#")
        named = f"{asset_folder(asset)}{'#' + choice if choice else ''}"
    root, k = resolve_root(named, offline=offline)
    saes = load_saes(root, blocks, k=k)
    for block, sae in saes.items():
        projection: Any = model.unet.get_submodule(f"{module_path(block)}.proj_out")
        channels = projection.weight.shape[0]
        if sae.d != channels:
            raise RiebenchError(
                f"the SAE for {block} has width {sae.d}, but {model.spec.name} has {channels} channels there; "
                "give SAEs that were trained on this model"
            )
        if sae.signal != "update":
            raise RiebenchError(f"the SAE for {block} was trained on block outputs; edits need one trained on updates")
    return {block: sae.to(model.device) for block, sae in saes.items()}


def _find(root: Path, block: str, k: int | None) -> Path:
    found = available(root)
    folders = found.get(block, [])
    wanted = block if k is None else f"{block} with k = {k}"
    if k is None and len(folders) > 1:
        k = _usual_k(found)
    if k is not None:
        folders = [folder for folder in folders if _config(folder)["k"] == k]
    if len(folders) == 1:
        return folders[0]
    if not folders:
        raise RiebenchError(f"{root} has no SAE for {wanted}; it has SAEs for: {', '.join(found) or 'no block'}")
    choices = ", ".join(str(_config(folder)["k"]) for folder in found[block])
    raise RiebenchError(f"{root} has several SAEs for {wanted} (k = {choices}); add #k=NUMBER to its name")


def _usual_k(found: dict[str, list[Path]]) -> int | None:
    """The k that more blocks have than any other: sweeps add further sizes to single blocks only."""
    blocks_with: dict[int, int] = {}
    for folders in found.values():
        for k in {_config(folder)["k"] for folder in folders}:
            blocks_with[k] = blocks_with.get(k, 0) + 1
    most = max(blocks_with.values())
    usual = [k for k, count in blocks_with.items() if count == most]
    return usual[0] if len(usual) == 1 else None


def _block_of(folder: str) -> str | None:
    # Folder names go on after the block ("unet.mid_block.attentions.0_k10_hidden5120_..."), so compare whole names.
    stem = folder.split("_k")[0]
    for block in SDXL_BLOCKS:
        if stem in (block, module_path(block), long_name(block)):
            return block
    return None


def _checkpoint(path: Path) -> Path | None:
    for folder in (path, path / "final"):
        if (folder / WEIGHTS).is_file() and (folder / CONFIG).is_file():
            return folder
    return None


def _config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        return {**config, **{key: int(config[key]) for key in ("n_dirs_local", "d_model", "k")}}
    except (OSError, ValueError) as error:
        raise RiebenchError(f"{path} cannot be read ({error}); fetch the checkpoint again") from error
    except (KeyError, TypeError) as error:
        raise RiebenchError(f"{path} lacks {error}; an SAE configuration has n_dirs_local, d_model and k") from error


def load_tensors(path: Path) -> Any:
    """`torch.load` of a file from anywhere: tensors and plain containers only.

    Raises:
        RiebenchError: if it is a Git-LFS pointer, damaged, or holds anything else.
    """
    with path.open("rb") as file:
        if file.read(40).startswith(b"version https://git-lfs"):
            raise RiebenchError(f"{path} is a Git-LFS pointer, not the file; run `git lfs pull` where it came from")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise RiebenchError(f"{path} is damaged or holds more than tensors; fetch it again") from error


@SAE_FORMATS.register("sdxl-unbox")
def read_sdxl_unbox(folder: Path) -> SparseAutoencoder:
    """Reads a checkpoint folder of the sdxl-unbox layout.

    Raises:
        RiebenchError: on missing or unknown tensors, shapes that contradict the configuration, or damage.
    """
    config, path = _config(folder), folder / WEIGHTS
    stored = load_tensors(path)
    state = stored.get("state_dict", stored) if isinstance(stored, dict) else {}
    missing = [name for name in _TENSORS if name not in state]
    if missing:
        raise RiebenchError(f"{path} lacks {', '.join(missing)}; it is not an sdxl-unbox SAE")
    unknown = [
        name for name, tensor in state.items()
        if name not in (*_TENSORS, *_COUNTERS) and isinstance(tensor, Tensor) and tensor.is_floating_point()
    ]  # fmt: skip
    if unknown:
        raise RiebenchError(f"{path} holds tensors riebench does not know: {', '.join(unknown)}")
    expected = [config["n_dirs_local"], config["d_model"]]
    if [*state["encoder.weight"].shape] != expected:
        raise RiebenchError(f"{path}: encoder is {[*state['encoder.weight'].shape]}, {CONFIG} says {expected}")
    try:
        return SparseAutoencoder(
            state["encoder.weight"], state["decoder.weight"].T, state["pre_bias"], state["pre_bias"],
            state["latent_bias"], k=config["k"], sha256=file_sha256(path),
        )  # fmt: skip
    except RiebenchError as error:
        raise RiebenchError(f"{path}: {error}") from error


def folder_name(block: str, k: int, n: int, *, auxk: int = 256, batch: int = 4096, rate: float = 1e-4) -> str:
    """The layout's name for a checkpoint, e.g. "unet.mid_block.attentions.0_k10_hidden5120_auxk256_bs4096_lr0.0001"."""
    return f"{long_name(block)}_k{k}_hidden{n}_auxk{auxk}_bs{batch}_lr{rate:g}"


def save_sdxl_unbox(
    folder: Path,
    *,
    encoder: Tensor,
    decoder: Tensor,
    pre_bias: Tensor,
    latent_bias: Tensor,
    k: int,
    auxk: int = 256,
    dead_steps_threshold: int = 2441,
    mean: Tensor | None = None,
    std: Tensor | None = None,
    extra: dict[str, Any] | None = None,
) -> None:
    """Writes a checkpoint folder of the sdxl-unbox layout.

    Args:
        folder: the folder that gets `state_dict.pth` and `config.json`.
        encoder: [n, d].
        decoder: [d, n], unit columns.
        pre_bias: [d].
        latent_bias: [n].
        k: features per position.
        auxk: features of the auxiliary loss, for the record.
        dead_steps_threshold: steps after which a feature counted as dead, for the record.
        mean: [n], mean value of each feature where it is active.
        std: [n], its standard deviation there.
        extra: more entries for the configuration.
    """
    folder.mkdir(parents=True, exist_ok=True)
    n, d = encoder.shape
    config = {
        "n_dirs_local": n, "d_model": d, "k": k, "auxk": auxk, "dead_steps_threshold": dead_steps_threshold,
        **(extra or {}),
    }  # fmt: skip
    state = {
        "pre_bias": pre_bias, "latent_bias": latent_bias, "encoder.weight": encoder, "decoder.weight": decoder,
        "stats_last_nonzero": torch.zeros(n, dtype=torch.long),
    }  # fmt: skip
    torch.save({"state_dict": {name: t.detach().cpu().contiguous() for name, t in state.items()}}, folder / WEIGHTS)
    for name, statistic in (("mean", mean), ("std", std)):
        if statistic is not None:
            torch.save(statistic.detach().float().cpu().contiguous(), folder / f"{name}.pt")
    write_atomic(folder / CONFIG, (json.dumps(config, indent=2) + "\n").encode())
