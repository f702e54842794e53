"""Verbs on stored results: those that write scores and documents, and those that compare."""
