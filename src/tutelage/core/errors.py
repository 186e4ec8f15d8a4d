"""The exception whose message is meant for the user."""


class TutelageError(Exception):
    """Bad input, or a machine that lacks something: one line that names the file or the key, and what to do.

    The command line prints the message without a traceback and exits with `exit_code`.
    """

    exit_code = 2


class WeakTeacher(TutelageError):  # noqa: N818 - the run is stopped and kept, it has not failed
    """The teacher is not shown to be better than the labels-only control on val, so that the student is not trained.

    Everything that was trained is kept, and the run can be resumed with ``preflight.allow_weak_teacher``. The command
    line prints the message and exits with code 1.
    """

    exit_code = 1


class Incomplete(TutelageError):  # noqa: N818 - the student is kept
    """The student is kept, but a station after its training failed, such as the page; the others were made.

    ``tutelage resume`` makes what is missing. The command line prints the message and exits with code 1.
    """

    exit_code = 1


def one_line(error: BaseException) -> str:
    """Return the message of any exception as one line, or the name of its type where it has no message."""
    return " ".join(str(error).split()) or type(error).__name__
