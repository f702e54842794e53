"""Files of a model folder: configurations and headers of weights.

Part of the contract in `riebench.models.families.base`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

from riebench.errors import RiebenchError
from riebench.utils.weights import tensor_formats, tensor_shapes

INDEX = "model_index.json"


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        RiebenchError: if the file is missing or is none.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RiebenchError(f"{path} is missing; download the folder again") from error
    except (ValueError, OSError) as error:
        raise RiebenchError(f"{path} is no JSON ({error}); download it again") from error
    if not isinstance(found, dict):
        raise RiebenchError(f"{path} holds no keys; download it again")
    return found


def check_index(index: Mapping[str, Any], classes: Mapping[str, Sequence[str]], title: str, shown: str) -> None:
    """Refuse a pipeline whose parts are of other classes, or of a model's own code.

    Args:
        index: what `model_index.json` states.
        classes: component -> names of its class, the usual one first.
        title: of the family.
        shown: what the user called the model.

    Raises:
        RiebenchError: in one line, naming the component.
    """
    for part, known in classes.items():
        entry = index.get(part)
        library, found = entry if isinstance(entry, list) and len(entry) == 2 else (None, None)
        if found not in known:
            raise RiebenchError(f"{shown}: {INDEX} says {part} {found or 'null'}; {title}'s is a {known[0]}")
        if library not in ("diffusers", "transformers"):
            raise RiebenchError(f"{shown}: {INDEX} says {part} of {library}; code of a model's own is not run")


def quantised(configs: Mapping[str, Mapping[str, Any]], places: Mapping[str, str]) -> Iterator[str]:
    """Yield file and key of configurations whose weights are quantised.

    Args:
        configs: component -> its configuration.
        places: component -> the file that holds it.
    """
    for part, config in configs.items():
        if config.get("quantization_config"):
            yield f"{places[part]} says quantization_config; use weights that are not quantised"


def attention_head_problems(config: Mapping[str, Any], *, heads: int, groups: int) -> Iterator[str]:
    """Yield what speaks against the attention heads of a language model, by the key.

    Transformers builds such a model without a word, and its call then fails.

    Args:
        config: of a decoder with grouped-query attention (arXiv 2305.13245): Gemma 2, Qwen 2.5 or Qwen 3.
        heads: attention heads where the file is silent, as transformers takes them.
        groups: heads of keys and values, likewise.
    """
    queries, keys = config.get("num_attention_heads", heads), config.get("num_key_value_heads", groups)
    if not isinstance(queries, int) or not isinstance(keys, int):
        return
    if keys < 1 or queries % keys:
        yield f"says num_key_value_heads {keys}; they divide num_attention_heads, {queries}"


def joined_shapes(files: Sequence[Path]) -> dict[str, tuple[int, ...]]:
    """Return tensor name -> shape over all files of one part.

    Raises:
        RiebenchError: if a weight is stored as integers: only the library that made them knows what they stand for.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for file in files:
        for name, kind in tensor_formats(file).items():
            if kind[0] in "IUB" and kind != "BF16" and name.endswith((".weight", ".bias")):
                raise RiebenchError(f"{file} holds {name} as integers ({kind}); use weights that are not quantised")
        shapes |= tensor_shapes(file)
    return shapes


def count_parameters(folder: Path) -> int:
    """Return the parameters of one part of a model folder, from its files' headers.

    Raises:
        RiebenchError: if there are no weights.
    """
    files = sorted(folder.glob("*.safetensors"))
    # A folder may hold the same weights in two formats; shards of one format belong together.
    half = [file for file in files if ".fp16" in file.name]
    chosen = half if half and len(half) < len(files) else files
    if not chosen:
        raise RiebenchError(f"{folder} holds no *.safetensors; fetch the model folder again")
    return sum(prod(shape) for file in chosen for shape in tensor_shapes(file).values())


def check_shapes(
    stored: Mapping[str, tuple[int, ...]], needed: Mapping[str, tuple[int, ...]], config: str, shown: str
) -> None:
    """Refuse weights of other shapes than their configuration gives them.

    Args:
        stored: tensor name -> shape in the files.
        needed: the same of the network that the configuration describes.
        config: where the configuration lies, for messages.
        shown: what the user called the model.

    Raises:
        RiebenchError: in one line, naming the first tensor.
    """
    for name in sorted(stored.keys() & needed.keys()):
        if tuple(stored[name]) != tuple(needed[name]):
            raise RiebenchError(
                f"{shown}: {config} gives {name} the shape {[*needed[name]]}, but the weights have {[*stored[name]]}"
            )


def check_tensor_names(
    part: str, stored: Iterable[str], needed: Iterable[str], config: str, shown: str, *, more: bool
) -> None:
    """Refuse weights that lack tensors, or hold tensors that nothing reads.

    Args:
        part: the folder of the weights.
        stored: names of the tensors in its files.
        needed: names of the tensors of the network that was built.
        config: where the configuration lies, for messages.
        shown: what the user called the model.
        more: allows tensors that nothing reads.

    Raises:
        RiebenchError: in one line, naming the first tensor.
    """
    have, wanted = set(stored), set(needed)
    missing, other = sorted(wanted - have), sorted(have - wanted)
    if missing:
        raise RiebenchError(f"{shown}: {part}/ lacks {len(missing)} tensors, such as {missing[0]}; download it again")
    if other and not more:
        raise RiebenchError(
            f"{shown}: {part}/ holds {len(other)} tensors that {config} has no place for, such as {other[0]}"
        )
