"""int8 files from quantisation after training, and from students that were fine-tuned for int8, side by side."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from tutelage.core.errors import one_line
from tutelage.core.runtime import Runtime
from tutelage.data.input_spec import normalised
from tutelage.data.splits import Subset
from tutelage.deploy.bench import Bench
from tutelage.deploy.build import VALIDATION_IMAGES, Deployed, Material, as_model, build, pictures
from tutelage.deploy.formats.making import Say
from tutelage.deploy.qad.tune import Tuned
from tutelage.deploy.qad.words import PLAIN, PTQ, QAD, WORDS
from tutelage.deploy.quantise import Pictures
from tutelage.deploy.runtimes.base import Variant
from tutelage.deploy.runtimes.registry import any_int8, files_of
from tutelage.distillation.stop import Interrupted
from tutelage.evaluation.compare import evaluate
from tutelage.evaluation.paired import paired
from tutelage.models.class_mapping import head_labels
from tutelage.models.source import Model

BATCH = 16  # images


@dataclass(frozen=True)
class Tuning:
    """How an export fine-tunes the student for int8.

    Attributes:
        tune: trains, and gives the fine-tuned students.
        always: else only where an int8 file loses too much on the validation images.
    """

    tune: Callable[[], Sequence[Tuned]]
    always: bool = True


@dataclass(frozen=True)
class Comparison:
    """What fine-tuning for int8 gave.

    Attributes:
        chosen: by int8 file, the candidate whose file is deployed: ``ptq`` or ``qad``.
        rows: one for each candidate and file, see `rows_of`.
        training: the epochs of each training, by candidate.
        failure: why the student could not be fine-tuned; empty where it was, or did not have to be.
    """

    chosen: Mapping[str, str] = field(default_factory=dict)
    rows: Sequence[Mapping[str, Any]] = ()
    training: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    failure: str = ""

    def record(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)

    def lines(self) -> Iterator[str]:
        """Sentences on each file that is deployed, and on what the teacher was worth."""
        for file, name in self.chosen.items():
            rows = {row["candidate"]: row for row in self.rows if row["file"] == file}
            figures = [f"{WORDS[one]} {_top1(row)}" for one, row in rows.items()]
            yield f"{file} is that of {WORDS[name]}, chosen on val; top-1 on test: {', '.join(figures)}"
            pair = rows[QAD]["against_plain"] if QAD in rows else None
            if pair:
                yield (
                    f"{file}: QAD against plain PTQ {pair['difference']:+.2f} points (95% interval "
                    f"{pair['low']:+.2f} to {pair['high']:+.2f})"
                )


def with_better_files(
    deployed: Deployed,
    tuning: Tuning,
    material: Material,
    test: Subset | None,
    formats: Sequence[str],
    say: Say = lambda line: None,
) -> Comparison:
    """Make int8 files of each tuned student, put the better ones in place of those of the student, and compare all.

    For each file the student's own (PTQ) and the distilled student's (QAD) are candidates. The one with the higher
    accuracy on the validation images is deployed; where these are equal, the smaller file; else PTQ's. The control
    with labels only and plain PTQ, with no layers in float, are there for comparison alone.
    Where nothing had to be done, or the training failed, all files stay as they are.

    Args:
        deployed: the student with its files, of which those in int8 may be replaced.
        tuning: gives the fine-tuned students.
        material: the images of the quantisation.
        test: labelled images to report on; None: nothing is reported.
        formats: of the files.
        say: called with a line before each step.
    """
    ptq = _int8_alone(deployed)
    say("the int8 files on val")
    images = _validation(deployed.model, material)
    on_val = {PTQ: _on_val(ptq, images)}
    if not tuning.always and _is_enough(deployed.model, images, on_val[PTQ], material.max_drop):
        return Comparison()
    try:
        tuned = tuning.tune()
    except Interrupted:
        raise
    except Exception as error:  # also of NNCF; the files of the student itself are good without it
        return Comparison(failure=f"{type(error).__name__}: {one_line(error)}"[:300])
    with TemporaryDirectory() as directory:

        def made(name: str, model: Model, material: Material) -> Deployed:
            folder = Path(directory) / name
            folder.mkdir()
            origin = {**deployed.manifest.provenance, "int8": WORDS[name]}
            one = build(
                model,
                folder,
                material,
                origin,
                lambda line: say(f"{WORDS[name]}: {line}"),
                deployed.manifest.temperature,
                [name for name in formats if any_int8([name])],
            )
            return _int8_alone(one)

        material = replace(material, int4=False)
        plain = made(PLAIN, deployed.model, replace(material, max_drop=math.inf))
        candidates = {PLAIN: plain, PTQ: ptq}
        candidates |= {one.name: made(one.name, one.model, material) for one in tuned}
        on_val |= {name: _on_val(one, images) for name, one in candidates.items() if name != PTQ}
        rows = list(rows_of(candidates, on_val, test, say))
        chosen = {}
        for variant in candidates[PTQ].variants:
            name = better(candidates, on_val, variant)
            chosen[variant.file] = name
            if name != PTQ:
                _take(candidates[name].directory, deployed.directory, variant.file)
    return Comparison(chosen, rows, {one.name: one.rows for one in tuned})


def rows_of(
    candidates: Mapping[str, Deployed],
    on_val: Mapping[str, Mapping[str, float]],
    test: Subset | None,
    say: Say,
) -> Iterator[dict[str, Any]]:
    """Measure each candidate's files: size, speed in turns, accuracy, and the difference to plain PTQ on test.

    Among the figures is the accuracy of the candidate's network in float32: where fine-tuning has raised it, too, not
    all of the gain is about int8.
    """
    bench = Bench(list(candidates.values()), test, BATCH, list(candidates), say)
    table = evaluate(
        bench.models, bench.rows, test, Runtime.on_cpu(), batch_size=BATCH, answer=bench.answer, say=say
    )
    found = {row.role: (row, model) for row, model in zip(table.rows, bench.models, strict=True)}
    for name, one in candidates.items():
        for variant in one.variants:
            row, model = found[f"{name} {variant.role}"]
            plain = found.get(f"{PLAIN} {variant.role}")
            pair = None
            if plain is not None and name != PLAIN and row.top1 is not None and test is not None:
                answers, others = bench.answer(model), bench.answer(plain[1])
                labels = head_labels(one.model, test)[answers.index.numpy()]
                pair = asdict(paired(answers.logits, others.logits, labels))
            yield {
                "candidate": name,
                "file": variant.file,
                "size_mb": row.size_mb,
                "latency_ms": row.latency_ms,
                "val_top1": on_val[name][variant.file],
                "top1": row.top1,
                "float_top1": found[name][0].top1,
                "n": row.n,
                "against_float": asdict(row.paired) if row.paired else None,
                "against_plain": pair,
            }


def _int8_alone(deployed: Deployed) -> Deployed:
    """The model with its int8 files, each as it is run by default."""
    kept = tuple(one for one in deployed.variants if one.precision == "int8" and not one.is_option)
    return replace(deployed, variants=kept)


def _validation(student: Model, material: Material) -> Pictures:
    """The validation images; where these have no labels, the student's own answers in float32 are their labels."""
    images = pictures(student, material.validation or material.calibration, VALIDATION_IMAGES)
    known = images.labels >= 0
    if not known.any():
        return Pictures(images.pixels, _answers(student, images))
    return Pictures(images.pixels[known], images.labels[known])


