"""Sparse autoencoders: one type for all of them, and readers of the formats they are stored in.

Imports `models` and what is below it. `load_saes` (formats) reads a folder, `sources` finds SAEs on disk or on the
hub, `readers` has one module for each format, `figures` the numbers that describe an SAE.
"""
