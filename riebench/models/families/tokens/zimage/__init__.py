"""Z-Image: Z-Image, Z-Image-Turbo, and models trained from them.

Imports `models.families` and `models.spec`. `FAMILY` (family) is the contract filled; `names` are its block names,
`shape` its sizes and work, `files` its presets, `configuration` what a folder may state, `network` its hooks and
`pipeline` text and the pipeline's call. Only `network` needs torch when it is imported.
"""
