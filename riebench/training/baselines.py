"""Control dictionaries, with which a trained SAE is compared.

`make_baselines` makes them from collected activations. All are SAE folders that `riebench run --sae` reads.

- `random_init` is the SAE at the start of its training.
- `frozen_decoder`, `frozen_encoder` and `soft_frozen` are twins of the trained SAE, after arXiv 2602.14111. They see
  the same batches for as many steps, start from the same directions and have the same settings, but a part is frozen:
  see `riebench.training.settings.SaeTraining.frozen`. There only decoders are softly frozen, here encoders too.
- `pca`, `ica`, `random_orthogonal` and `neurons` are no SAEs: principal components, independent components, a random
  rotation, and the channels themselves. Each direction becomes two features, one for each sign, so that values are
  never negative; the k largest of a position are kept, as by the trained SAE.

OUT/training.json               data, order and settings: the same for the whole folder
OUT/KIND/NAME/final/            one dictionary; `--sae OUT/KIND` takes those of all blocks
OUT/baselines.jsonl             a line per finished dictionary: explained variance, L0, dead share on positions held out
OUT/KIND-BLOCK.checkpoint       while a twin is trained
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import torch
from pydantic import ValidationError
from torch import Tensor

from riebench.errors import RiebenchError, StoreError
from riebench.saes.figures import FeatureStatistics, Meter, SaeFigures, StatisticsSum
from riebench.saes.formats import load_sae, save_sdxl_unbox
from riebench.saes.sae import Signal
from riebench.training.batches import Batches, DataPass, Positions
from riebench.training.collection import Collection, damaged_error
from riebench.training.many import SAMPLE, STATISTICS, train_many
from riebench.training.model import MEDIAN_OF, SaeTrainer, geometric_median, save
from riebench.training.run import SaeLine, TrainingRun, claim, is_written
from riebench.training.settings import Frozen, SaeTraining
from riebench.utils.files import append_lines, read_lines, remove_stale_files, repair_last_line
from riebench.utils.locks import whole_lock
from riebench.utils.terminal import print_note

Baseline = Literal[
    "random_init", "frozen_decoder", "frozen_encoder", "soft_frozen", "pca", "ica", "random_orthogonal", "neurons"
]
BASELINES: tuple[Baseline, ...] = get_args(Baseline)
TWINS: dict[str, Frozen] = {"frozen_decoder": "decoder", "frozen_encoder": "encoder", "soft_frozen": "soft"}
"""Trained control -> what is frozen in it."""
UNSEEDED: tuple[Baseline, ...] = ("pca", "neurons")
"""Those that a seed does not change."""

LINES = "baselines.jsonl"
SMALLEST_VARIANCE = 1e-6
"""Independent components: share of the largest variance below which a direction counts as empty."""
ICA_ITERATIONS = 200
ICA_TOLERANCE = 1e-4
CHECKPOINT_EVERY = 200
"""Steps between two states of a twin's training."""
_CHUNK = 8192


class BaselineLine(SaeLine):
    """One finished control dictionary."""

    baseline: str


@dataclass(frozen=True)
class Dictionary:
    """Directions with the encoder that reads their values.

    Attributes:
        encoder: [m, d]; `encoder @ (x - center)` are the values.
        directions: [m, d], unit rows.
        center: [d], mean of the data.
    """

    encoder: Tensor
    directions: Tensor
    center: Tensor

    def both_signs(self) -> Dictionary:
        """Return the dictionary of 2m features whose values are not negative."""
        pairs = [torch.cat([part, -part]) for part in (self.encoder, self.directions)]
        return Dictionary(pairs[0], pairs[1], self.center)


def make_baselines(
    collection: Collection,
    blocks: Sequence[str],
    kinds: Sequence[str],
    run: TrainingRun,
    say: Callable[[str], None] | None = None,
) -> list[BaselineLine]:
    """Make control dictionaries of each block.

    Repeat the call to resume after an interruption; kinds and blocks may be added to a folder.

    Args:
        collection: the activations.
        blocks: the blocks; none for all that were collected.
        kinds: which controls, of `BASELINES`.
        run: settings of the one SAE that they are controls of, and the output folder.
        say: gets lines about what is finished.

    Returns:
        One line for each block and kind.

    Raises:
        RiebenchError: if a block was not collected, a shard is damaged, data are short, k is too large for a kind, or
            the folder holds something else or is in use.
    """
    if len(run.configs) != 1:
        raise RiebenchError("controls are made for one k, one width and one kind of SAE at a time")
    config = run.configs[0]
    names = collection.own_names(blocks)
    data = {block: collection.data(block, run.signal) for block in names}
    for positions in data.values():
        steps = run.plan.steps_of(run.plan.split(positions)[0])
        _check_k(kinds, config.k, positions.width)
    run.out.mkdir(parents=True, exist_ok=True)
    with whole_lock(run.out):
        remove_stale_files(run.out)
        claim(run, collection, data)
        done = _finished(run.out)
        damaged = {} if run.trust else collection.damaged(names, progress=run.progress)
        if damaged:
            raise damaged_error(collection.folder, damaged)
        for block, positions in data.items():
            for kind in kinds:
                if (kind, block) in done:
                    _tell(say, f"{kind} {block}: finished before")
                    continue
                place = replace(run, out=run.out / kind).place(block, config)
                figures = make_baseline(
                    kind, positions, config, run.plan, place / "final", block=block, signal=run.signal,
                    device=run.device, progress=run.progress, checkpoint=run.out / f"{kind}-{block}.checkpoint",
                )  # fmt: skip
                line = _line(kind, block, config, figures, str(place.relative_to(run.out)), steps, positions.width)
                append_lines(run.out / LINES, [line.model_dump_json()])
                (run.out / f"{kind}-{block}.checkpoint").unlink(missing_ok=True)
                done[kind, block] = line
                _tell(say, f"{kind} {block}: explained variance {line.explained_variance:.4f}, L0 {line.l0:.4g}")
    return [done[kind, block] for kind in kinds for block in names]


