"""The networks of the toy world and how each is trained: text encoders, autoencoder, U-Net, CLIP and judge.

Imports `training` and what is below it. `loop` is the training loop that all of them share.
"""
