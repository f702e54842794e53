"""Tasks, settings, prompts and masks: what is to be edited and how, as read from YAML.

Imports `utils` and the root. `load_suite` (suites) and `load_setting` (settings) read and check the files, `schema`
holds their types, `prompts` the rules of brackets and phrases, `masks` the regions of a picture, `importers` other
data sets.
"""
