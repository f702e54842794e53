"""Response curves: how gain, distance and artifacts follow the edit strength.

All is computed from stored scores.
"""
