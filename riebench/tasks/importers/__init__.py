"""Importers: suites of tasks made from RIEBench, PIE-Bench or any data set.

This package imports only `tasks` and what `tasks` may import. `published` reads the two published benchmarks
(`import_riebench`, `import_piebench`), `datasets` any data set (`import_dataset`), whose rows `rows` opens
(`open_rows`); both add records to the collector in `examples` (`ImportCollector`), and `writer` stores its content as a
suite (`suite_files`, `store_suite`).
"""
