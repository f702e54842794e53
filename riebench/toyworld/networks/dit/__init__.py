"""The toy transformer, toy-dit: a small model of FLUX's class.

It is trained on the same scenes as the U-Nets. `text` holds its tokenizers and text encoders, `autoencoder` its
latents, `transformer` the network and the way latents become tokens, `training` the flow matching, `pipeline` the
pipeline in the hub's layout and `measure` its figures.
"""
