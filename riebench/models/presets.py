"""Presets of families and of installed packages, and the CLIP for their pictures.

Needs neither torch nor diffusers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property

from riebench.errors import RiebenchError
from riebench.models.families.base import families
from riebench.models.spec import ASSET, DEFAULT_JUDGE, DEFAULT_SCORER, SECOND_SCORER, ModelSpec, Preset
from riebench.registry import MODEL_FAMILIES, MODEL_PRESETS, Package

SCORER_BYTES = {"clip-l14": 1_710_000_000, "siglip2-b16": 1_500_000_000, "dfn-l14": 1_710_000_000}
"""Scorer -> bytes of its weights, rounded."""
SAE_BYTES_PER_BLOCK = 4 * (2 * 1280 * 5120 + 1280 + 5120)
"""Bytes of one SAE with 5120 features on 1280 channels, in float32."""


class _Presets(Mapping[str, Preset]):
    """Mapping from preset name to preset, of all families and installed packages.

    Both are read when the mapping is first used. Presets of packages that fail to import are left out.
    """

    @cached_property
    def _found(self) -> dict[str, Preset]:
        found: dict[str, Preset] = {}
        for family in families():
            for preset in family.presets:
                if preset.name in found:
                    raise _taken(MODEL_FAMILIES.package(family.name), preset.name)
                found[preset.name] = preset
        added: dict[str, Preset] = MODEL_PRESETS.usable()
        for name in sorted(found.keys() & added.keys()):
            raise _taken(MODEL_PRESETS.package(name), name)
        return found | added

    def __getitem__(self, name: str) -> Preset:
        return self._found[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)


def _taken(package: Package | None, name: str) -> RiebenchError:
    return RiebenchError(
        f"the package {package} takes the name of the model preset {name!r}, which is there already; uninstall it, or "
        "use a version with another name"
    )


PRESETS: Mapping[str, Preset] = _Presets()
"""Preset name -> preset."""


def described_by() -> tuple[str, ...]:
    """Return the presets whose configurations can describe single files."""
    readable = (family for family in families() if family.single_file_marks and not family.single_file_refusal)
    return tuple(preset.name for family in readable for preset in family.presets if preset.on_hub)


def scorer_for(model: ModelSpec) -> str:
    """Return the CLIP that scores a model's pictures.

    It is that of the preset with the same weights, or `DEFAULT_SCORER`.

    The name is no guide: other steps or sizes than the preset's give the run another one.
    """
    scorers = {preset.spec_source: preset.scorer for preset in PRESETS.values()}
    return scorers.get(model.source, DEFAULT_SCORER)


def second_scorer_for(model: ModelSpec) -> str | None:
    """Return the independent CLIP that scores a model's pictures beside `scorer_for`.

    It is that of the preset with the same weights, which may have none, or `SECOND_SCORER`.
    """
    scorers = {preset.spec_source: preset.second_scorer for preset in PRESETS.values()}
    return scorers.get(model.source, SECOND_SCORER)


def judge_for(model: ModelSpec) -> str:
    """Return the shipped judge that reads a model's pictures.

    It is that of the preset with the same weights, or `DEFAULT_JUDGE`.
    """
    judges = {preset.spec_source: preset.judge for preset in PRESETS.values()}
    return judges.get(model.source, DEFAULT_JUDGE)


def is_shipped(model: ModelSpec) -> bool:
    """Return whether a model's weights ship with the package, as a preset's."""
    return any(preset.spec_source == model.source for preset in PRESETS.values() if preset.source.startswith(ASSET))


def sae_bytes_of_width(width: int) -> int:
    """Return the bytes of one SAE on a block of a given number of channels.

    The SAE has four features per channel.
    """
    return SAE_BYTES_PER_BLOCK * width**2 // 1280**2
