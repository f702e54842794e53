"""Qwen-Image and models trained from it.

Imports `models.families` and `models.spec`. `FAMILY` (family) is the contract filled; `shape` holds block names, sizes
and work, `files` presets, `configuration` what a folder may state, `network` hooks, and `pipeline` text, latents and
pictures. Only `network` and `pipeline` need torch when they are imported.
"""
