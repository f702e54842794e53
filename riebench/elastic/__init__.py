"""Elastic range of a method: strengths at equal perceptual distances.

`search` finds the range and places strengths in it, from distances alone; `pictures` makes the pictures and measures
them; `job` is the command, and `document` writes what it found.
"""
