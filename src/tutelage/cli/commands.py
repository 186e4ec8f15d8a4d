"""The commands that start, deploy and continue, and the program that holds all of them."""

from __future__ import annotations

import io
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tutelage.cli import look
from tutelage.cli.advise import advise
from tutelage.cli.options import ProgressOption, Runs, option
from tutelage.core.errors import TutelageError, WeakTeacher

if TYPE_CHECKING:
    from tutelage.core.recipe import Recipe
    from tutelage.core.run_dir import Run

app = typer.Typer(
    help="Distil a large image classifier into a small one, measure what the teacher added, and export the student.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

# The panels of `tutelage --help`, in the order in which people come to need them.
START, LOOK, DEPLOY, FURTHER = "Start", "Look at results", "Deploy", "Go further"


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
) -> None:
    """Options that stand before a command."""


@app.command(rich_help_panel=START)
def quickstart(
    name: Annotated[str, typer.Option(help="Name of the run directory.")] = "quickstart",
    runs: Runs = Path("runs"),
    progress: ProgressOption = "auto",
) -> None:
    """Run a complete distillation on a small bundled data set, in a few minutes."""
    from tutelage.core.run_dir import Run
    from tutelage.pipeline.quickstart import quickstart_recipe
    from tutelage.pipeline.run import begin

    recipe = quickstart_recipe().model_copy(update={"name": name})
    done = Run(runs / name)
    _distill(recipe, done if done.versions.exists() else begin(recipe, runs, "tutelage quickstart"), progress)


app.command(rich_help_panel=START, no_args_is_help=True)(advise)


@app.command(rich_help_panel=START, no_args_is_help=True)
def distill(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            help="A recipe (YAML file), and keys of it to change, such as train.batch_size=32.",
            metavar="[RECIPE] [KEY=VALUE]...",
            show_default=False,
        ),
    ] = None,
    teacher: Annotated[
        str | None, option("Teacher, as NAME@WEIGHTS.", "tf_efficientnet_lite2, or as in RECIPE")
    ] = None,
    student: Annotated[
        str | None, option("Student, as NAME@WEIGHTS.", "tf_efficientnet_lite0, or as in RECIPE")
    ] = None,
    data: Annotated[
        str | None, option("Training images, as KIND:WHERE or a path.", "digits, or as in RECIPE")
    ] = None,
    epochs: Annotated[int | None, option("Passes over the training images.", "auto, or as in RECIPE")] = None,
    lr: Annotated[float | None, option("Learning rate after warm-up.", "auto, or as in RECIPE")] = None,
    name: Annotated[
        str | None, option("Name of the run directory.", "as in RECIPE, or models and time")
    ] = None,
    allow_weak: Annotated[
        bool,
        option(
            "Continue with a teacher that is not shown to be better than student or control.",
            "off, or as in RECIPE",
            name="--allow-weak-teacher",
        ),
    ] = False,
    control: Annotated[
        bool | None,
        option(
            "Also train with labels only, to measure what the teacher adds.",
            "--control, or as in RECIPE",
            name="--control/--no-control",
        ),
    ] = None,
    with_files: Annotated[
        bool,
        option(
            "Also write deployment files and verify them; the exit code is 1 if one fails.",
            "off, or as in RECIPE",
            name="--export",
        ),
    ] = False,
    watching: Annotated[
        bool, typer.Option("--watch", help="Serve a page that follows the run, on this machine only.")
    ] = False,
    seeds: Annotated[
        int, typer.Option(min=1, help="Number of training seeds; several give mean and spread.")
    ] = 1,
    runs: Runs = Path("runs"),
    progress: ProgressOption = "auto",
) -> None:
    """Distil a teacher into a student, and compare the result with start, control and teacher."""
    from tutelage.core.recipe import load_recipe
    from tutelage.pipeline.run import begin

    words = list(words or [])
    path = Path(words.pop(0)) if words and "=" not in words[0] else None
    options = {
        "--teacher": ("teacher.model", teacher),
        "--student": ("student.model", student),
        "--data": ("data.train", data),
        "--epochs": ("train.epochs", epochs),
        "--lr": ("train.lr", lr),
        "--name": ("name", name),
        "--control" if control else "--no-control": ("control", control),
        "--export": ("export.enabled", with_files or None),
        "--allow-weak-teacher": ("preflight.allow_weak_teacher", allow_weak or None),
    }
    recipe = load_recipe(path, words, options)
    run = begin(recipe, runs, " ".join(["tutelage", *sys.argv[1:]]), seeds)
    if watching:
        from tutelage.report.server import Server

        server = Server(run.path)
        server.start()
        print(f"{server.url} follows {run.path}", file=sys.stderr, flush=True)
    _distill(recipe, run, progress)


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
        int, typer.Option(min=1, help="Images per batch when throughput is measured.")
    ] = 32,
    threads: Annotated[int | None, option("Number of CPU threads.", "PyTorch's choice", min=1)] = None,
    device: Annotated[
        str | None, option("Device to measure on: cpu, cuda or mps.", "the fastest there is")
    ] = None,
    deploy: Annotated[
        bool, typer.Option("--deploy", help="Also measure each model as ONNX, OpenVINO and int8 files.")
    ] = False,
) -> None:
    """Compare size, speed and accuracy of any models, side by side."""
    from rich.console import Console

    from tutelage.core.files import write_json, write_text

    if deploy:
        from tutelage.deploy.compare import compare_deployed as measure  # needs the extra `deploy`
    else:
        from tutelage.evaluation.compare import compare as measure
    with Console(stderr=True).status("loading") as status:
        table = measure(
            models, data=data, batch_size=batch_size, threads=threads, device=device, say=status.update
        )
    Console().print(table.rich())
    if json:
        write_json(json, table.records())
    if csv:
        write_text(csv, table.csv())
    if markdown:
        write_text(markdown, table.markdown())


