"""The command line: parse, call, print. Heavy imports are inside the commands: `--help` is instant."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tutelage.core.errors import TutelageError

if TYPE_CHECKING:
    from tutelage.core.progress import Progress
    from tutelage.core.recipe import Recipe
    from tutelage.core.run_dir import Run

app = typer.Typer(
    help="Distil a big image classifier into a small one, prove what came of it, and get a deployable file.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def _say_version(wanted: bool) -> None:
    if wanted:
        from tutelage import __version__

        print(f"tutelage {__version__}")
        raise typer.Exit


@app.callback()
def _program(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_say_version, is_eager=True, help="Say the version and leave."),
    ] = False,
) -> None:
    """What stands before a command."""


Runs = Annotated[Path, typer.Option(help="Where run directories are made.")]
ProgressOption = Annotated[
    str,
    typer.Option("--progress", help="rich (for people), json (a line an event) or none; auto by terminal."),
]


@app.command()
def compare(
    models: Annotated[
        list[str], typer.Argument(help="NAME@WEIGHTS each; the others are held against the first.")
    ],
    data: Annotated[str | None, typer.Option(help="KIND:WHERE of labelled images.")] = None,
    json: Annotated[Path | None, typer.Option(help="Write the rows here.", dir_okay=False)] = None,
    csv: Annotated[Path | None, typer.Option(help="Write the rows here.", dir_okay=False)] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write the table here.", dir_okay=False)] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images a batch, for the throughput.")] = 32,
    threads: Annotated[int | None, typer.Option(min=1, help="Of the CPU.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; the best there is.")] = None,
    deploy: Annotated[bool, typer.Option("--deploy", help="Also as ONNX, OpenVINO and int8 files.")] = False,
) -> None:
    """Size, speed and quality of any models, side by side."""
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


@app.command()
def distill(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            help="A recipe.yaml, and overrides such as train.epochs=5.", metavar="[RECIPE] [KEY=VALUE]..."
        ),
    ] = None,
    teacher: Annotated[str | None, typer.Option(help="NAME@WEIGHTS of the teacher.")] = None,
    student: Annotated[str | None, typer.Option(help="NAME@WEIGHTS of the student.")] = None,
    data: Annotated[str | None, typer.Option(help="KIND:WHERE of the images.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the training images.")] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate.")] = None,
    name: Annotated[str | None, typer.Option(help="Of the run directory.")] = None,
    control: Annotated[
        bool, typer.Option(help="Also train with labels only, to tell what the teacher adds.")
    ] = True,
    with_files: Annotated[
        bool, typer.Option("--export", help="Also deployed files, checked; exit code 1 where one fails.")
    ] = False,
    watching: Annotated[
        bool, typer.Option("--watch", help="Serve the run's page to this machine's browsers while it goes.")
    ] = False,
    seeds: Annotated[
        int, typer.Option(min=1, help="Repeat with so many seeds: mean, sd, pooled interval.")
    ] = 1,
    runs: Runs = Path("runs"),
    progress: ProgressOption = "auto",
) -> None:
    """Distil a teacher into a student, and prove what came of it."""
    from tutelage.core.recipe import load_recipe
    from tutelage.pipeline.run import begin

    flags = {
        "teacher.model": teacher,
        "student.model": student,
        "data.train": data,
        "train.epochs": epochs,
        "train.lr": lr,
        "name": name,
        "control": None if control else False,
        "export.enabled": with_files or None,
    }
    words = list(words or [])
    path = Path(words.pop(0)) if words and "=" not in words[0] else None
    recipe = load_recipe(path, [*words, *(f"{k}={v}" for k, v in flags.items() if v is not None)])
    run = begin(recipe, runs, " ".join(["tutelage", *sys.argv[1:]]), seeds)
    if watching:
        from tutelage.report.server import Server

        server = Server(run.path)
        server.start()
        print(f"{server.url} follows {run.path}", file=sys.stderr, flush=True)
    _distill(recipe, run, progress)


@app.command()
def resume(
    run: Annotated[Path, typer.Argument(help="The directory of a run that was stopped.")],
    progress: ProgressOption = "auto",
) -> None:
    """Go on with a run where it was stopped."""
    from tutelage.core.recipe import load_recipe
    from tutelage.core.run_dir import Run

    opened = Run.open(run)
    _distill(load_recipe(opened.recipe), opened, progress)


@app.command()
def check(run: Annotated[Path, typer.Argument(help="The directory of a run that has ended.")]) -> None:
    """Tell whether a run's files are as the run left them; exit code 1 where one is not."""
    from tutelage.core.run_dir import Run
    from tutelage.pipeline.verify import check as compare_digests

    found = compare_digests(Run.open(run))
    for line in found.lines():
        print(line)
    if not found.ok:
        raise SystemExit(1)


@app.command()
def quickstart(
    name: Annotated[str, typer.Option(help="Of the run directory.")] = "quickstart",
    runs: Runs = Path("runs"),
    progress: ProgressOption = "auto",
) -> None:
    """The main job on the bundled digits, in a few minutes."""
    from tutelage.core.run_dir import Run
    from tutelage.pipeline.quickstart import quickstart_recipe
    from tutelage.pipeline.run import begin

    recipe = quickstart_recipe().model_copy(update={"name": name})
    done = Run(runs / name)
    _distill(recipe, done if done.versions.exists() else begin(recipe, runs, "tutelage quickstart"), progress)


