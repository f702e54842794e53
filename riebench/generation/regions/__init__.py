"""Region providers: they find the words of a prompt in a picture.

Imports `generation` and what is below it. `options` reads `--regions`, `masks` makes the masks of an example,
`grounding` runs the models that find words in pictures.
"""
