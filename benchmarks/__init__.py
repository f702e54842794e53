"""Measurements too long for the tests: speed, scale, crashes, untrusted files.

They are run from the checkout as modules, such as `python -m benchmarks.crash`.
"""
