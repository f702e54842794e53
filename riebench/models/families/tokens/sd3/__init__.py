"""Stable Diffusion 3 and 3.5, and models trained from them.

Imports `models.families` and `models.spec`. `FAMILY` (family) is the contract filled; `names` are its block names,
`shape` its sizes and work, `files` its presets, `configuration` what a folder may state, `network` its hooks,
`pipeline` text and call. Only `network` and `pipeline` need torch and diffusers.
"""
