"""The training of SAEs, and the collection of the block updates to train on.

`collect` writes activations, `collection` reads them, `settings` holds the recipes and kinds of SAEs, `sparsity` is
what the kinds differ in, `model` the training step, `many` trains several SAEs in one pass, and `run` is what `riebench
sae train` does. The package imports `runs` and what is below it.
"""
