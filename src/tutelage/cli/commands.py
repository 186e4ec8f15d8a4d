"""The commands that start and continue, and the program that holds all of them."""

from __future__ import annotations

import io
import sys
import traceback
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from tutelage.cli import deploy, lists, look
from tutelage.cli.advise import advise
from tutelage.cli.data import data as look_at_data
from tutelage.cli.distill import carry_out, distill
from tutelage.cli.group import Commands
from tutelage.cli.interrupts import INTERRUPTED, exit_now, interrupts_exit, interrupts_raise
from tutelage.cli.options import DeviceOption, ProgressOption, Runs, option
from tutelage.cli.predict import predict
from tutelage.cli.recipe import recipe as show_recipe
from tutelage.cli.serve import serve
from tutelage.cli.teacher import teacher
from tutelage.core.code import FLAG, only_named
from tutelage.core.errors import TutelageError, one_line

app = typer.Typer(
    cls=Commands,
    help="Distil a large image classifier into a small one, measure what the teacher added, and export the student.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

# The panels of `tutelage --help`, in the order in which people come to need them.
START, LISTS, LOOK, DEPLOY, FURTHER = (
    "Start",
    "List what there is",
    "Look at results",
    "Deploy",
    "Go further",
)


def _show_version(wanted: bool) -> None:
    if wanted:
        from tutelage import __version__

        print(f"tutelage {__version__}")
        raise typer.Exit


@app.callback()
def _program(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit."),
    ] = False,
    allow_code: Annotated[
        bool,
        typer.Option(
            FLAG,
            help="Run the functions that a recipe or a run names as torch:MODULE:FUNCTION. It may stand anywhere.",
        ),
    ] = False,
) -> None:
    """Options that stand before a command."""


@app.command(rich_help_panel=START)
def quickstart(
    name: Annotated[str, typer.Option(help="Name of the run directory.")] = "quickstart",
    seeds: Annotated[int, typer.Option(min=1, help="Number of training seeds.")] = 1,
    runs: Runs = Path("runs"),
    progress: ProgressOption = "auto",
) -> None:
    """Run a complete distillation on a small bundled data set, in a few minutes."""
    from tutelage.core.run_dir import Run
    from tutelage.pipeline.early import check_early
    from tutelage.pipeline.quickstart import quickstart_recipe, write_example

    recipe = quickstart_recipe().model_copy(update={"name": name})
    done = Run(runs / name)
    if done.comparison.exists() and done.digests.exists():  # of one seed
        from tutelage.pipeline.console import open_progress
        from tutelage.pipeline.run import show

        reporter = open_progress(progress)
        show(done, reporter)
        reporter.say("this run was finished before; `tutelage quickstart --name another` makes a new one")
        return
    if done.versions.exists():
        carry_out(recipe, done, progress)
        return
    check_early(recipe, runs)
    from tutelage.pipeline.run import begin, refusals_leave_nothing

    run = begin(recipe, runs, "tutelage quickstart", seeds)
    with refusals_leave_nothing(run):
        if seeds == 1:
            write_example(run, recipe)
        carry_out(recipe, run, progress)


app.command("data", rich_help_panel=START, no_args_is_help=True)(look_at_data)
app.command(rich_help_panel=START, no_args_is_help=True)(advise)
app.command(rich_help_panel=START, no_args_is_help=True)(teacher)


app.command(rich_help_panel=START, no_args_is_help=True)(distill)


@app.command(rich_help_panel=START)
def compare(
    models: Annotated[
        list[str], typer.Argument(help="Models, as NAME@WEIGHTS; the others are compared with the first.")
    ],
    data: Annotated[
        str | None, option("Labelled images, as KIND:WHERE or a path.", "none: no accuracy")
    ] = None,
    json: Annotated[Path | None, option("Write the table as JSON.", False, dir_okay=False)] = None,
    csv: Annotated[Path | None, option("Write the table as CSV.", False, dir_okay=False)] = None,
    markdown: Annotated[Path | None, option("Write the table as Markdown.", False, dir_okay=False)] = None,
    batch_size: Annotated[
        int, typer.Option(min=1, metavar="N", help="Images per batch when throughput is measured.")
    ] = 32,
    threads: Annotated[
        int | None, option("Number of CPU threads.", "PyTorch's choice", min=1, metavar="N")
    ] = None,
    device: DeviceOption = None,
    deploy: Annotated[
        bool,
        typer.Option(
            "--deploy",
            help="Also measure each model as ONNX, OpenVINO and int8 files, or on a GPU.",
        ),
    ] = False,
) -> None:
    """Compare size, speed and accuracy of any models, side by side."""
    from rich.console import Console

    from tutelage.core.files import write_json, write_text
    from tutelage.pipeline.console import shown_steps
    from tutelage.pipeline.early import check_place

    if deploy:
        from tutelage.deploy.compare import compare_deployed as measure  # needs the extra `deploy`
    else:
        from tutelage.evaluation.compare import compare as measure
    for place in filter(None, (json, csv, markdown)):
        check_place(place.parent)
    with shown_steps() as say:
        table = measure(models, data=data, batch_size=batch_size, threads=threads, device=device, say=say)
    Console().print(table.rich())
    if json:
        write_json(json, table.records())
    if csv:
        write_text(csv, table.csv())
    if markdown:
        write_text(markdown, table.markdown())


app.command(rich_help_panel=LISTS)(lists.models)
app.command(rich_help_panel=LISTS)(lists.losses)
app.command("recipe", rich_help_panel=LISTS)(show_recipe)


