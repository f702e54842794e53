"""Metrics by published networks that are measured on request (`--scorers`).

Each kind has a module of its own. Imports `scoring.metrics` beside it and what is below. `files` finds weights in a
folder or on the hub.
"""
