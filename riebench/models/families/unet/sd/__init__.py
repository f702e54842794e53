"""Stable Diffusion 1 and 2, SD-Turbo, and models trained from them.

Imports `models.families.base`, `models.families.unet` and `models.spec`. `FAMILY` (family) is the contract filled;
`names` are its blocks, `configuration` its parts, `shape` its sizes, `files` its presets and single files, `pipeline`
text, scheduler and editing. Only `pipeline` needs torch and diffusers.
"""
