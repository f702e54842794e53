"""The figures and pictures of the model card, made from measured figures."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from riebench.models.assets import read_manifest
from riebench.scoring.metrics.judge_network import ATTRIBUTES
from riebench.toyworld.evaluate import BARS, CLIPS
from riebench.toyworld.networks.dit.document import DIT_SENTENCES, transformer_bars
from riebench.toyworld.networks.mixed.document import MIXED_PARTS, table
from riebench.toyworld.scenes import CATEGORY_ATTRIBUTE, Scene, random_edit
from riebench.utils.files import out_of_date

SECTION = re.compile(r"(<!-- figures: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
"""A generated part of the card: everything between its two marks."""


def _bars(figures: dict[str, Any]) -> str:
    rows: list[list[object]] = [
        [f"`{key}`", f"{figures[key]:.3f}", f"{bar:.2f}", "yes" if figures[key] >= bar else "**no**"]
        for key, bar in BARS.items()
    ]
    return table(["figure", "measured", "bar", "cleared"], rows)


def _attributes(figures: dict[str, Any]) -> str:
    columns = {
        "renders, of those read": "judge",
        "toy-base": "base",
        "toy-turbo, 4 steps": "turbo4",
        "toy-turbo, 1 step": "turbo1",
    }
    rows: list[list[object]] = [
        [name, f"{figures['judge_renders_read'][name]:.3f}",
         *(f"{figures[f'{key}_by_attribute'][name]:.3f}" for key in columns.values())]
        for name in ATTRIBUTES
    ]  # fmt: skip
    return table(["attribute", "renders: share read", *columns], rows)


def _blocks(figures: dict[str, Any]) -> str:
    effects = figures["block_effect_by_block"]
    return table(["block", "LPIPS without its update"], [[block, f"{value:.3f}"] for block, value in effects.items()])


def _patches(figures: dict[str, Any]) -> str:
    shares = figures["patch_reach_by_category"]
    names = {"target": "target prompt", "all": "four blocks", **{b: b for b in shares if b not in ("target", "all")}}
    rows: list[list[object]] = [
        [category.replace("_", " "), *(f"{shares[key][category]:.2f}" for key in names)]
        for category in CATEGORY_ATTRIBUTE
    ]
    mean: list[object] = ["mean", *(f"{figures['patch_reach_mean'][key]:.2f}" for key in names)]
    return table(["category", *names.values()], [*rows, mean])


def _saes(figures: dict[str, Any]) -> str:
    rows: list[list[object]] = []
    for setting, blocks in figures["sae_by_block"].items():
        for block, entry in blocks.items():
            rows.append([setting, block, f"{entry['ev']:.3f}", f"{entry['l0']:.1f}", f"{entry['dead']:.3f}"])
    return table(["setting", "block", "explained variance", "L0", "dead share"], rows)


def _sizes(figures: dict[str, Any]) -> str:
    sizes: dict[str, int] = {}
    for name, entry in read_manifest().items():
        sizes[name.split("/")[0]] = sizes.get(name.split("/")[0], 0) + entry["size"]
    rows: list[list[object]] = [[name, f"{size / 2**20:.2f}"] for name, size in sizes.items()]
    return table(["asset", "MiB"], [*rows, ["all", f"{sum(sizes.values()) / 2**20:.2f}"]])


def _speed(figures: dict[str, Any]) -> str:
    rows: list[list[object]] = [
        ["64 pictures of toy-turbo in one step, decoded", f"{figures['turbo1_64_pictures_seconds']} s"],
        ["loading both pipelines, four SAEs and the judge", f"{figures['load_seconds']} s"],
        ["largest pixel difference, alone against in a batch", f"{figures['batch_difference']} of 255"],
    ]
    for key, asset in CLIPS.items():
        what = f"{asset}: right caption among 100 (ten of them differ in one attribute)"
        rows.append([what, f"{figures[f'{key}_top1']:.3f}"])
    explained = ", ".join(f"{figures[f'sae_ev_{key}']:.3f}" for key in ("1step", "4step", "base"))
    rows.append(["explained variance of the SAEs: 1 step, 4 steps, toy-base", explained])
    return table(["what", "measured"], rows)


def _attacks(figures: dict[str, Any]) -> str:
    rows: list[list[object]] = [
        [attacked, *(f"{shares[scorer]:.0%}" for scorer in CLIPS.values())]
        for attacked, shares in figures["attack_gains"].items()
    ]
    return table(["attacked", *(f"gain by {scorer}" for scorer in CLIPS.values())], rows)


def _transformer(figures: dict[str, Any]) -> str:
    rows: list[list[object]] = [
        [name, f"{value:.3f}", f"{bar:.{digits}f}", "yes" if value >= bar else "**no**"]
        for name, (value, bar, digits) in transformer_bars(figures["dit"]).items()
    ]
    return table(["figure", "measured", "bar", "cleared"], rows)


def _transformer_attributes(figures: dict[str, Any]) -> str:
    dit, turbo = figures["dit"]["by_attribute"], figures["dit"]["turbo_by_attribute"]
    rows: list[list[object]] = [[name, f"{dit[name]:.3f}", f"{turbo[name]:.3f}"] for name in ATTRIBUTES]
    return table(["attribute", "toy-dit", "toy-turbo"], rows)


def _places(figures: dict[str, Any]) -> str:
    tables = {model: found["whole"] for model, found in figures["dit"]["reached"].items()}
    columns = [(model, key) for model, table in tables.items() for key in ("target", *_single_blocks(table), "all")]
    rows: list[list[object]] = [
        [category.replace("_", " "), *(f"{tables[model][key][category]:.2f}" for model, key in columns)]
        for category in CATEGORY_ATTRIBUTE
    ]
    rows.append(["mean", *(f"{_mean(tables[model][key].values()):.2f}" for model, key in columns)])
    return table(["category", *(f"{model}: {PLACE_NAMES.get(key, key)}" for model, key in columns)], rows)


def _single_blocks(table: dict[str, Any]) -> list[str]:
    return [key for key in table if key not in ("target", "all")]


def _mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))


def _carried(figures: dict[str, Any]) -> str:
    rows: list[list[object]] = []
    for model, found in figures["dit"]["reached"].items():
        whole, kept = found["whole"], found["sae"]
        for key in ("all", *_single_blocks(whole)):
            name = PLACE_NAMES.get(key, key)
            rows.append([model, name, f"{_mean(whole[key].values()):.2f}", f"{_mean(kept[key].values()):.2f}"])
    return table(["model", "patched", "by whole updates", "by what SAEs keep"], rows)


def _transformer_saes(figures: dict[str, Any]) -> str:
    rows: list[list[object]] = [
        [block, f"{entry['ev']:.3f}", f"{entry['l0']:.1f}", f"{entry['dead']:.3f}"]
        for block, entry in figures["dit"]["sae_by_block"].items()
    ]
    return table(["block", "explained variance", "L0", "dead share"], rows)


PLACE_NAMES = {"target": "target prompt", "all": "all blocks"}
PARTS = {
    "bars": _bars, "attributes": _attributes, "blocks": _blocks, "patches": _patches, "saes": _saes, "sizes": _sizes,
    "speed": _speed, "attacks": _attacks,
    "transformer": _transformer, "transformer_attributes": _transformer_attributes, "places": _places,
    "carried": _carried, "transformer_saes": _transformer_saes, **MIXED_PARTS, **DIT_SENTENCES,
}  # fmt: skip
MIXED_FIGURES = "toyworld-mixed.json"
DIT_FIGURES = "toyworld-dit.json"
"""Names of the files, beside that of the other figures, with the figures of the mixed world and of the transformer."""


def fill_card(text: str, figures: dict[str, Any]) -> str:
    """Return the card's text with every generated part made anew."""
    return SECTION.sub(lambda match: match[1] + PARTS[match[2]](figures) + match[3], text)


