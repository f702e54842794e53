"""`riebench sae feature`: from a block and some numbers to a folder of pages."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from riebench.errors import RiebenchError
from riebench.features.data import PAGE, SAMPLE
from riebench.models.spec import ModelOptions

if TYPE_CHECKING:
    from riebench.models.loading import LoadedModel
    from riebench.saes.sae import SparseAutoencoder

Say = Callable[[str], None]
STRENGTHS = (-1.0, 1.0, 2.0, 4.0, 8.0)
NO_SCORER = "none"


@dataclass(frozen=True)
class FeatureJob:
    """What `riebench sae feature` was asked for; the fields are its options."""

    block: str
    indices: tuple[int, ...]
    model: str = "toy-turbo"
    sae: str | None = None
    suite: str | None = None
    prompts: Path | None = None
    limit: int = SAMPLE
    seeds: tuple[int, ...] = (0,)
    strengths: tuple[float, ...] = STRENGTHS
    top: int = 8
    steps: int | None = None
    guidance: float | None = None
    scorer: str | None = None
    batch_size: int = 4
    device: str = "auto"
    dtype: str | None = None
    out: Path = Path("features")
    offline: bool = False
    options: ModelOptions = field(default_factory=ModelOptions)

    def run(self, say: Say) -> tuple[Path, ...]:
        """Makes the pages that are missing.

        Args:
            say: receives lines for people.

        Returns:
            The pages, then the overview.

        Raises:
            RiebenchError: for anything the user can mend, before anything is generated where that can be known.
        """
        from riebench.blocks import short_name
        from riebench.features.painter import check_index, feature_block
        from riebench.models.loading import load_model
        from riebench.saes.inspection import prompts_from, usual_suite
        from riebench.saes.sources import model_saes
        from riebench.utils.machine import pick_device

        short_name(self.block)
        texts = prompts_from(self.suite or usual_suite(self.model), self.prompts, self.limit)
        device = pick_device(self.device)
        say(f"loading {self.model} on {device}")
        model = load_model(
            self.model, steps=self.steps, guidance=self.guidance, dtype=self.dtype, device=device,
            offline=self.offline, options=self.options,
        )  # fmt: skip
        block = feature_block(self.block, model)
        saes = model_saes(self.sae, model, [block], offline=self.offline)
        for index in self.indices:
            check_index(index, block, saes[block])
        maker = PageMaker(self, texts, device)
        folders = maker.make(model, saes, {block: self.indices}, self.sae, say)
        return (*(folder / PAGE for folder in folders), self.out / PAGE)


@dataclass(frozen=True)
class PageMaker:
    """Makes pages with a job's options, whichever features they are of."""

    job: FeatureJob
    prompts: Sequence[str]
    device: str

    def make(
        self, model: LoadedModel, saes: Mapping[str, SparseAutoencoder], wanted: Mapping[str, Sequence[int]],
        source: str | None, say: Say,
    ) -> list[Path]:  # fmt: skip
        """Makes what is missing of some features, and writes all pages of the folder.

        Args:
            model: generates.
            saes: block -> SAE.
            wanted: block -> features.
            source: where the SAEs are; None for the model preset's own.
            say: receives lines for people.

        Returns:
            A folder for each feature.

        Raises:
            RiebenchError: as `FeatureJob.run`.
        """
        from riebench.features.study import Study, StudyOptions
        from riebench.generation.generator import Generator
        from riebench.models.presets import scorer_for
        from riebench.report.feature_pages import write_feature_pages
        from riebench.saes.statistics import stored_statistics
        from riebench.scoring.metrics.clip_models import ClipSpec, locate
        from riebench.scoring.metrics.networks import Networks

        job = self.job
        scorer = job.scorer or scorer_for(model.spec)
        if scorer != NO_SCORER:
            # Before minutes of pictures wait for a missing file.
            locate(ClipSpec.parse(scorer), offline=job.offline)
        options = StudyOptions(
            prompts=tuple(self.prompts), seeds=job.seeds, strengths=job.strengths, top=job.top,
            scorer=None if scorer == NO_SCORER else scorer, batch_size=job.batch_size,
        )  # fmt: skip
        networks = Networks(scorer, device=self.device, offline=job.offline)
        stated = {
            block: stored_statistics(source, model, block, sae, offline=job.offline) for block, sae in saes.items()
        }

        def stored(block: str, index: int) -> tuple[float | None, float | None]:
            mean, std = (None if one is None else float(one[index]) for one in stated[block])
            return mean, std

        study = Study(Generator(model, cached_prompts=2 * job.batch_size), options, networks)
        folders, new = study.run(saes, wanted, job.out, stored)
        write_feature_pages(job.out)
        say(f"{len(new)} of {len(folders)} features made, the others were there")
        return folders


def parse_indices(text: str) -> tuple[int, ...]:
    """Feature numbers with commas between.

    Raises:
        RiebenchError: if they are none, or one is named twice.
    """
    try:
        numbers = tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise RiebenchError(f"INDEX {text!r}: write feature numbers with commas between, as in 17,30") from error
    if len(set(numbers)) != len(numbers):
        raise RiebenchError(f"INDEX {text!r}: name each feature once")
    return numbers


def parse_strengths(text: str) -> tuple[float, ...]:
    """Strengths with commas between.

    Raises:
        RiebenchError: if they are none, one is named twice, or one is 0, which is there anyway.
    """
    try:
        strengths = tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise RiebenchError(f"--strengths {text!r}: write numbers with commas between, such as -1,1,4") from error
    # Files and tables name them by six digits.
    if len({f"{one:g}" for one in strengths}) != len(strengths) or not all(0 < abs(one) < 1e6 for one in strengths):
        raise RiebenchError(f"--strengths {text!r}: name each strength once, above 0 for on, below 0 for off")
    return strengths
