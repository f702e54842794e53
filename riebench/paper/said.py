"""Settings as artefacts state them: exact, short, the same whenever the same thing was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from riebench.analysis.stats import BOOTSTRAP_SEED, REPLICATES
from riebench.models.presets import is_shipped
from riebench.models.spec import ModelSpec
from riebench.paper.artefact import Scalar
from riebench.paper.job import TOY_SEED, Noise, PaperJob
from riebench.saes.sae import SparseAutoencoder
from riebench.utils.files import content_digest

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
