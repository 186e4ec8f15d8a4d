"""The learning rate of control and student by a range test, where the recipe asks for one (``train.lr=range``)."""

from __future__ import annotations

from dataclasses import replace

from tutelage.core.files import entry, write_json
from tutelage.core.progress import shown
from tutelage.core.values import RANGE
from tutelage.distillation.lr_range import SAFE, STEPS, range_test, suggested
from tutelage.pipeline.choices import choices_of, rate_for, record_choice
from tutelage.pipeline.memo import made_once, stage_key
from tutelage.pipeline.stages.preflight import Checked
from tutelage.pipeline.stages.train import control_stage


def with_tested_rate(checked: Checked) -> Checked:
    """Replace ``train.lr=range`` by what a range test finds; a resumed run takes the rate that is recorded.

    The test has the hard labels of the control, so that the rate of both is one that suits the control: the teacher
    gains nothing by it.
    """
    prepared = checked.prepared
    recipe, context, run = prepared.recipe, prepared.context, prepared.run
    if recipe.train.lr != RANGE:
        return checked
    path = run.checkpoints / "lr-range.json"
    stage = control_stage(checked)
    with made_once(context, path, lambda: stage_key(stage, context)):
        if not path.exists():
            with shown(context.progress, "lr-range", STEPS):
                found = range_test(
                    stage,
                    context.runtime,
                    run.checkpoints / "lr-range.safetensors",
                    loading=context.loading,
                    progress=context.progress,
                )
            rate = suggested(found)
            why = f"a range test of {len(found)} steps: its loss is lowest at {SAFE:g} times this rate"
            if rate is None:
                rate, why = rate_for(checked.student), "the loss does not fall in a range test; as with auto"
            if context.runtime.is_main:
                write_json(path, {"chosen": rate, "why": why, "rates_and_losses": found})
            context.runtime.wait()
    rate, why = context.runtime.on_main(lambda: (float(entry(path, "chosen")), str(entry(path, "why"))))
    if context.runtime.is_main and "train.lr" not in choices_of(run):
        record_choice(run, "train.lr", rate, why)
        context.progress.say(f"auto: train.lr = {rate:g} ({why})")
    train = recipe.train.model_copy(update={"lr": rate})
    return replace(checked, prepared=replace(prepared, recipe=recipe.model_copy(update={"train": train})))
