"""Write the deployed directory of a model: files are built aside, compared with PyTorch, and then moved there."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.table import Table as RichTable

from tutelage.core.errors import TutelageError, one_line
from tutelage.core.files import files_in, remove, write_json
from tutelage.core.runtime import Runtime
from tutelage.data.sources.synthetic import Synthetic
from tutelage.data.splits import Subset, whole
from tutelage.deploy.bench import MADE_UP, Bench, calibrated
from tutelage.deploy.build import FORMATS, Deployed, Material, build
from tutelage.deploy.card import CARD, is_foreign, write_card
from tutelage.deploy.formats.making import Say
from tutelage.deploy.manifest import LABELS, PREPROCESS, REPORT
from tutelage.deploy.parity import Checked, Inspected
from tutelage.deploy.qad.candidates import Comparison, Tuning, with_better_files
from tutelage.deploy.runtimes.onnxruntime import external_data
from tutelage.deploy.runtimes.registry import VARIANTS, any_int8, files_of
from tutelage.deploy.web import folder as web_folder
from tutelage.evaluation.compare import evaluate
from tutelage.evaluation.table import Row, Table
from tutelage.models.source import Model
from tutelage.models.timm import CLASS_LIST

REJECTED = "rejected"  # the folder of files that failed a check
BATCH = 16  # images, for the throughput


@dataclass(frozen=True)
class DeployReport:
    """What was written, and the results of the checks.

    Attributes:
        directory: where the files are.
        table: the teacher and its files, where it was given; the model; its files.
        checks: one for each of the model's files and ways of running it.
        images: on which they were checked, in words.
        missing: the files that could not be made, each with the reason.
        remarks: what a user has to know besides, such as the images that int8 was calibrated on.
        run: of a run, what its evaluation found: `verdict` and `pairs`, and `calibration`.
        qad: where the model was fine-tuned for int8, what that gave.
        inspected: the files that this machine cannot run, of which only the content was checked.
    """

    directory: Path
    table: Table
    checks: tuple[Checked, ...]
    images: str
    missing: Mapping[str, str] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()
    run: Mapping[str, Any] = field(default_factory=dict)
    qad: Comparison = field(default_factory=Comparison)
    inspected: tuple[Inspected, ...] = ()

    @property
    def rows(self) -> list[Row]:
        """The rows of the model's files."""
        return [one.row for one in self.checks]

    @property
    def rejected(self) -> dict[str, str]:
        """The files that should not be deployed, each with the reason."""
        failed = {one.variant.file: one.complaint for one in self.checks if _rejects(one)}
        return failed | {one.variant.file: one.complaint for one in self.inspected if one.complaint}

    def rich(self) -> RichTable:
        """For a terminal: a line for PyTorch and for each file; all figures are in ``deploy.json``."""
        shown = RichTable(box=None, pad_edge=False)
        for place, name in enumerate(("", "size", "latency", "top-1", "same class", "")):
            shown.add_column(name, justify="left" if place in (0, 5) else "right", no_wrap=True)
        checks = {id(one.row): one for one in self.checks}
        for row in self.table.rows:
            one = checks.get(id(row))
            shown.add_row(
                one.variant.shown if one else row.role or "PyTorch",
                _figure(row.size_mb, ".2f", " MiB"),
                _figure(row.latency_ms, ".2f", " ms"),
                _figure(row.top1, ".2f", "%"),
                f"{one.parity.agreement:.2f}%" if one else "",
                "" if one is None else "rejected" if _rejects(one) else "FAILED" if one.complaint else "ok",
            )
        for file in self.inspected:
            size = _figure(file.size_mb, ".2f", " MiB")
            shown.add_row(
                file.variant.shown, size, "–", "–", "", "rejected" if file.complaint else "not run here"
            )
        return shown

    def record(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "rows": self.table.records(),
            "notes": list(self.table.notes),
            "checks": [
                {
                    "role": one.variant.role,
                    "file": one.variant.file,
                    "arithmetic": one.variant.arithmetic,
                    "images": self.images,
                    "complaint": one.complaint or None,
                    **asdict(one.parity),
                }
                for one in self.checks
            ],
            "not_run": [
                {
                    "role": one.variant.role,
                    "file": one.variant.file,
                    "size_mb": one.size_mb,
                    "complaint": one.complaint or None,
                }
                for one in self.inspected
            ],
            "rejected": self.rejected,
            "missing": dict(self.missing),
            "run": dict(self.run),
            "qad": self.qad.record(),
        }


