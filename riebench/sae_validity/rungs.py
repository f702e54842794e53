"""SAEs whose quality is known: rungs from an untrained SAE to the true dictionary.

`RUNGS` lists them, and `make_rungs` makes them for the one-step toy model, several training seeds each:

WORK/rungs.json                 settings of everything in the folder
WORK/updates/                   updates of training captions, as `riebench sae collect` writes them
WORK/pairs.pt, directions.pt, scenes.pt
                                updates of scenes whose attributes are known, and the true directions
WORK/RUNG/seed-S/               an SAE folder, as `riebench run --sae` takes it, with quality.json
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

from pydantic import ValidationError

from riebench.errors import IdentityError, RiebenchError, StoreError, near_match
from riebench.models.families.sdxl.names import BLOCKS
from riebench.models.loading import LoadedModel, load_model
from riebench.sae_validity.scenes import PairUpdates, SceneUpdates, pair_updates, scene_updates
from riebench.sae_validity.true_dictionary import (
    AGREEMENT,
    SIZE,
    ValueDirection,
    save_true,
    true_dictionary,
    value_directions,
)
from riebench.sae_validity.truth import ValueTruth, measure_truth
from riebench.saes.figures import SaeFigures
from riebench.saes.files import load_tensors, save_tensors
from riebench.saes.formats import folder_name, load_saes
from riebench.tasks.schema import Count, StoredModel
from riebench.toyworld.captions import training_captions
from riebench.toyworld.saes import FEATURES, K, configuration
from riebench.training.baselines import BASELINES, UNSEEDED, make_baseline, measure
from riebench.training.batches import DataPass, InMemoryPositions
from riebench.training.collect import CollectOptions, collect
from riebench.training.collection import Collection
from riebench.training.many import SAMPLE, train_many
from riebench.training.run import is_written
from riebench.training.settings import SaeTraining
from riebench.utils.files import content_digest, remove_stale_files, temporary_path, write_atomic
from riebench.utils.locks import whole_lock
from riebench.utils.terminal import print_line

MODELS = ("toy-turbo",)
"""Models whose scenes are known."""
CAPTIONS = 2000
"""Training captions whose updates are collected."""
BATCH, FULL_STEPS, EPOCHS = 1024, 600, 6
"""Positions a step and steps of the full training, and epochs that are enough for them.

Both are smaller than those of the shipped SAEs, since some thirty SAEs of each block are trained.
"""
DEAD_AFTER = 100_000
"""Idle positions after which a feature is dead, fewer than in the longer training of the shipped SAEs."""
SEED_STEP = 1000
"""Between the seeds of two trainings of a block; the first has that of the shipped SAE."""
SETTINGS, QUALITY = "rungs.json", "quality.json"
PAIR_SCENES, DIRECTION_SCENES, RANDOM_SCENES = 32, 24, 600
"""Scenes of each attribute for the true dictionary, the same for the true directions, and scenes to measure on."""
SCENE_SEED = 71


@dataclass(frozen=True)
class Rung:
    """One kind of SAE of known quality, as a member of one family.

    Attributes:
        name: of the SAE; one that belongs to several families is made once.
        family: rungs that are compared with each other.
        order: place in the family. In "training" quality rises with it; in "k" and "width" only the number does. None
            for families without an order.
        seeds: training seeds that are made; 1 where no seed changes anything.
    """

    name: str
    family: str
    order: int | None
    seeds: int


SEEDS = 3
_FULL = "full"
_STEPS = {"steps_2": 2, "steps_15": 15, "steps_60": 60, "steps_180": 180}
_K = {"k_4": 4, "k_8": 8, _FULL: K, "k_32": 32}
_WIDTHS = {"width_64": 64, "width_128": 128, _FULL: FEATURES, "width_1024": 1024}
_TRUE = "true_dictionary"
RUNGS: tuple[Rung, ...] = (
    *(Rung(name, "training", order, SEEDS) for order, name in enumerate(("random_init", *_STEPS, _FULL))),
    *(Rung(name, "k", order, SEEDS) for order, name in enumerate(_K)),
    *(Rung(name, "width", order, SEEDS) for order, name in enumerate(_WIDTHS)),
    *(Rung(name, "twin", None, SEEDS) for name in ("frozen_decoder", "frozen_encoder", "soft_frozen")),
    *(
        Rung(name, "dictionary", None, 1 if name in UNSEEDED else SEEDS)
        for name in ("pca", "ica", "random_orthogonal", "neurons")
    ),
    Rung(_TRUE, "truth", None, 1),
)
NAMES: tuple[str, ...] = tuple(dict.fromkeys(rung.name for rung in RUNGS))


class BlockQuality(StoredModel):
    """Figures of one block's SAE."""

    explained_variance: float
    """On positions held out of the training, as the two after it."""
    l0: float
    dead_share: float
    truth: float | None
    """Mean over the values that the block carries; None if it carries none. Likewise the two after it."""
    area: float | None
    cosine: float | None


