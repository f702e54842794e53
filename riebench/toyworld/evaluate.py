"""The measurement of every figure of the toy world's model card.

All figures are measured on scenes that no model was trained on.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import open_clip
import torch
from numpy.typing import NDArray
from PIL import Image

from riebench.generation.edits import Edit, StaticEdit, Term
from riebench.generation.generator import Capture, Generator
from riebench.generation.trace import Trace
from riebench.methods.editors import REACH, attack
from riebench.models.assets import asset_folder
from riebench.models.clip import SCORERS, load_open_clip
from riebench.models.families.sdxl.names import BLOCKS
from riebench.models.loading import LoadedModel, load_model
from riebench.models.presets import judge_for
from riebench.saes.formats import load_saes
from riebench.scoring.metrics.clip import ClipScorer
from riebench.scoring.metrics.judge_network import ATTRIBUTES, JUDGES, UNREADABLE_LABEL, Judge, Values
from riebench.scoring.metrics.lpips import LpipsModel
from riebench.toyworld.captions import caption
from riebench.toyworld.data import held_out_scenes
from riebench.toyworld.render import render
from riebench.toyworld.scenes import CATEGORY_ATTRIBUTE, Scene, random_edit
from riebench.utils.terminal import ProgressBar

SAE_K = 16
"""k of the SAEs that exist for all four blocks."""
INNER_BLOCKS = ("down.2.0", "down.2.1", "mid.0", "up.0.0", "up.0.1", "up.0.2")
CLIPS = {"clip": "toy-clip", "clip_2": "toy-clip-2"}
"""Beginning of a figure's key -> the CLIP that it is of."""
ATTACK_ROUNDS = 10
"""Gradients that an attack takes, as the method `adversarial`."""
Images = NDArray[np.uint8]
Figures = dict[str, Any]

BARS: dict[str, float] = {
    "judge_renders": 0.98, "base_accuracy": 0.90, "turbo4_accuracy": 0.88, "turbo1_accuracy": 0.82, "clip_top1": 0.90,
    "clip_2_top1": 0.90, "block_effect": 0.02, "patch_reach": 0.60, "sae_ev_1step": 0.80,
}  # fmt: skip
"""Figure -> the least it must be for the toy world to be fit for the benchmark."""


@dataclass(frozen=True)
class Sizes:
    """The sizes of the measurement; `limited` shrinks all of them for a quick look.

    Attributes:
        renders: pictures for the judge.
        captions: captions for the accuracies.
        clip_pictures: pictures for each CLIP.
        attacks: edits for which a CLIP is attacked.
        effect_captions: captions for the block effects.
        pairs: source/target pairs a category.
        sae_captions: captions for the explained variance, in one and four steps.
        sae_base_captions: the same for toy-base.
        batch: pictures a batch.
    """

    renders: int = 2000
    captions: int = 500
    clip_pictures: int = 500
    attacks: int = 90
    effect_captions: int = 200
    pairs: int = 30
    sae_captions: int = 200
    sae_base_captions: int = 40
    batch: int = 50

    @classmethod
    def limited(cls, limit: int | None) -> Sizes:
        """Return the sizes with at most `limit` of each; None for no limit."""
        full = cls()
        if limit is None:
            return full
        return cls(**{name: min(limit, value) for name, value in vars(full).items()})


def evaluate(limit: int | None = None) -> Figures:
    """Measure every figure.

    Args:
        limit: at most so many pictures, captions and pairs each, for a quick look.

    Returns:
        The figures, keyed as in `BARS` where there is a bar; the rest is detail.
    """
    sizes = Sizes.limited(limit)
    figures: Figures = {"limit": limit}
    started = time.perf_counter()
    turbo, base = load_model("toy-turbo"), load_model("toy-base")
    load_saes(asset_folder("saes"), BLOCKS, k=SAE_K)
    Judge.load()
    for name in CLIPS.values():
        load_clip(name)
    figures["load_seconds"] = round(time.perf_counter() - started, 2)
    figures |= judge_figures(sizes)
    figures |= clip_figures(sizes) | clip_figures(sizes, "clip_2") | attack_figures(sizes)
    turbo1 = load_model("toy-turbo", steps=1)
    for key, model in (("turbo1", turbo1), ("turbo4", turbo), ("base", base)):
        figures |= accuracy_figures(key, model, sizes)
    figures |= speed_figures(turbo1)
    figures |= block_effects(turbo, sizes)
    figures |= patch_figures(turbo, sizes)
    figures |= sae_figures({"1step": turbo1, "4step": turbo, "base": base}, sizes)
    return figures


