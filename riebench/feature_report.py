"""Pages of the features that a report's edits chose most often, made where the model is at hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from riebench.errors import RiebenchError
from riebench.feature_job import FeatureJob, PageMaker, Say
from riebench.models.presets import PRESETS
from riebench.models.spec import ModelOptions
from riebench.report.chosen import Wanted
from riebench.utils.files import file_inside

if TYPE_CHECKING:
    from riebench.models.loading import LoadedModel
    from riebench.models.spec import ModelSpec
    from riebench.saes.sae import SparseAutoencoder


@dataclass(frozen=True)
class ReportFeatures:
    """Makes the pages below a report's folder; a model that is not at hand is said to be so, and left out.

    Attributes:
        device: where to run.
        offline: fetches nothing.
        limit: prompts that features are looked at on.
        say: receives lines for people.
        scorer: the CLIP that measures; None for the model's own.
    """

    device: str
    offline: bool
    limit: int
    say: Say
    scorer: str | None = None

    def __call__(self, out: Path, wanted: Sequence[Wanted]) -> None:
        """Makes what is missing.

        Args:
            out: the folder of all pages.
            wanted: features by model and SAEs.
        """
        if not wanted:
            self.say("no run here switches features of SAEs, so there are none to make pages of")
        for one in wanted:
            try:
                self._make(out, one)
            except RiebenchError as error:
                self.say(f"no pages of features of {one.model.name}: {error}")

    def _make(self, out: Path, wanted: Wanted) -> None:
        from riebench.features.painter import check_index
        from riebench.saes.inspection import prompts_from, usual_suite
        from riebench.saes.sources import model_saes
        from riebench.utils.machine import pick_device

        # Results may come from anywhere, and so may the name that the pages would lie under.
        file_inside(out, wanted.model.name, "the model's name", "the folder of pages")
        device = pick_device(self.device)
        model = load_again(wanted.model, device, offline=self.offline)
        saes = model_saes(wanted.sae, model, wanted.features, offline=self.offline)
        _check_saes(saes, wanted)
        for block, indices in wanted.features.items():
            for index in indices:
                check_index(index, block, saes[block])
        job = FeatureJob("", (), out=out, device=self.device, offline=self.offline, scorer=self.scorer)
        prompts = prompts_from(usual_suite(wanted.model.name), None, self.limit)
        PageMaker(job, prompts, device).make(model, saes, wanted.features, wanted.sae, self.say)


def load_again(spec: ModelSpec, device: str, *, offline: bool = False) -> LoadedModel:
    """The model that made some results, if it is one that is known by name.

    Args:
        spec: what the results say of it.
        device: where it is to compute.
        offline: fetches nothing.

    Raises:
        RiebenchError: if it is not, cannot be loaded, or has changed since.
    """
    from riebench.models.loading import load_model

    preset = next((one for one in PRESETS.values() if one.spec_source == spec.source), None)
    if preset is None:
        raise RiebenchError(
            f"{spec.source} is no preset, so it is not known where it lies; `riebench sae feature BLOCK INDEX --model "
            "PLACE --out REPORT/features` makes them one by one"
        )
    options = ModelOptions(
        size=spec.size if spec.size != preset.size else None, vae=spec.vae, vae_tiling=spec.vae_tiling
    )
    model = load_model(
        preset.name, steps=spec.steps, guidance=spec.guidance, dtype=spec.dtype, device=device, offline=offline,
        options=options,
    )  # fmt: skip
    here = model.spec.model_copy(update={"fixed_noise": spec.fixed_noise})
    if here.identity != spec.identity:
        raise RiebenchError("its weights are not those that made these results")
    # Pages lie under the name that the results have.
    return replace(model, spec=spec)


def _check_saes(saes: dict[str, SparseAutoencoder], wanted: Wanted) -> None:
    other = [block for block, sae in saes.items() if sae.sha256 != wanted.sae_sha256[block]]
    if other:
        raise RiebenchError(f"the SAEs of {', '.join(other)} are not those that made these results")
