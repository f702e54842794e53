"""Validity of scores: their agreement with the truth that the toy world knows.

Imports `analysis` and what is below it. `units` reads the numbers, `agreement`, `ranking` and `findings` compare
them, `document` and `plots` write them down.
"""
