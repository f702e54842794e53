"""The Python interface: what `import riebench` offers to notebooks and scripts.

Imports `jobs` and what is below it. `runs` makes and scores results, `opening` finds stored ones, `results` reads them
(with `frames` and `comparison`); `models` and `edits` are for single pictures; `functions` makes methods and metrics of
functions, whose identity is their source (`source`); `display` is how all of it looks in a notebook. Errors are
`riebench.errors.RiebenchError`; what commands print is logged by the logger "riebench".
"""
