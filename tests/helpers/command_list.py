"""All commands of the command line, each with the words that call it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import typer.main

from riebench.cli.main import app


def commands(group: Any, *words: str) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield all commands below a group, with the words that call them."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, *words, name)
        if not hasattr(command, "commands") or command.invoke_without_command:
            yield (*words, name), command


COMMANDS = dict(commands(typer.main.get_command(app)))
"""Words -> command."""
