"""`python -m riebench` is the `riebench` command."""

from riebench.cli import main

main()
