"""What `riebench paper` was asked for, and what it keeps: models in memory, finished rows on the disk."""

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
from riebench.paper.artefact import Row, Scalar, rounded
from riebench.saes.formats import available, checkpoint_at
from riebench.saes.sae import SparseAutoencoder
from riebench.saes.sources import SaeSource, check_width, sources_of
from riebench.scoring.profiles import DEFAULT
from riebench.store.records import noise_seed
from riebench.tasks.suites import default_model, load_suite
from riebench.utils.files import content_digest, write_atomic

if TYPE_CHECKING:
    from riebench.models.loading import LoadedModel


PARTS = "parts"
FEW_STEPS = (1, 4)
"""Step counts at which a few-step model is measured."""
PROMPTS = 100
"""Prompts of one measured artefact, unless --limit says otherwise."""
TOY_SEED = 241_022_366
"""Draws the toy world's captions: of scenes that nothing was trained on."""
MANY_STEPS: dict[str, str] = {"toy-turbo": "toy-base", "sdxl-turbo": "sdxl-base"}
"""Few-step preset -> the many-step model that goes with it."""


def _quiet(_line: str) -> None:
    """Says nothing."""


@dataclass(frozen=True)
class PaperJob:
    """What artefacts are made of and where they go; most fields are options of `riebench paper`.

    Attributes:
        out: where documents, tables, figures and data go.
        work: where what is made on the way goes and stays: trained SAEs, results of short runs.
        suite: a shipped suite, or a folder of task files.
        model: the few-step model; None for the suite's.
        base: the many-step model; None for the few-step preset's partner, "none" for none.
        sae: one SAE a block, as `riebench.saes.sources` reads them; None for the model's own.
        sweep: SAEs of several k and widths; None for those of `sae`, and on the toy world for some trained on the way.
        results: stored results of `riebench run`.
        profile: whose scores are read from them.
        prompts: a text file with a prompt a line.
        limit: prompts of a measured artefact, and examples of each category of one that runs the benchmark.
        seeds: which noises of each prompt.
        steps: step counts of the few-step model.
        guidance: of the many-step model; None for its own.
        blocks: only these blocks, by short name; empty for all that an artefact looks at.
        device: where it runs, "cpu" or "cuda"; never "auto" here.
        dtype: number format; None for the model's own.
        batch_size: pictures at a time; None for what device and free memory allow.
        redo: measures again what is there.
        offline: fetches nothing.
        options: how models are loaded.
        say: receives lines for people.
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
    limit: int | None = None
    seeds: tuple[int, ...] = (0,)
    steps: tuple[int, ...] = FEW_STEPS
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
    def few_steps(self) -> str:
        """The few-step model as the user would name it."""
        return self.model or default_model(self.suite)

    @property
    def many_steps(self) -> str | None:
        """The many-step model, if there is one."""
        if self.base == "none":
            return None
        return self.base or MANY_STEPS.get(self.few_steps)

    def load(self, name: str, steps: int | None = None, guidance: float | None = None) -> LoadedModel:
        """A model, read once and kept.

        Args:
            name: `few_steps` or `many_steps`.
            steps: instead of its own.
            guidance: likewise.

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

    def texts(self, spec: ModelSpec) -> list[tuple[str, str]]:
        """The prompts of a measured artefact, each with a name that seeds its noise and is resampled.

        Lines of `prompts`; or, on the toy world, captions of scenes that nothing was trained on; or source prompts of
        the suite, evenly drawn, one of each cluster.

        Args:
            spec: the few-step model.

        Raises:
            RiebenchError: if the file or the suite gives none.
        """
        limit = self.limit or PROMPTS
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

    def runs(self, texts: Sequence[tuple[str, str]]) -> list[Noise]:
        """Every prompt with every seed."""
        return [Noise(name, text, index, noise_seed(name, index)) for name, text in texts for index in self.seeds]

    def part(self, artefact: str, key: Mapping[str, Any], compute: Callable[[], list[Row]]) -> list[Row]:
        """Rows of one piece of work: those kept under this key, or newly computed and kept.

        Args:
            artefact: whose work it is; the folder's name.
            key: everything that moves a number of the rows, as plain data.
            compute: makes the rows.

        Raises:
            RiebenchError: if a kept file is damaged.
        """
        return self.parts(artefact, [key], lambda _missing: [(0, compute())])[0]

    def parts(
        self,
        artefact: str,
        keys: Sequence[Mapping[str, Any]],
        compute: Callable[[list[int]], Iterable[tuple[int, list[Row]]]],
    ) -> list[list[Row]]:
        """As `part`, for pieces that are computed together.

        Args:
            artefact: see `part`.
            keys: one per piece.
            compute: gets the numbers of the pieces that are missing and gives each one's rows as they come.
        """
        paths = [self.out / "data" / PARTS / artefact / f"{content_digest(dict(key))[:16]}.json" for key in keys]
        found = {number: _kept(path) for number, path in enumerate(paths) if path.exists() and not self.redo}
        missing = [number for number in range(len(keys)) if number not in found]
        for number, rows in compute(missing) if missing else ():
            found[number] = [rounded(row) for row in rows]
            data = {"key": dict(keys[number]), "rows": found[number]}
            text = json.dumps(data, indent=1, sort_keys=True, allow_nan=False)
            write_atomic(paths[number], f"{text}\n".encode())
        return [found[number] for number in range(len(keys))]