def export_model(
    model: Model,
    out: Path,
    *,
    calibration: Subset | None = None,
    validation: Subset | None = None,
    test: Subset | None = None,
    teacher: Model | None = None,
    formats: Sequence[str] = FORMATS,
    int8: bool = True,
    int4: bool = False,
    max_drop: float = 1.0,
    web: Path | None = None,
    provenance: Mapping[str, str] | None = None,
    temperature: float = 1.0,
    say: Say = lambda line: None,
    notes: Sequence[str] = (),
    run: Mapping[str, Any] | None = None,
    tuning: Tuning | None = None,
) -> DeployReport:
    """Write a deployed directory and check its files.

    Every file is built in a temporary directory and measured: logits compared with PyTorch's, accuracy, size, and
    latency and throughput in turns with PyTorch. A file that fails is moved into ``rejected/``, and ``deploy.json``
    has the reason.

    Args:
        model: with its trained weights.
        out: the directory; the files of an earlier export there are replaced.
        calibration: un-augmented training images, for int8. None: synthetic images, for random weights only.
        validation: labelled images, none of them in `test`, for accuracy-aware quantisation; None: `calibration`.
        test: images to evaluate on; None: synthetic images, and no accuracy.
        teacher: exported to a temporary directory, so that files are compared with files of the same kind.
        formats: of the files, as in the recipe's ``export.formats``.
        int8: write quantised files too.
        int4: with `int8`, also those with weights in 4 bits, of formats that have such.
        max_drop: points of top-1 that a file may lose against PyTorch on `test`.
        web: the runtime for browsers, see `web_runtime`, to write a page too; None: no page.
        provenance: notes on the origin to be stored in the files, besides versions and weights.
        temperature: at which the model is calibrated; the predictor divides the logits by it.
        say: called with a line before each step.
        notes: further lines for the report.
        run: what the evaluation of the model's run found, for ``deploy.json`` and the model card.
        tuning: fine-tunes the model for int8, so that the better int8 files are written; None: no training.

    Raises:
        TutelageError: the extra of a format is not installed, the model cannot be exported, there are no images to
            quantise pretrained weights with, or the directory cannot be written.
    """
    if out.exists() and not out.is_dir():
        raise TutelageError(
            f"--out {out}: this is a file; name a directory, such as {out.with_suffix('')}-deploy"
        )
    int8 = int8 and any_int8(formats)
    material = _material(model, calibration, validation, max_drop, int4) if int8 else None
    with _aside(out) as stage:
        deployed = build(model, stage, material, provenance, say, temperature, formats)
        qad = Comparison()
        if tuning and material:
            qad = with_better_files(deployed, tuning, material, test, formats, say)
        with TemporaryDirectory() as elsewhere:
            first, missing = _teachers_files(teacher, Path(elsewhere), material, say, formats)
            roles = ["teacher", ""] if first else [""]
            bench = Bench([*first, deployed], test, BATCH, roles, say)
            table = evaluate(
                bench.models,
                bench.rows,
                test,
                Runtime.on_cpu(),
                batch_size=BATCH,
                answer=bench.answer,
                say=say,
            )
            say("files against PyTorch")
            table = bench.like_for_like(table)
            checks = tuple(bench.checked(table, deployed, max_drop))
        images = bench.subset.images.name
        missing_files = dict(deployed.missing) | (_page(stage, deployed, checks, web) if web else {})
        remarks = [*([calibrated(material)] if material else []), *missing, *notes, *_unnamed(model)]
        remarks += qad.lines()
        lines = [*remarks, *(one.sentence(images) for one in checks)]
        lines += [one.sentence() for one in deployed.inspected]
        lines += [f"{name}: cannot be made ({reason})" for name, reason in missing_files.items()]
        everything = Table(table.rows, [*table.notes, *lines])
        if is_foreign(out / CARD):
            remarks.append(f"{out / CARD} is not of tutelage, so it is kept and no model card is written")
        report = DeployReport(
            out,
            everything,
            checks,
            images,
            missing_files,
            tuple(remarks),
            run or {},
            qad,
            deployed.inspected,
        )
        _publish(stage, deployed, report)
    return report