def _on_val(one: Deployed, images: Pictures) -> dict[str, float]:
    """Top-1 in percent on the validation images by file."""
    return {variant.file: _top1_on(as_model(one, variant, BATCH), images) for variant in one.variants}


def _is_enough(student: Model, images: Pictures, on_val: Mapping[str, float], max_drop: float) -> bool:
    """Whether no file loses more than is allowed."""
    return min(on_val.values(), default=100.0) >= _top1_on(student, images) - max_drop


def _top1_on(model: Model, images: Pictures) -> float:
    return 100 * float((_answers(model, images) == images.labels).mean())


@torch.inference_mode()
def _answers(model: Model, images: Pictures) -> np.ndarray:
    """(N,) classes that a model on the CPU gives."""
    batches = [
        model.module(torch.from_numpy(normalised(images.pixels[place : place + BATCH], model.input_spec)))
        for place in range(0, len(images.pixels), BATCH)
    ]
    answers: np.ndarray = torch.cat(batches).argmax(1).numpy()
    return answers


def better(
    candidates: Mapping[str, Deployed], on_val: Mapping[str, Mapping[str, float]], variant: Variant
) -> str:
    """The candidate whose file is deployed; of equals the first, which is PTQ."""
    names = [name for name in (PTQ, QAD) if variant.file in on_val.get(name, {})]  # one may lack the file

    def merit(name: str) -> tuple[float, float]:
        return on_val[name][variant.file], -round(candidates[name].size_mb(variant), 1)

    return max(names, key=merit)


def _take(source: Path, target: Path, file: str) -> None:
    """Put a model file, with the files that belong to it, in place of another."""
    for old, new in zip(files_of(target / file), files_of(source / file), strict=True):
        old.unlink(missing_ok=True)
        if new.exists():
            shutil.move(new, old)


def _top1(row: Mapping[str, Any]) -> str:
    return "–" if row["top1"] is None else f"{row['top1']:.2f}%"
