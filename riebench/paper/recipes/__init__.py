"""Recipes of the paper's tables and figures, one module for each artefact.

A recipe has a function `make`, which measures its numbers or reads them from stored results, and a function `draw`,
which draws the figure from the finished artefact alone. Recipes are entered by name in `riebench.paper.registry`; what
several of them share is in the package above. `equal_share` is a part of the recipe `tradeoff`.
"""
