"""PixArt-Sigma's official models: presets, and relatives of another kind."""

from __future__ import annotations

from collections.abc import Mapping

from riebench.models.families.single_file import marks
from riebench.models.spec import DEFAULT_SCORER, Preset

PIPELINE = "PixArtSigmaPipeline"
STEPS, GUIDANCE = 20, 4.5


def _preset(name: str, repository: str, revision: str, size: int, notes: str) -> Preset:
    return Preset(
        name, f"PixArt-alpha/{repository}", revision, STEPS, GUIDANCE, size, "bfloat16", DEFAULT_SCORER, None, notes,
        family="pixart",
    )  # fmt: skip


PRESETS: tuple[Preset, ...] = (
    _preset("pixart-sigma", "PixArt-Sigma-XL-2-1024-MS", "e102b3591cc82e97071b8b4cb90d834d0c487207", 1024,
            "20 steps at guidance 4.5."),
    _preset("pixart-sigma-512", "PixArt-Sigma-XL-2-512-MS", "76fb7eb5a9314bc1e4e479d2f13447517fca9be4", 512,
            "512 px, 20 steps at guidance 4.5."),
)  # fmt: skip
"""The models for two sizes of pictures."""

REPOSITORIES = ("PixArt-alpha/PixArt-Sigma",)
"""Beginning of the hub ids of the official models."""
OTHER_PIPELINES: Mapping[str, str] = {
    "PixArtAlphaPipeline": "PixArt-alpha, which is told the size of the picture",
    "PixArtSigmaPAGPipeline": "PixArt-Sigma with perturbed-attention guidance",
}
"""Pipeline class -> what people call such models."""
OTHER_REPOSITORIES: Mapping[str, str] = {
    "PixArt-alpha/PixArt-XL": "PixArt-alpha", "PixArt-alpha/PixArt-LCM": "PixArt-alpha for few steps",
    "PixArt-alpha/PixArt-alpha": "PixArt-alpha",
}  # fmt: skip
"""Beginning of a hub id -> what lies there instead of a model of this family."""

SINGLE_FILE_MARKS = marks("blocks.0.mlp.fc1.", "adaln_single.emb.timestep_embedder.")
"""Beginnings of names in single files of its transformer: those of the first publication, and those of diffusers."""
SINGLE_FILE_REFUSAL = "diffusers' PixArtTransformer2DModel reads no single files"
"""Why such files are not read."""

REFUSED_METHODS: Mapping[str, str] = {
    "ledits_pp": "diffusers has LEDITS++ for Stable Diffusion and SDXL only",
    "p2p": "prompt-to-prompt pairs tokens between a start and an end as CLIP's are, and T5's have no start and a mask",
    "img2img": "diffusers has no image-to-image pipeline of PixArt-Sigma",
}
"""Method -> why it cannot work on this family."""