def share_right(found: NDArray[np.int64], scenes: Sequence[Scene]) -> dict[str, float]:
    """Return the share of scenes whose value is found, by attribute.

    Args:
        found: int [N, 8], value indices in the order of `ATTRIBUTES`.
        scenes: N scenes.
    """
    true = np.array([scene.labels() for scene in scenes])
    return {name: round(float((found[:, i] == true[:, i]).mean()), 4) for i, name in enumerate(ATTRIBUTES)}


def judge_figures(sizes: Sizes, judge: str = "judge") -> Figures:
    """Measure a judge on held-out renders of its world.

    The figures are the share of attributes that it reads, and its accuracy among these.
    """
    scenes = held_out_scenes(sizes.renders, seed=901, values=JUDGES[judge])
    images = np.stack(
        [render(scene, 9_000_000 + i).image for i, scene in enumerate(ProgressBar(scenes, title="judge"))]
    )
    found, true = Judge.load(judge).labels(images), np.array([scene.labels() for scene in scenes])
    read = found != UNREADABLE_LABEL
    by_attribute = {
        name: round(float((found == true)[read[:, i], i].mean()), 4) if read[:, i].any() else 0.0
        for i, name in enumerate(ATTRIBUTES)
    }
    return {
        "judge_renders": round(float((found == true)[read].mean()), 4), "judge_by_attribute": by_attribute,
        "judge_renders_read": {name: round(float(read[:, i].mean()), 4) for i, name in enumerate(ATTRIBUTES)},
    }  # fmt: skip


def load_clip(asset: str) -> tuple[Any, Any, Any]:
    """Load a toy CLIP by open_clip's own factory: model, transform, tokenizer."""
    name = f"local-dir:{asset_folder(asset)}"
    model, transform = open_clip.create_model_from_pretrained(name)
    return model.eval(), transform, open_clip.get_tokenizer(name)  # the factory returns it in training mode


def clip_figures(sizes: Sizes, key: str = "clip", asset: str | None = None, values: Values = ATTRIBUTES) -> Figures:
    """Measure the share of renders whose caption a toy CLIP finds among 100.

    Args:
        sizes: pictures to measure.
        key: of `CLIPS`.
        asset: the CLIP's; None is that of `CLIPS`.
        values: those of its world.
    """
    scenes = held_out_scenes(sizes.clip_pictures, seed=903, values=values)
    images = np.stack([render(scene, 9_100_000 + i).image for i, scene in enumerate(scenes)])
    top1, near_misses = choose_captions(asset or CLIPS[key], scenes, images, values)
    return {f"{key}_top1": top1, f"{key}_near_misses": near_misses}


