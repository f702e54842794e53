"""Scoring: metrics on the stored pictures, and the verification of stored scores.

Imports `store` and what is below it, and none of the packages that make pictures. `score` computes missing scores,
`profiles` groups the metrics that belong together, `verify` computes everything again and compares.
"""
