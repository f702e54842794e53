"""Sparse autoencoders: one type for all, and readers of stored formats.

Imports `models` and what is below it. `load_saes` (formats) reads a folder, `sources` finds SAEs on disk or on the
hub, `readers` has one module for each format, `figures` the numbers that describe an SAE.
"""