class RungQuality(StoredModel):
    """The known quality of one rung's SAEs, measured without any edit."""

    rung: str
    training_seed: Count
    blocks: dict[str, BlockQuality]
    truth: float
    """Mean over all blocks and the values that each carries; likewise the two after it."""
    area: float
    cosine: float
    values: list[ValueTruth]


def make_rungs(
    work: Path,
    model: str = MODELS[0],
    *,
    seeds: Sequence[int] = tuple(range(SEEDS)),
    rungs: Sequence[str] | None = None,
) -> dict[tuple[str, int], Path]:
    """Make the SAEs of all rungs and measure their quality.

    Repeat the call to resume after an interruption.

    Args:
        work: folder for everything.
        model: one of `MODELS`.
        seeds: of the trainings. Rungs that no seed changes are made for the first alone.
        rungs: names; None for all of `NAMES`.

    Returns:
        Rung and training seed -> SAE folder.

    Raises:
        RiebenchError: for an unknown model or rung, or a work folder of other settings or in use.
    """
    names = NAMES if rungs is None else tuple(dict.fromkeys(rungs))
    unknown = [name for name in names if name not in NAMES]
    if unknown:
        raise RiebenchError(f"there is no rung {unknown[0]!r}{near_match(unknown[0], NAMES)}")
    if model not in MODELS:
        raise RiebenchError(f"the truth about the features of {model} is not known; take {', '.join(MODELS)}")
    if not seeds:
        raise RiebenchError("rungs need at least one training seed")
    single = {rung.name for rung in RUNGS if rung.seeds == 1}
    wanted = [(name, seed) for name in names for seed in (seeds[:1] if name in single else seeds)]
    work.mkdir(parents=True, exist_ok=True)
    with whole_lock(work):
        # A killed process may have left a partly written file.
        remove_stale_files(work)
        _claim(work, model)
        maker = _Maker(work, model)
        for name, seed in wanted:
            quality = maker.make(name, seed)
            print_line(quality_line(quality))
    return {(name, seed): _folder(work, name, seed) for name, seed in wanted}


def read_quality(folder: Path) -> RungQuality:
    """Read the quality of a rung's SAEs.

    Args:
        folder: as `make_rungs` returns it.

    Raises:
        RiebenchError: if the file is missing or damaged.
    """
    path = folder / QUALITY
    try:
        return RungQuality.model_validate_json(path.read_bytes())
    except FileNotFoundError as error:
        raise RiebenchError(f"{folder} is no finished rung; make it again") from error
    except ValidationError as error:
        raise StoreError(f"{path} is damaged; delete it to have it made again") from error


