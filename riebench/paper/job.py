"""The request behind `riebench paper`, and what it loads, caches and describes.

A `PaperJob` holds the options, keeps loaded models in memory and finished rows on disk. The functions below it load the
SAEs that a user names, describe models, SAEs and prompts in an artefact's settings, and make the keys under which
measured rows are cached.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from riebench.analysis.stats import BOOTSTRAP_SEED, REPLICATES
from riebench.errors import RiebenchError
from riebench.models.presets import is_shipped
from riebench.models.spec import ModelOptions, ModelSpec
from riebench.paper.artefact import ArtefactSettings, Row, Scalar, round_row
from riebench.saes.formats import checkpoint_at, checkpoints_by_block
from riebench.saes.sae import SparseAutoencoder
from riebench.saes.sources import SaeSource, check_width, sources_of
from riebench.scoring.profiles import DEFAULT
from riebench.store.records import noise_seed
from riebench.tasks.suites import default_model, load_suite
from riebench.utils.files import content_digest, write_atomic

if TYPE_CHECKING:
    from riebench.models.loading import LoadedModel


PARTS = "parts"
STEP_COUNTS = (1, 4)
"""Step counts at which a few-step model is measured by default."""
PROMPTS = 100
"""Number of prompts of one measured artefact without --limit."""
TOY_SEED = 241_022_366
"""Seed of the toy world's captions, of scenes that nothing was trained on."""
MANY_STEP_PARTNERS: dict[str, str] = {"toy-turbo": "toy-base", "sdxl-turbo": "sdxl-base"}
"""Few-step preset -> the many-step model that goes with it."""
INTERVAL_TEXT = (
    "95 %, bootstrap over prompts, studentised for means and percentiles for explained variance, "
    f"{REPLICATES} replicates, seed {BOOTSTRAP_SEED}"
)
HASH_DIGITS = 12
"""Number of printed digits of a hash."""


def _quiet(_line: str) -> None:
    """Ignore a line of progress."""


