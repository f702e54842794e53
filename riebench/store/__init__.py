"""What is stored: records, scores, run files and run folders.

Imports `models` and what is below it, and none of the packages that make pictures. `RunFolder` (folder) reads and
writes one run, `records` holds the stored types, `run_file` the run's settings, shards and seal.
"""
