"""Accuracy of a run's models on corrupted test images, where the recipe asks for it."""

from __future__ import annotations

from typing import Any

import numpy as np

from tutelage.core.files import read_json, write_json
from tutelage.core.progress import shown
from tutelage.evaluation.predict import in_common, predict_together
from tutelage.evaluation.robustness import CORRUPTIONS, corrupted, robustness
from tutelage.evaluation.roles import Role
from tutelage.models.digest import state_digest
from tutelage.models.source import Model
from tutelage.pipeline.stages.entries import entries_of
from tutelage.pipeline.stages.evaluate import batches, joint, labels_of
from tutelage.pipeline.stages.preflight import Checked
from tutelage.pipeline.stages.train import Distilled

ROLES = (Role.START, Role.CONTROL, Role.DISTILLED, Role.TEACHER)


def measure_robustness(checked: Checked, control: Model | None, distilled: Distilled) -> None:
    """Write robustness.json: top-1 of start, control, student and teacher on each kind of corrupted test images.

    Each image is decoded and corrupted once for all models. A file that has these figures already is kept.
    """
    prepared = checked.prepared
    context, subset, seed = prepared.context, prepared.splits.test, prepared.recipe.data.split_seed
    if not subset.labelled:
        context.progress.say("measure.robustness: no test image has a label, so that it is not measured")
        return
    entries = [
        one
        for one in entries_of(checked, control, distilled)[0]
        if one.role in ROLES
        and not any(model.looks_up for model in one.models)  # none is of a corrupted image
    ]
    digests = [state_digest(model.module.state_dict()) for one in entries for model in one.models]
    key = {"test": subset.digest(), "models": digests, "seed": seed}
    path = context.run.robustness
    if context.runtime.on_main(lambda: path.exists() and read_json(path).get("of") == key):
        return
    networks = [(model.module, model.input_spec) for one in entries for model in one.models]
    right: dict[str, list[np.ndarray]] = {one.role: [] for one in entries}
    index = None
    with shown(context.progress, "robustness", len(CORRUPTIONS) * batches(prepared, subset)):
        for kind in CORRUPTIONS:
            found = predict_together(
                networks,
                corrupted(subset, kind, seed),
                context.runtime,
                context.loading,
                on_batch=lambda images: context.progress.step({}, images),
            )
            for one in entries:
                own, found = found[: len(one.models)], found[len(one.models) :]
                answers = joint(in_common(own))
                labels = labels_of(prepared, subset, answers).numpy()
                right[one.role].append((answers.logits.argmax(1).numpy() == labels)[labels >= 0])
                index = answers.index
    rows = {role: np.stack(one) for role, one in right.items()}
    olds = [role for role in (Role.CONTROL, Role.START, Role.TEACHER) if role in rows]
    result: dict[str, Any] = {"of": key, "n": len(index) if index is not None else 0}
    result |= robustness(rows, Role.DISTILLED, olds)
    if context.runtime.is_main:
        write_json(path, result)
    context.runtime.wait()
