"""What ``tutelage export`` does: write deployable files of a run's student, or of a model that is named."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from tutelage.core.components import QadRecipe
from tutelage.core.errors import TutelageError
from tutelage.core.files import entry, read_json, write_json
from tutelage.core.invalid import first_error
from tutelage.core.recipe import ExportRecipe, Recipe, load_recipe
from tutelage.core.run_dir import Run, write_digests
from tutelage.core.runtime import Runtime
from tutelage.data.sources.base import open_for_evaluation
from tutelage.data.splits import Splits, Subset, make_splits, recorded_copies, whole
from tutelage.deploy.bench import images_of
from tutelage.deploy.build import CALIBRATION, pictures
from tutelage.deploy.cascade import add_threshold
from tutelage.deploy.export import DeployReport, export_model
from tutelage.deploy.formats.making import Say
from tutelage.deploy.qad.candidates import Tuning
from tutelage.deploy.qad.tune import Tuned, Tuner
from tutelage.deploy.runtimes.registry import VARIANTS, any_int4, any_int8, runtimes_of
from tutelage.deploy.web.runtime import web_runtime
from tutelage.evaluation.compare import with_classes
from tutelage.evaluation.table import Row, Table
from tutelage.models.kept import kept_student, kept_teacher
from tutelage.models.registry import architecture, load_model
from tutelage.models.source import Model

SPEED = ("latency_ms", "latency_p10", "latency_p90", "images_per_s", "conditions")
TEACHERS = ("teacher", "teacher-probe")  # roles of the teacher's network
ROLES = {variant.role for variant in VARIANTS}


def export_named(
    what: str,
    out: Path | None = None,
    *,
    data: str | None = None,
    changes: Mapping[str, Any] | None = None,
    web_tarball: Path | None = None,
    say: Say = lambda line: None,
) -> DeployReport:
    """Export a run's student or any model.

    Args:
        what: the directory of a run, or a model: NAME@WEIGHTS or KIND:WHERE.
        out: directory of the files; None: the run's own, or a directory with the name of the model.
        data: images for a model, KIND:WHERE, see `images_of`. A run has its own.
        changes: other values of the recipe's keys below ``export``, such as ``{"int8": False}``; the others are those
            of the run's recipe, and for a model the defaults.
        web_tarball: the page's runtime, downloaded elsewhere; None: the cached one, or it is downloaded.
        say: called with a line before each step.

    Raises:
        TutelageError: there is no such run or model, or `export_model` fails.
    """
    if Path(what).is_dir():
        if data:
            raise TutelageError(f"--data {data}: {what} is a run, which has its own images; leave --data out")
        run = Run.open(Path(what))
        with run.held():
            report = export_run(run, out, changes=changes, web_tarball=web_tarball, say=say)
            if run.comparison.exists():  # else `tutelage resume` has something left to do
                write_digests(run)
        return report
    settings = _changed(ExportRecipe(), changes)
    if settings.teacher:
        raise TutelageError(f"--teacher: {what} is no run, so it has no teacher; leave --teacher out")
    if settings.qad:
        raise TutelageError(f"--qad: {what} is no run, so it has no teacher to train with; leave --qad out")
    name = architecture(what)
    if what == name and ":" not in what and len(Path(name).parts) > 1:
        raise TutelageError(f"{what}: no such run directory")
    int8 = settings.int8 and any_int8(settings.formats)
    _check_int4(settings, changes)
    runtime = _web_runtime(settings, web_tarball, say)
    material, test = _images(data, int8)
    (model,), notes = with_classes([load_model(what)], test, Runtime.on_cpu())
    for note in notes:
        say(note)
    return export_model(
        model,
        out or Path(re.sub(r"[^\w.-]+", "-", name).strip("-") + "-deploy"),
        calibration=material,
        test=test,
        formats=settings.formats,
        int8=int8,
        int4=settings.int4,
        max_drop=settings.max_drop,
        web=runtime,
        say=say,
        notes=notes,
    )


def export_run(
    run: Run,
    out: Path | None = None,
    *,
    changes: Mapping[str, Any] | None = None,
    web_tarball: Path | None = None,
    say: Say = lambda line: None,
) -> DeployReport:
    """Export the student that a run selected, and add its files to ``comparison.json``.

    int8 files are calibrated on the run's training images; layers go back to float32 by the accuracy on its
    validation images, and its test images give the reported figures.

    Args:
        run: a finished run; the caller holds its lock.
        out: directory of the files; None: the run's own.
        changes: other values of the recipe's keys below ``export``, such as ``{"int8": False}``.
        web_tarball: the page's runtime, downloaded elsewhere; None: the cached one, or it is downloaded.
        say: called with a line before each step.

    Raises:
        Interrupted: a signal asked to stop the fine-tuning; the same call continues it.
        TutelageError: the run has no student yet, its images are gone, or `export_model` fails.
    """
    recipe = load_recipe(run.recipe)
    settings = _changed(recipe.export, changes)
    _check_int4(settings, changes)
    runtime = _web_runtime(settings, web_tarball, say)
    if settings.qad and "qad" in (changes or {}) and not (settings.int8 and any_int8(settings.formats)):
        raise TutelageError(
            "--qad: it is for int8 files, and none are written; leave --qad out, or write some"
        )
    student = kept_student(run, recipe)
    splits = make_splits(recipe.data, recorded_copies(run.splits))
    found = _evaluation(run)
    report = export_model(
        student,
        out or run.deploy,
        calibration=splits.train,
        validation=splits.val,
        test=splits.test,
        teacher=_teacher(run, recipe, say) if settings.teacher else None,
        formats=settings.formats,
        int8=settings.int8,
        int4=settings.int4,
        max_drop=settings.max_drop,
        web=runtime,
        provenance=_provenance(run, recipe, splits),
        temperature=_temperature(found),
        say=say,
        run=found,
        tuning=_tuning(run, recipe, student, splits, settings.qad, say),
    )
    add_threshold(run, report.directory)
    if not run.comparison.exists():  # the evaluation failed; the files are good without it
        return report
    content = read_json(run.comparison)
    rows = [Row.from_dict(row) for row in entry(run.comparison, "rows")]
    write_json(run.comparison, content | {"rows": Table(with_files(rows, report)).records()})
    return report


def _changed(settings: ExportRecipe, changes: Mapping[str, Any] | None) -> ExportRecipe:
    """The settings with other values of some keys."""
    if changes and "formats" in changes:
        runtimes_of(changes["formats"])  # which names the formats that there are
    try:
        return ExportRecipe.model_validate({**settings.model_dump(), **(changes or {})})
    except ValidationError as error:
        raise TutelageError(f"export: {first_error(error, ExportRecipe)}") from None


def _check_int4(settings: ExportRecipe, changes: Mapping[str, Any] | None) -> None:
    if (changes or {}).get("int4") and not (settings.int8 and any_int4(settings.formats)):
        raise TutelageError(
            "--int4: it makes a smaller form of LiteRT's int8 file, and none is written; leave --int4 out, or write "
            "one with --format litert"
        )


def _web_runtime(settings: ExportRecipe, given: Path | None, say: Say) -> Path | None:
    if settings.web:
        return web_runtime(settings.formats, given, say)
    if given:
        raise TutelageError(f"--web-runtime {given}: has no effect without --web; add --web")
    return None


def _tuning(
    run: Run,
    recipe: Recipe,
    student: Model,
    splits: Splits,
    settings: QadRecipe | Literal["auto"] | None,
    say: Say,
) -> Tuning | None:
    if settings is None:
        return None
    own = QadRecipe() if settings == "auto" else settings

    def tune() -> list[Tuned]:
        images = pictures(student, splits.train, CALIBRATION)
        return Tuner(run, recipe, student, splits, own, images.pixels, say).tuned()

    return Tuning(tune, always=settings != "auto")


def with_files(rows: Sequence[Row], report: DeployReport) -> list[Row]:
    """A run's table with its deployed files.

    The files were timed in turns with the teacher and the student, so where the run was timed on the CPU too,
    the rows of these networks take over those speeds: all of the table is then of one measurement.
    """
    measured = {row.role: row for row in report.table.rows}
    speeds = {"teacher": measured.get("teacher"), "student": measured[""]}
    own = [_timed_alike(row, speeds) for row in rows if row.role not in ROLES]
    # Without the teacher's files, the files were compared with the student in PyTorch. The changes in the run's table
    # are those against the teacher, and an interval of another difference must not stand beside them.
    files = report.rows if "teacher" in measured else [replace(row, paired=None) for row in report.rows]
    return [*own, *files]


def _timed_alike(row: Row, speeds: dict[str, Row | None]) -> Row:
    fresh = speeds["teacher" if row.role in TEACHERS else "student"]
    same = fresh is not None and (row.resolution, row.params_m) == (fresh.resolution, fresh.params_m)
    if not same or row.conditions.get("device") != "cpu":
        return row
    changes: dict[str, Any] = {name: getattr(fresh, name) for name in SPEED}
    return replace(row, **changes)


def _images(data: str | None, int8: bool) -> tuple[Subset | None, Subset | None]:
    """To calibrate int8 on, and to report on: all of them where nothing is calibrated."""
    if not data:
        return None, None
    if not int8:
        return None, whole(open_for_evaluation(data))
    material, test = images_of(data)
    return material.calibration, test


def _teacher(run: Run, recipe: Recipe, say: Say) -> Model | None:
    """As it taught; None where its weights are gone."""
    try:
        return kept_teacher(run, recipe)
    except TutelageError as error:
        say(f"continuing without the teacher: {error}")
        return None


def _temperature(evaluation: Mapping[str, Any]) -> float:
    """At which the student was calibrated on val; 1 where val has no labels, or the evaluation failed."""
    return float(evaluation.get("calibration", {}).get("temperature", 1.0))


def _evaluation(run: Run) -> dict[str, Any]:
    """What the run's evaluation found, for the model card; empty where it failed."""
    if not run.comparison.exists():
        return {}
    content = read_json(run.comparison)
    found = content.get("verdict") or {}
    return {
        "verdict": found.get("sentence"),
        "pairs": found.get("pairs") or [],
        "calibration": content.get("calibration") or {},
    }


def _provenance(run: Run, recipe: Recipe, splits: Splits) -> dict[str, str]:
    checked = read_json(run.preflight) if run.preflight.exists() else {}
    licences = {
        "licence": (checked.get("student") or {}).get("licence"),
        "teacher_licence": (checked.get("teacher") or {}).get("licence"),
    }
    return {
        "run": run.path.name,
        "teacher": recipe.teacher.model,
        "student": recipe.student.model,
        "train": f"{splits.train.images.name} {splits.train.digest()[:16]}",
        **{key: value for key, value in licences.items() if value},
    }