@dataclass(frozen=True)
class PaperJob:
    """Inputs and outputs of artefacts; most fields are options of `riebench paper`.

    Attributes:
        out: folder for documents, tables, figures and data.
        work: folder for intermediate results that are kept: trained SAEs, results of short runs.
        suite: a shipped suite, or a folder of task files.
        model: the few-step model; None for the suite's.
        base: the many-step model; None for the few-step preset's partner, "none" for none.
        sae: one SAE for each block, as `riebench.saes.sources` reads them; None for the model's own.
        sweep: SAEs of several k and widths; None for those of `sae`, or on the toy world for SAEs trained by the job.
        results: stored results of `riebench run`.
        profile: scoring profile whose numbers are read from the results.
        prompts: a text file with one prompt on each line.
        features: number of features of each block that an artefact on single features draws; None for its own.
        labels: a CSV file with labels of features; None for labels found in pictures or prompts.
        limit: prompts of a measured artefact, and examples of each category of one that runs the benchmark.
        seeds: noise indices of each prompt.
        steps: step counts of the few-step model.
        guidance: of the many-step model; None for its own.
        blocks: only these blocks, by short name; empty for all that an artefact looks at.
        device: device of all computations, "cpu" or "cuda"; never "auto" here.
        dtype: number format; None for the model's own.
        batch_size: pictures at a time; None for what device and free memory allow.
        redo: whether stored measurements are repeated.
        offline: whether downloads are forbidden.
        options: model loading options.
        say: receives lines of progress.
    """

    out: Path = Path("paper")
    work: Path = Path("paper-work")
    suite: str = "toy"
    model: str | None = None
    base: str | None = None
    sae: str | None = None
    sweep: str | None = None
    results: Path = Path("results")
    profile: str = DEFAULT
    prompts: Path | None = None
    features: int | None = None
    labels: Path | None = None
    limit: int | None = None
    seeds: tuple[int, ...] = (0,)
    steps: tuple[int, ...] = STEP_COUNTS
    guidance: float | None = None
    blocks: tuple[str, ...] = ()
    device: str = "cpu"
    dtype: str | None = None
    batch_size: int | None = None
    redo: bool = False
    offline: bool = False
    options: ModelOptions = field(default_factory=ModelOptions)
    say: Callable[[str], None] = field(default=_quiet, compare=False)
    _loaded: dict[str, LoadedModel] = field(default_factory=dict, compare=False, repr=False)

    @property
    def few_step_model(self) -> str:
        """Few-step model under the name that the user would give it."""
        return self.model or default_model(self.suite)

    @property
    def many_step_model(self) -> str | None:
        """Many-step model; None if there is none."""
        if self.base == "none":
            return None
        return self.base or MANY_STEP_PARTNERS.get(self.few_step_model)

    def load(self, name: str, steps: int | None = None, guidance: float | None = None) -> LoadedModel:
        """Load a model once and keep it in memory.

        Args:
            name: `few_step_model` or `many_step_model`.
            steps: step count that replaces the model's own.
            guidance: guidance that replaces the model's own.

        Raises:
            RiebenchError: as `riebench.models.loading.load_model`.
        """
        from riebench.models.loading import load_model

        if name not in self._loaded:
            self.say(f"loading {name} on {self.device}")
            self._loaded[name] = load_model(
                name, dtype=self.dtype, device=self.device, offline=self.offline, options=self.options
            )
        model = self._loaded[name]
        changes = {key: value for key, value in (("steps", steps), ("guidance", guidance)) if value is not None}
        return replace(model, spec=model.spec.model_copy(update=changes))

    def named_prompts(self, spec: ModelSpec, count: int = PROMPTS) -> list[tuple[str, str]]:
        """Return the prompts of a measured artefact, each with a name.

        The name seeds the prompt's noise and is the unit of resampling. Prompts are the lines of `prompts`; or, on the
        toy world, captions of scenes that nothing was trained on; or source prompts of the suite, evenly drawn, one of
        each cluster.

        Args:
            spec: the few-step model.
            count: number of prompts without --limit.

        Returns:
            Pairs of name and prompt.

        Raises:
            RiebenchError: if the file or the suite holds no prompt.
        """
        limit = self.limit or count
        if self.prompts is not None:
            from riebench.features.inspect import prompts_from

            lines = list(dict.fromkeys(prompts_from(self.suite, self.prompts, limit)))
            return [(f"prompt-{number:04d}", line) for number, line in enumerate(lines)]
        if self.suite == "toy" and is_shipped(spec):
            return toy_captions(limit)
        clusters = {
            example.cluster or example.id: (example.id, example.plain.source)
            for task in load_suite(self.suite) for example in task.examples
        }  # fmt: skip
        found = list(dict.fromkeys(clusters.values()))
        return [found[i * len(found) // limit] for i in range(limit)] if len(found) > limit else found

    def samples(self, texts: Sequence[tuple[str, str]]) -> list[PromptSample]:
        """Return every prompt with every seed."""
        return [
            PromptSample(name, text, index, noise_seed(name, index)) for name, text in texts for index in self.seeds
        ]

    def cached_rows(self, artefact: str, key: Mapping[str, Any], compute: Callable[[], list[Row]]) -> list[Row]:
        """Return the rows stored under a key, or compute and store them.

        Args:
            artefact: name of the artefact, and of the folder of its rows.
            key: everything that affects a number of the rows, as plain data.
            compute: makes the rows.

        Raises:
            RiebenchError: if a stored file is damaged.
        """
        return self.cached_parts(artefact, [key], lambda _missing: [(0, compute())])[0]

    def cached_parts(
        self,
        artefact: str,
        keys: Sequence[Mapping[str, Any]],
        compute: Callable[[list[int]], Iterable[tuple[int, list[Row]]]],
    ) -> list[list[Row]]:
        """Return the rows of several parts that are computed together.

        Each part is cached as by `cached_rows`.

        Args:
            artefact: see `cached_rows`.
            keys: one for each part.
            compute: receives the indices of the missing parts and yields the rows of each as they are finished.

        Raises:
            RiebenchError: if a stored file is damaged.
        """
        paths = [self.out / "data" / PARTS / artefact / f"{content_digest(dict(key))[:16]}.json" for key in keys]
        found = {number: _load_rows(path) for number, path in enumerate(paths) if path.exists() and not self.redo}
        missing = [number for number in range(len(keys)) if number not in found]
        for number, rows in compute(missing) if missing else ():
            found[number] = [round_row(row) for row in rows]
            data = {"key": dict(keys[number]), "rows": found[number]}
            text = json.dumps(data, indent=1, sort_keys=True, allow_nan=False)
            write_atomic(paths[number], f"{text}\n".encode())
        return [found[number] for number in range(len(keys))]


@dataclass(frozen=True)
class PromptSample:
    """Prompt and noise of one generated picture.

    Attributes:
        name: of its prompt; the unit of resampling.
        prompt: text of the prompt.
        index: number of the seed as the user counts seeds.
        seed: of its noise.
    """

    name: str
    prompt: str
    index: int
    seed: int


def toy_captions(count: int) -> list[tuple[str, str]]:
    """Return captions of toy scenes that are held out from all training.

    A larger count begins with the captions of a smaller one.

    Args:
        count: number of captions, all distinct.

    Returns:
        Pairs of name and caption.
    """
    import random

    from riebench.toyworld.captions import caption
    from riebench.toyworld.scenes import random_scene

    rng = random.Random(TOY_SEED)
    found: list[str] = []
    while len(found) < count:
        text = caption(random_scene(rng, held_out=True), rng)
        if text not in found:
            found.append(text)
    return [(f"held-out-{number:04d}", text) for number, text in enumerate(found)]


def _load_rows(path: Path) -> list[Row]:
    """Load the rows of a stored part."""
    try:
        rows: list[Row] = json.loads(path.read_text(encoding="utf-8"))["rows"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RiebenchError(f"{path} is damaged ({error}); delete it and repeat the command") from error
    return rows


@dataclass(frozen=True)
class BlockSae:
    """SAE and the block it belongs to.

    Attributes:
        block: short name of the block.
        sae: on the model's device.
    """

    block: str
    sae: SparseAutoencoder


def load_block_saes(job: PaperJob, model: LoadedModel, blocks: Sequence[str]) -> list[BlockSae]:
    """Load every SAE of these blocks that the user names or the model has.

    Returns:
        SAEs sorted by block, width and k.

    Raises:
        RiebenchError: if there is none, one does not fit the model, or one does not say what it was trained on.
    """
    from riebench.features.inspect import load_all

    found = []
    sources = [root for one in sources_of(job.sweep or job.sae, model) for root in _sae_roots(one, offline=job.offline)]
    for path, sae in load_all(sources, offline=job.offline):
        if sae.block is None:
            raise RiebenchError(f"{path} does not say which block it is for; write BLOCK={path}")
        if sae.block not in blocks:
            continue
        check_width(sae, sae.block, model)
        if sae.signal is None:
            raise RiebenchError(f"{path} does not say what it was trained on; add #signal=update or #signal=output")
        found.append(BlockSae(sae.block, sae.to(model.device)))
    if not found:
        where = job.sweep or job.sae or model.spec.name
        raise RiebenchError(f"no SAE for {', '.join(blocks)} in {where}; name others with --sae or --sweep")
    return sorted(found, key=lambda one: (list(blocks).index(one.block), one.sae.n, one.sae.k or 0))


def _sae_roots(source: SaeSource, *, offline: bool) -> list[SaeSource]:
    """Return a source, or the roots of SAEs below its folder.

    A training of several widths gives each width a root of its own.
    """
    path = source.locate(offline=offline)
    if (
        not path.is_dir()
        or checkpoint_at(path, source.options) is not None
        or checkpoints_by_block(path, source.options)
    ):
        return [source]
    below = [
        child for child in sorted(path.iterdir()) if child.is_dir() and checkpoints_by_block(child, source.options)
    ]
    return [replace(source, place=str(child)) for child in below] or [source]


def model_text(spec: ModelSpec) -> str:
    """Describe a model in a line: name, source, revision, size, number format."""
    parts = [f", U-Net {spec.unet}" if spec.unet else "", *(f", LoRA {lora}" for lora in spec.loras)]
    parts += [f", autoencoder {spec.vae}" if spec.vae else "", ", tiled" if spec.vae_tiling else ""]
    beside = "".join(parts)
    revision = (spec.revision or "unknown")[:HASH_DIGITS]
    return f"{spec.name} ({spec.source} @ {revision}, {spec.size} px, {spec.dtype}{beside})"


def steps_text(spec: ModelSpec) -> str:
    """Describe the steps and the guidance of a model's runs."""
    return f"{spec.steps} step{'s' if spec.steps > 1 else ''}, guidance {spec.guidance:g}"


def sae_text(sae: SparseAutoencoder) -> str:
    """Describe an SAE in a line: k, width, hash.

    What it reads is added if that is not the block's update.
    """
    usual = sae.reads == sae.signal == "update"
    reads = "" if usual else f", reads the block's {sae.reads}, reconstructs its {sae.signal}"
    return f"k {sae.k}, width {sae.n}, sha256 {sae.sha256[:HASH_DIGITS]}{reads}"


def block_sae_texts(saes: Mapping[str, SparseAutoencoder]) -> dict[str, Scalar]:
    """Describe the SAE of each block, see `sae_text`."""
    return {block: sae_text(sae) for block, sae in saes.items()}


def prompt_settings(job: PaperJob, spec: ModelSpec, samples: Sequence[PromptSample]) -> ArtefactSettings:
    """Return the settings of an artefact on prompts, seeds and intervals."""
    texts = list(dict.fromkeys((sample.name, sample.prompt) for sample in samples))
    if job.prompts is not None:
        source = f"lines of {job.prompts.name}"
    elif job.suite == "toy" and is_shipped(spec):
        source = f"captions of toy scenes that nothing was trained on, drawn with seed {TOY_SEED}"
    else:
        source = f"source prompts of the suite {job.suite}, evenly drawn, one of each cluster"
    return {
        "prompts": f"{len(texts)}: {source}; sha256 {content_digest(texts)[:HASH_DIGITS]}",
        "seeds of each prompt": list(job.seeds),
        "intervals": INTERVAL_TEXT,
    }


def samples_key(samples: Sequence[PromptSample]) -> str:
    """Return a hash of the prompts and noises of a measurement, for its cache key."""
    return content_digest([[sample.name, sample.prompt, sample.seed] for sample in samples])


def sae_key(saes: Mapping[str, SparseAutoencoder]) -> dict[str, Any]:
    """Return hash, k and width of the SAE of each block, for a cache key."""
    return {block: [sae.sha256, sae.k, sae.n] for block, sae in saes.items()}
