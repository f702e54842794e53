"""What a model is loaded from, as plain data: it goes to other processes, where the model itself would not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from riebench.lookup import look_up
from riebench.options import ModelOptions
from riebench.profiles import DEFAULT, get_profile
from riebench.tasks.schema import EditTask, ModelSpec

if TYPE_CHECKING:
    from riebench.models import LoadedModel


@dataclass(frozen=True)
class ModelRecipe:
    """How to load a model; see `riebench.models.load_model` for what is not said here.

    Attributes:
        name: a preset, a folder, a single file or a hub id.
        steps: instead of the model's own.
        guidance: likewise.
        dtype: likewise.
        device: where it runs; "auto" is decided where it is loaded.
        offline: fetches nothing.
        options: how it is placed.
        profile: a name of `PROFILES`.
    """

    name: str
    steps: int | None = None
    guidance: float | None = None
    dtype: str | None = None
    device: str = "auto"
    offline: bool = False
    options: ModelOptions = field(default_factory=ModelOptions)
    profile: str = DEFAULT

    @property
    def spec(self) -> ModelSpec:
        """What is known of the model without loading it; its revision may be missing.

        Raises:
            RiebenchError: if the name stands for nothing.
        """
        found = look_up(self.name, steps=self.steps, guidance=self.guidance, dtype=self.dtype, options=self.options)
        return profiled(found.spec, self.profile)

    def load(self) -> LoadedModel:
        """The model in memory.

        Raises:
            RiebenchError: if it cannot be loaded, or there is no such device.
        """
        from riebench.models import load_model
        from riebench.utils.machine import pick_device

        model = load_model(
            self.name, steps=self.steps, guidance=self.guidance, dtype=self.dtype, device=pick_device(self.device),
            offline=self.offline, options=self.options,
        )  # fmt: skip
        return replace(model, spec=profiled(model.spec, self.profile))


def profiled(spec: ModelSpec, profile: str) -> ModelSpec:
    """A model's spec under a profile, whose pictures get a folder of their own if they are others."""
    if get_profile(profile).fixed_seed is None:
        return spec
    return spec.model_copy(update={"name": f"{spec.name}-{profile}", "fixed_noise": True})


def check_prompts(model: LoadedModel, tasks: Sequence[EditTask]) -> None:
    """Refuses prompts that the model would cut off.

    Raises:
        RiebenchError: naming the first of them.
    """
    from riebench.tasks.suites import check_prompt_lengths

    tokenizer = model.pipe.tokenizer
    limit = int(tokenizer.model_max_length)
    check_prompt_lengths(tasks, lambda prompt: len(tokenizer(prompt, verbose=False).input_ids), limit)
