"""U-Nets: all that SDXL and Stable Diffusion 1 and 2 have in common.

SDXL is `models.families.sdxl`, Stable Diffusion the sub-package `sd`.

Imports `models.families.base` and `models.spec`. `UNetFamily` (family) fills the contract as far as it holds for every
U-Net; `names` are the forms of block names, `configuration` the refusals, `shape` and `work` sizes and work, `weights`
and `additions` the files, `schedule` the schedulers, `network` the hooks, `pipeline` latents and pictures. Only
`additions`, `network` and `pipeline` need torch when they are imported.
"""
