"""The command that serves a deployed directory over HTTP."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from tutelage.cli.interrupts import interrupts_raise
from tutelage.cli.options import DeferOption
from tutelage.core.errors import TutelageError

LOOPBACK = ("127.0.0.1", "localhost", "::1")


def serve(
    directory: Annotated[Path, typer.Argument(help="Directory that `tutelage export` wrote, or of a run.")],
    host: Annotated[
        str, typer.Option(help="Address to listen at; 0.0.0.0 is every network of this machine.")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="TCP port of the server; 0 takes any free one.")
    ] = 8000,
    max_mb: Annotated[float, typer.Option("--max-mb", min=0.001, metavar="MB", help="Largest request.")] = 32,
    max_images: Annotated[int, typer.Option(min=1, metavar="N", help="Most images of a request.")] = 16,
    max_megapixels: Annotated[
        float, typer.Option(min=0.001, metavar="MEGAPIXELS", help="Largest image, before it is decoded.")
    ] = 50,
    max_waiting: Annotated[
        int,
        typer.Option(min=1, metavar="N", help="Most requests that wait; further ones are answered with 503."),
    ] = 64,
    defer_to: DeferOption = None,
    dockerfile: Annotated[
        bool, typer.Option("--dockerfile", help="Write a Dockerfile for the server into DIRECTORY, and exit.")
    ] = False,
) -> None:
    """Serve exported files over HTTP, without PyTorch. Stop it with Ctrl-C."""
    from tutelage.deploy.predictor import Predictor

    predictor = Predictor(directory, defer_to=Predictor(defer_to) if defer_to else None)
    if dockerfile:
        from tutelage.deploy.container import write_dockerfile

        print(write_dockerfile(predictor.file.parent, predictor.file))
        return
    try:
        from tutelage.deploy.serve import make_app, run, warm_up
        from tutelage.deploy.uploads import Limits
    except ModuleNotFoundError as error:
        raise TutelageError(f"{error.name} is not installed; run `pip install 'tutelage[serve]'`") from None

    def ready(url: str) -> None:
        print(
            f"{url} serves {predictor.file}; {url}docs describes the requests; stop it with Ctrl-C",
            flush=True,
        )
        if host not in LOOPBACK:
            print(
                "everyone who reaches this address can use the server: it asks for no password",
                file=sys.stderr,
            )

    limits = Limits(max_mb, max_images, max_megapixels, max_waiting)
    warm_up(predictor)
    interrupts_raise()
    with suppress(KeyboardInterrupt):
        run(make_app(predictor, limits), host, port, ready, max_waiting)
