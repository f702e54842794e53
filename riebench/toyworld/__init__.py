"""The toy world: rendered scenes, and the small models trained on them that ship with the package.

Imports `training` and what is below it; `python -m riebench.toyworld` makes, measures and describes everything
again. `scenes`, `captions` and `render` are the world, `networks` the models, `make` trains them in order.
"""
