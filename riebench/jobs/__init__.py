"""Whole jobs: a command's options, checked, forecast and carried out.

Imports `report` and what is below it. `request` holds the options of a run, `run` its steps, `dry_run` and `doctor`
say beforehand what would be done and what is missing.
"""
