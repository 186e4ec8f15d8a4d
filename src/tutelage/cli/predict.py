"""The command that classifies images with deployment files."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from tutelage.cli.options import DeferOption, option
from tutelage.core.errors import TutelageError
from tutelage.core.files import whole_file

if TYPE_CHECKING:
    from tutelage.deploy.predictor import Prediction
    from tutelage.deploy.runtimes.base import Precision

COLUMNS = ("image", "rank", "label", "class_id", "index", "probability", "deferred")


def predict(
    directory: Annotated[Path, typer.Argument(help="Directory that `tutelage export` wrote, or of a run.")],
    images: Annotated[list[Path], typer.Argument(help="Image files, or folders to search for them.")],
    top: Annotated[int, typer.Option(min=1, metavar="N", help="Number of classes shown per image.")] = 5,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object per image.")] = False,
    as_csv: Annotated[
        bool, typer.Option("--csv", help="Print CSV, a line for each class of an image.")
    ] = False,
    out: Annotated[
        Path | None,
        option("File for the results, written when all images are done.", "the terminal", dir_okay=False),
    ] = None,
    runtime: Annotated[
        str | None, option("Runtime that runs the model.", "the fastest that is installed", metavar="NAME")
    ] = None,
    precision: Annotated[
        str | None,
        option(
            "Precision of the file: int8, int4, fp32 or fp16.", "the fastest of the runtime", metavar="NAME"
        ),
    ] = None,
    batch: Annotated[
        int | None, option("Images that are run at once.", "8 for int8, else 1", min=1, metavar="N")
    ] = None,
    defer_to: DeferOption = None,
    threshold: Annotated[
        float | None,
        option("Threshold to defer by.", "that of `tutelage cascade`", min=0, max=1, metavar="CONFIDENCE"),
    ] = None,
) -> None:
    """Classify images with exported files, without PyTorch; the exit code is 2 if an image cannot be read."""
    from tutelage.deploy.pictures import each_picture
    from tutelage.deploy.predictor import Prediction, Predictor

    if json and as_csv:
        raise TutelageError("--json and --csv: the results have one format; leave one of them out")
    predictor = Predictor(
        directory,
        runtime=runtime,
        precision=cast("Precision | None", precision),
        defer_to=Predictor(defer_to) if defer_to else None,
        threshold=threshold,
        batch=batch,
    )
    pictures, errors = list(each_picture(images)), 0
    as_text = _json if json else _csv if as_csv else _line
    with _results(out) as write, _progress(len(pictures), out) as advance:
        write(_row(COLUMNS) if as_csv else "")
        for found in predictor.answers(pictures, top):
            if isinstance(found, Prediction):
                write(as_text(found))
            else:
                errors += 1
                print(f"error: {found}", file=sys.stderr)
            advance()
    if errors:
        raise SystemExit(2)


@contextmanager
def _results(out: Path | None) -> Iterator[Callable[[str], object]]:
    """To write text to stdout at once, or to a file that is there when all is done."""
    if out is None:
        yield lambda text: print(text, end="", flush=True)
        return
    with whole_file(out) as stream:
        yield stream.write


@contextmanager
def _progress(count: int, out: Path | None) -> Iterator[Callable[[], object]]:
    """A bar on stderr, where that is a terminal to which the results do not go too."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if count < 2 or not console.is_terminal or (out is None and sys.stdout.isatty()):
        yield lambda: None
        return
    columns = (TextColumn("images"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    # stdout is a file or a pipe: rich would send its lines to the console
    with Progress(*columns, console=console, redirect_stdout=False) as bar:
        task = bar.add_task("images", total=count)
        yield lambda: bar.advance(task)


def _line(found: Prediction) -> str:
    return f"{found.line()}\n"


def _json(found: Prediction) -> str:
    return f"{found.json()}\n"


def _csv(found: Prediction) -> str:
    return "".join(
        _row((found.source, rank, one.label, one.class_id, one.index, one.probability, int(found.deferred)))
        for rank, one in enumerate(found.guesses, start=1)
    )


def _row(cells: Iterable[object]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue()
