"""What `tutelage teacher` does: measure a teacher on the user's images, without a student."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from rich.console import Group, RenderableType
from rich.table import Table as RichTable
from rich.text import Text
from scipy.stats import binomtest
from torch import Tensor

from tutelage.core.errors import TutelageError
from tutelage.core.recipe import DataRecipe
from tutelage.core.runtime import Runtime
from tutelage.data.loading import BadImages, Loading
from tutelage.data.sources.tree import listed
from tutelage.data.splits import Splits, make_splits, stratified
from tutelage.data.subset import Subset, sample
from tutelage.distillation.probe import can_be_probed, fit_probe
from tutelage.evaluation import resolution
from tutelage.evaluation.calibration import best_temperature, confidence
from tutelage.evaluation.class_order import name_classes
from tutelage.evaluation.intervals import LEVEL
from tutelage.evaluation.predict import predict_logits
from tutelage.evaluation.quality import Quality, over_classes, quality
from tutelage.models.class_mapping import align_heads, own_classes
from tutelage.models.registry import load_model
from tutelage.models.source import Model

IMAGES = 2000  # to measure the teacher on, where there are more
TRIED = 300  # of these at each resolution
FIT_SHARE = 2 / 3  # of the images, to which a new head is fitted
TOO_SURE = 1.1  # a best temperature beyond it, or below its inverse, is worth a word
Say = Callable[[str], object]


@dataclass(frozen=True)
class TeacherReport:
    """What was found of a teacher.

    Attributes:
        model: as the user wrote it.
        origin: where the weights are from.
        licence: of the weights; None where it is not known.
        head: its classes and how the data's map to them, in words.
        classes: number of logits.
        new_head: its own head does not have the data's classes, so that a linear probe was fitted.
        input: size, mean, std and evaluation crop; None where answers are stored.
        images: number of labelled images that the figures are of; 0 without labels.
        source: of these images, in words.
        top1: percent, over all classes of the head; None without labels, as are the following.
        low: lower end of its 95% interval (Wilson 1927), in percent.
        high: upper end of its 95% interval, in percent.
        top1_data: percent, over the data's classes alone; None where the head has no others.
        nll: nats.
        ece: percent.
        confidence: mean probability of the top class, in percent.
        temperature: with the lowest NLL on these images.
        calibrated_nll: nats, at this temperature.
        calibrated_ece: percent, at this temperature.
        resolutions: figures on some of the images at neighbouring resolutions.
        best_resolution: with the lowest NLL; None where none was tried.
        command: that distils this teacher.
        notes: sentences about the images and the classes.
    """

    model: str
    origin: str
    licence: str | None
    head: str
    classes: int
    new_head: bool
    input: dict[str, Any] | None
    images: int
    source: str
    confidence: float
    top1: float | None = None
    low: float | None = None
    high: float | None = None
    top1_data: float | None = None
    nll: float | None = None
    ece: float | None = None
    temperature: float | None = None
    calibrated_nll: float | None = None
    calibrated_ece: float | None = None
    resolutions: tuple[dict[str, Any], ...] = ()
    best_resolution: int | None = None
    command: str = ""
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)

    def rich(self) -> RenderableType:
        """For a terminal, in two columns."""
        table = RichTable.grid(padding=(0, 2))
        table.add_column(style="bold", no_wrap=True)
        table.add_column(overflow="fold")
        for name, value in self._pairs():
            table.add_row(name, Text(value))
        return Group(table, *(Text(f"\n{note}", style="dim") for note in self.notes))

    def _pairs(self) -> list[tuple[str, str]]:
        pairs = [
            ("teacher", self.model),
            ("weights", self.origin),
            ("licence", self.licence or "not known; look it up where the weights are from"),
            ("classes", self.head),
        ]
        if self.input:
            one = self.input
            pairs += [
                (
                    "input",
                    f"{one['width']} x {one['height']} px, {one['interpolation']}, crop {one['crop_pct']:.3g}",
                ),
                ("mean, std", f"{_numbers(one['mean'])}; {_numbers(one['std'])} (of pixels of 0 to 1)"),
            ]
        else:
            pairs.append(("input", "none: answers are stored by image"))
        pairs.append(("measured on", self.source))
        if self.top1 is None:
            pairs.append(("confidence", f"{self.confidence:.2f}% on average; accuracy is not known"))
        else:
            data = "" if self.top1_data is None else f"; {self.top1_data:.2f}% over the data's classes alone"
            pairs += [
                ("top-1", f"{self.top1:.2f}% (95% interval {self.low:.2f} to {self.high:.2f}){data}"),
                ("confidence", f"{self.confidence:.2f}% on average{self._certainty()}"),
                ("ECE, NLL", f"{self.ece:.2f}%, {self.nll:.3f}"),
                (
                    "temperature",
                    f"{self.temperature:.2f} is best: ECE {self.calibrated_ece:.2f}%, NLL {self.calibrated_nll:.3f}",
                ),
            ]
        if self.best_resolution:
            tried = ", ".join(
                f"{row['resolution']} px {row['top1']:.2f} ({row['nll']:.3f})"
                for row in self.resolutions
                if row["top1"] is not None
            )
            pairs += [
                ("resolution", f"{self.best_resolution} px is best by NLL"),
                ("", f"top-1 (NLL): {tried}"),
            ]
        return pairs

    def _certainty(self) -> str:
        ahead = self.confidence - (self.top1 or 0.0)
        temperature = self.temperature or 1.0
        if temperature > TOO_SURE and ahead > 0:
            return ": over-confident"
        return ": under-confident" if temperature < 1 / TOO_SURE and ahead < 0 else ""


def report_teacher(
    teacher: str,
    data: str,
    *,
    pixels: int | None = None,
    images: int = IMAGES,
    device: str | None = None,
    say: Say = lambda line: None,
) -> TeacherReport:
    """Load a teacher, map the data's classes to its head, and measure it at its own and at neighbouring resolutions.

    The images are those of val where the data has such a part of its own, else training images; the test images of a
    run on the same data are not used. Where the head does not have the data's classes, a linear probe is fitted to
    other images, as a run does first.

    Args:
        teacher: NAME@WEIGHTS, or KIND:WHERE.
        data: KIND:WHERE, or a path.
        pixels: resolution; None: its own.
        images: at most so many.
        device: ``cpu``, ``cuda`` or ``mps``; None: the best there is.
        say: receives a line before each step.

    Raises:
        TutelageError: data or model is missing or cannot be used; one line that says what to do.
    """
    splits = make_splits(DataRecipe(train=data))
    held, fit = _images(splits, images)
    model = load_model(teacher)
    if not model.pretrained:
        raise TutelageError(
            f"{teacher}: random weights have nothing to teach; name a model with trained weights, such as "
            "tf_efficientnet_lite2 or NAME@FILE.safetensors"
        )
    model = model.for_images({"train": held})
    model = model if pixels is None else resolution.at(model, pixels)
    runtime, loading = Runtime.start(device), Loading(bad=BadImages(DataRecipe().max_bad_images))
    if not splits.classes:
        held = replace(held, classes=own_classes(model))
    say("looking at its classes")
    named, note = name_classes(model, held, runtime, loading)
    (ready,), _, mapping = align_heads([named], named, held.classes)
    new = ready.spec in mapping.new
    head = _head(ready, held.classes, new)
    if new:
        ready, held = _probed(ready, fit, held, mapping.index, runtime, loading, say)
    ready.module.to(runtime.device)
    say(f"measuring it on {len(held):,} images")
    found = predict_logits(ready.module, ready.input_spec, held, runtime, loading)
    labels = torch.from_numpy(mapping.labels(held.labels))[found.index]
    report = TeacherReport(
        model=teacher,
        origin=ready.origin,
        licence=ready.licence,
        head=head,
        classes=ready.num_classes,
        new_head=new,
        input=None if ready.looks_up else ready.input_spec.to_dict(),
        images=int((labels >= 0).sum()),
        source=f"{len(found.index):,} images of {held.images.name}{'' if held.labelled else ', without labels'}",
        confidence=confidence(found.logits),
        command=_command(teacher, data, pixels),
        notes=tuple(one for one in (note, _unread(loading)) if one),
    )
    if not held.labelled:
        return report
    report = replace(report, **_figures(found.logits, labels, torch.from_numpy(mapping.index)))
    if ready.looks_up:
        return report
    tried = _resolutions(ready, held, mapping.labels(held.labels), runtime, loading, say)
    best = resolution.best(tried, "teacher", "nll")
    changed = best if best != model.input_spec.height else pixels
    return replace(
        report, resolutions=tuple(tried), best_resolution=best, command=_command(teacher, data, changed)
    )


def _images(splits: Splits, images: int) -> tuple[Subset, Subset]:
    """Select the images to measure on, and others to fit a new head to; all of both where there are no labels."""
    train, val = splits.train, splits.val
    if not train.labelled:
        return sample(train, images), train
    train = replace(train, indices=train.indices[train.labels >= 0])
    val = replace(val, indices=val.indices[val.labels >= 0])
    fit = _some(train, min(round(FIT_SHARE * images), round(FIT_SHARE * len(train))), splits.seed)
    if val.images.origin != train.images.origin:
        return _some(val, images, splits.seed), fit
    both = replace(train, indices=np.union1d(train.indices, val.indices))
    return _some(both, images, splits.seed), fit


def _some(part: Subset, images: int, seed: int) -> Subset:
    if len(part) <= images:
        return part
    return replace(part, indices=stratified(part.images, part.indices, images, seed))


def _probed(
    model: Model, fit: Subset, held: Subset, index: np.ndarray, runtime: Runtime, loading: Loading, say: Say
) -> tuple[Model, Subset]:
    """The model with a linear probe as its head, and the images to measure it on, which the probe has not seen.

    Raises:
        TutelageError: no image has a label, or the head cannot be a probe.
    """
    if not fit.labelled or not can_be_probed(model):
        why = "no image has a label to fit one with" if not fit.labelled else "it cannot have a linear probe"
        raise TutelageError(f"{model.spec}: its head does not have the data's classes, and {why}")
    if held.images is fit.images:
        held = replace(held, indices=np.setdiff1d(held.indices, fit.indices))
    choice = replace(held, indices=held.indices[::2])  # by which the probe's strength is chosen
    say(f"fitting a linear probe to {len(fit):,} images")
    probe = fit_probe(model, fit, choice, index, runtime, loading)
    return probe.put_on(model), replace(held, indices=held.indices[1::2])


def _figures(logits: Tensor, labels: Tensor, index: Tensor) -> dict[str, Any]:
    found = quality(logits, labels)
    interval = binomtest(round(found.top1 * found.n / 100), found.n).proportion_ci(LEVEL, method="wilson")
    temperature = best_temperature(logits, labels)
    calibrated = quality(logits / temperature, labels)
    figures = {
        "top1": found.top1,
        "low": 100 * interval.low,
        "high": 100 * interval.high,
        "nll": found.nll,
        "ece": found.ece,
        "temperature": temperature,
        "calibrated_nll": calibrated.nll,
        "calibrated_ece": calibrated.ece,
    }
    if len(index) < logits.shape[1]:
        place = torch.full((logits.shape[1],), -1)
        place[index] = torch.arange(len(index))
        own = torch.where(labels >= 0, place[labels.clamp_min(0)], -1)
        figures["top1_data"] = quality(over_classes(logits, index), own).top1
    return figures


def _resolutions(
    model: Model, held: Subset, labels: np.ndarray, runtime: Runtime, loading: Loading, say: Say
) -> list[dict[str, Any]]:
    some = sample(held, TRIED)
    known = torch.from_numpy(labels[np.searchsorted(held.indices, some.indices)])

    def evaluate(resized: Model) -> Quality:
        say(f"trying {resized.input_spec.height} px on {len(some):,} images")
        found = predict_logits(resized.module.to(runtime.device), resized.input_spec, some, runtime, loading)
        return quality(found.logits, known[found.index])

    return resolution.probe(model, "teacher", evaluate, "nll")


def _head(model: Model, classes: Sequence[str], new: bool) -> str:
    if new:
        return f"not those of the data: a linear probe for {len(classes):,} classes stands in for its head"
    more = model.num_classes - len(classes)
    if more:
        return f"{model.num_classes:,}, among them all {len(classes):,} of the data; {more:,} others"
    return f"the {len(classes):,} of the data ({listed(tuple(classes))})"


def _unread(loading: Loading) -> str:
    count = len(loading.bad.reasons)
    return f"{count} images cannot be decoded and are left out" if count else ""


def _numbers(values: Sequence[float]) -> str:
    return " ".join(f"{value:.3g}" for value in values)


def _command(teacher: str, data: str, pixels: int | None) -> str:
    words = ["tutelage", "distill", "--teacher", teacher, "--data", data]
    return shlex.join([*words, *([f"teacher.resolution={pixels}"] if pixels else [])])
