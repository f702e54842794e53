"""A stored SAE: its folder, its configuration and its tensors.

`Checkpoint` is a folder or file with an SAE, `SaeOptions` what the user says about it, `Tensors` its state dict, of
which nothing is silently left out. The functions read and write untrusted tensor files and check shapes and
configurations.
"""

from __future__ import annotations

import errno
import io
import os
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from riebench.blocks import foreign_site, known_blocks, long_name, module_path, short_name, update_block
from riebench.errors import RiebenchError, near_match
from riebench.saes.sae import Normalise, Signal, SparseAutoencoder
from riebench.saes.shards import (
    INDEX_ENDING,
    is_sharded,
    is_stored,
    read_index,
    refuse_lone_shard,
    weights_sha256,
    whole_path,
    whole_paths,
)
from riebench.saes.wrappers import PARALLEL, plain_state, without_compiler
from riebench.utils.files import content_digest, parse_json
from riebench.utils.terminal import warnings_held

_LFS = b"version https://git-lfs"

MAPPINGS = ("mapping.yaml", "mapping.yml", "mapping.json")
"""Names under which a folder's own key mapping is found."""

WEIGHT_ENDINGS = (".pt", ".pth", ".bin", ".ckpt", ".safetensors")
"""Endings of the files that may hold weights."""


@dataclass(frozen=True)
class SaeOptions:
    """The user's options for an SAE, beside its place.

    Attributes:
        k: which of several to take, or the k of a format that does not store it.
        signal: what it was trained on, where the file does not say.
        mapping: a key mapping's file.
        input_scale: the constant its training inputs were multiplied with, where the export has lost it.
        signed: also take SAEs with negative feature values.
        normalise: how inputs are normalised, where the layout leaves it open.
    """

    k: int | None = None
    signal: Signal | None = None
    mapping: Path | None = None
    input_scale: float | None = None
    signed: bool = False
    normalise: Normalise | None = None


@dataclass(frozen=True)
class Checkpoint:
    """A folder or a file that may hold an SAE.

    Attributes:
        path: the folder or file.
        options: what the user says about it.
    """

    path: Path
    options: SaeOptions = field(default_factory=SaeOptions)

    @property
    def folder(self) -> Path:
        """The folder that holds its files."""
        return self.path if self.path.is_dir() else self.path.parent

    def has(self, *names: str) -> bool:
        """Return whether all these files are there.

        A checkpoint named by its file must be one of them.
        """
        if self.path.is_file() and whole_path(self.path).name not in names:
            return False
        return all(is_stored(self.folder / name) for name in names)

    @cached_property
    def only_file(self) -> Path | None:
        """The one file with weights: the path itself, or the only one in the folder.

        Shards count as the one file that they make up, which is then not there itself. A file in the folder that bears
        a block's name is a child of a root, not the folder's own.
        """
        if self.path.is_file():
            path = whole_path(self.path)
            return path if path.suffix in WEIGHT_ENDINGS else None
        inside = self.path.iterdir() if self.path.is_dir() else ()
        files = whole_paths(path for path in inside if path.suffix in WEIGHT_ENDINGS and path.is_file())
        return files[0] if len(files) == 1 and block_named_by(files[0]) is None else None

    @cached_property
    def mapping_file(self) -> Path | None:
        """The key mapping that describes it, if there is one."""
        if self.options.mapping is not None:
            return self.options.mapping
        if self.path.is_file():
            is_index = self.path.name.endswith(INDEX_ENDING)
            return self.path if self.path.suffix in (".yaml", ".yml", ".json") and not is_index else None
        return next((self.path / name for name in MAPPINGS if (self.path / name).is_file()), None)

    def config(self, name: str) -> dict[str, Any]:
        """Read a JSON configuration.

        Raises:
            RiebenchError: if it cannot be read or is no mapping.
        """
        path = self.folder / name
        refuse_pointer(path)
        try:
            config = parse_json(path.read_bytes())
        except (OSError, ValueError) as error:
            raise RiebenchError(f"{path} cannot be read ({error}); fetch the checkpoint again") from error
        if not isinstance(config, dict):
            raise RiebenchError(f"{path} cannot be read (it is no mapping of keys); fetch the checkpoint again")
        return config

    def digest(self, *names: str) -> str:
        """Compute one hash over the files that decide what an SAE computes."""
        return content_digest({name: weights_sha256(self.folder / name) for name in names})


