"""SDXL: Turbo, Base, and models trained from them, the toy world's included.

Imports `models.families.base`, `models.families.unet` and `models.spec`. `FAMILY` (family) is the contract filled;
`names` are its blocks, `configuration` its parts, `shape` its sizes and work, `files` its presets, downloads and single
files, `pipeline` text and editing. Only `pipeline` needs torch and diffusers.
"""
