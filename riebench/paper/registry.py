"""Registry of the paper's artefacts: description, needs and module of each recipe.

A recipe's module is imported when it makes or draws its artefact, so that listing them is fast.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from riebench.errors import RiebenchError, near_match

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from riebench.paper.artefact import Artefact
    from riebench.paper.job import PaperJob


@dataclass(frozen=True)
class Recipe:
    """Recipe of one artefact.

    Attributes:
        name: name of the artefact on the command line.
        paper: the part of the paper that it reproduces.
        needs: its inputs, and what it makes first.
        module: holds `make(job)` and `draw(figure, artefact)`.
        stored: whether it is read from results of `riebench run` rather than measured here.
    """

    name: str
    paper: str
    needs: str
    module: str
    stored: bool = False

    def make(self, job: PaperJob) -> Artefact:
        """Measure the artefact, or read it from stored results."""
        made: Artefact = importlib.import_module(self.module).make(job)
        return made

    def draw(self, figure: Figure, artefact: Artefact) -> None:
        """Draw the artefact on an empty figure."""
        importlib.import_module(self.module).draw(figure, artefact)


RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            "explained-variance", "explained variance of the SAEs over k and width, on held-out 1-step updates",
            "SAEs of several k and widths (on the toy world they are trained first)", "riebench.paper.recipes.sweep",
        ),
        Recipe(
            "explained-variance-steps", "explained variance of the 1-step SAEs at every step of longer runs",
            "the few-step model, the many-step model, one SAE a block", "riebench.paper.recipes.steps",
        ),
        Recipe(
            "overlap", "how much the features of adjacent steps overlap",
            "as explained-variance-steps, in the same pass", "riebench.paper.recipes.overlap",
        ),
        Recipe(
            "block-effect", "what each attention and residual block does to the picture, by taking its part away",
            "the few-step model, LPIPS", "riebench.paper.recipes.block_effect",
        ),
        Recipe(
            "reconstruction", "what is lost when a block's update is replaced by its reconstruction",
            "the few-step model, SAEs, LPIPS", "riebench.paper.recipes.reconstruction",
        ),
        Recipe(
            "features", "single features against random ones: specificity, causality, locality, sensitivity to color "
            "and texture (the paper's first edition)",
            "the few-step model, one SAE a block, CLIP", "riebench.paper.recipes.features",
        ),
        Recipe(
            "trade-off", "LPIPS against CLIP for SAE features, neurons and steering over the nine categories",
            "stored results of the sets sweep and paper; what is missing is run", "riebench.paper.recipes.tradeoff",
            stored=True,
        ),
        Recipe(
            "feature-share", "in which blocks the chosen features lie, by category, in both variants",
            "stored results of SAE configurations; what is missing is run", "riebench.paper.recipes.share", stored=True,
        ),
        Recipe(
            "blocks", "what each block does by itself, by category, next to all blocks together",
            "stored results of a configuration with single blocks; what is missing is run",
            "riebench.paper.recipes.blocks", stored=True,
        ),
        Recipe(
            "sdxl", "all of it on SDXL: commands, GPU hours, disk, and how they were estimated",
            "nothing; it is counted", "riebench.paper.recipes.on_sdxl",
        ),
    )
}  # fmt: skip
"""Name -> recipe, in the order of the document."""


def find(name: str) -> Recipe:
    """Return the recipe of this name.

    Raises:
        RiebenchError: if there is none; names the nearest match.
    """
    if name not in RECIPES:
        raise RiebenchError(f"unknown artefact {name!r}{near_match(name, RECIPES)}; `riebench paper list` says all")
    return RECIPES[name]
