"""Storage of runs: records, scores, run files and run folders.

This package imports the root modules, `utils`, `tasks` and `models`, and none of the packages that generate pictures.
`folder` reads and writes the folder of one run (`RunFolder`) and what several runs share (`SharedFolder`), `records`
holds the stored types (`RunSpec`, `UnitKey`, `EditRecord`, `ScoreRecord`), and `run_file` holds run.json (`RunFile`),
the record files of shards (`merge_parts`) and the seal (`write_seal`, `broken_seals`).
"""
