"""The command line: parse, call, print. Heavy imports are inside the commands: `--help` is instant."""

from __future__ import annotations

import sys

import typer

from tutelage.errors import TutelageError

app = typer.Typer(
    help="Distil a big image classifier into a small one, prove what came of it, and get a deployable file.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


@app.callback()
def _program() -> None:
    """A callback keeps the commands' names even while there is only one of them."""


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; a `TutelageError` becomes one line on stderr and exit code 2.

    Args:
        arguments: those after the program's name; None takes them from `sys.argv`.
    """
    try:
        app(arguments)
    except TutelageError as error:
        print(f"error: {' '.join(str(error).splitlines())}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
