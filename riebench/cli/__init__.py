"""The command line: parse options, call one function, print.

Imports everything; each heavy import is inside a function, so that `riebench --help` stays quick. `main` is the
entry point.
"""
