"""The mixed toy world: the same scenes, drawn by a model whose blocks share their roles.

`roles` says which block decides an attribute in which scene, `network` holds the innermost level of the U-Net with
narrow updates, and `training` teaches it the roles.
"""