class Tensors:
    """A state dict whose tensors are taken by name.

    A floating-point tensor that was neither taken nor skipped is an error. Names count without what wrappers of a
    module put before them; see `plain_state`.

    Args:
        state: what the file holds.
        where: the file, for messages.
        what: what it is taken for, for messages.
    """

    def __init__(self, state: Any, where: Path, what: str) -> None:
        if not isinstance(state, Mapping):
            raise RiebenchError(f"{where} holds no named tensors but a {type(state).__name__}; it is not {what}")
        odd = next((name for name in state if not isinstance(name, str | int)), None)
        if odd is not None:
            raise RiebenchError(f"{where} names its tensors by a {type(odd).__name__}; it is not {what}")
        self.state, self._wrapper = plain_state(state, where)
        self.where, self.what = where, what
        self._taken: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return isinstance(self.state.get(self._plain(name)), Tensor)

    def _plain(self, name: str) -> str:
        return without_compiler(name).removeprefix(self._wrapper)

    def take(self, *names: str) -> tuple[Tensor, ...]:
        """Return tensors by name.

        Raises:
            RiebenchError: naming all that are missing, or one that holds no floating-point numbers.
        """
        missing = [name for name in names if name not in self]
        if missing:
            have = [name for name in self.state if name in self and name not in names]
            near = near_match(missing[0], have) if len(missing) == 1 else ""
            if any(name.startswith(PARALLEL) for name in have):
                near += f" (only some of its names begin with {PARALLEL!r}, so it belongs to them)"
            raise RiebenchError(f"{self.where} lacks {', '.join(missing)}{near}; it is not {self.what}")
        names = tuple(map(self._plain, names))
        odd = [name for name in names if not self.state[name].is_floating_point()]
        if odd:
            kind = str(self.state[odd[0]].dtype).removeprefix("torch.")
            raise RiebenchError(
                f"{self.where}: {odd[0]} holds numbers of the type {kind}, which no weight has; it is damaged, or "
                "packed in a way that riebench does not read"
            )
        self._taken |= set(names)
        return tuple(self.state[name] for name in names)

    def optional(self, name: str) -> Tensor | None:
        """Return a tensor that may be absent, else None."""
        return self.take(name)[0] if name in self else None

    def number(self, name: str) -> Tensor | None:
        """Return a tensor that is no weight but counts something, else None."""
        self._taken.add(self._plain(name))
        return self.state[self._plain(name)] if name in self else None

    def skip(self, *names: str) -> None:
        """Skip training buffers that say nothing about what the SAE computes."""
        self._taken |= set(map(self._plain, names))

    def done(self) -> None:
        """Refuse tensors that are left over.

        Raises:
            RiebenchError: naming every floating-point tensor that was neither taken nor skipped.
        """
        unknown = [
            name for name, value in self.state.items()
            if name not in self._taken and isinstance(value, Tensor) and value.is_floating_point()
        ]  # fmt: skip
        timed = [name for name in unknown if "time" in name.lower()]
        if timed:
            raise RiebenchError(
                f"{self.where}: its features depend on the denoising step ({', '.join(timed)}), so no single direction "
                "describes them; give an SAE that is the same at every step"
            )
        if unknown:
            raise RiebenchError(
                f"{self.where} holds tensors riebench does not know: {', '.join(unknown)}; if they belong to the SAE's "
                "arithmetic, say how with a key mapping, else list them there under ignore"
            )


def load_tensors(path: Path) -> Any:
    """Load an untrusted file of `torch.save`: tensors and plain containers only.

    Raises:
        RiebenchError: if it is a Git-LFS pointer, damaged, or holds anything else.
    """
    refuse_pointer(path)
    return _unpickle(path, path)


def load_tensors_after(path: Path, offset: int) -> Any:
    """Load tensors from a file whose first bytes are something else.

    The rules of `load_tensors` hold; a Git-LFS pointer is not looked for. `offset` is the number of bytes left out.
    """
    return _unpickle(io.BytesIO(path.read_bytes()[offset:]), path)


