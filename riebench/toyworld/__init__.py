"""The toy world: rendered scenes, and the small models trained on them.

The models ship with the package. `scenes`, `captions` and `render` are the world, `networks` the models, and `make`
trains them in order; `python -m riebench.toyworld` makes, measures and describes everything again. The package
imports `training` and what is below it.
"""
