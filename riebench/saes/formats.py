"""Search and loading of stored autoencoders, whatever their format.

A checkpoint is a folder, the folder around its `final`, or a single file. A root folder holds one checkpoint per block,
under the block's long or short name; anything may follow the name after "_k".
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from riebench.blocks import short_name
from riebench.errors import RiebenchError, foreign_code
from riebench.saes.files import Checkpoint, SaeOptions, block_named_by
from riebench.saes.readers import SaeFormat, is_from_package, sae_formats, unusable_formats
from riebench.saes.readers.sdxl_unbox import folder_name, save_sdxl_unbox
from riebench.saes.sae import SparseAutoencoder

__all__ = [
    "checkpoint_at",
    "checkpoints_by_block",
    "choose_checkpoints",
    "find_checkpoints",
    "folder_name",
    "load_sae",
    "load_saes",
    "save_sdxl_unbox",
]  # fmt: skip

MAPPING = "mapping"
_NO_OPTIONS = SaeOptions()


def load_sae(path: Path, options: SaeOptions = _NO_OPTIONS) -> SparseAutoencoder:
    """Load one checkpoint, whatever its format.

    Args:
        path: the checkpoint's folder or file, or the folder around its `final`.
        options: what the user says about it.

    Raises:
        RiebenchError: if the format is not known, the checkpoint is damaged, or it contradicts the options.
    """
    sae = _read(path, options)
    _merge_metadata(sae, path, options)
    return sae


def _read(path: Path, options: SaeOptions) -> SparseAutoencoder:
    try:
        found = checkpoint_at(path, options)
        if found is None:
            raise _unreadable(path, options)
        checkpoint, sae_format = found
        with foreign_code(f"SAE format {sae_format.name!r}"):
            sae = sae_format.read(checkpoint)
        sae.format = sae_format.name
    except (RiebenchError, OSError):
        raise
    except Exception as error:
        # A file may hold anything in any place; what no reader has foreseen is still the file's fault.
        raise RiebenchError(f"{path} is no SAE that can be read ({type(error).__name__}: {error})") from error
    return sae


def _merge_metadata(sae: SparseAutoencoder, path: Path, options: SaeOptions) -> None:
    """Complete an SAE with the block and signal that its name or the user gives.

    Refuses contradictions between the file, its name and the options.
    """
    if options.signal is not None and sae.signal not in (None, options.signal):
        raise RiebenchError(f"{path} was trained on block {sae.signal}s, not on {options.signal}s")
    sae.signal = sae.signal or options.signal
    if options.k is not None and sae.k not in (None, options.k):
        raise RiebenchError(f"{path} has k = {sae.k}, not {options.k}")
    named = block_named_by(path) or (block_named_by(path.parent) if path.name == "final" or path.is_file() else None)
    if sae.block and named and sae.block != named:
        raise RiebenchError(f"{path} is named for block {named}, but was trained on {sae.block}; rename it")
    sae.block = sae.block or named


def load_saes(
    root: Path, blocks: Iterable[str], *, k: int | None = None, options: SaeOptions = _NO_OPTIONS
) -> dict[str, SparseAutoencoder]:
    """Load one SAE per block from a root folder.

    The folder may be a checkpoint itself if one block is asked for.

    Args:
        root: the folder, or a checkpoint.
        blocks: short names.
        k: takes the checkpoint with this k where the root has several for a block.
        options: what else the user says.

    Returns:
        Block -> SAE in evaluation mode.

    Raises:
        RiebenchError: if a block has no checkpoint, several that k does not tell apart, or one made for another block.
    """
    options = options if k is None else replace(options, k=k)
    saes = {name: load_sae(path, options) for name, path in choose_checkpoints(root, blocks, options).items()}
    for name, sae in saes.items():
        if sae.block not in (None, name):
            raise RiebenchError(f"{root}: the SAE was trained on block {sae.block}, not on {name}")
    return {name: sae.eval() for name, sae in saes.items()}


def choose_checkpoints(root: Path, blocks: Iterable[str], options: SaeOptions = _NO_OPTIONS) -> dict[str, Path]:
    """Choose the checkpoint of each block; none is read.

    A checkpoint's k may be read where several compete for a block.

    Raises:
        RiebenchError: as `load_saes`.
    """
    names = [short_name(block) for block in blocks]
    if not root.exists():
        raise RiebenchError(f"no SAE folder {root}; give a folder with one checkpoint per block")
    if checkpoint_at(root, options) is not None or root.is_file():
        if len(names) != 1:
            raise RiebenchError(f"{root} is a single SAE, but blocks {', '.join(names)} are asked for; name its root")
        return {names[0]: root}
    found = checkpoints_by_block(root, options)
    return {name: _choose(root, found, name, options) for name in names}


def checkpoints_by_block(root: Path, options: SaeOptions = _NO_OPTIONS) -> dict[str, list[Path]]:
    """Return the checkpoints below a root by block."""
    found: dict[str, list[Path]] = {}
    for child in sorted(root.iterdir()):
        block = block_named_by(child)
        if block is not None:
            checkpoint = checkpoint_at(child, options)
            if checkpoint is not None:
                found.setdefault(block, []).append(checkpoint[0].path)
    return found


def find_checkpoints(root: Path, options: SaeOptions, block: str | None = None) -> list[Path]:
    """Return every checkpoint that a place holds: itself, or those below it.

    Below it, only those of the block and with the k that are asked for.

    Raises:
        RiebenchError: if there is none.
    """
    if checkpoint_at(root, options) is not None or not root.is_dir():
        return [root]
    found = checkpoints_by_block(root, options)
    paths = [path for name, paths in found.items() if block in (None, name) for path in paths]
    wanted = [path for path in paths if options.k is None or _k_of(path, options) == options.k]
    if not wanted:
        raise _unreadable(root, options)
    return wanted


def checkpoint_at(path: Path, options: SaeOptions = _NO_OPTIONS) -> tuple[Checkpoint, SaeFormat] | None:
    """Return the checkpoint at a place or in its `final`, with its format.

    None if there is none.

    Raises:
        RiebenchError: if it looks like two formats at once.
    """
    for place in (path, path / "final"):
        checkpoint = Checkpoint(place, options)
        found = _recognise(checkpoint) if place.exists() else None
        if found is not None:
            return checkpoint, found
    return None


def _recognise(checkpoint: Checkpoint) -> SaeFormat | None:
    known = {sae_format.name: sae_format for sae_format in sae_formats()}
    # The user's mapping comes first; formats with their own file names come before those recognised by content.
    mapping = known.pop(MAPPING)
    if mapping.fits(checkpoint):
        return mapping
    # Formats of installed packages come last, so that none of them takes a file that a shipped reader knows.
    for named, foreign in ((True, False), (False, False), (True, True), (False, True)):
        candidates = [one for one in known.values() if is_from_package(one.name) == foreign]
        fitting = [one for one in candidates if bool(one.needs) == named and one.fits(checkpoint)]
        if len(fitting) > 1:
            names = " and ".join(one.name for one in fitting)
            raise RiebenchError(f"{checkpoint.path} holds several SAEs ({names}); name one of its files")
        if fitting:
            return fitting[0]
    return None


def _unreadable(path: Path, options: SaeOptions) -> RiebenchError:
    if options.mapping is not None and not path.is_dir():
        return RiebenchError(f"{path}: no weights that the mapping {options.mapping} could explain")
    if not path.exists():
        return RiebenchError(f"no SAE folder {path}; give a checkpoint, or a folder with one checkpoint per block")
    formats = [one for one in sae_formats() if one.needs]
    for place in (path, path / "final"):
        for one in formats:
            missing = [name for name in one.needs if not Checkpoint(place).has(name)]
            if missing and len(missing) < len(one.needs):
                return RiebenchError(f"{place} looks like an {one.name} SAE, but {', '.join(missing)} is missing")
    files = ", ".join(f"{' with '.join(one.needs)} ({one.name})" for one in formats)
    return RiebenchError(
        f"{path} holds no SAE that riebench can read: {files}, a single openai or saev file, or anything else with a "
        "key mapping" + "".join(f"; {why}" for why in unusable_formats())
    )


def _choose(root: Path, found: dict[str, list[Path]], block: str, options: SaeOptions) -> Path:
    paths, k = found.get(block, []), options.k
    wanted = block if k is None else f"{block} with k = {k}"
    if k is None and len(paths) > 1:
        k = _usual_k(found, options)
    if options.k is not None or (k is not None and len(paths) > 1):
        paths = [path for path in paths if _k_of(path, options) == k]
    if len(paths) == 1:
        return paths[0]
    if not paths:
        raise RiebenchError(f"{root} has no SAE for {wanted}; it has SAEs for: {', '.join(found) or 'no block'}")
    choices = ", ".join(str(_k_of(path, options)) for path in found[block])
    raise RiebenchError(f"{root} has several SAEs for {wanted} (k = {choices}); add #k=NUMBER to its name")


def _usual_k(found: dict[str, list[Path]], options: SaeOptions) -> int | None:
    """Return the k that more blocks have than any other, or None.

    Sweeps add further sizes to single blocks only.
    """
    blocks_with: dict[int | None, int] = {}
    for paths in found.values():
        for k in {_k_of(path, options) for path in paths}:
            blocks_with[k] = blocks_with.get(k, 0) + 1
    most = max(blocks_with.values())
    usual = [k for k, count in blocks_with.items() if count == most]
    return usual[0] if len(usual) == 1 else None


def _k_of(path: Path, options: SaeOptions) -> int | None:
    """Return a checkpoint's k, from its configuration if that says it."""
    checkpoint = Checkpoint(path)
    for name in ("config.json", "cfg.json"):
        if (checkpoint.folder / name).is_file():
            config = checkpoint.config(name)
            inner = next((config[key] for key in ("trainer", "metadata") if isinstance(config.get(key), dict)), None)
            k = config.get("k", inner.get("k") if inner else None)
            if isinstance(k, int):
                return k
    return _read(path, options).k