def _unpickle(source: Path | io.BytesIO, path: Path) -> Any:
    held: list[str] = []
    try:
        _refuse_compressed(source, path)
        with warnings_held() as held:
            found = torch.load(source, map_location="cpu", weights_only=True)
    except RiebenchError:
        raise
    except Exception as error:
        if any("pickle protocol" in text for text in held):
            raise RiebenchError(
                f"{path} was saved with another pickle protocol than torch.save's own, which is not read without "
                "running its code; have it saved again without pickle_protocol, or as safetensors"
            ) from error
        # The unpickler has no error of its own for a file that is no pickle, so any error may come.
        wanted = re.search(r"GLOBAL (\S+)", str(error))
        if wanted:
            raise RiebenchError(
                f"{path} holds more than tensors ({wanted[1]}), and opening it would run its code, which riebench "
                "never does; have it saved as a plain state_dict or as safetensors"
            ) from error
        raise RiebenchError(f"{path} is damaged or holds more than tensors; fetch it again") from error
    _refuse_oversized(found, path)
    return found


def _refuse_compressed(source: Path | io.BytesIO, path: Path) -> None:
    """Refuse a compressed archive.

    Torch never compresses; an archive that does may hold a thousand times its own size.
    """
    if zipfile.is_zipfile(source):
        with zipfile.ZipFile(source) as archive:
            if any(entry.filename.endswith("/constants.pkl") for entry in archive.infolist()):
                raise RiebenchError(
                    f"{path} is a TorchScript archive, which is a program; have its state_dict() saved instead"
                )
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                raise RiebenchError(f"{path} is a compressed archive, which torch never writes; fetch it again")
    if not isinstance(source, Path):
        source.seek(0)


def _refuse_oversized(found: Any, path: Path) -> None:
    """Refuse tensors that show the same few stored numbers as many.

    Reading them would fill the memory.

    Raises:
        RiebenchError: naming the first.
    """
    size, seen, left = path.stat().st_size, set[int](), [("", found)]
    while left:
        name, value = left.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, Mapping):
            left += [(str(key), part) for key, part in value.items() if isinstance(key, str | int)]
        elif isinstance(value, list | tuple | set):
            left += [(name, part) for part in value]
        elif isinstance(value, Tensor):
            if value.layout != torch.strided or value.is_quantized or value.is_meta:
                raise RiebenchError(f"{path}: {name or 'its content'} is no plain tensor; have it saved as one")
            if value.numel() * value.element_size() > size:
                raise RiebenchError(f"{path}: {name or 'its content'} claims more numbers than the file has; fetch it "
                                    "again")  # fmt: skip


def load_safetensors(path: Path) -> dict[str, Tensor]:
    """Load the tensors of a safetensors file, in one piece or in shards.

    Raises:
        RiebenchError: if it is a Git-LFS pointer or damaged, or a shard is missing.
    """
    if is_sharded(path):
        return _load_shards(path)
    refuse_lone_shard(path)
    return _load_safetensors_file(path)


def _load_shards(path: Path) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    refuse_pointer(path.with_name(f"{path.name}.index.json"))
    for shard, names in read_index(path).items():
        found = _load_safetensors_file(shard)
        odd = sorted(names ^ found.keys())
        if odd:
            verb = "lacks" if odd[0] in names else "holds"
            raise RiebenchError(f"{shard} {verb} {', '.join(odd)}, against the index; fetch the checkpoint again")
        state |= found
    return state


def _load_safetensors_file(path: Path) -> dict[str, Tensor]:
    refuse_pointer(path)
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError, RuntimeError) as error:
        raise RiebenchError(f"{path} is damaged ({error}); fetch it again") from error


def refuse_pointer(path: Path) -> None:
    """Refuse a Git-LFS pointer in the place of a file.

    Raises:
        RiebenchError: if it is one.
    """
    if path.is_file():
        with path.open("rb") as file:
            if file.read(len(_LFS)) == _LFS:
                raise RiebenchError(f"{path} is a Git-LFS pointer, not the file; run `git lfs pull` where it came from")


