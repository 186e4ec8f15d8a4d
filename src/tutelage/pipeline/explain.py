"""Grad-CAM of a run's teacher and student on the test images that changed, for the page."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import torch

from tutelage.core.errors import TutelageError
from tutelage.core.files import write_bytes
from tutelage.core.recipe import load_recipe
from tutelage.core.run_dir import Run
from tutelage.core.runtime import Runtime
from tutelage.data.decode import UnreadableImage
from tutelage.data.input_spec import eval_pixels
from tutelage.data.loading import normalise
from tutelage.data.splits import make_splits, recorded_copies
from tutelage.data.subset import Subset
from tutelage.evaluation.gradcam import heat_maps, overlay
from tutelage.evaluation.roles import Role
from tutelage.models.kept import kept_student, kept_teacher
from tutelage.models.source import Model
from tutelage.report.predictions import greatest_changes
from tutelage.report.run_records import read_run_records

IMAGES = 4  # of each kind: negative flips and corrections


def explain_images(run: Run, say: Callable[[str], object]) -> None:
    """Write gradcam.npz: the images that changed most, darkened where teacher and student do not find their class.

    Args:
        run: a finished run.
        say: receives why a model has no such pictures.

    Raises:
        TutelageError: the run has no predictions with labels yet, or its images are gone.
    """
    recipe, records = load_recipe(run.recipe), read_run_records(run)
    predictions = records.predictions_of(records.baseline, Role.DISTILLED)
    if predictions is None or not records.labelled_test:
        raise TutelageError(
            f"--explain: {run.path} has no evaluation on labelled test images yet; finish it first"
        )
    changes = greatest_changes(predictions, records.baseline, Role.DISTILLED, IMAGES)
    ids = [str(predictions.ids[place]) for places in changes.values() for place in places]
    test = make_splits(recipe.data, recorded_copies(run.splits)).test
    places = {id: position for position, id in enumerate(test.ids)}
    if missing := [id for id in ids if id not in places]:
        raise TutelageError(f"--explain: {test.images.name} has no image {missing[0]!r} any more")
    arrays = {"ids": np.array(ids, dtype=np.str_)}
    for role, load in ((Role.TEACHER, kept_teacher), (Role.DISTILLED, kept_student)):
        try:
            arrays[role] = _pictures(load(run, recipe), test, [places[id] for id in ids])
        except (TutelageError, UnreadableImage) as error:
            say(f"no Grad-CAM of the {'teacher' if role == Role.TEACHER else 'student'}: {error}")
            arrays[f"{role}_why"] = np.array(str(error))
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)  # type: ignore[arg-type]
    write_bytes(run.heat_maps, stream.getvalue())


def _pictures(model: Model, test: Subset, positions: list[int]) -> np.ndarray:
    """(N, 128, 128, 3) uint8."""
    device = Runtime.start().device
    model.module.to(device).eval()
    pictures = []
    for position in positions:
        pixels = eval_pixels(test.image(position), model.input_spec)
        batch = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))[None]
        heat, _ = heat_maps(model, normalise(batch, model.input_spec, device))
        pictures.append(overlay(pixels, heat[0]))
    return np.stack(pictures) if pictures else np.zeros((0, 1, 1, 3), np.uint8)
