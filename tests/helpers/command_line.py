"""The command line, called as a user calls it."""

from tutelage.cli import main


def call(*words: str) -> int:
    """Run a command, and return its exit code."""
    try:
        main(list(words))
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0
