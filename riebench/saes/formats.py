"""Search and loading of stored autoencoders, whatever their format.

A checkpoint is a folder, the folder around its `final`, or a single file. A root folder holds one checkpoint per block,
under the block's long or short name; anything may follow the name after "_k". Checkpoints that lie deeper are taken,
with a line that says so, where no other could be meant.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from riebench.blocks import as_named, same_block, short_name
from riebench.errors import RiebenchError, foreign_code
from riebench.saes.files import Checkpoint, SaeOptions, block_named_by, refuse_foreign_site
from riebench.saes.readers import SaeFormat, is_from_package, sae_formats, unusable_formats
from riebench.saes.readers.sdxl_unbox import folder_name, save_sdxl_unbox
from riebench.saes.sae import SparseAutoencoder
from riebench.saes.search import Search, block_above, search_below
from riebench.utils.files import content_digest
from riebench.utils.terminal import print_note

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
_notes: set[tuple[Path, str]] = set()
"""Checkpoints, and what a line has already said of them in this process."""


def load_sae(path: Path, options: SaeOptions = _NO_OPTIONS) -> SparseAutoencoder:
    """Load one checkpoint, whatever its format.

    Args:
        path: the checkpoint's folder or file, or the folder around its `final`.
        options: what the user says about it.

    Raises:
        RiebenchError: if the format is not known, the checkpoint is damaged, or it contradicts the options.
    """
    sae, sae_format = _read(path, options)
    _merge_metadata(sae, path, options)
    sae.signal = sae.signal or sae_format.usual_signal
    return sae


def _read(path: Path, options: SaeOptions) -> tuple[SparseAutoencoder, SaeFormat]:
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
    return sae, sae_format


def _merge_metadata(sae: SparseAutoencoder, path: Path, options: SaeOptions) -> None:
    """Complete an SAE with the block and signal that its name or the user gives.

    Refuses contradictions between the file, its name and the options.
    """
    for place in (path, path.parent) if path.name == "final" or path.is_file() else (path,):
        refuse_foreign_site(place)
    if options.signal is not None and sae.signal not in (None, options.signal):
        raise RiebenchError(f"{path} was trained on block {sae.signal}s, not on {options.signal}s")
    if sae.signal is None and options.signal == "output":
        # Runs are named by the hash, and the same weights give other edits when they read the output.
        sae.sha256 = content_digest([sae.sha256, options.signal])
    sae.signal = sae.signal or options.signal
    if options.normalise not in (None, sae.normalise):
        raise RiebenchError(
            f"{path}: input norm {sae.normalise} belongs to its layout, so it cannot be read with {options.normalise}; "
            "leave #normalise out"
        )
    if options.k is not None and sae.k not in (None, options.k):
        raise RiebenchError(f"{path} has k = {sae.k}, not {options.k}")
    named = block_named_by(path) or (block_named_by(path.parent) if path.name == "final" or path.is_file() else None)
    if sae.block and named and not same_block(sae.block, named):
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
    paths = choose_checkpoints(root, blocks, options)
    saes = {name: load_sae(path, options) for name, path in paths.items()}
    for name, path in paths.items():
        _say_if_open(path, name, saes[name], options)
    for name, sae in saes.items():
        if sae.block is not None and not same_block(sae.block, name):
            raise RiebenchError(f"{root}: the SAE was trained on block {sae.block}, not on {name}")
        # A path alone may have been read as another family's block.
        sae.block = None if sae.block is None else name
    return {name: sae.eval() for name, sae in saes.items()}


def _say_if_open(path: Path, block: str, sae: SparseAutoencoder, options: SaeOptions) -> None:
    """Say how an SAE is read where its layout leaves that open.

    Only where its library has a usual way.
    """
    if "normalise" in left_open(path, options) and (path, "normalise") not in _notes:
        _notes.add((path, "normalise"))
        print_note(
            f"SAE for {block}: its layout does not say how inputs are normalised; read with {sae.normalise}, as its "
            "library does; `riebench sae inspect` with --model tries all, #normalise= chooses"
        )


def choose_checkpoints(root: Path, blocks: Iterable[str], options: SaeOptions = _NO_OPTIONS) -> dict[str, Path]:
    """Choose the checkpoint of each block; none is read.

    A checkpoint's k may be read where several compete for a block. Where the only one for a block lies deeper than
    usual, it is taken and a line says so.

    Raises:
        RiebenchError: as `load_saes`.
    """
    names = [short_name(block) for block in blocks]
    if not root.exists():
        raise RiebenchError(f"no SAE folder {root}; give a folder with one checkpoint per block")
    if checkpoint_at(root, options) is not None or root.is_file():
        if len(names) != 1:
            raise RiebenchError(f"{root} is a single SAE, but blocks {', '.join(names)} are asked for; name its root"
                                f"{_one_alone(root, options, names)}")  # fmt: skip
        return {names[0]: root}
    found = _as_named(_by_block(root, options), names)
    search = None
    if any(name not in found for name in names):
        search = _deeper(root, options)
        found = {**_as_named(search.by_block(), names), **found}
        unnamed = search.unnamed()
        if not found and len(names) == 1 and unnamed:
            found = {names[0]: unnamed}
    chosen = {name: _choose(root, found, name, options) for name in names if name in found}
    missing = [name for name in names if name not in chosen]
    if missing:
        assert search is not None
        raise _missing(search, missing, found, options)
    for name, path in chosen.items():
        _say_if_deeper(root, path, name)
    return chosen


def _as_named(found: dict[str, list[Path]], names: list[str]) -> dict[str, list[Path]]:
    """Return checkpoints by block, under the names by which blocks are asked for."""
    renamed: dict[str, list[Path]] = {}
    for block, paths in found.items():
        renamed.setdefault(as_named(block, names), []).extend(paths)
    return renamed


def _one_alone(path: Path, options: SaeOptions, names: list[str]) -> str:
    """Return what to add to a message where one SAE stands for several blocks.

    It is the block that the SAE is for; nothing if it does not say that.
    """
    try:
        block = load_sae(path, options).block
    except RiebenchError:
        return ""
    return f", or take it alone with --blocks {block}" if block in names else ""


def _missing(search: Search, missing: list[str], found: dict[str, list[Path]], options: SaeOptions) -> RiebenchError:
    """Return the error for blocks without an SAE, which says what there is."""
    root = search.root
    wanted = ", ".join(missing) + ("" if options.k is None else f" with k = {options.k}")
    if found:
        alone = f"; to use it alone, add --blocks {next(iter(found))}" if len(found) == 1 else ""
        return RiebenchError(f"{root} has no SAE for {wanted}; it has SAEs for: {', '.join(found)}{alone}")
    unnamed = search.unnamed()
    if unnamed:
        return RiebenchError(
            f"{root} has no SAE for {wanted}, but SAEs that no name ties to a block: {_listed(unnamed)}; write "
            f"BLOCK=PLACE, such as {missing[0]}={unnamed[-1]}"
        )
    foreign = _foreign_child(root, options)
    if foreign is not None:
        return foreign
    return RiebenchError(f"{root} has no SAE for {wanted}; {_seen(search)}")


def checkpoints_by_block(root: Path, options: SaeOptions = _NO_OPTIONS) -> dict[str, list[Path]]:
    """Return the checkpoints below a root by block.

    For a block whose own folder holds none, they are those deeper inside it.
    """
    return _by_block(root, options)


def _by_block(root: Path, options: SaeOptions) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    deeper: dict[str, list[Path]] = {}
    for child in sorted(root.iterdir()):
        block = block_named_by(child)
        if block is None:
            continue
        try:
            checkpoint = checkpoint_at(child, options)
        except RiebenchError:
            # What cannot be read may be another file beside the SAE's own folder.
            if not child.is_dir() or not _deeper(child, options).places:
                raise
            checkpoint = None
        if checkpoint is not None:
            found.setdefault(block, []).append(checkpoint[0].path)
        elif child.is_dir():
            deeper.setdefault(block, []).extend(place.path for place in _deeper(child, options).places)
    return {**{block: paths for block, paths in deeper.items() if paths}, **found}


def find_checkpoints(root: Path, options: SaeOptions, block: str | None = None) -> list[Path]:
    """Return every checkpoint that a place holds: itself, or those below it.

    Below it, only those of the block and with the k that are asked for. Where a root has none at the usual places,
    they are those that lie deeper.

    Raises:
        RiebenchError: if there is none.
    """
    if checkpoint_at(root, options) is not None or not root.is_dir():
        return [root]
    found = _by_block(root, options)
    paths = [path for name, paths in found.items() if block is None or same_block(block, name) for path in paths]
    if not paths:
        paths = [
            place.path
            for place in _search(root, options).places
            if block is None or place.block is None or same_block(place.block, block)
        ]
    wanted = [path for path in paths if options.k is None or _k_of(path, options) == options.k]
    if not wanted:
        raise _unreadable(root, options)
    for path in wanted:
        _say_if_deeper(root, path, block or block_above(path, root) or "a block that no name says")
    return wanted


def _search(root: Path, options: SaeOptions) -> Search:
    return search_below(root, lambda path: _recognise(Checkpoint(path, options)) is not None)


def _deeper(root: Path, options: SaeOptions) -> Search:
    """Search a folder for SAEs of which some are to be taken.

    Raises:
        RiebenchError: if it holds more than is searched, so that another one might be meant.
    """
    search = _search(root, options)
    if search.places and not search.complete:
        found = [place.path for place in search.places]
        raise RiebenchError(
            f"{root} holds more files and folders than are searched for SAEs; found so far: {_listed(found)}; say "
            f"which to take, such as BLOCK={found[-1]}"
        )
    return search


def _say_if_deeper(root: Path, path: Path, block: str) -> None:
    """Say that a checkpoint was taken which lies deeper than it usually does.

    Raises:
        RiebenchError: if a folder above it names several blocks, or a text encoder.
    """
    inside = path.relative_to(root).parts
    for folder in path.parents[: len(inside) - 1]:
        refuse_foreign_site(folder)
    usual = block_named_by(root / inside[0]) is not None and inside[1:] in ((), ("final",))
    if not usual and (path, "deeper") not in _notes:
        _notes.add((path, "deeper"))
        print_note(f"SAE for {block}: took {path}, found deeper than a block's own folder")


def left_open(path: Path, options: SaeOptions = _NO_OPTIONS) -> tuple[str, ...]:
    """Return what a checkpoint needs that neither its layout nor the user states.

    They are names of fields of `SaeOptions`; whether it was trained on updates or outputs is not among them.

    Raises:
        RiebenchError: if its configuration cannot be read.
    """
    found = checkpoint_at(path, options)
    if found is None or found[1].left_open is None:
        return ()
    return found[1].left_open(found[0])


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
    foreign = _foreign_child(path, options)
    if foreign is not None:
        return foreign
    for place in (path, path / "final"):
        near = _nearly(place)
        if near:
            return RiebenchError(near)
    seen = ""
    if path.is_dir():
        search = _search(path, options)
        if search.places:
            found = [place.path for place in search.places]
            return RiebenchError(
                f"{path} holds no SAE itself; deeper inside it has: {_listed(found)}; name one of them"
            )
        seen = f"; {_seen(search)}"
    files = ", ".join(f"{' with '.join(one.needs)} ({one.name})" for one in sae_formats() if one.needs)
    return RiebenchError(
        f"{path} holds no SAE that riebench can read: {files}, a single openai or saev file, or anything else with a "
        "key mapping" + seen + "".join(f"; {why}" for why in unusable_formats())
    )


def _foreign_child(root: Path, options: SaeOptions) -> RiebenchError | None:
    """Return the refusal of the first SAE below a root that is of no one block.

    None if there is none.
    """
    for child in sorted(root.iterdir()) if root.is_dir() else ():
        try:
            refuse_foreign_site(child)
        except RiebenchError as error:
            if checkpoint_at(child, options) is not None:
                return error
    return None


def _nearly(place: Path) -> str:
    """Return a sentence on a format of which a place has some files, not all.

    Empty if there is none.
    """
    for one in sae_formats():
        missing = [name for name in one.needs if not Checkpoint(place).has(name)]
        if missing and len(missing) < len(one.needs):
            return f"{place} looks like an {one.name} SAE, but {', '.join(missing)} is missing"
    return ""


def _seen(search: Search) -> str:
    """Return what a search saw where it found nothing, with what is nearly an SAE."""
    near = [words for folder in search.folders if (words := _nearly(folder))]
    return "; ".join([search.describe(), *near[:2]])


def _listed(paths: list[Path], shown: int = 6) -> str:
    return ", ".join(map(str, paths[:shown])) + (f" and {len(paths) - shown} more" if len(paths) > shown else "")


def _choose(root: Path, found: dict[str, list[Path]], block: str, options: SaeOptions) -> Path:
    paths, k = found[block], options.k
    wanted = block if k is None else f"{block} with k = {k}"
    if k is None and len(paths) > 1:
        k = _usual_k(found, options)
    if options.k is not None or (k is not None and len(paths) > 1):
        paths = [path for path in paths if _k_of(path, options) == k]
    if len(paths) == 1:
        return paths[0]
    if not paths:
        raise RiebenchError(f"{root} has no SAE for {wanted}; it has SAEs for: {', '.join(found)}")
    counts = [_k_of(path, options) for path in found[block]]
    if len(set(counts)) == len(counts):
        choices = ", ".join(map(str, counts))
        raise RiebenchError(f"{root} has several SAEs for {wanted} (k = {choices}); add #k=NUMBER to its name")
    raise RiebenchError(
        f"{root} has several SAEs for {wanted}: {_listed(paths)}; say which, such as {block}={paths[-1]}"
    )


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
    return _read(path, options)[0].k
