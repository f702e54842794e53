"""Properties of features, beside those of random directions and random pictures.

`properties` computes them from plain numbers, `random_baseline` generates the pictures they are computed from.
"""
