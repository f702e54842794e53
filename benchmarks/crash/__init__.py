"""Processes killed at random moments: what is left on disk, and what the next run makes of it."""
