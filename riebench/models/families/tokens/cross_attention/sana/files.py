"""SANA's official models: presets, and relatives of another kind.

Revisions of SANA-Sprint are not pinned, since they were not at hand: a run takes the newest and records its commit.
"""

from __future__ import annotations

from collections.abc import Mapping

from riebench.models.families.single_file import FileLayout
from riebench.models.spec import DEFAULT_SCORER, Preset

PIPELINE, SPRINT_PIPELINE = "SanaPipeline", "SanaSprintPipeline"
OWNER = "Efficient-Large-Model"
STEPS, GUIDANCE, SPRINT_STEPS = 20, 4.5, 2


def _preset(name: str, repository: str, revision: str, size: int, notes: str) -> Preset:
    return Preset(
        name, f"{OWNER}/{repository}", revision, STEPS, GUIDANCE, size, "bfloat16", DEFAULT_SCORER, None, notes,
        family="sana",
    )  # fmt: skip


PRESETS: tuple[Preset, ...] = (
    _preset("sana", "Sana_1600M_1024px_BF16_diffusers", "e18f82ddb8233fa4d979c2613f41a3ca4c5fc730", 1024,
            "1.6B parameters, 20 steps at guidance 4.5."),
    _preset("sana-512", "Sana_1600M_512px_diffusers", "e58e81ec2dc4faf305122872313884df3afeffa8", 512,
            "1.6B parameters at 512 px, 20 steps at guidance 4.5."),
    _preset("sana-0.6b", "Sana_600M_1024px_diffusers", "b3ddc862873249650ed9f6ba90e92ede3083bb0d", 1024,
            "0.6B parameters, 20 steps at guidance 4.5."),
    _preset("sana-0.6b-512", "Sana_600M_512px_diffusers", "83d7a190bfd1fd070570a793d2dab5c7a3231b9d", 512,
            "0.6B parameters at 512 px, 20 steps at guidance 4.5."),
)  # fmt: skip
"""The models of two sizes for two sizes of pictures."""


def _sprint(name: str, repository: str, revision: str | None, notes: str) -> Preset:
    return Preset(
        name, f"{OWNER}/{repository}", revision, SPRINT_STEPS, GUIDANCE, 1024, "bfloat16", DEFAULT_SCORER, None, notes,
        family="sana-sprint",
    )  # fmt: skip


SPRINT_PRESETS: tuple[Preset, ...] = (
    _sprint("sana-sprint", "Sana_Sprint_1.6B_1024px_diffusers", None, "1.6B parameters, 1 to 4 steps, told scale 4.5."),
    _sprint("sana-sprint-0.6b", "Sana_Sprint_0.6B_1024px_diffusers", "a7d9fc31dd5c3f5e22dbfd78360777ceed56ae97",
            "0.6B parameters, 1 to 4 steps, told scale 4.5."),
)  # fmt: skip
"""The models distilled to few steps."""

REPOSITORIES: tuple[str, ...] = (f"{OWNER}/Sana_1600M", f"{OWNER}/Sana_600M", f"{OWNER}/SANA1.5")
"""Beginnings of hub ids of SANA's official models."""
SPRINT_REPOSITORIES: tuple[str, ...] = (f"{OWNER}/Sana_Sprint",)

OTHER_PIPELINES: Mapping[str, str] = {
    "SanaControlNetPipeline": "SANA with control pictures",
    "SanaPAGPipeline": "SANA with perturbed-attention guidance",
    "SanaSprintImg2ImgPipeline": "SANA-Sprint from pictures",
    "SanaVideoPipeline": "SANA for videos",
    "SanaImageToVideoPipeline": "SANA for videos",
}
"""Pipeline class -> what people call such models."""
OTHER_REPOSITORIES: Mapping[str, str] = {f"{OWNER}/SANA-Video": "SANA for videos"}
"""Beginning of a hub id -> what lies there instead of a model of this family."""

REFUSED_METHODS: Mapping[str, str] = {
    "ledits_pp": "diffusers has LEDITS++ for Stable Diffusion and SDXL only",
    "p2p": "prompt-to-prompt takes over self-attention too, and SANA's is linear: it has no attention to take over",
    "img2img": "diffusers has no image-to-image pipeline of SANA",
}
"""Method -> why it cannot work on SANA."""
SPRINT_REFUSED_METHODS: Mapping[str, str] = {
    **REFUSED_METHODS,
    "img2img": "diffusers' image-to-image pipeline of SANA-Sprint counts the steps of a strength otherwise than this "
    "method",
}
"""The same of SANA-Sprint."""

LAYOUT = FileLayout(("blocks.0.mlp.inverted_conv.", "transformer_blocks.0.ff.conv_inverted."), ("blocks.",))
"""Single files hold the transformer alone."""
