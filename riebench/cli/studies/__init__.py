"""Verbs that make pictures for one question: `paper` for its tables, `ranges` for strengths."""
