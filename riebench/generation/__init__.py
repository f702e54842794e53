"""Batched denoising with edits: activations are captured and changed.

Both happen block by block and step by step.

Imports `models`, `saes` and `store`. `Generator` (generator) makes pictures, `edits` says what an edit may be,
`trace` captures activations, `hooks` puts edits in, `prefix` shares what runs have in common, `memory` decides
batch sizes.
"""
