"""Metrics: each is a function from pictures and prompts to one number per sample."""
