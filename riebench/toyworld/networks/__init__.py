"""The networks of the toy world and how each is trained."""
