"""Sparse autoencoders: one internal form, readers and writers of stored ones."""