@dataclass(frozen=True)
class Noise:
    """One generation.

    Attributes:
        name: of its prompt; the unit that is resampled.
        prompt: what is generated.
        index: which seed, as the user counts them.
        seed: of its noise.
    """

    name: str
    prompt: str
    index: int
    seed: int


def toy_captions(count: int) -> list[tuple[str, str]]:
    """Captions of the toy world whose scenes are kept from all training, always the same ones first."""
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


def _kept(path: Path) -> list[Row]:
    try:
        rows: list[Row] = json.loads(path.read_text(encoding="utf-8"))["rows"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RiebenchError(f"{path} is damaged ({error}); delete it and repeat the command") from error
    return rows


INTERVALS = f"95 %, percentile bootstrap over prompts, {REPLICATES} replicates, seed {BOOTSTRAP_SEED}"
HASH = 12
"""Digits of a hash that are printed."""
Said = dict[str, Scalar | list[Scalar] | dict[str, Scalar]]


def model_words(spec: ModelSpec) -> str:
    """A model in a line: name, source, revision, size, number format."""
    beside = "".join([f", autoencoder {spec.vae}" if spec.vae else "", ", tiled" if spec.vae_tiling else ""])
    return f"{spec.name} ({spec.source} @ {(spec.revision or 'unknown')[:HASH]}, {spec.size} px, {spec.dtype}{beside})"


def run_words(spec: ModelSpec) -> str:
    """How a model was run."""
    return f"{spec.steps} step{'s' if spec.steps > 1 else ''}, guidance {spec.guidance:g}"


def sae_words(saes: Mapping[str, SparseAutoencoder]) -> dict[str, Scalar]:
    """SAEs by block: k, width, hash."""
    return {block: sae_line(sae) for block, sae in saes.items()}


def sae_line(sae: SparseAutoencoder) -> str:
    """One SAE: k, width, hash."""
    return f"k {sae.k}, width {sae.n}, sha256 {sae.sha256[:HASH]}"


def prompt_words(job: PaperJob, spec: ModelSpec, runs: Sequence[Noise]) -> Said:
    """Prompts, seeds and intervals."""
    texts = list(dict.fromkeys((run.name, run.prompt) for run in runs))
    if job.prompts is not None:
        source = f"lines of {job.prompts.name}"
    elif job.suite == "toy" and is_shipped(spec):
        source = f"captions of toy scenes that nothing was trained on, drawn with seed {TOY_SEED}"
    else:
        source = f"source prompts of the suite {job.suite}, evenly drawn, one of each cluster"
    return {
        "prompts": f"{len(texts)}: {source}; sha256 {content_digest(texts)[:HASH]}",
        "seeds of each prompt": list(job.seeds),
        "intervals": INTERVALS,
    }


def runs_key(runs: Sequence[Noise]) -> str:
    """What the prompts and noises of a measurement are told apart by."""
    return content_digest([[run.name, run.prompt, run.seed] for run in runs])


def sae_key(saes: Mapping[str, SparseAutoencoder]) -> dict[str, Any]:
    """What the SAEs of a measurement are told apart by."""
    return {block: [sae.sha256, sae.k, sae.n] for block, sae in saes.items()}


@dataclass(frozen=True)
class Labelled:
    """An SAE of a block."""

    block: str
    sae: SparseAutoencoder


def given(job: PaperJob, model: LoadedModel, blocks: Sequence[str]) -> list[Labelled]:
    """Every SAE of these blocks that the user names, or that the model has: by block, width and k.

    Raises:
        RiebenchError: if there is none, one does not fit the model, or one was not trained on updates.
    """
    from riebench.features.inspect import load_all

    found = []
    places = [root for one in sources_of(job.sweep or job.sae, model) for root in _roots(one, offline=job.offline)]
    for path, sae in load_all(places, offline=job.offline):
        if sae.block is None:
            raise RiebenchError(f"{path} does not say which block it is for; write BLOCK={path}")
        if sae.block not in blocks:
            continue
        check_width(sae, sae.block, model)
        if sae.signal != "update":
            raise RiebenchError(f"{path} was not trained on block updates as far as it says; add #signal=update if so")
        found.append(Labelled(sae.block, sae.to(model.device)))
    if not found:
        where = job.sweep or job.sae or model.spec.name
        raise RiebenchError(f"no SAE for {', '.join(blocks)} in {where}; name others with --sae or --sweep")
    return sorted(found, key=lambda one: (list(blocks).index(one.block), one.sae.n, one.sae.k or 0))


def _roots(source: SaeSource, *, offline: bool) -> list[SaeSource]:
    """A place, or the roots below it: a training of several widths gives each width a root of its own."""
    path = source.locate(offline=offline)
    if not path.is_dir() or checkpoint_at(path, source.options) is not None or available(path, source.options):
        return [source]
    below = [child for child in sorted(path.iterdir()) if child.is_dir() and available(child, source.options)]
    return [replace(source, place=str(child)) for child in below] or [source]
