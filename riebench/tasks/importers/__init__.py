"""Importers: suites of tasks made from RIEBench, PIE-Bench or any data set.

This package imports only `tasks` and what `tasks` may import. `published` reads the two published benchmarks
(`import_riebench`, `import_piebench`), `datasets` the rows of any data set (`import_dataset`); both add records to the
collector in `examples` (`ImportCollector`), and `writer` stores its content as a suite (`suite_files`, `store_suite`).
"""
