"""SAE sources as the user writes them: folders, files or hub repositories.

`parse_sources` reads the text, `fetch_place` brings hub files here, `load_sources` and `model_saes` load the SAEs. One
source may hold the SAEs of all blocks, or each block may have its own:

    PLACE[#OPTION,...]                          a root with one checkpoint per block, or one checkpoint
    BLOCK=PLACE[#OPTION,...],BLOCK=PLACE,...    one place for each block
    FILE.yaml                                   the same as "BLOCK: PLACE" lines

PLACE is a folder, a file, or `hf://OWNER/NAME[@REVISION][/SUBFOLDER]`. Options: k=N, signal=update|output,
mapping=FILE, input_scale=NUMBER, signed=yes, normalise=none|layer|norm.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from riebench.blocks import as_named, block_prefixes, long_name, short_name
from riebench.errors import RiebenchError, near_match
from riebench.models.spec import ASSET
from riebench.saes.files import MAPPINGS, SaeOptions
from riebench.saes.formats import load_saes
from riebench.saes.readers import sae_formats
from riebench.saes.readers.mapping import read_mapping
from riebench.saes.sae import Normalise, Signal, SparseAutoencoder
from riebench.saes.shards import INDEX_ENDING, shard_patterns
from riebench.tasks.schema import MAX_PARAMETER
from riebench.utils import hub
from riebench.utils.hub import is_offline
from riebench.utils.yaml_files import load_yaml

if TYPE_CHECKING:
    from riebench.models.loading import LoadedModel

SCHEME = "hf://"
_PLACE = re.compile(
    r"hf://(?P<id>[^/@]+/[^/@]+)(?:@(?P<revision>refs/(?:pr|convert)/[^/]+|[^/]+))?(?:/(?P<subfolder>.+?))?/?"
)
_NO_FILE = "no such file"
# Written beside sdxl-unbox checkpoints, sometimes far larger than they, and not read here.
_IGNORE = ("act_rate.pt", "topk_vals.pt", "topk_indices.pt", "topk_heatmaps.pt", "optimizer.pt")

_LISTS = (".yaml", ".yml", ".json")
_OPTIONS = ("k", "signal", "mapping", "input_scale", "signed", "normalise")
_WORDS: dict[str, tuple[str, ...]] = {
    "signal": get_args(Signal), "signed": ("yes", "no"), "normalise": get_args(Normalise)
}  # fmt: skip
"""Option -> the words that it takes."""
NAMED_BY_BLOCK = frozenset({"wendlerc/sdxl-turbo-saes"})
"""Repositories with a folder `BLOCK_kN_...` for each SAE; those of some blocks and one k are fetched alone."""


@dataclass(frozen=True)
class HubPlace:
    """A place on the hub.

    Attributes:
        id: "OWNER/NAME".
        revision: branch, tag or commit.
        subfolder: the part of the repository that is meant; "" for all.
    """

    id: str
    revision: str | None = None
    subfolder: str = ""


@dataclass(frozen=True)
class SaeSource:
    """One place that holds SAEs.

    Attributes:
        place: folder, file, "hf://..." or "asset:NAME".
        block: the block it is for; None for a root with several.
        options: what else the user says.
    """

    place: str
    block: str | None = None
    options: SaeOptions = field(default_factory=SaeOptions)

    def locate(self, *, offline: bool = False, blocks: Iterable[str] = ()) -> Path:
        """Return the place on this machine, fetched if need be.

        Args:
            offline: fetches nothing.
            blocks: those whose SAEs are needed, if not all; see `fetch_place`.

        Raises:
            RiebenchError: if there is no such place, or the hub does not give it.
        """
        if self.place.startswith(SCHEME):
            return fetch_place(self.place, self.options, offline=offline, blocks=blocks)
        if self.place.startswith(ASSET):
            from riebench.models.assets import asset_folder

            return asset_folder(self.place.removeprefix(ASSET))
        path = Path(self.place).expanduser()
        if not path.exists():
            raise RiebenchError(f"no SAE folder {self.place}; give a folder, a file, or hf://OWNER/NAME[@REVISION]")
        return path


def parse_sources(text: str) -> tuple[SaeSource, ...]:
    """Parse the user's SAE sources; see the module's text.

    Raises:
        RiebenchError: on an unknown block or option, or a block named twice.
    """
    pieces: list[str] = []
    for piece in text.split(","):
        # A comma also stands between options and may stand in a path: only a block's name begins a new entry.
        if pieces and not _for_block(piece):
            pieces[-1] += f",{piece}"
        else:
            pieces.append(piece)
    sources = tuple(source for piece in pieces for source in _parse_one(piece))
    blocks = [source.block for source in sources]
    if len(set(blocks)) != len(blocks):
        raise RiebenchError(f"SAE source {text!r}: a block is named twice")
    return sources


def _for_block(text: str) -> re.Match[str] | None:
    """Match BLOCK=PLACE, where BLOCK begins like the name of a block.

    Names of a text encoder count too: they are refused as such, not as places.
    """
    return re.fullmatch(rf"(?P<block>(?:{'|'.join((*block_prefixes(), 'text_'))})[\w.+]*)=(?P<rest>.+)", text)


def _parse_one(text: str) -> list[SaeSource]:
    match = _for_block(text)
    block, rest = (short_name(match["block"]), match["rest"]) if match else (None, text)
    place, _, stated = rest.partition("#")
    path = Path(place).expanduser()
    is_list = path.suffix in _LISTS and not path.name.endswith(INDEX_ENDING)
    if block is None and is_list and path.is_file():
        listed = load_yaml(path)
        if "tensors" not in listed:
            return [_source_of_entry(path, key, value) for key, value in listed.items()]
    return [SaeSource(place, block, _options(text, stated))]


def _source_of_entry(path: Path, block: object, value: object) -> SaeSource:
    if not isinstance(block, str) or not isinstance(value, str):
        raise RiebenchError(f"{path}: {block}: write 'BLOCK: PLACE', not {value!r}")
    place, _, stated = value.partition("#")
    if not place.startswith((SCHEME, ASSET)):
        place = str(path.parent / Path(place).expanduser())
    return SaeSource(place, short_name(block), _options(value, stated))


def _options(text: str, stated: str) -> SaeOptions:
    options = SaeOptions()
    for part in stated.split(",") if stated else ():
        key, _, value = part.partition("=")
        if key not in _OPTIONS:
            raise RiebenchError(f"SAE source {text!r}: unknown option {key!r}{near_match(key, _OPTIONS)}")
        options = replace(options, **{key: _option(text, key, value)})
    return options


def _option(text: str, key: str, value: str) -> Any:
    if key == "mapping":
        path = Path(value).expanduser()
        if not path.is_file():
            raise RiebenchError(f"SAE source {text!r}: there is no mapping file {value}")
        return path
    if key in _WORDS:
        if value not in _WORDS[key]:
            *most, last = _WORDS[key]
            raise RiebenchError(f"SAE source {text!r}: {key} is {', '.join(most)} or {last}, not {value!r}")
        return value == "yes" if key == "signed" else value
    try:
        number = int(value) if key == "k" else float(value)
    except ValueError as error:
        raise RiebenchError(f"SAE source {text!r}: {key} is a number, not {value!r}") from error
    if not 1 / MAX_PARAMETER <= number <= MAX_PARAMETER:
        raise RiebenchError(f"SAE source {text!r}: {key} must be above 0, and at most {MAX_PARAMETER:g}, not {value}")
    return number


def load_sources(
    sources: Iterable[SaeSource], blocks: Iterable[str], *, offline: bool = False
) -> dict[str, SparseAutoencoder]:
    """Load one SAE for each block.

    Args:
        sources: where they are.
        blocks: short names.
        offline: fetches nothing.

    Raises:
        RiebenchError: if a block has none, or one is damaged.
    """
    names = [short_name(block) for block in blocks]
    by_block = {source.block and as_named(source.block, names): source for source in sources}
    missing = [name for name in names if name not in by_block and None not in by_block]
    if missing:
        given = ", ".join(str(block) for block in by_block)
        have = [name for name in names if name not in missing]
        alone = f", or take these alone with --blocks {','.join(have)}" if have else ""
        raise RiebenchError(
            f"no SAE for {', '.join(missing)} is named; named are: {given}; add {missing[0]}=PLACE{alone}"
        )
    saes: dict[str, SparseAutoencoder] = {}
    for source in by_block.values():
        wanted = [name for name in names if by_block.get(name, by_block.get(None)) is source]
        if wanted:
            saes |= load_saes(source.locate(offline=offline, blocks=wanted), wanted, options=source.options)
    return {name: saes[name] for name in names}


def sources_of(source: str | None, model: LoadedModel) -> tuple[SaeSource, ...]:
    """Return the sources that the user names, or those of the model's preset.

    Raises:
        RiebenchError: if there are neither.
    """
    named = source or (model.preset.saes if model.preset else None)
    if named is None:
        raise RiebenchError(f"{model.spec.name} has no SAEs of its own; give --sae FOLDER or --sae hf://OWNER/NAME")
    return parse_sources(named)


def model_saes(
    source: str | None, model: LoadedModel, blocks: Iterable[str], *, offline: bool = False
) -> dict[str, SparseAutoencoder]:
    """Load SAEs for some blocks of a model, onto its device.

    Args:
        source: see the module's text; None for the model preset's own.
        model: the generating model.
        blocks: short names.
        offline: fetches nothing.

    Raises:
        RiebenchError: if there are none, one is damaged, one was made for another width, or one does not say what it
            reconstructs.
    """
    saes = load_sources(sources_of(source, model), blocks, offline=offline)
    for block, sae in saes.items():
        check_width(sae, block, model)
        if sae.signal is None:
            raise RiebenchError(
                f"the {sae.format} SAE for {block} does not say what it was trained on; add #signal=update to its name "
                "if on block updates (output minus input), #signal=output if on block outputs; `riebench sae inspect` "
                "with --model tries both"
            )
    return {block: sae.to(model.device) for block, sae in saes.items()}


def check_width(sae: SparseAutoencoder, block: str, model: LoadedModel) -> None:
    """Check an SAE's width against its block's channels.

    Raises:
        RiebenchError: if they differ.
    """
    channels = model.family.update_width(model.denoiser, short_name(block))
    if sae.d != channels or sae.d_out != channels:
        width = f"{sae.d}" if sae.d == sae.d_out else f"{sae.d} in and {sae.d_out} out"
        raise RiebenchError(
            f"the SAE for {block} has width {width}, but {model.spec.name} has {channels} channels there; "
            "give SAEs that were trained on this model"
        )


def parse_place(place: str) -> HubPlace:
    """Parse `hf://OWNER/NAME[@REVISION][/SUBFOLDER]`.

    Raises:
        RiebenchError: if it is not of that form.
    """
    match = _PLACE.fullmatch(place)
    if match is None:
        raise RiebenchError(f"{place!r} is no place on the hub; write hf://OWNER/NAME[@REVISION][/SUBFOLDER]")
    return HubPlace(match["id"], match["revision"], match["subfolder"] or "")


def fetch_place(text: str, options: SaeOptions, *, offline: bool = False, blocks: Iterable[str] = ()) -> Path:
    """Fetch the files of an SAE, or find them in the cache.

    Args:
        text: see `parse_place`.
        options: a mapping that is given names the weights.
        offline: never touches the network.
        blocks: only the SAEs of these blocks, where the repository's names tell them apart; empty for all.

    Returns:
        The folder (or file) in the hub's cache.

    Raises:
        RiebenchError: if there is no such repository, revision or subfolder, no access, or no network.
    """
    place = parse_place(text)
    few = _patterns_of_blocks(place, options, blocks)
    folder = _snapshot(place, few or _patterns(options), offline)
    if few and not offline and not any(file for pattern in few for file in folder.glob(pattern)):
        folder = _snapshot(place, _patterns(options), offline)
    weights = _mapped_weights(folder / place.subfolder)
    if weights and not offline:
        folder = _snapshot(place, [*_patterns(options), *weights], offline)
    path = folder / place.subfolder
    if not path.exists():
        raise RiebenchError(f"{place.id} has no {place.subfolder} with SAE files; look at its file list on the hub")
    return path


def download_command(text: str, options: SaeOptions, blocks: Iterable[str] = ()) -> str:
    """Return the command line that brings an SAE's files into the hub's cache.

    It brings the files that `fetch_place` would, those of all formats that are read.

    Args:
        text: as for `fetch_place`.
        options: likewise.
        blocks: likewise.

    Raises:
        RiebenchError: as `parse_place`.
    """
    place = parse_place(text)
    few = _patterns_of_blocks(place, options, blocks)
    allow, ignore = _download_filters(place, few or _patterns(options))
    parts = [f"--include '{pattern}'" for pattern in allow] + [f"--exclude '{pattern}'" for pattern in ignore]
    return " ".join([f"hf download {place.id}", *([f"--revision {place.revision}"] if place.revision else []), *parts])


def _patterns_of_blocks(place: HubPlace, options: SaeOptions, blocks: Iterable[str]) -> list[str]:
    """Return patterns of the SAEs of some blocks and one k.

    There are none where names do not tell the SAEs apart.
    """
    if place.id not in NAMED_BY_BLOCK or place.subfolder or options.k is None or options.mapping is not None:
        return []
    return [f"*{long_name(block)}_k{options.k}_*" for block in blocks]


def _patterns(options: SaeOptions) -> list[str]:
    names = [name for one in sae_formats() for name in (*one.needs, *one.fetch)]
    if options.mapping is not None:
        named = read_mapping(options.mapping).weights
        names += [named] if named else ["*.safetensors", f"*{INDEX_ENDING}", "*.pth", "*.bin"]
    return sorted({pattern for name in names for pattern in (name, *_shards_of(name))})


def _shards_of(name: str) -> tuple[str, ...]:
    return () if "*" in name else shard_patterns(name)


def _mapped_weights(folder: Path) -> list[str]:
    mappings = [path for name in MAPPINGS for path in folder.rglob(name)] if folder.is_dir() else []
    named = [weights for path in mappings if (weights := read_mapping(path).weights)]
    return [pattern for name in named for pattern in (name, *shard_patterns(name))]


def _download_filters(place: HubPlace, names: list[str]) -> tuple[list[str], list[str]]:
    inside = f"{place.subfolder}/" if place.subfolder else ""
    wide = [name for name in names if "*" in name]
    # A star matches folders, too; names that a wider pattern brings along would only lengthen messages.
    plain = [f"*{name}" for name in names if not any(fnmatch(name, pattern) for pattern in wide)]
    allow = [f"{inside}{pattern}" for pattern in (*wide, *plain)]
    # The place may be a file.
    return [*allow, *([place.subfolder] if place.subfolder else [])], [f"*{name}" for name in _IGNORE]


def _snapshot(place: HubPlace, names: list[str], offline: bool) -> Path:
    allow, ignore = _download_filters(place, names)
    # Without a network, whatever part of the repository is here will do; the reader says if a file is missing.
    wanted = [_NO_FILE] if offline or is_offline() else allow
    try:
        return hub.fetch(place.id, place.revision, patterns=wanted, ignore=ignore, hint_patterns=allow, offline=offline)
    except RiebenchError as error:
        raise RiebenchError(f"SAEs: {error}") from error
