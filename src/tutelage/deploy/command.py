"""What ``tutelage export`` does: write deployable files of a run's student, or of a model that is named."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from tutelage.core.components import QadRecipe
from tutelage.core.errors import TutelageError
from tutelage.core.files import entry, read_json, write_json
from tutelage.core.recipe import ExportRecipe, Recipe, load_recipe
from tutelage.core.run_dir import Run, write_digests
from tutelage.core.values import AUTO
from tutelage.data.sources.base import open_for_evaluation
from tutelage.data.splits import Splits, Subset, make_splits, recorded_copies, whole
from tutelage.deploy.bench import images_of
from tutelage.deploy.build import CALIBRATION, pictures
from tutelage.deploy.cascade import add_threshold
from tutelage.deploy.export import DeployReport, export_model
from tutelage.deploy.formats.making import Say
from tutelage.deploy.qad.candidates import Tuning
from tutelage.deploy.qad.tune import Tuned, Tuner
from tutelage.deploy.runtimes.registry import VARIANTS, any_int4, any_int8
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
    int8: bool | None = None,
    int4: bool | None = None,
    max_drop: float | None = None,
    teacher: bool | None = None,
    formats: Sequence[str] | None = None,
    web: bool | None = None,
    web_tarball: Path | None = None,
    qad: str | None = None,
    say: Say = lambda line: None,
) -> DeployReport:
    """Export a run's student or any model.

    Args:
        what: the directory of a run, or a model: NAME@WEIGHTS or KIND:WHERE.
        out: directory of the files; None: the run's own, or a directory with the name of the model.
        data: images for a model, KIND:WHERE, see `images_of`. A run has its own.
        int8: write quantised files too; None: as the run's recipe says, and for a model yes.
        int4: with weights in 4 bits too, in formats that have such; None: as the run's recipe says, and for a model no.
        max_drop: points of top-1 that a file may lose; None: as the run's recipe says, and for a model 1.
        teacher: of a run, export the teacher too, to compare files of the same kind; None: as the run's recipe says.
        formats: of the files; None: as the run's recipe says, and for a model ONNX and OpenVINO.
        web: write the page for browsers too; None: as the run's recipe says, and for a model no.
        web_tarball: the page's runtime, downloaded elsewhere; None: the cached one, or it is downloaded.
        qad: of a run, fine-tune the student for int8 with the teacher's help: a number of epochs, or ``auto``; None:
            as the run's recipe says.
        say: called with a line before each step.

    Raises:
        TutelageError: there is no such run or model, or `export_model` fails.
    """
    if Path(what).is_dir():
        if data:
            raise TutelageError(f"--data {data}: {what} is a run, which has its own images; leave --data out")
        run = Run.open(Path(what))
        with run.held():
            report = export_run(
                run,
                out,
                int8=int8,
                int4=int4,
                max_drop=max_drop,
                teacher=teacher,
                formats=formats,
                web=web,
                web_tarball=web_tarball,
                qad=qad,
                say=say,
            )
            if run.comparison.exists():  # else `tutelage resume` has something left to do
                write_digests(run)
        return report
    if teacher:
        raise TutelageError(f"--teacher: {what} is no run, so it has no teacher; leave --teacher out")
    if qad:
        raise TutelageError(f"--qad: {what} is no run, so it has no teacher to train with; leave --qad out")
    name = architecture(what)
    if what == name and ":" not in what and len(Path(name).parts) > 1:
        raise TutelageError(f"{what}: no such run directory")
    default = ExportRecipe()
    drop = default.max_drop if max_drop is None else max_drop
    formats = formats or default.formats
    int8 = (default.int8 if int8 is None else int8) and any_int8(formats)
    _check_int4(int4, int8, formats)
    runtime = _web_runtime(bool(web), formats, web_tarball, say)
    material, test = _images(data, int8)
    (model,), notes = with_classes([load_model(what)], test, "cpu")
    for note in notes:
        say(note)
    return export_model(
        model,
        out or Path(re.sub(r"[^\w.-]+", "-", name).strip("-") + "-deploy"),
        calibration=material,
        test=test,
        formats=formats,
        int8=int8,
        int4=bool(int4),
        max_drop=drop,
        web=runtime,
        say=say,
        notes=notes,
    )


def export_run(
    run: Run,
    out: Path | None = None,
    *,
    int8: bool | None = None,
    int4: bool | None = None,
    max_drop: float | None = None,
    teacher: bool | None = None,
    formats: Sequence[str] | None = None,
    web: bool | None = None,
    web_tarball: Path | None = None,
    qad: str | None = None,
    say: Say = lambda line: None,
) -> DeployReport:
    """Export the student that a run selected, and add its files to ``comparison.json``.

    int8 files are calibrated on the run's training images; layers go back to float32 by the accuracy on its
    validation images, and its test images give the reported figures.

    Args:
        run: a finished run; the caller holds its lock.
        out: directory of the files; None: the run's own.
        int8: write quantised files too; None: as the recipe says.
        int4: with weights in 4 bits too, in formats that have such; None: as the recipe says.
        max_drop: points of top-1 that a file may lose; None: as the recipe says.
        teacher: export the teacher too, to compare files of the same kind; None: as the recipe says.
        formats: of the files; None: as the recipe says.
        web: write the page for browsers too; None: as the recipe says.
        web_tarball: the page's runtime, downloaded elsewhere; None: the cached one, or it is downloaded.
        qad: fine-tune the student for int8: a number of epochs, or ``auto``; None: as the recipe says.
        say: called with a line before each step.

    Raises:
        Interrupted: a signal asked to stop the fine-tuning; the same call continues it.
        TutelageError: the run has no student yet, its images are gone, or `export_model` fails.
    """
    recipe = load_recipe(run.recipe)
    wants_web = recipe.export.web if web is None else web
    runtime = _web_runtime(wants_web, formats or recipe.export.formats, web_tarball, say)
    int8 = recipe.export.int8 if int8 is None else int8
    _check_int4(int4, int8, formats or recipe.export.formats)
    settings = recipe.export.qad if qad is None else _qad(qad)
    if qad is not None and not (int8 and any_int8(formats or recipe.export.formats)):
        raise TutelageError(
            "--qad: it is for int8 files, and none are written; leave --qad out, or write some"
        )
    student = kept_student(run, recipe)
    splits = make_splits(recipe.data, recorded_copies(run.splits))
    wants_teacher = recipe.export.teacher if teacher is None else teacher
    found = _evaluation(run)
    report = export_model(
        student,
        out or run.deploy,
        calibration=splits.train,
        validation=splits.val,
        test=splits.test,
        teacher=_teacher(run, recipe, say) if wants_teacher else None,
        formats=formats or recipe.export.formats,
        int8=int8,
        int4=recipe.export.int4 if int4 is None else int4,
        max_drop=recipe.export.max_drop if max_drop is None else max_drop,
        web=runtime,
        provenance=_provenance(run, recipe, splits),
        temperature=_temperature(found),
        say=say,
        run=found,
        tuning=_tuning(run, recipe, student, splits, settings, say),
    )
    add_threshold(run, report.directory)
    if not run.comparison.exists():  # the evaluation failed; the files are good without it
        return report
    content = read_json(run.comparison)
    rows = [Row.from_dict(row) for row in entry(run.comparison, "rows")]
    write_json(run.comparison, content | {"rows": Table(with_files(rows, report)).records()})
    return report


def _web_runtime(wanted: bool, formats: Sequence[str], given: Path | None, say: Say) -> Path | None:
    if wanted:
        return web_runtime(formats, given, say)
    if given:
        raise TutelageError(f"--web-runtime {given}: has no effect without --web; add --web")
    return None


def _check_int4(given: bool | None, int8: bool, formats: Sequence[str]) -> None:
    if given and not (int8 and any_int4(formats)):
        raise TutelageError(
            "--int4: it makes a smaller form of LiteRT's int8 file, and none is written; leave --int4 out, or write "
            "one with --format litert"
        )


def _qad(given: str) -> QadRecipe | Literal["auto"]:
    if given == AUTO:
        return "auto"
    if not given.isdecimal() or int(given) < 1:
        raise TutelageError(f"--qad {given}: give a number of epochs or auto, such as --qad 2")
    return QadRecipe(epochs=int(given))


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
