"""A model folder whose files state other things: every key of every configuration, one at a time, whatever the family.

`flips` lists one change of each key that a folder's files state, `write_flip` writes a copy of the folder with one of
them and weights that fit it where such a network can be built, and `check_flip` holds what riebench does with the copy
against the call of diffusers' own pipeline.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
import transformers
from numpy.typing import NDArray

from riebench.errors import RiebenchError
from riebench.generation.generator import Generator
from riebench.models.loading import LoadedModel, load_model
from riebench.models.spec import ModelOptions

INDEX = "model_index.json"
DESCRIPTIONS = ("config.json", "scheduler_config.json", "tokenizer_config.json")
"""Names of the file that describes a component, in its folder."""
UNSTATED = {"_class_name", "_diffusers_version", "architectures", "model_type", "transformers_version", "_name_or_path"}
"""Keys that say who wrote a file or repeat what model_index.json says."""
WORDS = {
    "silu": "gelu", "gelu": "relu", "relu": "gelu", "quick_gelu": "gelu", "gelu_new": "relu",
    "gelu_pytorch_tanh": "relu", "float32": "bfloat16", "exponential": "linear", "scaled_linear": "linear",
    "epsilon": "v_prediction", "left": "right", "right": "left", "trailing": "linspace", "leading": "trailing",
    "DownEncoderBlock2D": "AttnDownEncoderBlock2D", "UpDecoderBlock2D": "AttnUpDecoderBlock2D",
}  # fmt: skip
"""Word of a configuration -> another one that means something in its place."""
VALUES: dict[str, Any] = {
    "latents_mean": [0.5, -1.0, 2.0, 0.25], "latents_std": [2.0, 0.5, 3.0, 1.5], "shift_terminal": 0.1,
    "model_max_length": 12, "scale_factor": 2.0, "feed_forward_proj": "relu",
    **dict.fromkeys(("bos_token", "eos_token", "pad_token", "unk_token"), "!"),
}  # fmt: skip
"""Key -> its other value, where the usual one does not say what kind of value that is."""
PIXEL = 1 / 255 + 1e-6


@dataclass(frozen=True)
class Flip:
    """One key of one component's configuration with another value than usual."""

    component: str
    key: str
    value: Any

    def __str__(self) -> str:
        return f"{self.component}: {self.key}={json.dumps(self.value)}"


def description(folder: Path, component: str) -> Path | None:
    """The file that describes a component."""
    return next((path for name in DESCRIPTIONS if (path := folder / component / name).is_file()), None)


def flips(folder: Path) -> list[Flip]:
    """One change of each key that the files of a folder state."""
    index = json.loads((folder / INDEX).read_text())
    parts = [name for name, entry in index.items() if isinstance(entry, list) and (folder / name).is_dir()]
    found = [Flip(INDEX, name, [entry[0], None if entry[1] is None else "DDIMScheduler"])
             for name, entry in index.items() if isinstance(entry, list) and name in parts]  # fmt: skip
    found += [Flip(INDEX, name, other(name, value)) for name, value in index.items()
              if name not in UNSTATED and not isinstance(value, list)]  # fmt: skip
    for part in parts:
        file = description(folder, part)
        config = {} if file is None else json.loads(file.read_text())
        found += [Flip(part, key, other(key, value)) for key, value in config.items() if key not in UNSTATED]
    return found


def other(key: str, value: Any) -> Any:
    """Another value than a configuration has for a key."""
    if key in VALUES:
        return VALUES[key]
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return 2 * value if value else 1
    if isinstance(value, float):
        return 1.5 * value + 0.1
    if isinstance(value, str):
        return WORDS.get(value, "other")
    if isinstance(value, list) and value:
        return [*value[:-1], other("", value[-1])]
    return 1


def write_flip(folder: Path, flip: Flip, place: Path) -> Path:
    """Copy a folder with one change.

    Files that stay are links to those of the folder.
    """
    shutil.copytree(folder, place, copy_function=os.link)
    path = place / INDEX if flip.component == INDEX else description(place, flip.component)
    assert path is not None
    config = json.loads(path.read_text())
    config[flip.key] = flip.value
    text = json.dumps({key: value for key, value in config.items() if value not in (math.inf, -math.inf)})
    if flip.component != INDEX and path.name == "config.json":
        with contextlib.suppress(Exception):
            _write_network(place, flip.component, config)
    path.unlink(missing_ok=True)
    path.write_text(text)
    return place


