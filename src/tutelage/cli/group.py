"""The group of all commands, which names the nearest right one where a command does not exist."""

from __future__ import annotations

from typing import Any

from typer.core import TyperGroup

from tutelage.core.errors import TutelageError
from tutelage.core.plugins import nearest

NEAR = 0.6  # similarity from which another command is taken to be meant
# What other programs call it.
MEANT = {
    "run": "distill",
    "train": "distill",
    "fit": "distill",
    "config": "recipe",
    "keys": "recipe",
    "benchmark": "compare",
    "evaluate": "compare",
    "convert": "export",
    "infer": "predict",
}


class Commands(TyperGroup):
    """Commands by name."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the command that the words begin with.

        Raises:
            TutelageError: there is none of this name.
        """
        name = args[0]
        if ctx.resilient_parsing or name.startswith("-") or self.get_command(ctx, name) is not None:
            return super().resolve_command(ctx, args)
        shown = [word for word, command in self.commands.items() if not command.hidden]
        near = MEANT.get(name) or nearest(name, shown, NEAR)
        hint = f"did you mean {near!r}? " if near else ""
        raise TutelageError(f"no command {name!r}; {hint}`tutelage --help` lists all commands")
