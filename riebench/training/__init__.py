"""Training SAEs: collecting a model's block updates, and training on what was collected.

Imports `runs` and what is below it. `collect` writes activations, `collection` reads them, `topk` is the training
step, `many` trains several SAEs in one pass, `run` is what `riebench sae train` does.
"""
