"""SDXL: Turbo, Base, and models trained from them, the toy world's included.

Imports `models.families.base` and `models.spec`. `FAMILY` (family) is the contract filled; `names` are its block names,
`shape` its sizes and work, `files` its presets, folders and downloads, `network` its hooks, `pipeline` loading, text,
latents and pictures. Only `network` and `pipeline` need torch and diffusers.
"""
