"""The command line: parses, calls one function, prints.

Imports everything; each heavy import is inside a function, so that `riebench --help` stays quick. `main` is the
entry point.
"""
