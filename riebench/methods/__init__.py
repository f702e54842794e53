"""Editing methods, which turn the runs of one example into an edit.

Editors are methods that give edited pictures instead.

Imports `generation` and what is below it. `base` has the `method` decorator and `EditContext`, `ranking` scores
features and units, the other modules hold the methods, `check` holds a suite and its configurations against them.
"""
