"""Concept detection: how well a direction or feature tells whether a picture shows a concept.

`detectors` learns directions and features from training examples, `readings` reads them off runs of other examples,
`table` computes the areas under the ROC curves and writes them.
"""
