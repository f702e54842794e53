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


ENGINES = ("local", "ray")
"""This process; workers on a Ray cluster."""


@dataclass(frozen=True)
class EngineOptions:
    """Where pictures are made; nothing of it moves a number but floating-point noise.

    Attributes:
        engine: a word of `ENGINES`.
        address: of a running Ray cluster; None starts one on this machine.
        workers: how many; None for one per GPU.
        shard: (i, n) for the i-th of n processes that share the work, each started on its own.

    Raises:
        RiebenchError: for an unknown word, or options that do not go together.
    """

    engine: str = "local"
    address: str | None = None
    workers: int | None = None
    shard: tuple[int, int] = (1, 1)

    def __post_init__(self) -> None:
        if self.engine not in ENGINES:
            raise RiebenchError(f"--engine {self.engine!r}{near_match(self.engine, ENGINES)}")
        if self.engine != "ray" and (self.address is not None or self.workers is not None):
            raise RiebenchError("--address and --workers belong to --engine ray")

    @property
    def sharded(self) -> bool:
        """Whether other processes make parts of the work."""
        return self.shard != (1, 1)


def parse_shard(text: str) -> tuple[int, int]:
    """Which part of the work a process does.

    Args:
        text: "I/N", the I-th of N parts, from 1.

    Raises:
        RiebenchError: if it is anything else.
    """
    first, _, second = text.partition("/")
    numbers = (int(first), int(second)) if first.isdecimal() and second.isdecimal() else (0, 0)
    if not 1 <= numbers[0] <= numbers[1]:
        raise RiebenchError(f"--shard {text!r}: write I/N for the I-th of N parts, such as 1/4 ... 4/4")
    return numbers


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