def _write_network(place: Path, component: str, config: Mapping[str, Any]) -> None:
    library, name = json.loads((place / INDEX).read_text())[component]
    torch.manual_seed(0)
    if library == "diffusers":
        network = getattr(diffusers, name).from_config(dict(config)).eval()
    else:
        stated = {key: value for key, value in config.items() if key not in UNSTATED | {"dtype", "torch_dtype"}}
        made = transformers.AutoConfig.for_model(config["model_type"], **stated)
        network = getattr(transformers, name)(made).eval().float()
    network.save_pretrained(place / "new")
    shutil.rmtree(place / component)
    (place / "new").rename(place / component)


class FlipCheck:
    """Trial of the flips of one folder.

    Args:
        model: the folder as it is, loaded.
        arguments: of the pipeline's own call, as the case states them.
        prompts: one or several.
        seeds: one for each prompt.
    """

    def __init__(
        self, model: LoadedModel, arguments: Mapping[str, Any], prompts: Sequence[str], seeds: Sequence[int]
    ) -> None:
        self.model = model
        self.folder = Path(str(model.pipe.config["_name_or_path"]))
        self.arguments, self.prompts, self.seeds = dict(arguments), list(prompts), list(seeds)

    def failures(self, some: Sequence[Flip], place: Path) -> Iterator[str]:
        """What is wrong with each flip that is neither obeyed nor refused."""
        for number, flip in enumerate(some):
            copy = write_flip(self.folder, flip, place / str(number))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                problem = self.problem(copy, flip)
            shutil.rmtree(copy)
            if problem:
                yield f"{flip}: {problem}"

    def problem(self, copy: Path, flip: Flip) -> str:
        """What is wrong with one flip; empty if it is obeyed, or refused in one line that names key or file."""
        spec = self.model.spec
        try:
            model = load_model(
                str(copy), steps=spec.steps, guidance=spec.guidance, options=ModelOptions(size=spec.size)
            )
        except RiebenchError as error:
            line = str(error)
            named = flip.key in line or f"{flip.component}/" in line
            return "" if named and "\n" not in line else f"refused without its name: {line}"
        try:
            wanted = self._own(copy, flip, model)
        except Exception as error:
            return f"loaded, but the pipeline's own call fails ({type(error).__name__}: {error})"
        found = Generator(model).generate(self.prompts, self.seeds).images / 255
        if found.shape != wanted.shape:
            return f"pictures of {found.shape}, not {wanted.shape}"
        apart = float(np.abs(found - wanted).max())
        return "" if apart <= PIXEL else f"loaded, but pictures are {255 * apart:.0f} of 255 apart"

    def _own(self, copy: Path, flip: Flip, model: LoadedModel) -> NDArray[np.float32]:
        """The pictures of diffusers' own call on a copy; parts that did not change are those of the folder."""
        names = [name for name in self.model.pipe.components if name != flip.component]
        shared = {} if flip.component == INDEX else {name: self.model.pipe.components[name] for name in names}
        if "scheduler" in shared:
            # A scheduler holds the state of a run.
            shared["scheduler"] = type(shared["scheduler"]).from_config(shared["scheduler"].config)
        pipe = model.family.pipeline_type().from_pretrained(
            copy, **{**self._options(model), **shared, "dtype": torch.float32}
        )
        pipe.set_progress_bar_config(disable=True)
        arguments = self._guidance(flip)
        if "max_sequence_length" in arguments:
            arguments["max_sequence_length"] = model.family.token_limit(
                model.pipe, model.family.tokenizers(model.pipe)[0]
            )
        if "negative_prompt" in arguments:
            arguments["negative_prompt"] = [arguments["negative_prompt"]] * len(self.prompts)
        images: NDArray[np.float32] = pipe(
            # Some pipelines write into the list.
            list(self.prompts), num_inference_steps=model.spec.steps, height=model.spec.size, width=model.spec.size,
            generator=[torch.Generator("cpu").manual_seed(seed) for seed in self.seeds], output_type="np", **arguments,
        ).images  # fmt: skip
        return images

    def _guidance(self, flip: Flip) -> dict[str, Any]:
        """The arguments of the call, by what the model's guidance scale means in the copy."""
        scale = self.model.spec.guidance
        if flip.key != "guidance_embeds" or scale <= 1:
            return dict(self.arguments)
        # A transformer that is told the scale is called once a step, one that is not is called twice.
        twice = {"true_cfg_scale": scale, "negative_prompt": ""}
        told = {name: value for name, value in self.arguments.items() if name not in twice}
        return {**told, "guidance_scale": scale} if flip.value else {**told, **twice}

    def _options(self, model: LoadedModel) -> dict[str, Any]:
        unused = dict.fromkeys(name for name in model.family.unused_parts if name in model.pipe.components)
        return {**model.family.loading_options(), **unused}
