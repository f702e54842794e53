"""SAEs of known quality, and how well scores of SAEs agree with that.

It trains, runs and analyses, so it stands above `riebench.jobs`.
"""