def choose_captions(
    asset: str, scenes: Sequence[Scene], images: Images, values: Values = ATTRIBUTES
) -> tuple[float, float]:
    """Let a toy CLIP choose the caption of each picture among 100.

    10 of the captions differ from the right one in one attribute only; a choice among them is a near miss.

    Args:
        asset: the CLIP's.
        scenes: N scenes.
        images: uint8 [N, 64, 64, 3], their pictures.
        values: those of the world.

    Returns:
        Share of right choices and share of near misses.
    """
    model, transform, tokenizer = load_clip(asset)
    rng = random.Random(902)
    hits = near_hits = 0
    for scene, image in ProgressBar(zip(scenes, images, strict=True), title=asset, total=len(scenes)):
        near: set[Scene] = set()
        while len(near) < 10:
            attribute = rng.choice(list(values))
            near.add(scene.with_value(attribute, rng.choice(values[attribute])))
            near.discard(scene)
        far: set[Scene] = set()
        while len(far) < 89:
            drawn = held_out_scenes(89 - len(far), rng.randrange(2**31), values)
            far.update(s for s in drawn if s != scene and s not in near)
        candidates = [scene, *sorted(near, key=str), *sorted(far, key=str)]
        with torch.inference_mode():
            picture = model.encode_image(transform(Image.fromarray(image))[None], normalize=True)
            texts = model.encode_text(tokenizer([caption(s) for s in candidates]), normalize=True)
        order = (texts @ picture[0]).argsort(descending=True)
        hits += int(order[0]) == 0
        near_hits += 1 <= int(order[0]) <= 10
    return round(hits / len(scenes), 4), round(near_hits / len(scenes), 4)


def attack_figures(sizes: Sizes) -> Figures:
    """Measure the gains of attacks on each CLIP by both of them.

    They are shares of what the target's own render gains. Each colour of the source's render moves by at most `REACH`
    of 255 along the attacked CLIP's gradient.
    """
    rng, categories = random.Random(909), list(CATEGORY_ATTRIBUTE)
    pairs = [random_edit(categories[i % len(categories)], rng) for i in range(sizes.attacks)]
    sources, targets = ([render(pair[side], 9_200_000 + i).image for i, pair in enumerate(pairs)] for side in (0, 1))
    prompts = [caption(target) for _, target in pairs]
    made: dict[str, list[NDArray[np.uint8]]] = {"target": targets}
    for name in CLIPS.values():
        attacked = load_open_clip(SCORERS[name])
        bar = ProgressBar(zip(sources, prompts, strict=True), title=f"attack {name}", total=len(pairs))
        made[name] = [attack(attacked, source, prompt, (REACH,), ATTACK_ROUNDS)[0] for source, prompt in bar]
    shares: dict[str, dict[str, float]] = {name: {} for name in CLIPS.values()}
    for scorer in CLIPS.values():
        clip = ClipScorer.load(scorer)
        texts, before = clip.texts(prompts), clip.pictures(sources)
        gains = {key: float(((clip.pictures(its) - before) * texts).sum(1).mean()) for key, its in made.items()}
        for name in CLIPS.values():
            shares[name][scorer] = round(gains[name] / gains["target"], 4)
    return {"attack_gains": shares}


def generate(model: LoadedModel, captions: Sequence[str], sizes: Sizes, label: str, seed: int = 0) -> Images:
    """Generate pictures of captions, picture i from seed `seed + i`.

    Returns:
        uint8 [N, 64, 64, 3].
    """
    generator = Generator(model, cached_prompts=2 * sizes.batch)
    parts = []
    for first in ProgressBar(range(0, len(captions), sizes.batch), title=label):
        some = captions[first : first + sizes.batch]
        parts.append(generator.generate(some, [seed + first + i for i in range(len(some))]).images)
    return np.concatenate(parts)


def accuracy_figures(key: str, model: LoadedModel, sizes: Sizes) -> Figures:
    """Measure the share of attributes that generated pictures show as captioned.

    The judge of the model's world reads them, and has to name a value for everything.
    """
    judge = judge_for(model.spec)
    scenes = held_out_scenes(sizes.captions, seed=904, values=JUDGES[judge])
    images = generate(model, [caption(s) for s in scenes], sizes, f"{key} accuracy")
    accuracy = share_right(Judge.load(judge).likeliest(images), scenes)
    return {f"{key}_accuracy": round(float(np.mean(list(accuracy.values()))), 4), f"{key}_by_attribute": accuracy}