app.command(rich_help_panel=LOOK)(look.report)
app.command(rich_help_panel=LOOK)(look.watch)
app.command(rich_help_panel=LOOK)(look.verify)
app.command("check", hidden=True)(look.verify)  # the name of `verify` in earlier versions


@app.command(rich_help_panel=DEPLOY)
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
    data: Annotated[
        str | None, option("Labelled images for MODEL, as KIND:WHERE or a path.", "as in RUN")
    ] = None,
    out: Annotated[Path | None, option("Directory to write to.", "RUN/deploy, or MODEL-deploy")] = None,
    max_drop: Annotated[
        float | None,
        option("Largest accepted loss of top-1, in percentage points.", "1, or as in RUN", min=0),
    ] = None,
) -> None:
    """Write a model as ONNX and OpenVINO files, and verify them; the exit code is 1 if one fails."""
    from rich.console import Console

    from tutelage.deploy.command import export_named

    with Console(stderr=True).status("loading") as status:
        report = export_named(what, out, data=data, int8=int8, max_drop=max_drop, say=status.update)
    Console().print(report.table.rich())
    print(f"written to {report.directory}")
    for name, reason in report.rejected.items():
        print(f"{report.directory / 'rejected' / name}: {reason}", file=sys.stderr)
    if report.rejected:
        raise SystemExit(1)


@app.command(rich_help_panel=DEPLOY)
def predict(
    directory: Annotated[Path, typer.Argument(help="Directory that `tutelage export` wrote, or of a run.")],
    images: Annotated[list[Path], typer.Argument(help="Image files, or folders to search for them.")],
    top: Annotated[int, typer.Option(min=1, help="Number of classes shown per image.")] = 5,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object per image.")] = False,
) -> None:
    """Classify images with exported files, without PyTorch; the exit code is 2 if an image cannot be read."""
    from tutelage.deploy.predictor import Predictor, find_images

    predictor, errors = Predictor(directory), 0

    def tell(error: TutelageError) -> None:
        nonlocal errors
        errors += 1
        print(f"error: {error}", file=sys.stderr)

    for place in images:
        try:
            for image in find_images([place]):
                try:
                    (found,) = predictor(image, top)
                    print(found.json() if json else found.line(), flush=True)
                except TutelageError as error:
                    tell(error)
        except TutelageError as error:  # the place has no images; the others are not lost
            tell(error)
    if errors:
        raise SystemExit(2)


