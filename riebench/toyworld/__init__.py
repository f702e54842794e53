"""A small SDXL on rendered scenes whose truth is known: rendering, training, judging and what ships of it."""
