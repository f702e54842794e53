"""Single features: their activity, their effect, and switching them by hand.

    from riebench import features

    world = features.open("toy-turbo")
    picture = world.paint("a red house", seed=0, on={("up.0.1", 17): 3.0}, off=[("down.2.1", 5)], mask="house")

`activity` measures features, `study` makes the data and pictures of their pages, `inspect` reports on whole SAEs, and
`painter` generates pictures with features switched.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from riebench.features.painter import Painter
    from riebench.models.spec import ModelOptions

__all__ = ["open"]


def open(
    model: str,
    *,
    sae: str | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    device: str = "auto",
    dtype: str | None = None,
    offline: bool = False,
    options: ModelOptions | None = None,
    prompts: Sequence[str] | None = None,
) -> Painter:
    """Load a model and its SAEs, to generate pictures with features switched.

    See `riebench.features.painter.Painter`.

    Args:
        model: preset, folder, single file or hub id.
        sae: where the SAEs are, as `--sae` reads it; None for the model's own.
        steps: denoising steps; None for the model's.
        guidance: guidance scale; None for the model's.
        device: "cpu", "cuda", ..., or "auto".
        dtype: number format; None for the model's.
        offline: downloads nothing.
        options: picture side, autoencoder and placement.
        prompts: prompts that a feature's mean and largest value are measured on; None for `SAMPLE` prompts of the
            model's suite.

    Raises:
        RiebenchError: if there is no such model, or it cannot be loaded.
    """
    from riebench.features.painter import Painter
    from riebench.models.loading import load_model
    from riebench.utils.machine import pick_device

    loaded = load_model(
        model, steps=steps, guidance=guidance, dtype=dtype, device=pick_device(device), offline=offline,
        options=options,
    )  # fmt: skip
    return Painter(loaded, sae, prompts=prompts, offline=offline)
