"""Concept detection: which directions and features tell that a concept is shown.

`detectors` learns directions and features from training examples, `readings` reads them off runs of other examples,
`table` computes the areas under the ROC curves and writes them.
"""
