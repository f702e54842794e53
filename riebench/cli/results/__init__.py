"""Verbs on stored results: `stored` writes and publishes, `comparisons` compares."""
