"""Verbs of single studies: `paper` makes its tables, `ranges` finds strengths."""
