"""One run from start to end.

`distill` calls the stages in order. Each takes the records of those before it, returns one of its own, and writes its
results to the run directory, so that a run that was stopped can be resumed.
"""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from tutelage.core import out_of_memory
from tutelage.core.begun import record_begin, record_edits
from tutelage.core.errors import Incomplete, TutelageError, WeakTeacher, one_line
from tutelage.core.files import write_json, write_text
from tutelage.core.progress import Progress
from tutelage.core.recipe import Recipe, dump_recipe
from tutelage.core.run_dir import Run, write_digests
from tutelage.core.runtime import Runtime, algorithms
from tutelage.distillation.objective import check_losses
from tutelage.distillation.optim import check_optimizer
from tutelage.distillation.stop import Interrupted, noted_interrupts
from tutelage.evaluation.table import Row, Table
from tutelage.models.dry_run import check_models
from tutelage.models.registry import architecture
from tutelage.pipeline.choices import settings_of
from tutelage.pipeline.diagnose import lines
from tutelage.pipeline.quickstart import example
from tutelage.pipeline.stages.fit import Fitted, fit_head, fit_teachers
from tutelage.pipeline.stages.measure import explain, measure
from tutelage.pipeline.stages.preflight import preflight
from tutelage.pipeline.stages.prepare import prepare
from tutelage.pipeline.stages.rate import with_tested_rate
from tutelage.pipeline.stages.robustness import measure_robustness
from tutelage.pipeline.stages.teacher_check import check_teacher
from tutelage.pipeline.stages.train import train_control, train_student
from tutelage.pipeline.trackers import Tracked, Tracker, Trackers, tracking
from tutelage.pipeline.versions import versions
from tutelage.report.build import write_report
from tutelage.report.run_records import read_run_records
from tutelage.report.summary import summary

log = logging.getLogger(__name__)
LONGEST_PART = 45  # characters of a model's name in that of a run, which may have 121
T = TypeVar("T")


def begin(recipe: Recipe, root: Path, command: str, seeds: int = 1) -> Run:
    """Make a new run directory with its recipe and versions, before anything is computed.

    Raises:
        TutelageError: a loss, the optimizer or a model cannot be used, or the directory exists or cannot be written.
    """
    check_recipe(recipe)
    runtime = Runtime.start()
    runtime.check(recipe.train)

    def make() -> Path:
        run = Run.create(root, recipe.name or _default_name(recipe))
        describe(run, recipe, versions(command, runtime.world_size) | {"seeds": seeds})
        return run.path

    return Run(runtime.on_main(make))


def check_recipe(recipe: Recipe) -> None:
    """Refuse a recipe whose losses, optimizer or models cannot be used, without loading any.

    Raises:
        TutelageError: one line that names the key.
    """
    check_losses(recipe)
    check_optimizer(recipe.train)
    check_models(recipe)


def describe(run: Run, recipe: Recipe, versions: Mapping[str, Any]) -> None:
    """Write the recipe of a run that has not begun, and then its versions, which show that it has begun."""
    if not run.versions.exists():
        write_text(run.recipe, dump_recipe(recipe))
        record_begin(run, recipe)
        write_json(run.versions, versions)


def _default_name(recipe: Recipe) -> str:
    student, teacher = (_as_part_of_a_name(model.model) for model in (recipe.student, recipe.teacher))
    return f"{student}-from-{teacher}-{datetime.now():%Y%m%d-%H%M%S}"


def _as_part_of_a_name(model: str) -> str:
    """Return what stands for a model in the name of a run: in KIND:WHERE, the part after the colon may be any path."""
    name = re.sub(r"\W+", "_", architecture(model), flags=re.ASCII).strip("_") or "model"
    return name if len(name) <= LONGEST_PART else f"{name[:12]}_{name[-(LONGEST_PART - 13) :]}"


def distill(
    recipe: Recipe,
    run: Run,
    progress: Progress,
    memo: Path | None = None,
    *,
    stop_at_weak_teacher: bool = True,
) -> dict[str, Any]:
    """Run all stages that are not done yet, and return the content of comparison.json.

    Args:
        recipe: of the run.
        run: its directory.
        progress: receives reports.
        memo: directory where the runs of a study keep results that all of them need; None: a single run.
        stop_at_weak_teacher: whether a teacher that is not shown to be better than the control stops the run.

    Raises:
        Incomplete: the student is kept, and what follows was made as far as possible.
        WeakTeacher: the teacher is not shown to be better than the control, which is kept.
        TutelageError: the input is not valid, or the pre-flight refused the teacher.
        Interrupted: the run was asked to stop; `distill` on the same run resumes it.
    """
    runtime = Runtime.start()
    with _opened(recipe, run, runtime) as tracker, memory_named(run), algorithms(recipe.train.deterministic):
        prepared = prepare(recipe, run, Tracked(progress, tracker), memo)
        fitted = Fitted(prepared, fit_teachers(prepared), fit_head(prepared))
        checked = with_tested_rate(preflight(fitted))
        control = train_control(checked)
        try:
            check_teacher(checked, control)
        except WeakTeacher:
            if stop_at_weak_teacher:
                runtime.on_main(lambda: write_report(run))
                raise
        distilled = train_student(checked)
        if runtime.is_main:
            run.digests.unlink(missing_ok=True)  # the files that it lists are about to change
        after = Stations(run, alone=runtime.world_size == 1)
        result = after.attempt("the evaluation on test", lambda: measure(checked, control, distilled))
        if prepared.recipe.measure.robustness:
            after.attempt("the robustness", lambda: measure_robustness(checked, control, distilled))

        def finish() -> None:
            after.alone = True
            after.attempt("the diagnosis", lambda: explain(run))
            if recipe.export.enabled:
                after.attempt("the deployed files", lambda: deploy(run, progress))
            if not after.failed:
                after.attempt("the digests", lambda: write_digests(run))
            after.attempt("the page", lambda: write_report(run))
            files = [run.report, run.recipe, run.comparison, run.diagnosis, run.student]
            tracker.on_end([file for file in files if file.exists()], distilled.model)
            if not after.failed:
                shutil.rmtree(run.cache, ignore_errors=True)  # only training needs it
            after.finish()

        runtime.on_main(finish)
    assert result is not None
    return result


