"""`python -m riebench` is the `riebench` command."""

from riebench.cli.main import main

main()
