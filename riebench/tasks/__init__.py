"""Tasks and settings: the edits to make and the methods that make them.

This package reads both from YAML files, and imports only the root modules and `utils`. `suites` reads and checks task
files (`load_suite`, `load_task`), `settings` setting files and plugins (`load_settings`, `load_plugin`), `schema` holds
their types (`EditTask`, `EditExample`, `Setting`), `prompts` the syntax of prompts and regions (`plain_prompt`,
`phrase_spans`), `masks` the regions of a picture (`RegionMasks`), and `importers` makes suites of other data sets.
"""