def save_tensors(value: Any, path: Path) -> None:
    """Save tensors to a path with `torch.save`, and flush them to the disk.

    Raises:
        OSError: if the disk is full.
    """
    try:
        torch.save(value, path)
    except RuntimeError as error:
        if not any(word in str(error) for word in ("PytorchStreamWriter", "inline_container", "iostream")):
            raise
        # PyTorch's writer hides the system's error; nearly always the disk is full.
        raise OSError(errno.ENOSPC, "no space left", str(path)) from error
    with path.open("r+b") as file:
        os.fsync(file.fileno())


def save_statistics(folder: Path, mean: Tensor | None, std: Tensor | None) -> None:
    """Save the statistics of features beside their SAE, as `mean.pt` and `std.pt`.

    Args:
        folder: of the SAE.
        mean: [n], mean value of each feature where it is active; None to write none.
        std: [n], its standard deviation there.
    """
    for name, statistic in (("mean", mean), ("std", std)):
        if statistic is not None:
            save_tensors(statistic.detach().float().cpu().contiguous(), folder / f"{name}.pt")


def build(where: Path, *parts: Tensor, **options: Any) -> SparseAutoencoder:
    """Build a `SparseAutoencoder`; its errors then name the file."""
    try:
        return SparseAutoencoder(*parts, **options)
    except RiebenchError as error:
        raise RiebenchError(f"{where}: {error}") from error


def whole(config: Mapping[str, Any], key: str, where: Path) -> int:
    """Return a whole number of a configuration.

    Raises:
        RiebenchError: if it is missing or none.
    """
    value = config.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or value != int(value):
        raise RiebenchError(f"{where}: {key} must be a whole number, not {value!r}; the configuration is damaged")
    return int(value)


def expect_shape(where: Path, encoder: Tensor, n: int, d: int, config: str) -> None:
    """Check the shape of an encoder, features first, against its configuration.

    Raises:
        RiebenchError: if they differ.
    """
    if [*encoder.shape] != [n, d]:
        raise RiebenchError(f"{where}: encoder is {[*encoder.shape]}, {config} says {[n, d]}")


def batch_threshold(value: Tensor, n: int, where: Path) -> Tensor:
    """Return the one threshold of a batch top-k SAE, repeated for each feature.

    Raises:
        RiebenchError: if it was never set: then nothing would hold features back.
    """
    if value.numel() != 1:
        raise RiebenchError(f"{where}: threshold has shape {[*value.shape]}, expected one number")
    if float(value) < 0:
        raise RiebenchError(
            f"{where}: its threshold is {float(value):g}, so it was never set (training stopped too early); without it "
            "this batch top-k SAE is dense: train it longer"
        )
    return value.reshape(1).float().expand(n)


def block_named_by(path: Path) -> str | None:
    """Return the block that a folder or file is named for, or None.

    Names go on after the block (PATH_k10_hidden5120_...), so whole names are compared.
    """
    stem = (path.stem if path.is_file() else path.name).split("_k")[0]
    for block in known_blocks():
        if stem in (block, module_path(block), long_name(block)):
            return block
    return None


def refuse_foreign_site(path: Path) -> None:
    """Refuse a folder or file that is named for something that is no single block.

    Raises:
        RiebenchError: if it is named for several blocks together, or for a part of the text encoder.
    """
    name = (path.stem if path.is_file() else path.name).split("_k")[0]
    why = foreign_site(name)
    if why is not None:
        raise RiebenchError(f"{path}: {why}")


def site_of(name: object) -> tuple[str | None, Signal | None]:
    """Return the block and the signal of a training hook's name.

    Each is None where the name does not say it.

    Args:
        name: the path of a block, or of the module inside it that gives exactly what the block adds.

    Raises:
        RiebenchError: if it names several blocks together, or a part of the text encoder.
    """
    if not isinstance(name, str):
        return None, None
    why = foreign_site(name)
    if why is not None:
        raise RiebenchError(f"the SAE's configuration says where it was trained: {why}")
    block = update_block(name)
    if block is not None:
        return block, "update"
    try:
        return short_name(name), None
    except RiebenchError:
        return None, None
