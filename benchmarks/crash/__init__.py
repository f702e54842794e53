"""Processes killed at random moments, and the results that the next runs make."""
