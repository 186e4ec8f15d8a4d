"""Choose the threshold of a run's cascade on val, and report the cascade on test."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from rich.table import Table as RichTable
from torch import Tensor

from tutelage.core.errors import TutelageError
from tutelage.core.files import digest, entry, read_json, write_json
from tutelage.core.recipe import Recipe, load_recipe
from tutelage.core.records import RunPredictions, read_predictions
from tutelage.core.run_dir import Run, write_digests
from tutelage.core.runtime import Runtime
from tutelage.data.classes import map_classes
from tutelage.data.loading import BadImages, Loading
from tutelage.data.splits import Subset, make_splits, recorded_copies
from tutelage.deploy.cascade import add_threshold
from tutelage.evaluation.calibration import calibrating_temperature
from tutelage.evaluation.cascade import (
    Step,
    average_costs,
    chosen,
    curve,
    fewest_images,
    outcome,
    tried,
)
from tutelage.evaluation.intervals import LEVEL
from tutelage.evaluation.predict import Predictions, in_common, predict_together
from tutelage.evaluation.quality import top1_and_nll
from tutelage.evaluation.roles import Role
from tutelage.models.class_mapping import head_labels
from tutelage.models.kept import kept_student, kept_teacher
from tutelage.models.source import Model
from tutelage.report.build import write_report

Say = Callable[[str], object]
MOST_APART = 1.0  # points of top-1 on val by which the loaded teacher may differ from the run's


@dataclass(frozen=True)
class Cascade:
    """A cascade of a run's student and teacher: the content of ``cascade.json``."""

    content: Mapping[str, Any]

    def rich(self) -> RichTable:
        """For a terminal: the student alone, both together, and the teacher alone, on test."""
        test, cost = self.content["test"], self.content["cost"]
        shown = RichTable(box=None, pad_edge=False)
        for place, name in enumerate(("on test", "to the teacher", "top-1", "GMACs", "latency")):
            shown.add_column(name, justify="right" if place else "left", no_wrap=True)
        shares = {"student": 0.0, "cascade": 1 - test["coverage"], "teacher": 1.0}
        names = {"student": "student alone", "cascade": "cascade", "teacher": "teacher alone"}
        for role, name in names.items():
            latency = _figure(cost["latency_ms"][role], ".2f")
            shown.add_row(
                name,
                f"{100 * shares[role]:.1f}%",
                _figure((test["top1"] or {}).get(role), ".2f", "%"),
                _figure(cost["gmacs"][role], ".3f"),
                latency if latency == "–" else f"{latency} ms",
            )
        return shown

    def lines(self) -> list[str]:
        """Sentences on the threshold and what it gives."""
        found, step, test = self.content, self.content["chosen"], self.content["test"]
        stated = f"{100 * found['agreement']:g}%"
        lines = [
            f"threshold {found['threshold']:g}: on val the student answers {step['answered']:,} of "
            f"{found['val']['n']:,} images alone and gives the teacher's class on {step['agreed']:,} of them; with "
            f"{100 * found['level']:g}% confidence on at least {100 * step['bound']:.1f}% of such images",
        ]
        if test["agreement"] is None:
            return [*lines, "on test the student answers no image alone"]
        lines.append(
            f"on test it answers {100 * test['coverage']:.1f}% of {test['n']:,} images alone and gives the teacher's "
            f"class on {100 * test['agreement']:.1f}% of these (95% interval {100 * test['agreement_low']:.1f} to "
            f"{100 * test['agreement_high']:.1f}): the stated {stated} {'holds' if test['holds'] else 'is missed'}"
        )
        if pair := (test["paired"] or {}).get("teacher"):
            lines.append(
                f"the cascade's top-1 differs from the teacher's by {pair['difference']:+.2f} points (95% interval "
                f"{pair['low']:+.2f} to {pair['high']:+.2f})"
            )
        if found["threshold"] == 0:
            lines.append("the student reaches the stated agreement on all images: it needs no cascade")
        return lines