@app.command(rich_help_panel=FURTHER)
def resume(
    run: Annotated[Path, typer.Argument(help="Directory of a run that was stopped.")],
    allow_weak: Annotated[
        bool,
        typer.Option("--allow-weak-teacher", help="Continue although the teacher is not shown to be better."),
    ] = False,
    progress: ProgressOption = "auto",
) -> None:
    """Continue a run that was stopped."""
    from tutelage.core.recipe import load_recipe
    from tutelage.core.run_dir import Run
    from tutelage.core.runtime import Runtime
    from tutelage.pipeline.stages.teacher_check import allow_weak_teacher

    opened = Run.open(run)
    recipe = load_recipe(opened.recipe)
    if allow_weak:
        recipe = Runtime.start().on_main(lambda: allow_weak_teacher(recipe, opened))
    _distill(recipe, opened, progress)


@app.command(rich_help_panel=FURTHER)
def study(
    words: Annotated[
        list[str],
        typer.Argument(
            help="A study (YAML file), and keys of its base recipe to change.", metavar="STUDY [KEY=VALUE]..."
        ),
    ],
    trials: Annotated[
        int | None, option("Number of trials, variants included.", "as in STUDY", min=1)
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

    plan = load_study(Path(words[0]), words[1:], trials=trials, name=name)
    reporter = open_progress(progress)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # also between stages, as in a run
    try:
        found = run_study(plan, studies, reporter, " ".join(["tutelage", *sys.argv[1:]]))
    except (Interrupted, KeyboardInterrupt):
        reporter.say("stopped; all results are kept: continue with the same command")
        raise SystemExit(130) from None
    reporter.table(found)
    reporter.say(found.sentence())


def _distill(recipe: Recipe, run: Run, progress: str) -> None:
    from tutelage.core.files import entry
    from tutelage.core.runtime import Runtime
    from tutelage.distillation.stop import Interrupted
    from tutelage.pipeline.console import open_progress
    from tutelage.pipeline.run import distill as all_stations
    from tutelage.pipeline.run import show
    from tutelage.pipeline.seeds import distill_seeds

    # also between stages, a run that is terminated says how to continue
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    reporter = open_progress(progress if Runtime.start().is_main else "none")
    seeds = entry(run.versions, "seeds")
    try:
        if seeds > 1:
            reporter.say(distill_seeds(recipe, run, seeds, reporter)["sentence"])
        else:
            all_stations(recipe, run, reporter)
    except (Interrupted, KeyboardInterrupt):
        reporter.say(f"stopped; all results are kept: continue with `tutelage resume {run.path}`")
        raise SystemExit(130) from None
    except WeakTeacher as stopped:
        if Runtime.start().is_main:
            print(f"{stopped} (`tutelage resume {run.path} --allow-weak-teacher`)", file=sys.stderr)
        raise SystemExit(1) from None
    if seeds == 1:
        show(run, reporter)
    if any(place.exists() for place in [run.deploy / "rejected", *run.path.glob("seed-*/deploy/rejected")]):
        raise SystemExit(1)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; a `TutelageError` becomes one line on stderr and exit code 2.

    Args:
        arguments: those after the program's name; None takes them from `sys.argv`.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):  # a name that the terminal's encoding lacks ends no command
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        app(arguments)
    except TutelageError as error:
        print(f"error: {' '.join(str(error).splitlines())}", file=sys.stderr)
        raise SystemExit(2) from None
