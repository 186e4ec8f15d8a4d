"""Options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer


def option(text: str, default: str | bool, name: str = "", **limits: Any) -> Any:
    """An option whose default is found elsewhere, described in words; False: there is none to show."""
    names = [name] if name else []
    return typer.Option(*names, help=text, show_default=default, **limits)


Runs = Annotated[Path, typer.Option(help="Directory in which run directories are created.")]
ProgressOption = Annotated[
    str,
    typer.Option(
        "--progress",
        help="rich (bars), plain (lines, for a log), json (one object per line) or none; auto is rich on a "
        "terminal, and plain elsewhere.",
    ),
]
DeviceOption = Annotated[
    str | None,
    option(
        "Device to compute on: cpu, mps, cuda, or one GPU of several such as cuda:1.", "the fastest there is"
    ),
]
DeferOption = Annotated[
    Path | None,
    option(
        "Exported teacher that answers where the confidence is below the threshold of `tutelage cascade`.",
        "nobody",
        metavar="DIRECTORY",
    ),
]
