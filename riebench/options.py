"""How a model is loaded and placed: one small type for the command line, the loader and what only looks ahead."""

from __future__ import annotations

from dataclasses import dataclass

from riebench.errors import RiebenchError, near_match

OFFLOADS = ("none", "model", "sequential")
"""Everything on the device; one part at a time there; one layer at a time there."""
ATTENTIONS = ("default", "sliced", "math", "efficient", "flash")
"""PyTorch's own choice; head by head; or one of PyTorch's kernels, whatever it would have chosen."""
FP16_FIX = "fp16-fix"
"""Short name of the autoencoder that stays finite in half precision."""
TILE = 512
"""Side in pixels of the tiles in which `--vae-tiling` decodes."""


@dataclass(frozen=True)
class ModelOptions:
    """What `riebench run` may be told about a model beside its name, steps, guidance and number format.

    Attributes:
        size: picture side in pixels, instead of the preset's.
        config: for a single file, whose folder describes it: "sdxl-turbo", "sdxl-base", a folder or a hub id.
        vae: another autoencoder: "fp16-fix", a folder or a hub id. Part of a run's identity.
        offload: a word of `OFFLOADS`.
        vae_slicing: decodes one picture at a time; above 512 px that is done anyway.
        vae_tiling: decodes in tiles of 512 px, which changes pictures slightly. Part of a run's identity.
        attention: a word of `ATTENTIONS`.
        channels_last: lays the U-Net's and the autoencoder's convolutions out channels last.

    Raises:
        RiebenchError: for an unknown word; names the nearest.
    """

    size: int | None = None
    config: str | None = None
    vae: str | None = None
    offload: str = "none"
    vae_slicing: bool = False
    vae_tiling: bool = False
    attention: str = "default"
    channels_last: bool = False

    def __post_init__(self) -> None:
        for flag, word, known in (
            ("--offload", self.offload, OFFLOADS),
            ("--attention", self.attention, ATTENTIONS),
        ):
            if word not in known:
                raise RiebenchError(f"{flag} {word!r}{near_match(word, known)}")

    @property
    def placement(self) -> dict[str, str | bool]:
        """What moves no number but floating-point noise: for the notes of a run, never for its identity."""
        named: dict[str, str | bool] = {
            "offload": self.offload, "attention": self.attention, "vae_slicing": self.vae_slicing,
            "channels_last": self.channels_last,
        }  # fmt: skip
        usual = ModelOptions()
        return {name: value for name, value in named.items() if value != getattr(usual, name)}
