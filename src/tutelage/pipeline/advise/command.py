"""What `tutelage advise` does: measure the teacher and candidate students on the user's images, and judge."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from scipy.stats import binomtest

from tutelage.core.errors import TutelageError
from tutelage.core.recipe import DataRecipe, parse_recipe
from tutelage.core.runtime import Runtime, device_name
from tutelage.data.loading import BadImages, Loading
from tutelage.data.splits import Splits, make_splits
from tutelage.evaluation.intervals import LEVEL
from tutelage.evaluation.latency import alternating_latency, forward_call
from tutelage.evaluation.paired import paired
from tutelage.evaluation.size import params_m, size_mb
from tutelage.models import precision
from tutelage.pipeline.advise.advice import Advice, Candidate, judged, recommended, sentences, warnings_of
from tutelage.pipeline.advise.candidates import AnyModel, Contender, contenders
from tutelage.pipeline.advise.probing import Parts, held_out_answers, parts
from tutelage.pipeline.choices import fitted_teachers
from tutelage.pipeline.cost import TIMED_BATCH, cost_of, measure_speeds

IMAGES = 2000  # to fit the probes to, where there are more
LATENCY_SECONDS = 20.0  # no further round of the latencies begins after this time
Say = Callable[[str], object]


def advise(
    data: str,
    teacher: AnyModel | None = None,
    students: Sequence[AnyModel] = (),
    *,
    teacher_resolution: int | None = None,
    student_resolutions: Sequence[int] = (),
    max_latency_ms: float | None = None,
    max_size_mb: float | None = None,
    images: int = IMAGES,
    device: str | None = None,
    say: Say = lambda line: None,
) -> Advice:
    """Tell whether distilling is right for some images, and which student fits.

    Linear probes of the teacher and of the students are compared on the same held-out images: seconds of work that show
    what frozen features are worth. A run begins with such probes and trains from there.

    Args:
        data: KIND:WHERE of labelled images. The test part of a run on the same data is not used.
        teacher: None: the recipe's default.
        students: () takes smaller models whose pretrained weights are on this machine.
        teacher_resolution: in pixels; None: the teacher's own.
        student_resolutions: in pixels, of every student; () takes its own and two smaller ones.
        max_latency_ms: of one image, median, on this machine; None: no limit.
        max_size_mb: of parameters and buffers in MiB (2^20 bytes); None: no limit.
        images: at most so many to fit probes to, and half as many held out.
        device: ``cpu``, ``cuda`` or ``mps``; None: the best there is.
        say: receives a line before each step.

    Raises:
        TutelageError: data or a model is missing or cannot be used; one line that says what to do.
    """
    splits = make_splits(DataRecipe(train=data))
    used = parts(splits, images)
    entered = contenders(teacher, students, splits.classes, teacher_resolution, student_resolutions)
    runtime = Runtime.start(device)
    say(f"timing {len(entered)} models in turns")
    rows = _limited(_sized_and_timed(entered, runtime), max_latency_ms, max_size_mb)
    first = entered[0].model
    rates = precision.probe_inference(first.module, first.input_spec, TIMED_BATCH, runtime.device)
    runtime = replace(runtime, precision=precision.faster(rates))
    rows, chance, remarks = _probed(entered, rows, used, runtime, say)
    student = recommended(rows[1:])
    answer = judged(student)
    command = cost = None
    if student is not None:
        chosen = entered[rows.index(student)]
        say(f"timing training steps of {student.name}")
        cost = _cost(data, splits, entered[0], chosen, runtime)
        if all(isinstance(model, str) for model in (teacher, *students) if model is not None):
            command = _command(data, entered[0], chosen)
    return Advice(
        answer=answer,
        sentences=(*sentences(answer, rows[0], student, rows[1:]), *([cost.sentence] if cost else [])),
        warnings=warnings_of(rows[0], rows[1:], student, answer, chance),
        teacher=rows[0],
        students=tuple(rows[1:]),
        student=student,
        command=command,
        minutes=cost.minutes if cost else None,
        disk_mb=cost.disk_mb if cost else None,
        trained_on=len(used.fit),
        held_out=sum(map(len, used.held)),
        notes=(*_notes(used, runtime), *remarks),
    )


def _sized_and_timed(entered: Sequence[Contender], runtime: Runtime) -> list[Candidate]:
    calls = {}
    for place, one in enumerate(entered):
        spec = one.model.input_spec
        module = one.model.module.to(runtime.device)
        calls[str(place)] = forward_call(module, (1, 3, spec.height, spec.width), runtime.device)
    times = alternating_latency(calls, seconds=LATENCY_SECONDS)
    return [
        Candidate(
            model=one.model.spec,
            resolution=one.model.input_spec.height,
            params_m=params_m(one.model.module),
            size_mb=size_mb(one.model.module),
            latency_ms=times[str(place)].median_ms,
            own_head=one.own_head is not None,
            why=one.why,
        )
        for place, one in enumerate(entered)
    ]


def _limited(rows: Sequence[Candidate], latency: float | None, size: float | None) -> list[Candidate]:
    """Mark the students that exceed a limit; these are not probed."""
    found = [rows[0]]
    for one in rows[1:]:
        over = [
            f"{what} is above {limit:g}"
            for what, value, limit in (("latency", one.latency_ms, latency), ("size", one.size_mb, size))
            if limit is not None and value > limit
        ]
        found.append(replace(one, within=False, why=f"its {' and its '.join(over)}") if over else one)
    return found


def _probed(
    entered: Sequence[Contender], rows: Sequence[Candidate], used: Parts, runtime: Runtime, say: Say
) -> tuple[list[Candidate], float, list[str]]:
    """Add top-1 and the teacher's lead to the rows; also return chance in percent, and a remark on unreadable images.

    Chance is the top-1 of always giving the most frequent class.
    """
    places = [place for place, row in enumerate(rows) if not row.why]
    if 0 not in places:
        raise TutelageError(f"--teacher {rows[0].model}: {rows[0].why}; name another teacher")
    bad = BadImages(DataRecipe().max_bad_images)
    done = 0

    def on_batch(count: int) -> None:
        nonlocal done
        done += count
        say(f"features of {len(places)} models: {done:,} of {len(used):,} images")

    probed = [entered[place] for place in places]
    answers, truth = held_out_answers(probed, used, runtime, Loading(bad=bad), on_batch)
    found = list(rows)
    for place, answer in zip(places, answers, strict=True):
        right = int((answer == truth).sum())
        interval = binomtest(right, len(truth)).proportion_ci(LEVEL, method="wilson")
        found[place] = replace(
            rows[place],
            top1=100 * right / len(truth),
            low=100 * interval.low,
            high=100 * interval.high,
            lead=paired(answers[0], answer, truth) if place else None,
        )
    remarks = [f"{len(bad.reasons)} images cannot be decoded and are left out"] if bad.reasons else []
    return found, 100 * float(np.bincount(truth).max()) / len(truth), remarks


def _notes(used: Parts, runtime: Runtime) -> list[str]:
    held = " and ".join(f"{len(part):,} of {part.images.name}" for part in used.held)
    return [
        f"linear probes: logistic regression on frozen features ({runtime.precision}) of {len(used.fit):,} images, "
        f"evaluated on {sum(map(len, used.held)):,} others ({held}); below each figure, its 95% interval",
        f"latency of one image, median, on {device_name(runtime.device)} (threads: {torch.get_num_threads()}), models "
        "in turns; size is that of parameters and buffers, in MiB (2^20 bytes)",
        "a run begins with these probes and then trains all layers: on our clothes data that took the teacher from "
        "84.2 to 87.5, and the student, with labels only, from 78.4 to 80.5",
    ]


# --- the run that is recommended


@dataclass(frozen=True)
class _Cost:
    """What a run takes: minutes, MB (10^6 bytes) of disk space, and both in words."""

    minutes: float | None
    disk_mb: float | None
    sentence: str


def _cost(data: str, splits: Splits, teacher: Contender, student: Contender, runtime: Runtime) -> _Cost:
    """Estimate the time and the disk space of a run with these two models."""
    models = {"teacher": teacher.model, "student": student.model}
    keys = {
        role: {"model": model.spec, "resolution": model.input_spec.height} for role, model in models.items()
    }
    recipe = parse_recipe({**keys, "data": {"train": data}}, "advise")
    new = frozenset(one.model.spec for one in (teacher, student) if one.own_head is None)
    cut = frozenset(one.model.spec for one in (teacher, student) if one.is_cut)
    fits = bool(fitted_teachers(recipe, [teacher.model], new | cut))
    speeds = measure_speeds(recipe, splits, [teacher.model], student.model, runtime, fits=fits)
    try:
        cost = cost_of(recipe, splits, [teacher.model], student.model, new, speeds, Path.cwd(), cut)
    except TutelageError as error:  # the disk is too small: the run would refuse it too
        return _Cost(None, None, f"The run cannot be made here: {error}.")
    sentence = (
        f"The run takes about {max(1, round(cost.minutes)):,} minutes on this machine and {cost.disk_mb:,.0f} MB of "
        f"disk space: {len(splits.train):,} training images, {cost.epochs} epochs, with its labels-only control."
    )
    return _Cost(cost.minutes, cost.disk_mb, sentence)


def _command(data: str, teacher: Contender, student: Contender) -> str:
    words = [
        "tutelage",
        "distill",
        "--teacher",
        teacher.model.spec,
        "--student",
        student.model.spec,
        "--data",
        data,
    ]
    words += [
        f"{role}.resolution={one.model.input_spec.height}"
        for role, one in (("teacher", teacher), ("student", student))
        if one.model.input_spec.height != one.native
    ]
    return shlex.join(words)