def quality_line(quality: RungQuality) -> str:
    """Return one line about a rung: truth, and means of the figures over blocks."""
    blocks = quality.blocks.values()
    return (
        f"{quality.rung:<18} seed {quality.training_seed}  truth {quality.truth:.3f}  area {quality.area:.3f}  "
        f"cosine {quality.cosine:.3f}  EV {fmean(one.explained_variance for one in blocks):.4f}  "
        f"L0 {fmean(one.l0 for one in blocks):5.2f}  dead {fmean(one.dead_share for one in blocks):.1%}"
    )


def _claim(work: Path, model: str) -> None:
    """Write the settings of a work folder, or compare them with those that it holds.

    Raises:
        IdentityError: if it holds rungs of other settings.
    """
    trainings = {name: _settings(name, 0, block)[0].stored_settings for name in NAMES for block in BLOCKS[:1]}
    settings = {
        "model": model, "captions": CAPTIONS, "epochs": EPOCHS, "seed_step": SEED_STEP, "trainings": trainings,
        "scenes": [PAIR_SCENES, DIRECTION_SCENES, RANDOM_SCENES, SCENE_SEED], "carried": [SIZE, AGREEMENT],
    }  # fmt: skip
    path = work / SETTINGS
    if not path.exists():
        write_atomic(path, (json.dumps(settings, indent=2) + "\n").encode())
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise StoreError(f"{path} is damaged; make the rungs in a new folder") from error
    if content_digest(stored) != content_digest(settings):
        raise IdentityError(f"{work} holds rungs of other settings ({path}); use another folder")


def _folder(work: Path, name: str, seed: int) -> Path:
    return work / name / f"seed-{seed}"


class _Maker:
    """The making of rungs in one work folder, which the caller has locked.

    Args:
        work: the folder.
        model: name of the model.
    """

    def __init__(self, work: Path, model: str) -> None:
        self._work, self._name = work, model
        self._rows: dict[str, InMemoryPositions] = {}

    @cached_property
    def _model(self) -> LoadedModel:
        return load_model(self._name, steps=1)

    @cached_property
    def _collection(self) -> Collection:
        folder = self._work / "updates"
        options = CollectOptions(BLOCKS, limit=CAPTIONS)
        return collect(self._model, training_captions(CAPTIONS), folder, options, known=CAPTIONS)

    @cached_property
    def _pairs(self) -> PairUpdates:
        """Pairs that the true dictionary is made from."""
        found = self._stored("pairs", [PAIR_SCENES], lambda seed: {
            "values": pair_updates(self._model, BLOCKS, PAIR_SCENES, seed=seed, held_out=False).values
        })  # fmt: skip
        return PairUpdates(found["values"])

    @cached_property
    def _directions(self) -> dict[str, list[ValueDirection]]:
        """True directions by block, from pairs that no dictionary is made from."""

        def computed(seed: int) -> dict[str, Any]:
            pairs = pair_updates(self._model, BLOCKS, DIRECTION_SCENES, seed=seed, held_out=True)
            return {block: [asdict(one) for one in value_directions(pairs, block)] for block in BLOCKS}

        found = self._stored("directions", [DIRECTION_SCENES, SIZE, AGREEMENT], computed)
        return {block: [ValueDirection(**one) for one in found[block]] for block in BLOCKS}

    @cached_property
    def _scenes(self) -> SceneUpdates:
        """Scenes that the truth is measured on."""

        def computed(seed: int) -> dict[str, Any]:
            scenes = scene_updates(self._model, BLOCKS, RANDOM_SCENES, seed=seed)
            return {"updates": scenes.updates, "labels": scenes.labels}

        found = self._stored("scenes", [RANDOM_SCENES], computed)
        return SceneUpdates(found["updates"], found["labels"])

    def _stored(self, name: str, settings: list[Any], compute: Callable[[int], dict[str, Any]]) -> dict[str, Any]:
        """Read a file of the work folder.

        It is computed first if there is none of these settings.
        """
        seed = SCENE_SEED + ("pairs", "directions", "scenes").index(name)
        identity = content_digest([self._model.spec.identity, seed, *settings])
        path = self._work / f"{name}.pt"
        stored: Any = load_tensors(path) if path.exists() else {}
        if stored.get("identity") != identity:
            stored = compute(seed) | {"identity": identity}
            temporary = temporary_path(path)
            save_tensors(stored, temporary)
            temporary.replace(path)
        return dict(stored)

    def make(self, name: str, seed: int) -> RungQuality:
        """Make one rung of one training seed, if it is not finished yet."""
        folder = _folder(self._work, name, seed)
        if not (folder / QUALITY).exists():
            figures = {block: self._block(name, seed, block, folder) for block in BLOCKS}
            values = measure_truth(load_saes(folder, BLOCKS), self._scenes, self._directions)
            quality = _quality(name, seed, figures, values)
            write_atomic(folder / QUALITY, (quality.model_dump_json(indent=2) + "\n").encode())
        return read_quality(folder)

    def _block(self, name: str, seed: int, block: str, folder: Path) -> SaeFigures:
        """Make the SAE of one block, if it is not finished, and measure it.

        It is measured on the positions held out.
        """
        config, plan = _settings(name, seed, block)
        data = self._positions(block)
        place = folder / folder_name(
            block, config.k, config.features, auxk=config.auxk, batch=plan.batch_size, rate=config.peak_rate
        )
        final, checkpoint = place / "final", folder / f"{block}.checkpoint"
        if not is_written(final):
            title = f"{name} seed {seed} {block}"
            if name == _TRUE:
                save_true(true_dictionary(self._pairs, block), plan.split(data)[0].read(0, SAMPLE), final, block)
            elif name in BASELINES:
                make_baseline(name, data, config, plan, final, block=block, checkpoint=checkpoint, title=title)
            else:
                trained = train_many(data, [config], plan, name=title, checkpoint=checkpoint, checkpoint_every=100)
                trained[0].save(final, block)
        checkpoint.unlink(missing_ok=True)
        return measure(final, plan.split(data)[1])

    def _positions(self, block: str) -> InMemoryPositions:
        if block not in self._rows:
            data = self._collection.data(block)
            self._rows[block] = InMemoryPositions(data.read(0, len(data)), data.rows_per_picture)
        return self._rows[block]


