"""The toy judge's training: what it learns from, and how.

`damage` and `edited` make pictures whose attributes are labelled by code, `labelled` reads those labelled by eye, and
`training` teaches the network with them.
"""
