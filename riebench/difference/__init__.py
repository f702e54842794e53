"""Reasons for which two runs differ: their statements, and units made again.

`causes` compares what is stored, `recompute` makes a few units anew with one statement after the other exchanged, and
`job` is the command.
"""