def _settings(name: str, seed: int, block: str) -> tuple[SaeTraining, DataPass]:
    """Return settings and order of one SAE's training.

    They are the shipped SAEs' but for its length and for what the rung changes.
    """
    usual, steps = configuration(block, _K.get(name, K)), _STEPS.get(name, FULL_STEPS)
    config = replace(
        usual, features=_WIDTHS.get(name, FEATURES), batch_size=BATCH, steps=steps, dead_after=DEAD_AFTER,
        seed=usual.seed + SEED_STEP * seed,
    )  # fmt: skip
    return config, DataPass(batch_size=BATCH, epochs=EPOCHS, steps=steps, seed=seed)


def _quality(name: str, seed: int, figures: Mapping[str, SaeFigures], values: Sequence[ValueTruth]) -> RungQuality:
    blocks = {}
    for block, measured in figures.items():
        truth, area, cosine = _means([one for one in values if one.block == block])
        blocks[block] = BlockQuality(
            explained_variance=measured.explained_variance, l0=measured.l0, dead_share=measured.dead_share, truth=truth,
            area=area, cosine=cosine,
        )  # fmt: skip
    truth, area, cosine = _means(values)
    return RungQuality(
        rung=name, training_seed=seed, blocks=blocks, truth=truth or 0.0, area=area or 0.0, cosine=cosine or 0.0,
        values=list(values),
    )  # fmt: skip


def _means(values: Sequence[ValueTruth]) -> tuple[float | None, float | None, float | None]:
    """Return means of truth, area and cosine; None where there are no values."""
    if not values:
        return None, None, None
    columns = zip(*((one.truth, one.area, one.cosine) for one in values), strict=True)
    truth, area, cosine = (round(fmean(column), 4) for column in columns)
    return truth, area, cosine
