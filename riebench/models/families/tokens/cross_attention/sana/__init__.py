"""The model families of SANA and SANA-Sprint.

`family` fills the contract of `riebench.models.families.base` for both; `configuration` refuses what would not be
followed, `files` holds presets, `names` the blocks, `network` their sites, `shape` measures and work, and `pipeline`
what diffusers' pipelines do with text and pictures.
"""
