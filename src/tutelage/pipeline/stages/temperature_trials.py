"""Short trials on val of the temperatures between which ``loss.temperature: auto`` decides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from tutelage.core.files import entry, write_json
from tutelage.core.recipe import Recipe
from tutelage.distillation.loop import train
from tutelage.distillation.stage import Stage
from tutelage.evaluation.calibration import calibrated_nll
from tutelage.models.digest import state_digest
from tutelage.models.source import with_state
from tutelage.pipeline.choices import choices_of, record_choice
from tutelage.pipeline.memo import made_once, stage_key
from tutelage.pipeline.stages.evaluate import labels_of, predict
from tutelage.pipeline.stages.preflight import Checked
from tutelage.pipeline.stages.train import student_stage

KEY = "loss.temperature"
HIGH = 4.0  # of Hinton et al. 2015, "Distilling the knowledge in a neural network", and of most work since
NEAR = 0.5  # temperatures that are no further apart train nearly the same student
STEPS = 150  # of a trial
SHARE = 8  # a trial has at most this part of the student's steps, so that a short run stays short
FEWEST = 20  # steps, after which students begin to differ


def with_tried_temperature(checked: Checked) -> Checked:
    """Decide between the temperature that the pre-flight chose and a high one, where the recipe leaves it to the run.

    The pre-flight chooses by the entropy of the teacher's targets. What a student learns from them is another matter:
    so copies of the starting student are trained at each temperature for a few steps, with the same images and
    views, and the temperature after which the NLL on val is lowest is taken. The students are calibrated before,
    since a high temperature changes how certain they are. A resumed run takes what is recorded.
    """
    prepared = checked.prepared
    recipe, context, run = prepared.recipe, prepared.context, prepared.run
    chosen_before = context.runtime.on_main(lambda: KEY in choices_of(run))
    steps = trial_steps(recipe, prepared.splits.images)
    if not chosen_before or not steps or not prepared.splits.val.labelled:
        return checked
    temperatures = _candidates(recipe)
    path = run.checkpoints / "temperature-trials.json"
    distilled = run.checkpoints / "distill.safetensors"
    if len(temperatures) < 2 or context.runtime.on_main(lambda: distilled.exists() and not path.exists()):
        return checked  # the latter is a run of an older version
    with made_once(context, path, lambda: _key(checked, steps)):
        if not path.exists():
            nll = [_nll_after_trial(checked, temperature, steps) for temperature in temperatures]
            if context.runtime.is_main:
                write_json(path, {"steps": steps, "temperatures": list(temperatures), "nll": nll})
            context.runtime.wait()
    nll = context.runtime.on_main(lambda: [float(value) for value in entry(path, "nll")])
    best = temperatures[nll.index(min(nll))]
    figures = ", ".join(f"{value:.3f} with {t:g}" for t, value in zip(temperatures, nll, strict=True))
    why = f"after trials of {steps} steps the student's NLL on val, calibrated, is {figures}"
    if context.runtime.is_main:
        record_choice(run, KEY, best, why)
    context.progress.say(f"auto: {KEY} = {best:g} ({why})")
    return _at(checked, best)


def trial_steps(recipe: Recipe, images: int) -> int:
    """Return the steps of each trial; 0 where there is none.

    Args:
        recipe: of the run, with its number of epochs.
        images: number of training images, unlabelled ones included.
    """
    if recipe.loss.name != "kl" or recipe.loss.terms or recipe.loss.two_heads:
        return 0
    steps = min(STEPS, recipe.train.epochs * (images // recipe.train.batch_size) // SHARE)
    return steps if steps >= FEWEST else 0


def trial_images(recipe: Recipe, images: int) -> int:
    """Return how many views all trials together are trained on, at most.

    Args:
        recipe: of the run, with its number of epochs; its temperature is still ``auto``.
        images: number of training images, unlabelled ones included.
    """
    if recipe.loss.temperature != "auto":
        return 0
    return 2 * trial_steps(recipe, images) * recipe.train.batch_size


def _candidates(recipe: Recipe) -> Sequence[float]:
    """Return the temperature of the pre-flight, and a high one where that is another."""
    first = recipe.loss.temperature
    assert isinstance(first, float)
    return (first,) if abs(first - HIGH) <= NEAR else (first, HIGH)


def _at(checked: Checked, temperature: float) -> Checked:
    recipe = checked.prepared.recipe
    loss = recipe.loss.model_copy(update={"temperature": temperature})
    return replace(
        checked, prepared=replace(checked.prepared, recipe=recipe.model_copy(update={"loss": loss}))
    )


def _trial(checked: Checked, temperature: float, steps: int) -> Stage:
    """Define a trial: one epoch of `steps` steps, as the student's training begins, but with its whole schedule."""
    stage = student_stage(_at(checked, temperature))
    settings = stage.settings.model_copy(update={"epochs": 1, "patience": None, "head_warmup_epochs": 0})
    return replace(stage, name=f"temperature-{temperature:g}", settings=settings, steps=steps)


def _nll_after_trial(checked: Checked, temperature: float, steps: int) -> float:
    """Train one trial, and return the NLL of its student on val after calibration."""
    prepared = checked.prepared
    stage = _trial(checked, temperature, steps)
    checkpoint = prepared.context.checkpoint(stage)
    trained = train(
        stage,
        prepared.context.runtime,
        checkpoint,
        loading=prepared.context.loading,
        progress=prepared.context.progress,
    )
    with with_state(checked.student.module, trained.states.get("ema", trained.states["last"])):
        found = predict(prepared, checked.student, prepared.splits.val)
    if prepared.context.runtime.is_main:
        checkpoint.unlink(missing_ok=True)
    return calibrated_nll(found.logits, labels_of(prepared, prepared.splits.val, found))


def _key(checked: Checked, steps: int) -> dict[str, Any]:
    recipe = checked.prepared.recipe
    return {
        "trial": stage_key(_trial(checked, HIGH, steps), checked.prepared.context),
        "temperatures": [_candidates(recipe), recipe.loss.teacher_temperature],
        "teachers": [state_digest(model.module.state_dict()) for model in checked.teachers],
        "targets": recipe.targets.model_dump(mode="json"),
    }
