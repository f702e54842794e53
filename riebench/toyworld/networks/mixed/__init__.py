"""The mixed toy world: the same scenes, and a model whose blocks share roles.

`roles` says which block decides an attribute in which scene, `network` holds the innermost level of the U-Net with
narrow updates, and `training` teaches it the roles.
"""