def make_cascade(
    run: Run, agreement: float = 0.95, *, device: str | None = None, say: Say = lambda line: None
) -> Cascade:
    """Choose the threshold on val, measure the cascade on test, and write it to the run, its page and its files.

    Args:
        run: a finished run of one teacher; the caller holds its lock.
        agreement: the share of the images answered by the student alone on which it gives the teacher's class.
        device: to compute on; None: the fastest there is.
        say: called with a line before each step.

    Raises:
        TutelageError: the run has no answers of a teacher, its images or weights are gone or changed, or no threshold
            reaches the agreement.
    """
    if not 0 < agreement < 1:
        raise TutelageError(
            f"--agreement {agreement:g}: give a share between 0 and 1, such as --agreement 0.95"
        )
    recipe = load_recipe(run.recipe)
    answers = _answers(run, recipe)
    splits = make_splits(recipe.data, recorded_copies(run.splits))
    needed = fewest_images(agreement)
    if len(splits.val) < needed:
        raise TutelageError(
            f"{run.path}: val has {len(splits.val):,} images, and an agreement of {agreement:g} cannot be shown on "
            f"fewer than {needed:,}; give a lower one, such as --agreement {_lower(len(splits.val)):g}"
        )
    loading = Loading(recipe.data.workers, BadImages(recipe.data.max_bad_images))
    student, teacher = kept_student(run, recipe), kept_teacher(run, recipe)
    teacher = teacher.for_images({"val": splits.val, "test": splits.test})
    runtime = Runtime.start(device)

    def predict(models: list[Model], subset: Subset, name: str) -> list[Predictions]:
        say(f"{name}: {len(subset):,} images")
        for model in models:
            model.module.to(runtime.device).eval()
        return predict_together([(m.module, m.input_spec) for m in models], subset, runtime, loading)

    ours, theirs = in_common(predict([student, teacher], splits.val, "student and teacher on val"))
    theirs = _over_the_same_classes(theirs, teacher, student)
    labels = torch.from_numpy(head_labels(student, splits.val))[ours.index]
    _check_teacher(run, theirs.logits, labels)
    temperature = _temperature(run, ours.logits, labels)
    confidence = _confidence(ours.logits, temperature)
    agrees = (ours.logits.argmax(1) == theirs.logits.argmax(1)).numpy()
    steps = tried(confidence, agrees, agreement)
    step = chosen(steps)
    if step is None:
        raise TutelageError(_none_reaches(run, agreement, steps))
    (on_test,) = predict([student], splits.test, "student on test")
    known = _on_test(run, answers, splits.test, on_test)
    costs = _rows(run)
    sure, own = _confidence(on_test.logits, temperature), on_test.logits.argmax(1).numpy()
    test = outcome(sure, own, known.teacher, known.labels, step.threshold)
    content: dict[str, Any] = {
        "agreement": agreement,
        "level": LEVEL,
        "threshold": step.threshold,
        "temperature": temperature,
        "student": digest(run.student)["sha256"],
        "teacher": recipe.teacher.model,
        "chosen": asdict(step),
        "val": {
            "source": splits.val.images.name,
            "n": len(ours.index),
            "steps": [asdict(one) for one in steps],
        },
        "test": {"source": splits.test.images.name, **test}
        | {"holds": test["agreement"] is None or test["agreement"] >= agreement},
        "cost": _costs(test["coverage"], *costs),
        "curve": curve(sure, own, known.teacher, known.labels, costs),
    }
    write_json(run.cascade, content)
    add_threshold(run, run.deploy)
    if run.digests.exists():
        write_digests(run)
    write_report(run)
    return Cascade(content)


@dataclass(frozen=True)
class _Known:
    teacher: np.ndarray
    labels: np.ndarray


def _answers(run: Run, recipe: Recipe) -> RunPredictions:
    """The run's stored predictions, those of one teacher among them.

    Raises:
        TutelageError: there are none.
    """
    seeds = sorted(place.parent for place in run.path.glob("seed-*/recipe.yaml"))
    if seeds and not run.student.exists():
        raise TutelageError(f"{run.path}: has several seeds; name one of them, such as {seeds[0]}")
    answers = read_predictions(run.predictions) if run.predictions.exists() else None
    if answers is None or not {Role.TEACHER, Role.DISTILLED} <= answers.roles.keys():
        raise TutelageError(
            f"{run.path}: has no answers of a teacher to the test images; go on with `tutelage resume {run.path}`"
        )
    if recipe.teacher.others:
        raise TutelageError(
            f"{run.path}: teacher.others names further teachers, and a cascade hands images to one; use a run with "
            "one teacher"
        )
    return answers


