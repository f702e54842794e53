"""SDXL's full architecture with random weights, measured or counted."""
