"""The command line: parse, call, print. Heavy imports are inside the commands, so that `--help` is instant."""

import sys

try:
    from tutelage.cli.commands import app, main
except KeyboardInterrupt:  # before `main` could say what Ctrl-C does
    print("stopped", file=sys.stderr)
    raise SystemExit(130) from None

__all__ = ["app", "main"]
