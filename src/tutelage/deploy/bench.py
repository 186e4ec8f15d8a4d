"""Models and their deployed files, measured like any other models and compared with PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tutelage.core.errors import TutelageError
from tutelage.core.progress import Often
from tutelage.data.loading import BadImages, eval_loader, normalise
from tutelage.data.sources.base import open_for_evaluation, open_source, parts_of
from tutelage.data.sources.synthetic import Synthetic
from tutelage.data.splits import Subset, stratified, whole
from tutelage.data.workers import dead_workers_named
from tutelage.deploy.build import CALIBRATION, Deployed, Material, as_model, build
from tutelage.deploy.formats.making import Say
from tutelage.deploy.parity import Checked, complaint, parity
from tutelage.deploy.runtimes.base import Variant
from tutelage.evaluation.predict import Predictions
from tutelage.evaluation.rows import sized
from tutelage.evaluation.table import Row, Table, factors
from tutelage.models.source import Model

MADE_UP = 64  # synthetic images
LIKE_FOR_LIKE = (
    "like for like: compared with the first model in the same runtime and precision, not the runtime's gain"
)


def images_of(data: str | None, max_drop: float = 1.0) -> tuple[Material, Subset | None]:
    """Images to calibrate on, and others to evaluate on.

    Args:
        data: KIND:WHERE. Its training part is for calibration. Where it has none, a third of the images (at most
            300), evenly over the classes, is for calibration, and the rest for evaluation. None: synthetic images
            for calibration, and none for evaluation.
        max_drop: points of top-1 that int8 may lose.
    """
    if data is None:
        return Material(whole(Synthetic(MADE_UP)), max_drop=max_drop), None
    report = open_for_evaluation(data)
    train = open_source(data, "train") if "train" in parts_of(data) else report
    if train.origin != report.origin:
        return Material(whole(train), max_drop=max_drop), whole(report)
    every = np.arange(len(report))
    taken = stratified(report, every, min(CALIBRATION, len(report) // 3), seed=0)
    if not len(taken):
        raise TutelageError(
            f"{data}: {len(report)} images are too few to calibrate on some and evaluate on others; use 3 or more"
        )
    calibration = replace(whole(report), indices=taken, split="a third of the images")
    rest = replace(whole(report), indices=np.setdiff1d(every, taken), split="those not used to calibrate")
    return Material(calibration, max_drop=max_drop), rest


def build_all(models: Sequence[Model], directory: Path, material: Material, say: Say) -> list[Deployed]:
    """Write the files of each model into numbered folders."""
    done = []
    for number, model in enumerate(models):
        folder = directory / str(number)
        folder.mkdir()
        done.append(build(model, folder, material, say=say))
    return done


@dataclass(frozen=True)
class _Entry:
    """A row of the table: a model as it is (variant None), or one of its files as a model."""

    deployed: Deployed
    variant: Variant | None
    model: Model
    row: Row


class Bench:
    """The models to be measured: each model as it is, followed by its files."""

    def __init__(
        self,
        deployed: Sequence[Deployed],
        subset: Subset | None,
        batch_size: int,
        roles: Sequence[str] | None = None,
        say: Say = lambda line: None,
    ) -> None:
        """Prepare the models.

        Args:
            deployed: the models with their files; files of the others are compared with those of the first.
            subset: images to compare logits on; None: synthetic images.
            batch_size: images per batch, with which the throughput will be measured.
            roles: one for each model; the role of a file is that of its model and its own. None: rows are named by
                their model.
            say: called with a line every few seconds while images are classified.
        """
        self._say = say
        self.subset = subset or whole(Synthetic(MADE_UP))
        self._batch_size = batch_size
        self._entries = [
            entry
            for number, one in enumerate(deployed)
            for entry in _entries(one, batch_size, roles[number] if roles else None)
        ]
        self._predictions: dict[int, Predictions] = {}

    @property
    def models(self) -> list[Model]:
        """All models, in the order of the rows."""
        return [entry.model for entry in self._entries]

    @property
    def rows(self) -> list[Row]:
        """A row with name and size for each model."""
        return [entry.row for entry in self._entries]

    def answer(self, model: Model, bad: BadImages | None = None) -> Predictions:
        """The logits of a model on the subset. Those of its files are computed in the same pass over the images."""
        key = id(model)
        if key not in self._predictions:
            entry = next(entry for entry in self._entries if entry.model is model)
            kin = [e.model for e in self._entries if e.deployed is entry.deployed]
            self._predictions |= _answers(kin, self.subset, self._batch_size, bad, self._say)
        return self._predictions[key]

    def like_for_like(self, table: Table) -> Table:
        """Add to each file how it compares with the first model's file of the same kind (`Row.like`)."""
        first = self._entries[0].deployed
        kin = {
            entry.variant: row
            for entry, row in zip(self._entries, table.rows, strict=True)
            if entry.deployed is first
        }
        rows = []
        for entry, row in zip(self._entries, table.rows, strict=True):
            theirs = kin.get(entry.variant) if entry.variant and entry.deployed is not first else None
            rows.append(replace(row, like=factors(row, theirs)) if theirs else row)
        notes = [*table.notes, LIKE_FOR_LIKE] if any(row.like for row in rows) else table.notes
        return Table(rows, notes)

    def checked(self, table: Table, deployed: Deployed, max_drop: float) -> list[Checked]:
        """Compare the files of one model, with their measured rows, with it; `max_drop` in points of top-1."""
        own = [
            (entry, row)
            for entry, row in zip(self._entries, table.rows, strict=True)
            if entry.deployed is deployed
        ]
        (pytorch, its_row), *files = own
        truth = self.answer(pytorch.model).logits
        done = []
        for entry, row in files:
            assert entry.variant is not None  # only the first is the model itself
            found = parity(self.answer(entry.model).logits, truth)
            done.append(
                Checked(entry.variant, row, found, complaint(entry.variant, found, its_row, row, max_drop))
            )
        return done

    def noted(self, table: Table, material: Material) -> Table:
        """The table with the results of the checks as notes."""
        lines = [calibrated(material)]
        for deployed in dict.fromkeys(entry.deployed for entry in self._entries):
            found = self.checked(table, deployed, material.max_drop)
            lines += [one.sentence(self.subset.images.name) for one in found]
        return Table(table.rows, [*table.notes, *lines])


