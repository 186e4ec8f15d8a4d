"""The commands that make deployment files."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated

import typer

from tutelage.cli.interrupts import INTERRUPTED
from tutelage.cli.options import DeviceOption, option
from tutelage.core.errors import TutelageError

if TYPE_CHECKING:
    from tutelage.core.run_dir import Run


def export(
    what: Annotated[
        str, typer.Argument(help="Run directory, or a model as NAME@WEIGHTS.", metavar="RUN|MODEL")
    ],
    int8: Annotated[
        bool | None,
        option(
            "Also write files quantised to 8-bit integers.",
            "--int8, or as in RUN",
            name="--int8/--no-int8",
        ),
    ] = None,
    int4: Annotated[
        bool | None,
        option(
            "Also write LiteRT's int8 file with the last layers' weights in 4 bits.",
            "--no-int4, or as in RUN",
            name="--int4/--no-int4",
        ),
    ] = None,
    data: Annotated[
        str | None, option("Labelled images for MODEL, as KIND:WHERE or a path.", "as in RUN")
    ] = None,
    out: Annotated[Path | None, option("Directory to write to.", "RUN/deploy, or MODEL-deploy")] = None,
    teacher: Annotated[
        bool | None,
        option(
            "Also export a run's teacher, to compare files of the same kind.",
            "--no-teacher, or as in RUN",
            name="--teacher/--no-teacher",
        ),
    ] = None,
    formats: Annotated[
        list[str] | None,
        option(
            "Format of the files; can be given several times.",
            "onnx and openvino, or as in RUN",
            name="--format",
            metavar="FORMAT",
        ),
    ] = None,
    qad: Annotated[
        str | None,
        option(
            "Fine-tune a run's student for int8 with its teacher; auto: where a file loses too much.",
            "as in RUN",
            metavar="EPOCHS|auto",
        ),
    ] = None,
    max_drop: Annotated[
        float | None,
        option(
            "Largest accepted loss of top-1, in percentage points.",
            "1, or as in RUN",
            min=0,
            metavar="POINTS",
        ),
    ] = None,
    web: Annotated[
        bool | None,
        option(
            "Also write a page that classifies photographs in a browser.",
            "--no-web, or as in RUN",
            name="--web/--no-web",
        ),
    ] = None,
    web_runtime: Annotated[
        Path | None,
        option(
            "The page's runtime as `npm pack` downloads it, where npm's registry is out of reach.",
            "from npm, once",
            metavar="FILE",
        ),
    ] = None,
) -> None:
    """Write a model as files to deploy, and verify them; the exit code is 1 if one fails or cannot be made."""
    from rich.console import Console

    from tutelage.core.begun import where_it_began
    from tutelage.core.run_dir import Run as RunDirectory
    from tutelage.deploy.command import export_named
    from tutelage.deploy.export import REPORT
    from tutelage.deploy.web.folder import FOLDER
    from tutelage.distillation.stop import Interrupted
    from tutelage.pipeline.console import shown_steps
    from tutelage.pipeline.early import check_place

    where: AbstractContextManager[Run | None] = nullcontext()
    if Path(what).is_dir():
        where, out = where_it_began(RunDirectory.open(Path(what))), out and out.absolute()
        web_runtime = web_runtime and web_runtime.absolute()
    given = {
        "formats": formats or None,
        "int8": int8,
        "int4": int4,
        "teacher": teacher,
        "max_drop": max_drop,
        "web": web,
        "qad": _qad(qad),
    }
    changes = {key: value for key, value in given.items() if value is not None}
    check_place(out or Path(what if Path(what).is_dir() else "."))
    try:
        with where as run, shown_steps() as say:
            report = export_named(
                str(run.path) if run else what,
                out,
                data=data,
                changes=changes,
                web_tarball=web_runtime,
                say=say,
            )
    except Interrupted:
        print("stopped; the same command continues the fine-tuning", file=sys.stderr)
        raise SystemExit(INTERRUPTED) from None
    console = Console()
    console.print(report.rich())
    for remark in report.remarks:
        console.print(remark, highlight=False, markup=False)
    print(f"written to {report.directory}; all figures are in {report.directory / REPORT}")
    if (page := report.directory / FOLDER).exists():
        print(
            f"{page} is a page for any web server; try it with `python -m http.server -d {quote(str(page))}`"
        )
    for name, reason in report.rejected.items():
        print(f"{report.directory / 'rejected' / name}: {reason}", file=sys.stderr)
    for name, reason in report.missing.items():
        print(f"{report.directory / name}: cannot be made ({reason})", file=sys.stderr)
    if report.qad.failure:
        print(f"the student cannot be fine-tuned for int8 ({report.qad.failure})", file=sys.stderr)
    if report.rejected or report.missing or report.qad.failure:
        raise SystemExit(1)


def _qad(given: str | None) -> dict[str, int] | str | None:
    """The recipe's ``export.qad``."""
    if given is None or given == "auto":
        return given
    if not given.isdecimal() or int(given) < 1:
        raise TutelageError(f"--qad {given}: give a number of epochs or auto, such as --qad 2")
    return {"epochs": int(given)}


def cascade(
    run: Annotated[Path, typer.Argument(help="Directory of a finished run.")],
    agreement: Annotated[
        float,
        typer.Option(
            metavar="SHARE",
            help="Share of the images that the student answers alone on which it is to give the teacher's class.",
        ),
    ] = 0.95,
    device: DeviceOption = None,
    json: Annotated[Path | None, option("Also write the figures as JSON.", False, dir_okay=False)] = None,
) -> None:
    """Let a run's student answer where it is confident and its teacher elsewhere: choose the threshold, and measure."""
    from rich.console import Console

    from tutelage.core.begun import where_it_began
    from tutelage.core.files import write_json
    from tutelage.core.run_dir import Run as RunDirectory
    from tutelage.pipeline.early import check_place

    json = json and json.absolute()
    if json:
        check_place(json.parent)
    with where_it_began(RunDirectory.open(run)) as opened:
        from tutelage.pipeline.cascade import make_cascade  # PyTorch is imported here
        from tutelage.pipeline.console import shown_steps

        with opened.held(), shown_steps() as say:
            found = make_cascade(opened, agreement, device=device, say=say)
    Console().print(found.rich())
    for line in found.lines():
        print(line)
    print(f"all figures are in {opened.cascade}; the curve is in {opened.report}")
    if json:
        write_json(json, found.content)