def _page(stage: Path, deployed: Deployed, checks: Sequence[Checked], runtime: Path) -> dict[str, str]:
    """Write the folder of the page; where it cannot be written, return it with the reason."""
    rejected = {one.variant.file for one in checks if _rejects(one)}
    model = stage / web_folder.MODEL
    if not model.exists() or model.name in rejected:
        return {
            web_folder.FOLDER: f"{model.name} {'failed its checks' if model.exists() else 'was not made'}"
        }
    if external_data(model).exists():
        return {web_folder.FOLDER: f"{model.name} has more weights than a browser can load"}
    web_folder.write_folder(stage / web_folder.FOLDER, model, deployed.manifest, runtime)
    return {}


def _teachers_files(
    teacher: Model | None, directory: Path, material: Material | None, say: Say, formats: Sequence[str]
) -> tuple[list[Deployed], list[str]]:
    """Export the teacher; where that fails, return a note in its place, so that the student keeps its files."""
    if teacher is None:
        return [], []
    try:
        return [build(teacher, directory, material, say=say, formats=formats)], []
    except Exception as error:  # also of OpenVINO or NNCF, without a common base
        note = f"compared without the teacher's files: {one_line(error)}"
        say(note)
        return [], [note]


def _figure(value: float | None, digits: str, unit: str) -> str:
    return "–" if value is None else f"{value:{digits}}{unit}"


def _rejects(one: Checked) -> bool:
    """A file is rejected by its results as it is run by default; other ways to run it are options of the user."""
    return bool(one.complaint) and not one.variant.is_option


def _unnamed(model: Model) -> list[str]:
    """A note where an ImageNet head may have been labelled by numbers."""
    if model.class_ids or not model.presumed:
        return []
    return [
        f"{model.spec} does not name its {model.num_classes} classes, so that its labels are numbers; list the "
        f"classes, one a line, in a file beside the checkpoint that ends in {CLASS_LIST}"
    ]


def _material(
    model: Model, calibration: Subset | None, validation: Subset | None, max_drop: float, int4: bool
) -> Material:
    if calibration is None and model.pretrained:
        raise TutelageError(
            f"{model.spec}: int8 needs images to calibrate on; name some with --data KIND:WHERE, "
            "or use --no-int8"
        )
    return Material(calibration or whole(Synthetic(MADE_UP)), validation, max_drop, int4)


@contextmanager
def _aside(out: Path) -> Iterator[Path]:
    """A new directory beside `out`, on the same disk; those of killed exports are removed."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        for stale in out.parent.glob(f".{out.name}.aside-*"):
            shutil.rmtree(stale, ignore_errors=True)
        with TemporaryDirectory(prefix=f".{out.name}.aside-", dir=out.parent) as stage:
            yield Path(stage)
    except OSError as error:
        raise TutelageError(
            f"{out}: cannot be written ({error.strerror}); free some space, or get write access"
        ) from None


def _publish(stage: Path, deployed: Deployed, report: DeployReport) -> None:
    """Move the files into place. `PREPROCESS` is removed first and written last: with it the directory is complete."""
    out, rejected = report.directory, report.rejected
    out.mkdir(exist_ok=True)
    for name in (PREPROCESS, REPORT, LABELS):
        (out / name).unlink(missing_ok=True)
    shutil.rmtree(out / REJECTED, ignore_errors=True)
    made = {variant.file for variant in (*deployed.variants, *(one.variant for one in deployed.inspected))}
    for name in dict.fromkeys(variant.file for variant in VARIANTS):
        for file in files_of(out / name):
            remove(file)
        for file in files_of(stage / name):
            if name in made and file.exists():
                folder = out / REJECTED if name in rejected else out
                folder.mkdir(exist_ok=True)
                _flush(file)
                os.replace(file, folder / file.name)
    remove(out / web_folder.FOLDER)
    if (stage / web_folder.FOLDER).exists():
        os.replace(stage / web_folder.FOLDER, out / web_folder.FOLDER)
    write_json(out / REPORT, report.record())
    write_card(out, deployed.manifest, report.record())
    deployed.manifest.write(out)


def _flush(path: Path) -> None:
    for file in files_in(path):
        with open(file, "rb") as stream:
            os.fsync(stream.fileno())
