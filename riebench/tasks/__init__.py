"""Tasks and configurations: the edits to make and the methods that make them.

This package reads both from YAML files, and imports only the root modules and `utils`. `suites` reads and checks task
files (`load_suite`, `load_task`), `settings` files of configurations and plugins (`load_settings`, `load_plugin`),
`plugins` finds and runs a plugin's files (`find_sources`, `run_sources`), `schema` holds the types (`EditTask`,
`EditExample`, `Setting`), `prompts` the syntax of prompts and regions (`plain_prompt`, `phrase_spans`), `masks` the
regions of a picture (`RegionMasks`), `mask_files` reads them from pictures (`read_mask`, `check_masks`), and
`importers` makes suites of other data sets.
"""
