"""Damaged and hostile input for every reader: read, or refused in one line."""