def _over_the_same_classes(theirs: Predictions, teacher: Model, student: Model) -> Predictions:
    """The teacher's logits of the student's classes: a head of more classes was cut to these when the run began."""
    if teacher.class_ids == student.class_ids or student.class_ids is None:
        return theirs
    index = map_classes(student.class_ids, teacher.class_ids)
    if index is not None:
        return replace(theirs, logits=theirs.logits[:, torch.from_numpy(index)])
    if theirs.logits.shape[1] == student.num_classes:
        return theirs
    raise TutelageError(
        f"{teacher.spec}: has other classes than {student.spec}, so that they make no cascade"
    )


def _check_teacher(run: Run, logits: Tensor, labels: Tensor) -> None:
    """Refuse a teacher that is not, or no longer, the one that the run evaluated."""
    content = read_json(run.comparison) if run.comparison.exists() else {}
    before = ((content.get("val") or {}).get("top1") or {}).get(str(Role.TEACHER))
    if before is None or not (labels >= 0).any():
        return
    now, _ = top1_and_nll(logits, labels)
    if abs(now - before) > MOST_APART:
        raise TutelageError(
            f"{run.path}: the teacher has a top-1 of {now:.2f}% on val now and had {before:.2f}% in the run; its "
            "weights or images have changed, so begin a new run"
        )


def _temperature(run: Run, logits: Tensor, labels: Tensor) -> float:
    """That of the run; a run of an older version has none, so that it is fitted on val here."""
    content = read_json(run.comparison) if run.comparison.exists() else {}
    recorded = (content.get("calibration") or {}).get("temperature")
    return float(calibrating_temperature(logits, labels) if recorded is None else recorded)


def _confidence(logits: Tensor, temperature: float) -> np.ndarray:
    """(N,) probability of the most probable class, in float64 as `Predictor` computes it."""
    found: np.ndarray = (logits.double() / temperature).softmax(1).amax(1).numpy()
    return found


def _on_test(run: Run, answers: RunPredictions, test: Subset, student: Predictions) -> _Known:
    """The teacher's classes and the labels of the images that the student was run on, from the run's record."""
    places = {str(id): place for place, id in enumerate(answers.ids)}
    ids = [test.id(int(index)) for index in student.index]
    if missing := [id for id in ids if id not in places]:
        raise TutelageError(
            f"{run.path}: {test.images.name} has the image {missing[0]!r}, which the run had not; restore the images"
        )
    order = np.array([places[id] for id in ids], np.int64)
    return _Known(answers.roles[Role.TEACHER].first[order], answers.labels[order])


def _rows(run: Run) -> tuple[dict[str, Any], dict[str, Any]]:
    """The rows of student and teacher in the run's table; empty where it has none."""
    rows = {row["role"]: row for row in entry(run.comparison, "rows")}
    return rows.get(str(Role.DISTILLED), {}), rows.get(str(Role.TEACHER), {})


def _costs(coverage: float, student: Mapping[str, Any], teacher: Mapping[str, Any]) -> dict[str, Any]:
    both = average_costs(coverage, student, teacher)
    return {
        name: {"student": student.get(name), "cascade": value, "teacher": teacher.get(name)}
        for name, value in both.items()
    } | {"conditions": student.get("conditions") or {}}


def _none_reaches(run: Run, agreement: float, steps: list[Step]) -> str:
    best = max(steps, key=lambda step: (step.bound, step.answered))
    every = steps[-1]
    return (
        f"{run.path}: no threshold reaches an agreement of {agreement:g} with {100 * LEVEL:g}% confidence on the "
        f"{every.answered:,} images of val (the highest lower bound is {best.bound:.3f}, at a confidence of "
        f"{best.threshold:g}, where the models agree on {best.agreed:,} of {best.answered:,}); give a lower --agreement"
    )


def _lower(images: int) -> float:
    """An agreement that can be shown on this many images."""
    shares = (0.99, 0.98, 0.97, 0.95, 0.9, 0.8, 0.7, 0.5, 0.3, 0.1)
    return next((share for share in shares if fewest_images(share) <= images), shares[-1])


def _figure(value: float | None, digits: str, unit: str = "") -> str:
    return "–" if value is None else f"{value:{digits}}{unit}"
