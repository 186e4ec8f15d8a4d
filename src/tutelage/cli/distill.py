"""The command that distils, and what all commands share that carry out a run."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tutelage.cli.interrupts import INTERRUPTED, interrupts_raise
from tutelage.cli.options import DeviceOption, ProgressOption, Runs, option
from tutelage.core.errors import Incomplete, WeakTeacher, one_line

# Panels of the command's help: in one panel, the longest name would leave no room for the texts.
RESULTS, COURSE = "What is compared and written", "How the run goes"

if TYPE_CHECKING:
    from tutelage.core.recipe import Recipe
    from tutelage.core.run_dir import Run


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
            rich_help_panel=COURSE,
        ),
    ] = False,
    control: Annotated[
        bool | None,
        option(
            "Also train with labels only, to measure what the teacher adds.",
            "--control, or as in RECIPE",
            name="--control/--no-control",
            rich_help_panel=RESULTS,
        ),
    ] = None,
    with_files: Annotated[
        bool,
        option(
            "Also write deployment files and verify them; the exit code is 1 if one fails.",
            "off, or as in RECIPE",
            name="--export",
            rich_help_panel=RESULTS,
        ),
    ] = False,
    time: Annotated[
        str | None,
        option(
            "Time for the whole run, such as 15m or 1h30m: as many epochs as are estimated to fit.",
            "no limit",
            metavar="TIME",
            rich_help_panel=COURSE,
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Show data, models, stages, time and disk space; train and write nothing.",
            rich_help_panel=COURSE,
        ),
    ] = False,
    watching: Annotated[
        bool,
        typer.Option(
            "--watch", help="Serve a page that follows the run, on this machine only.", rich_help_panel=COURSE
        ),
    ] = False,
    seeds: Annotated[
        int,
        typer.Option(
            min=1,
            metavar="N",
            help="Number of training seeds; several give mean and spread.",
            rich_help_panel=COURSE,
        ),
    ] = 1,
    device: DeviceOption = None,
    runs: Runs = Path("runs"),
    progress: ProgressOption = "auto",
) -> None:
    """Distil a teacher into a student, and compare the result with start, control and teacher."""
    from tutelage.core.recipe import load_recipe
    from tutelage.pipeline.console import open_progress
    from tutelage.pipeline.early import check_early

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
    open_progress(progress)
    check_early(recipe, runs)
    from tutelage.core.runtime import Runtime  # PyTorch is imported here
    from tutelage.pipeline.choices import record_choice
    from tutelage.pipeline.run import begin, refusals_leave_nothing

    Runtime.start(device)
    why = None
    if dry_run or time is not None:
        epochs, why = _look_ahead(recipe, runs, seeds, time, show=dry_run)
        recipe = recipe.model_copy(update={"train": recipe.train.model_copy(update={"epochs": epochs})})
    if dry_run:
        return
    run = begin(recipe, runs, " ".join(["tutelage", *sys.argv[1:]]), seeds)
    if why is not None and Runtime.start().is_main:
        record_choice(run, "train.epochs", recipe.train.epochs, why)
        print(f"train.epochs = {recipe.train.epochs} ({why})", file=sys.stderr, flush=True)
    if watching:
        from tutelage.report.server import Server

        server = Server(run.path)
        server.start()
        print(f"{server.url} follows {run.path}", file=sys.stderr, flush=True)
    with refusals_leave_nothing(run):
        carry_out(recipe, run, progress)


def _look_ahead(
    recipe: Recipe, runs: Path, seeds: int, time: str | None, show: bool
) -> tuple[int, str | None]:
    """Estimate what a run costs, and show it.

    Returns:
        The epochs that fit into a time, or else those of the recipe; and the reason, None without a time.
    """
    from tutelage.core.runtime import Runtime
    from tutelage.pipeline.console import shown_steps
    from tutelage.pipeline.forecast import forecast, parse_time, within
    from tutelage.pipeline.run import check_recipe

    seconds = None if time is None else parse_time(time) / seeds
    check_recipe(recipe)
    with shown_steps() as say:
        found = forecast(recipe, runs, say)
    why = None
    if seconds is not None:
        found, why = within(found, seconds, f"--time {time}")
    if show and Runtime.start().is_main:
        for line in found.lines():
            print(line)
        if seeds > 1:
            print(f"this is the time of one of {seeds} seeds")
        print("nothing was trained or written")
    return found.assembled.recipe.train.epochs, why


def carry_out(recipe: Recipe, run: Run, progress: str) -> None:
    """Do all stages of a run that are not done yet, show its results, and exit with the code that they mean."""
    from tutelage.core.files import entry
    from tutelage.core.processes import end_together
    from tutelage.core.runtime import Runtime
    from tutelage.distillation.stop import Interrupted
    from tutelage.pipeline.console import open_progress
    from tutelage.pipeline.run import distill as all_stations
    from tutelage.pipeline.run import show
    from tutelage.pipeline.seeds import distill_seeds, lines

    # also between stages, a run that is stopped says how to continue
    interrupts_raise()
    reporter = open_progress(progress if Runtime.start().is_main else "none")
    seeds = entry(run.versions, "seeds")
    try:
        if seeds > 1:
            for line in lines(distill_seeds(recipe, run, seeds, reporter)):
                reporter.say(line)
        else:
            all_stations(recipe, run, reporter)
    except (Interrupted, KeyboardInterrupt):
        reporter.say(f"stopped; all results are kept: continue with `tutelage resume {run.path}`")
        raise SystemExit(INTERRUPTED) from None
    except (WeakTeacher, Incomplete) as ended:
        end_together(ended, lambda error: _say_once(error, run))
        raise SystemExit(1) from None
    if seeds == 1:
        show(run, reporter)
    if any(map(_incomplete, [run.deploy, *run.path.glob("seed-*/deploy")])):
        raise SystemExit(1)


def _say_once(error: Exception, run: Run) -> None:
    """Show an error that all processes have alike, by the first one only."""
    from tutelage.core.runtime import Runtime

    if Runtime.start().is_main:
        weak = isinstance(error, WeakTeacher)
        text = (
            f"{error} (`tutelage resume {run.path} --allow-weak-teacher`)"
            if weak
            else f"error: {one_line(error)}"
        )
        print(text, file=sys.stderr, flush=True)


def _incomplete(deployed: Path) -> bool:
    """Whether a file of a deployed directory was rejected or could not be made."""
    from tutelage.core.files import read_json

    report = deployed / "deploy.json"
    return (deployed / "rejected").exists() or (report.exists() and bool(read_json(report).get("missing")))
