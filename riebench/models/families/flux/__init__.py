"""FLUX.1: schnell, dev, and models trained from them.

Imports `models.families` and `models.spec`. `FAMILY` (family) is the contract filled; `names` are its block names,
`shape` its sizes and work, `files` its presets and downloads, `configuration` what a folder may state, `network` its
hooks, `pipeline` text, latents and pictures. Only `network` and `pipeline` need torch and diffusers.
"""
