"""Importers: suites of tasks made from RIEBench, PIE-Bench or any data set.

Imports `tasks` and what is below it. `published` reads the two published sets, `datasets` rows of any data set, and
both hand their `examples` to `writer`.
"""
