"""The command that measures a teacher on some images, without a student."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tutelage.cli.options import DeviceOption, option


def teacher(
    model: Annotated[
        str, typer.Argument(help="The teacher, as NAME@WEIGHTS or KIND:WHERE.", show_default=False)
    ],
    data: Annotated[str, typer.Option(help="Images, as KIND:WHERE or a path.", show_default=False)],
    resolution: Annotated[
        int | None, option("Resolution of the teacher, in pixels.", "its own", min=16, metavar="PX")
    ] = None,
    images: Annotated[
        int, typer.Option(min=20, metavar="N", help="Most images to measure the teacher on.")
    ] = 2000,
    device: DeviceOption = None,
    json: Annotated[Path | None, option("Write the figures as JSON.", False, dir_okay=False)] = None,
) -> None:
    """Measure a teacher on your images: classes, input, accuracy, calibration, best temperature and resolution."""
    from rich.console import Console

    from tutelage.core.files import write_json
    from tutelage.pipeline.early import check_place

    if json:
        check_place(json.parent)
    from tutelage.pipeline.teacher_report import report_teacher  # PyTorch is imported here

    with Console(stderr=True).status("loading") as status:
        found = report_teacher(
            model, data, pixels=resolution, images=images, device=device, say=status.update
        )
    Console().print(found.rich())
    print(f"\n    {found.command}\n")  # in one line of any length, so that it can be copied
    if json:
        write_json(json, found.to_dict())
