"""Shapes of the tensors that configurations describe.

The networks are built without memory for their weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from riebench.errors import RiebenchError
from riebench.models.families.folders import read_json

Shapes = Mapping[str, tuple[int, ...]]
"""Tensor name -> its shape."""


@dataclass(frozen=True)
class NetworkClass:
    """Class of one part of a model.

    Attributes:
        network: name of the class; of diffusers if `config` is empty, else of transformers.
        config: name of transformers' class of its configuration.
    """

    network: str
    config: str = ""

    def build(self, stated: Mapping[str, Any]) -> Any:
        """Build the network that a configuration describes."""
        if not self.config:
            import diffusers

            return getattr(diffusers, self.network).from_config(dict(stated))
        import transformers

        return getattr(transformers, self.network)(getattr(transformers, self.config)(**stated))


AUTOENCODER = NetworkClass("AutoencoderKL")
CLIP, CLIP_PROJECTED = (
    NetworkClass("CLIPTextModel", "CLIPTextConfig"), NetworkClass("CLIPTextModelWithProjection", "CLIPTextConfig"),
)  # fmt: skip
T5 = NetworkClass("T5EncoderModel", "T5Config")


def config_shapes(config: Path, network: NetworkClass) -> Shapes:
    """Return the tensors of a network as its configuration describes them.

    Args:
        config: file of the configuration.
        network: class of the network.

    Raises:
        RiebenchError: if no network can be built from the configuration.
    """
    import torch

    stated = read_json(config)
    try:
        with torch.device("meta"):
            built = network.build(stated)
    except Exception as error:
        # Each library has errors of its own for what a configuration may hold.
        why = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise RiebenchError(f"{config} describes no network that can be built: {why}") from error
    return {name: tuple(value.shape) for name, value in built.state_dict().items()}
