"""Entry point of `python -m riebench`, the same as the `riebench` command."""

from riebench.cli.main import main

main()
