"""The networks of the toy world and their training.

They are the text encoders, the autoencoder, the U-Net, the CLIP and the judge. `loop` is the training loop that all
of them share, and `mixed` is the second world with shared roles. The package imports `training` and what is below it.
"""