def speed_figures(turbo1: LoadedModel) -> Figures:
    """Measure the time for 64 one-step pictures, and the effect of batching.

    The latter is the largest difference, of 255, between a picture generated alone and the same one in a batch.
    """
    captions = [caption(s) for s in held_out_scenes(64, seed=905)]
    generator = Generator(turbo1)
    generator.generate(captions[:2], [0, 1])
    started = time.perf_counter()
    together = generator.generate(captions, list(range(64))).images
    seconds = time.perf_counter() - started
    apart = np.concatenate([generator.generate([captions[i]], [i]).images for i in range(0, 64, 8)])
    difference = np.abs(apart.astype(int) - together[::8].astype(int)).max()
    return {"turbo1_64_pictures_seconds": round(seconds, 2), "batch_difference": int(difference)}


@dataclass(frozen=True)
class _ZeroUpdate:
    """The edit that removes a block's whole live update."""

    def delta(self, step: int, live: torch.Tensor) -> torch.Tensor:
        return -live

    @property
    def nbytes(self) -> int:
        return 0


def block_effects(turbo: LoadedModel, sizes: Sizes) -> Figures:
    """Measure the mean LPIPS to the clean picture when one block adds nothing."""
    captions = [caption(s) for s in held_out_scenes(sizes.effect_captions, seed=906)]
    generator, lpips = Generator(turbo, cached_prompts=2 * len(captions)), LpipsModel()
    effects: dict[str, list[float]] = {block: [] for block in INNER_BLOCKS}
    for first in ProgressBar(range(0, len(captions), sizes.batch), title="block effect"):
        some = captions[first : first + sizes.batch]
        seeds = [first + i for i in range(len(some))]
        clean = generator.generate(some, seeds).images
        for block in INNER_BLOCKS:
            edits = [Edit({block: _ZeroUpdate()})] * len(some)
            effects[block].extend(lpips.distance(clean, generator.generate(some, seeds, edits=edits).images))
    means = {block: round(float(np.mean(values)), 4) for block, values in effects.items()}
    return {"block_effect": min(means[block] for block in BLOCKS), "block_effect_by_block": means}


def _patch(source: Trace, target: Trace, blocks: Sequence[str], index: int, saes: Mapping[str, Any] | None) -> Edit:
    """Return the edit that adds (target - source) update everywhere.

    It does so at every position and step of the given blocks, for the pair with a given index. With SAEs the updates
    are as these reconstruct them.
    """
    sites = {}
    for block in blocks:
        before, after = source.row(block, index), target.row(block, index)
        if saes is not None:
            before, after = (saes[block].decode(saes[block].encode(values)) for values in (before, after))
        values = after - before
        sites[block] = StaticEdit((Term(torch.arange(values.shape[1]), values),))
    return Edit(sites)


def patch_figures(
    model: LoadedModel, sizes: Sizes, blocks: Sequence[str] = BLOCKS, saes: Mapping[str, Any] | None = None
) -> Figures:
    """Measure the share of patched pictures that show the target's value.

    Patching adds the difference between the target's and the source's block updates; the value is that of the edited
    attribute that the judge finds likeliest.

    Args:
        model: the model.
        sizes: pairs a category.
        blocks: those of the model that are patched, together and one by one.
        saes: block -> SAE, to patch with reconstructed updates alone.
    """
    rng, generator = random.Random(907), Generator(model, cached_prompts=4 * sizes.batch)
    block_sets = {"all": tuple(blocks), **{block: (block,) for block in blocks}}
    reached: dict[str, dict[str, list[bool]]] = {
        name: {c: [] for c in CATEGORY_ATTRIBUTE} for name in ("target", *block_sets)
    }
    for category in ProgressBar(CATEGORY_ATTRIBUTE, title="patch"):
        pairs = [random_edit(category, rng) for _ in range(sizes.pairs)]
        seeds = [rng.randrange(2**31) for _ in pairs]
        wanted = Capture(tuple(blocks))
        source = generator.generate([caption(s) for s, _ in pairs], seeds, capture=wanted)
        target = generator.generate([caption(t) for _, t in pairs], seeds, capture=wanted)
        attribute = CATEGORY_ATTRIBUTE[category]
        _append_reached(reached["target"][category], target.images, pairs, attribute)
        for name, patched in block_sets.items():
            edits = [_patch(source.trace, target.trace, patched, i, saes) for i in range(len(pairs))]
            edited = generator.generate([caption(s) for s, _ in pairs], seeds, edits=edits)
            _append_reached(reached[name][category], edited.images, pairs, attribute)
    shares = {
        name: {c: round(float(np.mean(v)), 3) for c, v in by_category.items()} for name, by_category in reached.items()
    }
    mean = {name: round(float(np.mean(list(by_category.values()))), 4) for name, by_category in shares.items()}
    return {"patch_reach": mean["all"], "patch_reach_mean": mean, "patch_reach_by_category": shares}