def make_baseline(
    kind: str,
    data: Positions,
    config: SaeTraining,
    plan: DataPass,
    folder: Path,
    *,
    block: str | None = None,
    signal: Signal = "update",
    device: torch.device | None = None,
    progress: bool = True,
    checkpoint: Path | None = None,
    title: str = "",
) -> SaeFigures:
    """Make one control dictionary of one block and write its folder.

    Args:
        kind: one of `BASELINES`.
        data: the activations.
        config: settings of the SAE that it is a control of; batch size and steps are the plan's.
        plan: batch size, steps, held-out positions and order of that SAE's training.
        folder: gets the files.
        block: the block.
        signal: what the data are.
        device: where to train and to compute.
        progress: shows bars.
        checkpoint: file for the state of a twin's training; the caller deletes it.
        title: of the bar; kind and block if there is none.

    Returns:
        Explained variance, L0 and dead share on the positions held out.

    Raises:
        RiebenchError: if data are short, or k is too large.
    """
    if kind in TWINS:
        twin = replace(config, frozen=TWINS[kind])
        trained = train_many(
            data, [twin], plan, device=device, name=title or f"{kind} {block or ''}".strip(),
            progress=progress, checkpoint=checkpoint, checkpoint_every=CHECKPOINT_EVERY,
        )[0]  # fmt: skip
        trained.save(folder, block, signal)
        return trained.figures
    training, held_out = plan.split(data)
    where = device or torch.device("cpu")
    batches = Batches(training, plan)
    sample = batches.sample(SAMPLE).float()
    if kind == "random_init":
        settings = replace(config, batch_size=plan.batch_size, steps=batches.steps)
        model = SaeTrainer(sample, settings, geometric_median(sample[:MEDIAN_OF])).to(where)
        model.eval().requires_grad_(False)
        model.set_threshold(part.to(where) for part in sample.split(plan.batch_size))
        save(model, _statistics(model.codes, training, where), folder, block, signal, steps=0)
    else:
        found = make_dictionary(kind, sample, config.seed).both_signs()
        _check_k([kind], config.k, len(found.directions) // 2)
        save_dictionary(found, training, folder, kind=kind, k=config.k, seed=config.seed, signal=signal, device=where)
    return measure(folder, held_out, where)


def make_dictionary(kind: str, sample: Tensor, seed: int = 0) -> Dictionary:
    """Compute a dictionary that is no SAE.

    Args:
        kind: pca, ica, random_orthogonal or neurons.
        sample: [N, d], positions.
        seed: of a random rotation, or of the start of the independent components.

    Raises:
        RiebenchError: for another kind.
    """
    sample = sample.float()
    d, center = sample.shape[1], sample.mean(dim=0)
    generator = torch.Generator().manual_seed(seed)
    if kind == "pca":
        rows = principal_components(sample)[1]
    elif kind == "random_orthogonal":
        rows = torch.linalg.qr(torch.randn(d, d, generator=generator))[0].T
    elif kind == "neurons":
        rows = torch.eye(d)
    elif kind == "ica":
        return independent_components(sample[:MEDIAN_OF], generator)
    else:
        raise RiebenchError(f"{kind!r} is no fixed dictionary; those are pca, ica, random_orthogonal and neurons")
    return Dictionary(rows.contiguous(), rows.contiguous(), center)


def principal_components(sample: Tensor) -> tuple[Tensor, Tensor]:
    """Compute principal components.

    Args:
        sample: [N, d].

    Returns:
        Variances [d], largest first, and the unit directions [d, d] that have them.
    """
    centred = sample.double() - sample.double().mean(dim=0)
    values, vectors = torch.linalg.eigh(centred.T @ centred / len(sample))
    return values.flip(0).clamp(min=0).float(), vectors.T.flip(0).float()


def independent_components(sample: Tensor, generator: torch.Generator) -> Dictionary:
    """Compute independent components by symmetric FastICA with the log cosh contrast.

    Directions of almost no variance are left out. Values are in units of the data, along unit directions.

    Args:
        sample: [N, d].
        generator: of the random start.
    """
    center = sample.mean(dim=0)
    variances, components = principal_components(sample)
    kept = variances > SMALLEST_VARIANCE * variances[0]
    deviations, components = variances[kept].sqrt(), components[kept]
    white = (sample - center) @ (components / deviations[:, None]).T
    m = len(deviations)
    unmixing = _decorrelated(torch.randn(m, m, generator=generator))
    for _ in range(ICA_ITERATIONS):
        bounded = torch.tanh(white @ unmixing.T)
        moved = bounded.T @ white / len(white) - (1 - bounded.square()).mean(dim=0)[:, None] * unmixing
        moved = _decorrelated(moved)
        change = float(((moved * unmixing).sum(dim=1).abs() - 1).abs().max())
        unmixing = moved
        if change < ICA_TOLERANCE:
            break
    else:
        print_note(f"independent components still changed by {change:.1g} after {ICA_ITERATIONS} iterations")
    encoder = unmixing @ (components / deviations[:, None])
    directions = unmixing @ (components * deviations[:, None])
    lengths = directions.norm(dim=1, keepdim=True)
    return Dictionary(encoder * lengths, directions / lengths, center)


def save_dictionary(
    dictionary: Dictionary,
    data: Positions,
    folder: Path,
    *,
    kind: str,
    k: int,
    seed: int = 0,
    signal: Signal = "update",
    device: torch.device | None = None,
) -> None:
    """Write a fixed dictionary as a top-k SAE in the layout of sdxl-unbox.

    Args:
        dictionary: with values that are not negative where they are kept.
        data: positions that the features' statistics are computed over.
        folder: gets the files.
        kind: which control it is, for the record.
        k: features kept per position.
        seed: for the record.
        signal: what the data are.
        device: where to compute.
    """
    where = device or torch.device("cpu")
    encoder, center = dictionary.encoder.to(where), dictionary.center.to(where)

    def codes(x: Tensor) -> Tensor:
        values, indices = ((x - center) @ encoder.T).topk(k, dim=1, sorted=False)
        return torch.zeros(len(x), len(encoder), device=where).scatter(1, indices, values.relu())

    found = _statistics(codes, data, where)
    extra = {"baseline": {"kind": kind, "seed": seed}, **({} if signal == "update" else {"signal": signal})}
    save_sdxl_unbox(
        folder, encoder=dictionary.encoder, decoder=dictionary.directions.T, pre_bias=dictionary.center,
        latent_bias=torch.zeros(len(encoder)), k=k, auxk=0, mean=found.mean, std=found.std, extra=extra,
    )  # fmt: skip


def measure(folder: Path, held_out: Positions, device: torch.device | None = None) -> SaeFigures:
    """Measure a stored SAE on positions.

    Args:
        folder: of the SAE.
        held_out: the positions.
        device: where to compute.
    """
    where = device or torch.device("cpu")
    meter = Meter(load_sae(folder).to(where))
    for start in range(0, len(held_out), _CHUNK):
        meter.add(held_out.read(start, min(start + _CHUNK, len(held_out))).float().to(where))
    return meter.figures()


@torch.no_grad()
def _statistics(codes: Callable[[Tensor], Tensor], data: Positions, device: torch.device) -> FeatureStatistics:
    found = StatisticsSum()
    for start in range(0, min(len(data), STATISTICS), _CHUNK):
        found.add(codes(data.read(start, min(start + _CHUNK, len(data), STATISTICS)).float().to(device)))
    return found.result()


def _decorrelated(rows: Tensor) -> Tensor:
    """Return the orthogonal matrix that is nearest to a square one."""
    left, _, right = torch.linalg.svd(rows)
    return left @ right


def _check_k(kinds: Sequence[str], k: int, width: int) -> None:
    fixed = [kind for kind in kinds if kind not in TWINS and kind != "random_init"]
    if fixed and k > width:
        raise RiebenchError(f"{fixed[0]} has at most {width} directions, so it cannot keep k = {k}; lower --k")


def _finished(out: Path) -> dict[tuple[str, str], BaselineLine]:
    repair_last_line(out / LINES)
    done = {}
    for number, entry in read_lines(out / LINES):
        try:
            line = BaselineLine.model_validate(entry)
        except ValidationError as error:
            raise StoreError(f"{out / LINES}, line {number} describes no dictionary; delete that line") from error
        if is_written(out / line.folder / "final"):
            done[line.baseline, line.block] = line
    return done


def _line(
    kind: str, block: str, config: SaeTraining, figures: SaeFigures, folder: str, steps: int, width: int
) -> BaselineLine:  # fmt: skip
    fixed = kind not in TWINS and kind != "random_init"
    done = steps if kind in TWINS else 0
    return BaselineLine(
        baseline=kind, block=block, kind="topk" if fixed else config.kind, k=config.k,
        features=2 * width if fixed else config.features, folder=folder,
        explained_variance=figures.explained_variance, l0=figures.l0, dead_share=figures.dead_share,
        held_out=figures.positions, steps=done, positions=done * config.batch_size,
    )  # fmt: skip


def _tell(say: Callable[[str], None] | None, line: str) -> None:
    if say is not None:
        say(line)
