"""Common parts of model families whose denoiser is a transformer of tokens.

Imports `models.families` and `models.spec`. `family` holds `TokenFamily`, the contract with its shared answers filled;
`names` makes block names from a table, `streams` finds image and text streams and their sites, `schedule` tries a
schedule before a run, `weights` gives the shapes that configurations describe, `autoencoder` holds latents, and `sizes`
measures and work. Only `streams` and `weights` need torch or diffusers when they are imported. The sub-packages are
families.
"""
