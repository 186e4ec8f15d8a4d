"""The commands that look at finished runs or follow running ones."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tutelage.cli.interrupts import interrupts_raise
from tutelage.cli.options import option


def report(
    runs: Annotated[
        list[Path],
        typer.Argument(
            help="One run directory, several, or a directory of runs such as a study's.", metavar="RUN..."
        ),
    ],
    out: Annotated[
        Path | None,
        option("File for the page of several runs.", "report.html in the current directory", dir_okay=False),
    ] = None,
    explain: Annotated[
        bool,
        typer.Option(
            "--explain", help="Also show where teacher and student look in images that changed (Grad-CAM)."
        ),
    ] = False,
) -> None:
    """Write the page of a run again, or one page that compares several runs."""
    from tutelage.report.build import report as make_page

    if explain:
        from tutelage.core.errors import TutelageError
        from tutelage.core.run_dir import Run
        from tutelage.pipeline.explain import explain_images

        if len(runs) > 1:
            raise TutelageError("--explain: name one run, such as `tutelage report runs/NAME --explain`")
        explain_images(Run.open(runs[0]), print)
    print(make_page(runs, out))


def watch(
    run: Annotated[Path, typer.Argument(help="Directory of a run or a study, finished or not.")],
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="TCP port of the server; 0 takes any free one.")
    ] = 0,
) -> None:
    """Serve a page that follows a run, on this machine only. Stop it with Ctrl-C."""
    from contextlib import suppress

    from tutelage.report.server import Server

    interrupts_raise()
    server = Server(run, port)
    print(f"{server.url} follows {run}; stop it with Ctrl-C", flush=True)
    with suppress(KeyboardInterrupt):
        server.serve_forever()


def verify(run: Annotated[Path, typer.Argument(help="Directory of a finished run.")]) -> None:
    """Verify that no file of a run has changed since its end; the exit code is 1 if one has."""
    from tutelage.core.run_dir import Run
    from tutelage.pipeline.verify import verify as verify_files

    found = verify_files(Run.open(run))
    for line in found.lines():
        print(line)
    if not found.ok:
        raise SystemExit(1)