app.command(rich_help_panel=LOOK)(look.report)
app.command(rich_help_panel=LOOK)(look.watch)
app.command(rich_help_panel=LOOK)(look.verify)
app.command("check", hidden=True)(look.verify)  # the name of `verify` in earlier versions


app.command(rich_help_panel=DEPLOY)(deploy.export)
app.command(rich_help_panel=DEPLOY)(predict)
app.command(rich_help_panel=DEPLOY, no_args_is_help=True)(deploy.cascade)
app.command(rich_help_panel=DEPLOY, no_args_is_help=True)(serve)


@app.command(rich_help_panel=FURTHER)
def resume(
    run: Annotated[Path, typer.Argument(help="Directory of a run that was stopped.")],
    allow_weak: Annotated[
        bool,
        typer.Option("--allow-weak-teacher", help="Continue although the teacher is not shown to be better."),
    ] = False,
    device: DeviceOption = None,
    progress: ProgressOption = "auto",
) -> None:
    """Continue a run that was stopped."""
    from tutelage.core.begun import check_edits, where_it_began
    from tutelage.core.recipe import load_recipe
    from tutelage.core.run_dir import Run

    with where_it_began(Run.open(run)) as opened:
        recipe = load_recipe(opened.recipe)
        check_edits(opened, recipe)
        from tutelage.core.runtime import Runtime  # PyTorch is imported here
        from tutelage.pipeline.stages.teacher_check import allow_weak_teacher

        runtime = Runtime.start(device)
        if allow_weak:
            recipe = runtime.on_main(lambda: allow_weak_teacher(recipe, opened))
        carry_out(recipe, opened, progress)


@app.command(rich_help_panel=FURTHER)
def study(
    words: Annotated[
        list[str],
        typer.Argument(
            help="A study (YAML file), and keys of its base recipe to change.", metavar="STUDY [KEY=VALUE]..."
        ),
    ],
    trials: Annotated[
        int | None, option("Number of trials, variants included.", "as in STUDY", min=1, metavar="N")
    ] = None,
    seeds: Annotated[
        int | None,
        option("Number of training seeds of each variant.", "as in STUDY, else 1", min=1, metavar="N"),
    ] = None,
    against: Annotated[
        str | None,
        option("The variant that all are held against.", "as in STUDY, else the best", metavar="VARIANT"),
    ] = None,
    variant: Annotated[
        list[str] | None,
        option("Run this variant only; repeat it for several.", "all of STUDY", metavar="VARIANT"),
    ] = None,
    name: Annotated[str | None, option("Name of the study's directory.", "as in STUDY")] = None,
    studies: Annotated[Path, typer.Option(help="Directory in which study directories are created.")] = Path(
        "studies"
    ),
    progress: ProgressOption = "auto",
) -> None:
    """Run variants of a recipe and rank them. Start it again to continue, several times to share the work."""
    try:
        from tutelage.distillation.stop import Interrupted
        from tutelage.pipeline.console import open_progress
        from tutelage.pipeline.study.plan import load_study
        from tutelage.pipeline.study.worker import run_study
    except ModuleNotFoundError as error:
        raise TutelageError(f"{error.name} is not installed; run `pip install 'tutelage[study]'`") from None

    plan = load_study(
        Path(words[0]),
        words[1:],
        trials=trials,
        name=name,
        seeds=seeds,
        against=against,
        only=variant or (),
    )
    reporter = open_progress(progress)
    interrupts_raise()  # also between stages, as in a run
    try:
        found = run_study(plan, studies, reporter, " ".join(["tutelage", *sys.argv[1:]]))
    except (Interrupted, KeyboardInterrupt):
        reporter.say("stopped; all results are kept: continue with the same command")
        raise SystemExit(INTERRUPTED) from None
    reporter.table(found)
    reporter.say(found.sentence())


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; a `TutelageError` becomes one line on stderr and its exit code.

    Args:
        arguments: those after the program's name; None takes them from `sys.argv`.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):  # a name that the terminal's encoding lacks ends no command
        sys.stdout.reconfigure(errors="backslashreplace")
    if arguments is None:
        interrupts_exit()
    words = sys.argv[1:] if arguments is None else arguments
    try:
        with only_named(words):
            app([word for word in words if word != FLAG])
    except Exception as error:
        _end(error)
    except SystemExit as ended:
        if arguments is None and ended.code == INTERRUPTED:
            exit_now()
        raise


def _end(error: Exception) -> NoReturn:
    """End this process and the others of its run with an error: in one line where it means something to the user."""
    processes = sys.modules.get("tutelage.core.processes")
    if processes is not None and processes.peers() is not None:
        error = processes.end_together(error, _say)
    elif _line(error) is None:
        raise error
    else:
        _say(error)
    _, code = _line(error) or ("", 1)
    raise SystemExit(code) from None


def _say(error: Exception) -> None:
    if (told := _line(error)) is None:
        traceback.print_exception(error)
    else:
        print(f"error: {told[0]}", file=sys.stderr, flush=True)


def _line(error: Exception) -> tuple[str, int] | None:
    """Return the line for the user and the exit code of an error; None: it is a fault of the program."""
    if isinstance(error, TutelageError):
        return one_line(error), error.exit_code
    if isinstance(error, RuntimeError | MemoryError):
        from tutelage.core.out_of_memory import is_out_of_memory  # PyTorch is imported here

        if is_out_of_memory(error):
            return f"out of memory ({one_line(error)}); use smaller models or resolutions", 2
    return None