def _append_reached(reached: list[bool], images: Images, pairs: Sequence[tuple[Scene, Scene]], attribute: str) -> None:
    column = list(ATTRIBUTES).index(attribute)
    for found, (_, target) in zip(Judge.load().likeliest(images), pairs, strict=True):
        reached.append(ATTRIBUTES[attribute][found[column]] == getattr(target, attribute))


def sae_figures(models: dict[str, LoadedModel], sizes: Sizes) -> Figures:
    """Measure explained variance, L0 and dead share of the four SAEs.

    Explained variance is pooled over dimensions.

    Args:
        models: setting -> model.
        sizes: captions per setting.
    """
    saes = load_saes(asset_folder("saes"), BLOCKS, k=SAE_K)
    report: dict[str, dict[str, dict[str, float]]] = {}
    for setting, model in models.items():
        count = sizes.sae_base_captions if setting == "base" else sizes.sae_captions
        updates = block_updates(
            model, [caption(s) for s in held_out_scenes(count, seed=908)], sizes.batch, f"sae {setting}"
        )
        report[setting] = {block: sae_report(saes[block], updates[block]) for block in BLOCKS}

    def mean(setting: str) -> float:
        return round(float(np.mean([entry["ev"] for entry in report[setting].values()])), 4)

    return {
        **{f"sae_ev_{setting}": mean(setting) for setting in report},
        "sae_dead_share": max(entry["dead"] for entry in report["1step"].values()),
        "sae_by_block": report,
    }


def block_updates(
    model: LoadedModel, captions: Sequence[str], batch: int, label: str, blocks: Sequence[str] = BLOCKS
) -> dict[str, torch.Tensor]:
    """Collect all updates of some blocks, by default of the four.

    Returns:
        Block -> float32 [captions * steps * positions, channels].
    """
    generator = Generator(model, cached_prompts=2 * batch)
    parts: dict[str, list[torch.Tensor]] = {block: [] for block in blocks}
    for first in ProgressBar(range(0, len(captions), batch), title=label):
        some = captions[first : first + batch]
        wanted = Capture(tuple(blocks))
        trace = generator.generate(some, [first + i for i in range(len(some))], capture=wanted).trace
        for block in blocks:
            parts[block].append(trace.get(block).movedim(2, -1).flatten(0, 3))
    return {block: torch.cat(some) for block, some in parts.items()}


def sae_report(sae: Any, x: torch.Tensor) -> dict[str, float]:
    """Return explained variance, L0 and dead share of an SAE.

    Args:
        sae: as `load_saes` gives it.
        x: float [N, channels], updates.
    """
    encode: Callable[[torch.Tensor], torch.Tensor] = sae.encode
    codes = torch.cat([encode(part) for part in x.split(16_384)])
    left_over = (x - sae.decode(codes)).var(0, correction=0).sum()
    return {
        "ev": round(1 - float(left_over / x.var(0, correction=0).sum()), 4),
        "l0": round(float((codes > 0).sum(1).float().mean()), 2),
        "dead": round(float((codes > 0).sum(0).eq(0).float().mean()), 4),
    }


def verdicts(figures: Figures) -> dict[str, bool]:
    """Return for each figure whether it clears its bar."""
    return {key: figures[key] >= bar for key, bar in BARS.items()}
