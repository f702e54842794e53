"""Validity: how far scores agree with the truth that the toy world knows."""
