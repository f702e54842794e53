"""Supervised baselines: edits learned from other examples of the category.

All learn from the same examples: the first ones of the category, in the order of reference, outside the scored
example's fold (`riebench.methods.base.TrainingExamples`). `concepts` finds among them the runs that show a concept,
`directions` holds the difference of means and the linear probe, `logistic` fits the probe.
"""
