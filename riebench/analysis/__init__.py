"""Statistics and tables made from stored records and scores.

Imports `scoring`, `store` and what is below them, and none of the packages that make pictures. `tables` and
`leaderboard` write what is published, `stats` has the estimates with intervals, `multiple` the tests, `tradeoff` the
mean gain over LPIPS budgets, `compare` sets two methods side by side, `export` writes for
other programs, `validity` asks how far scores can be trusted.
"""
