"""The command that tells, before a run, whether distilling is right for some images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tutelage.cli.options import DeviceOption, option


def advise(
    data: Annotated[str, typer.Option(help="Labelled images, as KIND:WHERE or a path.", show_default=False)],
    teacher: Annotated[str | None, option("Teacher, as NAME@WEIGHTS.", "tf_efficientnet_lite2")] = None,
    student: Annotated[
        list[str] | None,
        option(
            "Candidate student, as NAME@WEIGHTS; repeat it for several.",
            "smaller models whose weights are on this machine",
        ),
    ] = None,
    teacher_resolution: Annotated[
        int | None, option("Resolution of the teacher, in pixels.", "its own", min=16, metavar="PX")
    ] = None,
    student_resolution: Annotated[
        list[int] | None,
        option(
            "Resolution of the students, in pixels; repeat it for several.",
            "its own, and two smaller ones",
            min=16,
            metavar="PX",
        ),
    ] = None,
    max_latency_ms: Annotated[
        float | None,
        option(
            "Longest time that a student may take for one image, in ms, on this machine.",
            "no limit",
            min=0,
            metavar="MS",
        ),
    ] = None,
    max_size_mb: Annotated[
        float | None,
        option("Largest size of a student, in MiB (2^20 bytes).", "no limit", min=0, metavar="MIB"),
    ] = None,
    images: Annotated[
        int,
        typer.Option(
            min=20,
            metavar="N",
            help="Most images to fit the linear probes to; half as many are held out to judge them.",
        ),
    ] = 2000,
    device: DeviceOption = None,
    json: Annotated[Path | None, option("Write the advice as JSON.", False, dir_okay=False)] = None,
) -> None:
    """Tell in minutes whether distilling is right for your images, which student fits, and what to type."""
    from rich.console import Console

    from tutelage.core.files import write_json
    from tutelage.pipeline.early import check_place

    if json:
        check_place(json.parent)
    from tutelage.pipeline.advise import advise as judge  # PyTorch is imported here

    with Console(stderr=True).status("loading") as status:
        advice = judge(
            data,
            teacher,
            student or (),
            teacher_resolution=teacher_resolution,
            student_resolutions=student_resolution or (),
            max_latency_ms=max_latency_ms,
            max_size_mb=max_size_mb,
            images=images,
            device=device,
            say=status.update,
        )
    Console().print(advice.rich())
    if advice.command:
        print(f"\n    {advice.command}\n")  # in one line of any length, so that it can be copied
    if json:
        write_json(json, advice.to_dict())
