"""The one exception whose message is meant for the user."""


class TutelageError(Exception):
    """Bad input, or a machine that cannot go on: one line that names the file or key and the mend.

    The command line prints the message without a traceback and exits with code 2.
    """
