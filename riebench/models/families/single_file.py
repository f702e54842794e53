"""Single files of token models: the transformer, and what may lie beside it.

Names are those of the first publication or those of diffusers. diffusers' own converters lead from the first to the
second. They are run on tensors without memory, too, so that a file can be held against a configuration by its header.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from riebench.errors import RiebenchError
from riebench.models.families.folders import check_shapes, read_json
from riebench.models.families.tokens.weights import NetworkClass, Shapes, config_shapes
from riebench.utils.weights import WIDE, check_wide, tensor_shapes

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

Tensors = dict[str, "Tensor"]
"""Tensor name -> tensor."""
TRANSFORMER, AUTOENCODER = "transformer", "vae"
PREFIX = "model.diffusion_model."
"""What the names of a transformer's tensors begin with in many files, in those of whole models always."""
WHOLE: Mapping[str, tuple[str, ...]] = {AUTOENCODER: ("first_stage_model.", "vae.")}
"""Part -> what the names of its tensors begin with in files of whole models."""
CLIP_L, CLIP_G, T5 = (f"text_encoders.{name}.transformer." for name in ("clip_l", "clip_g", "t5xxl"))
"""The same of the text encoders that such files hold."""
T5_TABLES = ("encoder.embed_tokens.weight", "shared.weight")
"""Two names of T5's one token table; files hold it under either."""
UNREAD = ("logit_scale", "position_ids")
"""Last words of names of tensors that trained text encoders hold and no text needs."""
PACKED = (
    "scaled_fp8", ".scale_weight", ".scale_input", ".weight_scale", ".input_scale", ".absmax", ".quant_map",
    ".comfy_quant",
)  # fmt: skip
"""Ends of names of tensors that stand beside weights of 8 or fewer bits."""


@dataclass(frozen=True)
class FileLayout:
    """Names of the tensors in a family's single files.

    Attributes:
        own: beginnings of names that only its transformer has, in the names of the first publication and in diffusers'.
        published: beginnings of names in the first publication alone; empty if diffusers has the same names.
        parts: part beside the transformer -> what the names of its tensors begin with; empty if diffusers reads the
            transformer alone.
        unprojected: text encoder whose single vector is read without its projection, as in the first publication.
        convert: runs diffusers' converter, where it does not take every width.
    """

    own: tuple[str, ...]
    published: tuple[str, ...] = ()
    parts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    unprojected: str = ""
    convert: Callable[[Tensors, Callable[[Tensors], Tensors]], Tensors] | None = None

    @property
    def marks(self) -> tuple[str, ...]:
        """Beginnings of names that only files of this family hold."""
        return marks(*self.own)


def marks(*names: str) -> tuple[str, ...]:
    """Return beginnings of a transformer's names, with the prefix and without it."""
    return tuple(f"{prefix}{name}" for name in names for prefix in (PREFIX, ""))


def split(names: Iterable[str], layout: FileLayout) -> tuple[dict[str, dict[str, str]], list[str]]:
    """Sort a file's tensors by the parts that they belong to.

    Args:
        names: of the tensors.
        layout: of the family's files.

    Returns:
        Part -> name in the file -> name without what it begins with; and the names that belong to no part.
    """
    held = set(names)
    prefixed = any(name.startswith(PREFIX) for name in held)
    starts = {**({TRANSFORMER: (PREFIX,)} if prefixed else {}), **layout.parts}
    found: dict[str, dict[str, str]] = {}
    other = []
    for name in sorted(held):
        part, start = next(((part, one) for part, all_of in starts.items() for one in all_of if name.startswith(one)),
                           ("" if prefixed else TRANSFORMER, ""))  # fmt: skip
        if part != TRANSFORMER and name.rpartition(".")[2] in UNREAD:
            continue
        if part:
            found.setdefault(part, {})[name] = name.removeprefix(start)
        else:
            other.append(name)
    return found, other


def check_file(name: str, tensors: set[str], layout: FileLayout, brand: str) -> None:
    """Refuse a file that holds no transformer of a family, or more than is read.

    Args:
        name: of the file.
        tensors: names of its tensors.
        layout: of the family's files.
        brand: short name of the family.

    Raises:
        RiebenchError: saying what it is instead, or naming the first tensor.
    """
    if any("lora" in one.lower() for one in tensors):
        raise RiebenchError(f"{name} is a LoRA, no model; merge it into {brand}'s folder before")
    packed = sorted(one for one in tensors if one.endswith(PACKED) or ".quant_state." in one)
    if packed:
        raise RiebenchError(f"{name} holds weights packed to 8 or fewer bits ({packed[0]}); fetch it in {WIDE}")
    if not any(one.startswith(layout.marks) for one in tensors):
        raise RiebenchError(f"{name} is no {brand} checkpoint (no tensors {layout.own[0]}*)")
    other = split(tensors, layout)[1]
    if other:
        reads = " and ".join((TRANSFORMER, *layout.parts))
        raise RiebenchError(
            f"{name} holds {len(other)} tensors that belong to no part that is read of {brand}'s single files "
            f"({reads}), such as {other[0]}"
        )