def write_card(card: Path, figures_file: Path, *, check: bool = False) -> None:
    """Bring the card's generated parts up to date with the stored figures.

    Args:
        card: the Markdown file.
        figures_file: the output of `evaluate --json`; those of `shares --json` and `transformer --json` lie beside it.
        check: writes nothing.

    Raises:
        RiebenchError: with `check`, if the card is out of date.
    """
    figures = json.loads(figures_file.read_text(encoding="utf-8"))
    for key, name in (("mixed", MIXED_FIGURES), ("dit", DIT_FIGURES)):
        figures[key] = json.loads(figures_file.with_name(name).read_text(encoding="utf-8"))
    before = card.read_text(encoding="utf-8")
    after = fill_card(before, figures)
    if check and before != after:
        raise out_of_date(card, "python -m riebench.toyworld card")
    if before != after:
        card.write_text(after, encoding="utf-8")


EDITS = 3
"""Edits of each category in a picture."""


def category_pairs() -> dict[str, list[tuple[Scene, Scene]]]:
    """Draw three held-out edits of each category, the same at every call."""
    rng = random.Random(911)
    return {category: [random_edit(category, rng) for _ in range(EDITS)] for category in CATEGORY_ATTRIBUTE}


def write_pictures(folder: Path) -> list[Path]:
    """Draw the card's pictures, one of each world.

    Each category has a row of three edits, source and target: held-out ones as toy-turbo generates them in 4 steps, and
    the first ones of its suite as toy-mixed does in one.

    Args:
        folder: gets the pictures.

    Returns:
        The files.
    """
    from riebench.tasks.suites import load_suite
    from riebench.toyworld.captions import caption

    first = {
        category: [caption(scene) for pair in pairs for scene in pair] for category, pairs in category_pairs().items()
    }
    second = {
        task.category: [prompt for one in task.examples[:EDITS] for prompt in (one.source, one.target)]
        for task in load_suite("toy-mixed")
    }
    folder.mkdir(parents=True, exist_ok=True)
    return [
        _write_picture(folder / "toyworld.png", "toy-turbo", first),
        _write_picture(folder / "toyworld-mixed.png", "toy-mixed", second),
    ]


def _write_picture(path: Path, model: str, prompts: Mapping[str, Sequence[str]]) -> Path:
    """Draw a row of edits for each category; prompts are sources and targets by turns."""
    from riebench.generation.generator import Generator
    from riebench.models.loading import load_model
    from riebench.utils.images import encode_png, grid

    generator = Generator(load_model(model))
    rows: list[tuple[str, list[NDArray[np.uint8] | None]]] = []
    for row, (category, words) in enumerate(prompts.items()):
        images = generator.generate(list(words), [1000 * row + i // 2 for i in range(len(words))]).images
        rows.append((category.replace("_", " "), list(images)))
    path.write_bytes(encode_png(grid(["source", "target"] * EDITS, rows)))
    return path