def calibrated(material: Material) -> str:
    """A line that says on which images int8 was calibrated."""
    subset = material.calibration
    count = f"{min(CALIBRATION, len(subset))} images ({subset.images.name})"
    if isinstance(subset.images, Synthetic):
        return f"int8 is calibrated on {count}: its size and speed are real, its predictions mean NOTHING"
    return f"int8 is calibrated on {count}"


def _entries(one: Deployed, batch_size: int, role: str | None) -> list[_Entry]:
    model = replace(one.model, module=one.model.module.cpu())
    row = Row(model.spec, role or "", model.origin)
    row = sized(row, model.module, model.input_spec.height, model.input_spec.width)
    entries = [_Entry(one, None, model, row)]
    for variant in one.variants:
        file = as_model(one, variant, batch_size)
        named = "" if role is None else f"{role} {variant.role}".strip()
        its_row = replace(row, model=file.spec, role=named, size_mb=one.size_mb(variant))
        entries.append(_Entry(one, variant, file, its_row))
    return entries


@torch.inference_mode()
@dead_workers_named()
def _answers(
    models: Sequence[Model], subset: Subset, batch_size: int, bad: BadImages | None, say: Say
) -> dict[int, Predictions]:
    """Logits of models with the same input; each image is decoded once for all of them."""
    spec = models[0].input_spec
    predictions: list[list[Tensor]] = [[] for _ in models]
    index: list[Tensor] = []
    done = Often(
        lambda count: say(f"{models[0].spec} and its files: {count:,} of {len(subset):,} images classified")
    )
    for batch in eval_loader(subset, [spec], batch_size, bad=bad or BadImages(len(subset) // 2)):
        images = normalise(batch["images"][0], spec)
        index.append(batch["index"])
        for logits, model in zip(predictions, models, strict=True):
            logits.append(model.module(images))
        done.add(len(images))
    if not index:
        raise TutelageError(f"{subset.images.name}: none of the images can be decoded")
    places = torch.cat(index)
    return {
        id(m): Predictions(torch.cat(logits), places) for m, logits in zip(models, predictions, strict=True)
    }