class FileParts:
    """The parts of one single file, and the configurations that describe them.

    Args:
        layout: of the family's files.
        networks: part -> class of its network.
        configs: part -> place of its configuration in a folder.
        plain_name: gives a tensor's name, of a part, as all versions of the libraries have it.
    """

    def __init__(
        self, layout: FileLayout, networks: Mapping[str, NetworkClass], configs: Mapping[str, str],
        plain_name: Callable[[str, str], str],
    ) -> None:  # fmt: skip
        self.layout, self.networks, self.configs, self.plain_name = layout, networks, configs, plain_name

    def held(self, names: Iterable[str]) -> tuple[str, ...]:
        """Return the parts that a file with tensors of some names holds."""
        found = split(names, self.layout)[0]
        return tuple(part for part in self.networks if part in found)

    def check(self, file: Path, folder: Path, shown: str) -> None:
        """Refuse a file whose tensors are not those that a folder describes.

        Raises:
            RiebenchError: in one line, naming the first tensor.
        """
        check_wide(file)
        for part, tensors in self._empty(file).items():
            converted = self.converted(part, tensors, read_json(folder / self.configs[part]), shown)
            needed = config_shapes(folder / self.configs[part], self.networks[part])
            self.compare(part, {name: tuple(value.shape) for name, value in converted.items()}, needed, shown)

    def compare(self, part: str, stored: Shapes, needed: Shapes, shown: str) -> None:
        """Refuse tensors of a part that are not those of its network.

        Args:
            part: the part.
            stored: in the file, under the network's names.
            needed: of the network.
            shown: what the user called the file, and what describes it.

        Raises:
            RiebenchError: in one line, naming the first tensor.
        """
        have, wanted = (
            {self.plain_name(part, name): shape for name, shape in shapes.items()} for shapes in (stored, needed)
        )
        config = self.configs[part]
        missing, other = sorted(wanted.keys() - have.keys()), sorted(have.keys() - wanted.keys())
        if missing:
            raise RiebenchError(
                f"{shown}: the file lacks {len(missing)} tensors of the {part} that {config} describes, such as "
                f"{missing[0]}; it is not whole, or is another model's"
            )
        if other:
            raise RiebenchError(
                f"{shown}: the file holds {len(other)} tensors that {config} has no place for, such as {other[0]}"
            )
        check_shapes(have, wanted, config, shown)

    def load(self, file: Path, folder: Path, dtypes: Mapping[str, torch.dtype], shown: str) -> dict[str, nn.Module]:
        """Return part -> its network with the file's weights.

        Args:
            file: one that `check` lets pass.
            folder: with the configurations.
            dtypes: number format of each part that is wanted.
            shown: what the user called the file.
        """
        built: dict[str, nn.Module] = {}
        for part, dtype in dtypes.items():
            converted = self.converted(part, self._stored(file, part), read_json(folder / self.configs[part]), shown)
            built[part] = self._build(part, converted, folder, dtype)
        return built

    def denoiser(self, file: Path, config: Mapping[str, Any], shown: str) -> Tensors:
        """Return a file's transformer under the names of diffusers.

        Args:
            file: the file.
            config: of the transformer.
            shown: what the user called the file.
        """
        return self.converted(TRANSFORMER, self._stored(file, TRANSFORMER), config, shown)

    def counts(self, file: Path) -> dict[str, int]:
        """Return part -> number of its parameters in a file."""
        shapes = tensor_shapes(file)
        return {
            part: sum(prod(shapes[name]) for name in names) for part, names in split(shapes, self.layout)[0].items()
        }

    def blocks(self, file: Path, lists: Iterable[str]) -> dict[str, int]:
        """Return list of blocks -> how many a file holds, by its header.

        Args:
            file: the file.
            lists: paths of lists of blocks in the transformer.

        Raises:
            RiebenchError: if the header cannot be read, or is no whole transformer.
        """
        names = self.converted(TRANSFORMER, self._empty(file)[TRANSFORMER], {}, file.name)
        return {
            one: len({name.removeprefix(f"{one}.").split(".")[0] for name in names if name.startswith(f"{one}.")})
            for one in lists
        }

    def _empty(self, file: Path) -> dict[str, Tensors]:
        """Return part -> tensors without memory, under their names in the file."""
        import torch

        shapes = tensor_shapes(file)
        return {
            part: {short: torch.empty(shapes[name], device="meta") for name, short in names.items()}
            for part, names in split(shapes, self.layout)[0].items()
        }

    def _stored(self, file: Path, part: str) -> Tensors:
        from safetensors import safe_open

        with safe_open(file, "pt") as opened:
            names = split(opened.keys(), self.layout)[0].get(part, {})
            return {short: opened.get_tensor(name) for name, short in names.items()}

    def converted(self, part: str, tensors: Tensors, config: Mapping[str, Any], shown: str) -> Tensors:
        """Return the tensors of a part under the names of the network that reads them.

        Args:
            part: the part.
            tensors: in the file, without what their names begin with; they may be without memory.
            config: of the part.
            shown: what the user called the file.

        Raises:
            RiebenchError: in one line, if a tensor is missing or nothing reads it.
        """
        try:
            if part == TRANSFORMER:
                return self._transformer(tensors, config, shown)
            if part == AUTOENCODER:
                return _autoencoder(tensors, config, shown)
            return self._text_encoder(part, tensors)
        except KeyError as error:
            raise RiebenchError(f"{shown}: the file lacks {error.args[0]} of its {part}; it is not whole") from error
        except (IndexError, RuntimeError, ValueError) as error:
            why = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise RiebenchError(f"{shown}: diffusers cannot convert the {part} ({why})") from error

    def _transformer(self, tensors: Tensors, config: Mapping[str, Any], shown: str) -> Tensors:
        from diffusers.loaders.single_file_model import SINGLE_FILE_LOADABLE_CLASSES

        if not self.layout.published or not any(name.startswith(self.layout.published) for name in tensors):
            return tensors
        plain = SINGLE_FILE_LOADABLE_CLASSES[self.networks[TRANSFORMER].network]["checkpoint_mapping_fn"]

        def convert(left: Tensors) -> Tensors:
            found: Tensors = plain(checkpoint=left, config=config)
            return found

        # The converter takes what it reads out of the dictionary.
        left = dict(tensors)
        found = convert(left) if self.layout.convert is None else self.layout.convert(left, convert)
        if left and left is not found:
            raise RiebenchError(
                f"{shown}: the file holds {len(left)} tensors of the transformer that diffusers does not read, such as "
                f"{min(left)}"
            )
        return found

    def _text_encoder(self, part: str, tensors: Tensors) -> Tensors:
        import torch

        network, projection = self.networks[part].network, "text_projection.weight"
        if network == "CLIPTextModel":
            # Files hold a projection that only other models read.
            tensors.pop(projection, None)
        elif part == self.layout.unprojected:
            places = tensors["text_model.embeddings.position_embedding.weight"]
            tensors[projection] = torch.eye(places.shape[-1], device=places.device)
        elif network == "T5EncoderModel":
            table = tensors.get(T5_TABLES[0], tensors.get(T5_TABLES[1]))
            if table is not None:
                tensors |= dict.fromkeys(T5_TABLES, table)
        return tensors

    def _build(self, part: str, tensors: Tensors, folder: Path, dtype: torch.dtype) -> nn.Module:
        known = self.networks[part]
        if known.config:
            import transformers

            config = getattr(transformers, known.config).from_pretrained(str((folder / self.configs[part]).parent))
            found: nn.Module = getattr(transformers, known.network).from_pretrained(
                None, config=config, state_dict=tensors, dtype=dtype
            )
            return found
        import diffusers
        from accelerate import init_empty_weights

        network = getattr(diffusers, known.network)
        with init_empty_weights():
            built: nn.Module = network.from_config(read_json(folder / self.configs[part]))
        built.load_state_dict({name: value.to(dtype) for name, value in tensors.items()}, assign=True)
        return built


def _autoencoder(tensors: Tensors, config: Mapping[str, Any], shown: str) -> Tensors:
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    found: Tensors = convert_ldm_vae_checkpoint(dict(tensors), config)
    if len(found) < len(tensors):
        # Attention is stored as convolutions of one pixel, whose tensors are new ones.
        read = {id(value) for value in found.values()}
        other = sorted(name for name, value in tensors.items() if id(value) not in read and ".attn_" not in name)
        raise RiebenchError(
            f"{shown}: the file holds {len(tensors) - len(found)} tensors of the autoencoder that diffusers does not "
            f"read, such as {next(iter(other), min(tensors))}"
        )
    return found
