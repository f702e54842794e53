"""The model family of PixArt-Sigma.

`family` fills the contract of `riebench.models.families.base`; `configuration` refuses what would not be followed,
`files` holds presets, `names` the blocks, `shape` measures and work, and `pipeline` what diffusers' pipeline does with
text and latents.
"""