@app.command()
def study(
    words: Annotated[
        list[str],
        typer.Argument(
            help="A study's YAML file, and overrides of its base recipe.", metavar="STUDY [KEY=VALUE]..."
        ),
    ],
    trials: Annotated[
        int | None, typer.Option(min=1, help="In all, variants first; in place of the file's.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Of the study's directory.")] = None,
    studies: Annotated[Path, typer.Option(help="Where studies' directories are made.")] = Path("studies"),
    progress: ProgressOption = "auto",
) -> None:
    """Run many variants of a recipe and rank them; start it again, or several times at once, to go on."""
    try:
        from tutelage.distillation.stop import Interrupted
        from tutelage.pipeline.study.plan import load_study
        from tutelage.pipeline.study.worker import run_study
    except ModuleNotFoundError as error:
        raise TutelageError(f"{error.name} is not installed; `pip install 'tutelage[study]'`") from None

    plan = load_study(Path(words[0]), words[1:], trials=trials, name=name)
    reporter = _progress(progress)
    try:
        found = run_study(plan, studies, reporter, " ".join(["tutelage", *sys.argv[1:]]))
    except Interrupted:
        reporter.say("stopped; everything is kept: go on with the same command")
        raise SystemExit(130) from None
    reporter.table(found)
    reporter.say(found.sentence())


@app.command()
def report(
    runs: Annotated[
        list[Path],
        typer.Argument(help="A run, several, or a directory of them such as a study's.", metavar="RUN..."),
    ],
    out: Annotated[
        Path | None, typer.Option(help="Where the page of several runs goes.", dir_okay=False)
    ] = None,
) -> None:
    """Make a run's page again, or lay several runs side by side on one."""
    from tutelage.report.build import report as make_page

    print(make_page(runs, out))


@app.command()
def export(
    what: Annotated[
        str, typer.Argument(help="The directory of a run, or NAME@WEIGHTS.", metavar="RUN|MODEL")
    ],
    int8: Annotated[bool | None, typer.Option("--int8/--no-int8", help="Also files in int8.")] = None,
    data: Annotated[str | None, typer.Option(help="KIND:WHERE of a MODEL's images.")] = None,
    out: Annotated[Path | None, typer.Option(help="Where; RUN/deploy, or MODEL's name.")] = None,
    max_drop: Annotated[
        float | None, typer.Option(min=0, help="Points of top-1 that a file may lose; as the RUN says, or 1.")
    ] = None,
) -> None:
    """Write ONNX and OpenVINO files of a model, and check them; exit code 1 where one fails."""
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


@app.command()
def predict(
    directory: Annotated[Path, typer.Argument(help="Written by `tutelage export`.")],
    images: Annotated[list[Path], typer.Argument(help="Files, or folders to search through.")],
    top: Annotated[int, typer.Option(min=1, help="Classes an image.")] = 5,
    json: Annotated[bool, typer.Option("--json", help="An object a line.")] = False,
) -> None:
    """Classify images with deployed files; needs no PyTorch. Exit code 2 where an image cannot be read."""
    from tutelage.deploy.predictor import Predictor, find_images

    predictor, failed = Predictor(directory), False
    for image in find_images(images):
        try:
            (found,) = predictor(image, top)
            print(found.json() if json else found.line(), flush=True)
        except TutelageError as error:
            failed = True
            print(f"error: {error}", file=sys.stderr)
    if failed:
        raise SystemExit(2)


@app.command()
def watch(
    run: Annotated[Path, typer.Argument(help="The directory of a run or a study, going or not.")],
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes any that is free.")] = 0,
) -> None:
    """Serve a run's page to this machine's browsers; it follows the run. Ctrl-C ends it."""
    from contextlib import suppress

    from tutelage.report.server import Server

    server = Server(run, port)
    print(f"{server.url} follows {run}; Ctrl-C ends it", flush=True)
    with suppress(KeyboardInterrupt):
        server.serve_forever()


def _distill(recipe: Recipe, run: Run, progress: str) -> None:
    import signal

    from tutelage.core.files import entry
    from tutelage.core.runtime import Runtime
    from tutelage.distillation.stop import Interrupted
    from tutelage.pipeline.run import distill as all_stations
    from tutelage.pipeline.run import show
    from tutelage.pipeline.seeds import distill_seeds

    signal.signal(
        signal.SIGTERM, signal.default_int_handler
    )  # between stages too, a kill is told how to go on
    reporter = _progress(progress if Runtime.start().is_main else "none")
    seeds = entry(run.versions, "seeds")
    try:
        if seeds > 1:
            reporter.say(distill_seeds(recipe, run, seeds, reporter)["sentence"])
            return
        all_stations(recipe, run, reporter)
    except (Interrupted, KeyboardInterrupt):
        reporter.say(f"stopped; everything is kept: go on with `tutelage resume {run.path}`")
        raise SystemExit(130) from None
    show(run, reporter)
    if (run.deploy / "rejected").exists():
        raise SystemExit(1)


def _progress(kind: str) -> Progress:
    from rich.console import Console

    from tutelage.core.progress import Silent
    from tutelage.pipeline.console import Bars, JsonLines

    if kind not in {"auto", "rich", "json", "none"}:
        raise TutelageError(f"--progress {kind}: use rich, json or none")
    if kind == "none":
        return Silent()
    return JsonLines() if kind == "json" else Bars(Console())


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; a `TutelageError` becomes one line on stderr and exit code 2.

    Args:
        arguments: those after the program's name; None takes them from `sys.argv`.
    """
    try:
        app(arguments)
    except TutelageError as error:
        print(f"error: {' '.join(str(error).splitlines())}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
