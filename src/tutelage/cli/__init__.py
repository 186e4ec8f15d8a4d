"""The command line: parse, call, print. Heavy imports are inside the commands, so that `--help` is instant."""

from tutelage.cli.commands import app, main

__all__ = ["app", "main"]
