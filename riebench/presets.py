"""Presets: models with the settings they are meant to be used with. Needs neither torch nor diffusers."""

from __future__ import annotations

from dataclasses import dataclass

from riebench.tasks.schema import ModelSpec

ASSET = "asset:"
"""What the source of a model that ships with the package starts with."""

DEFAULT_SCORER = "clip-l14"
"""The CLIP that scores pictures of weights that no preset names."""

SECOND_SCORER = "siglip2-b16"
"""The independent CLIP beside it: SDXL's own text encoder contains `DEFAULT_SCORER`."""


@dataclass(frozen=True)
class Preset:
    """A model with the settings it is meant to be used with.

    Attributes:
        name: what the user types.
        source: hub id, or "asset:NAME" for one that ships with the package.
        revision: commit of the hub; None for assets (their files are hashed).
        steps: denoising steps.
        guidance: classifier-free guidance scale; 0 means none.
        size: picture side in pixels.
        dtype: number format of U-Net and text encoders; the autoencoder always decodes in float32.
        scorer: the CLIP that scores its pictures.
        saes: where its SAEs are, as `riebench.saes.sources` reads it, or "asset:NAME".
        notes: what one should know before comparing its numbers.
    """

    name: str
    source: str
    revision: str | None
    steps: int
    guidance: float
    size: int
    dtype: str
    scorer: str
    saes: str | None
    notes: str

    @property
    def spec_source(self) -> str:
        """The source as a run's identity names it; shipped models are told apart by the hash of their files."""
        return f"riebench/{self.name}" if self.source.startswith(ASSET) else self.source


_SDXL_SAES = "hf://wendlerc/sdxl-turbo-saes#k=160"

PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        Preset("toy-turbo", "asset:toy-turbo", None, 4, 0.0, 64, "float32", "toy-clip", "asset:saes",
               "Small SDXL on rendered scenes, distilled: 1 to 4 steps without guidance."),
        Preset("toy-base", "asset:toy-base", None, 20, 2.0, 64, "float32", "toy-clip", "asset:saes",
               "Small SDXL on rendered scenes, 20 steps with guidance; the SAEs are those of toy-turbo."),
        Preset("sdxl-turbo", "stabilityai/sdxl-turbo", "71153311d3dbb46851df1931d3ca6e939de83304", 4, 0.0, 512,
               "float16", DEFAULT_SCORER, _SDXL_SAES,
               "1 to 4 steps without guidance; Stability AI Community License."),
        Preset("sdxl-base", "stabilityai/stable-diffusion-xl-base-1.0", "462165984030d82259a11f4367a4eed129e94a7b",
               20, 5.0, 1024, "float16", DEFAULT_SCORER, _SDXL_SAES,
               "20 steps with guidance 5; the SAEs were trained on one step of sdxl-turbo."),
    )
}  # fmt: skip
"""Preset name -> preset."""


def scorer_for(model: ModelSpec) -> str:
    """The CLIP that scores a model's pictures: that of the preset with the same weights, or `DEFAULT_SCORER`.

    The name is no guide: other steps or sizes than the preset's give the run another one.
    """
    scorers = {preset.spec_source: preset.scorer for preset in PRESETS.values()}
    return scorers.get(model.source, DEFAULT_SCORER)


def is_shipped(model: ModelSpec) -> bool:
    """Whether a model's weights are those of a preset that ships with the package."""
    return any(preset.spec_source == model.source for preset in PRESETS.values() if preset.source.startswith(ASSET))


def second_scorer_for(model: ModelSpec) -> str | None:
    """The CLIP that scores a model's pictures beside `scorer_for`; None for the toy world, which has one CLIP only."""
    return None if is_shipped(model) else SECOND_SCORER