def memory_named(run: Run) -> AbstractContextManager[None]:
    """Turn what is raised where memory runs out, anywhere in a run, into one line that names keys of the recipe."""

    def remedy() -> str:
        batch = settings_of(run).train.batch_size
        return (
            f"begin a new run with smaller models, a smaller teacher.resolution or student.resolution, or a "
            f"train.batch_size below {batch}; or free memory: `tutelage resume {run.path}` continues this run"
        )

    return out_of_memory.named(remedy)


class Stations:
    """What follows the training: one station that fails does not keep the others from being done.

    Attributes:
        failed: the stations that failed, each with the reason.
    """

    def __init__(self, run: Run, alone: bool) -> None:
        """Begin; while several processes work together (not `alone`), errors are raised at once: the others wait."""
        self.run = run
        self.alone = alone
        self.failed: dict[str, str] = {}

    def attempt(self, name: str, call: Callable[[], T]) -> T | None:
        """Call a station, and return its result, or None where it failed.

        Raises:
            KeyboardInterrupt: Ctrl-C or SIGTERM came, also where a library made another exception of it.
        """
        result = None
        with noted_interrupts() as interrupt:
            try:
                with memory_named(self.run):
                    result = call()
            except Interrupted:
                raise
            except Exception as error:
                if interrupt.is_set():
                    raise KeyboardInterrupt from error
                if not self.alone:
                    raise
                log.debug("%s failed", name, exc_info=True)
                known = isinstance(error, TutelageError)
                self.failed[name] = one_line(error) if known else f"{type(error).__name__}: {one_line(error)}"
            if interrupt.is_set():  # it was taken for a failure of a part, which the station can do without
                raise KeyboardInterrupt
        return result

    def finish(self) -> None:
        """Raise an error where a station failed.

        Raises:
            Incomplete: names each station that failed with its reason.
        """
        if self.failed:
            reasons = "; ".join(f"{name} failed ({reason})" for name, reason in self.failed.items())
            raise Incomplete(
                f"the student is kept in {self.run.student}, but {reasons}; "
                f"`tutelage resume {self.run.path}` makes what is missing"
            )


@contextmanager
def _opened(recipe: Recipe, run: Run, runtime: Runtime) -> Iterator[Tracker]:
    """Lock the run and open its trackers in the first process; where that fails, every process raises the error."""
    with ExitStack() as stack:
        tracker: Tracker = Trackers({})

        def enter() -> None:
            nonlocal tracker
            stack.enter_context(run.held())
            record_edits(run, recipe)
            tracker = stack.enter_context(tracking(recipe.track, run, recipe.model_dump(mode="json")))

        runtime.on_main(enter)
        yield tracker


def deploy(run: Run, progress: Progress) -> None:
    """Write the kept student's deployed files, with rows of their own in the table."""
    from tutelage.deploy.command import export_run  # the extra `deploy` is needed here only

    report = export_run(run, say=progress.say)
    for name, reason in report.rejected.items():
        progress.say(f"{name} is not fit to be deployed: {reason}")
    for name, reason in report.missing.items():
        progress.say(f"{name} cannot be made: {reason}")
    if report.qad.failure:
        progress.say(f"the student cannot be fine-tuned for int8: {report.qad.failure}")


@contextmanager
def refusals_leave_nothing(run: Run) -> Iterator[None]:
    """Remove the directory of a new run that is refused before anything was computed."""
    try:
        yield
    except TutelageError:
        if Runtime.start().is_main:  # the others may raise it at another moment, so nothing waits for them
            run.discard()
        raise


def show(run: Run, progress: Progress) -> None:
    """Print the results of a finished run: what the user came for stands at the end."""
    records = read_run_records(run, predictions=False)
    if records.comparison is None or records.damaged:
        raise TutelageError("; ".join(records.damaged) or f"{run.path}: has no results yet")
    rows = [Row.from_dict(row) for row in records.rows]
    progress.table(Table(rows, records.comparison.get("notes", ())))
    for line in lines(records.findings):
        progress.say(line)
    progress.say(f"the results are in {run.path}; the report is {run.report}")
    found = summary(records)
    for line in found.lines(example(run, found.file)) if found else [records.verdict["sentence"]]:
        progress.say(line)
