"""The comparison of the teacher with the labels-only control on val, before the student is trained."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from torch import Tensor

from tutelage.core.errors import WeakTeacher
from tutelage.core.files import read_json, write_json, write_text
from tutelage.core.recipe import Recipe, dump_recipe, load_recipe
from tutelage.core.run_dir import Run
from tutelage.evaluation.paired import paired
from tutelage.evaluation.predict import in_common
from tutelage.evaluation.quality import top1_and_nll
from tutelage.evaluation.verdict import outcome
from tutelage.models.source import Model
from tutelage.pipeline.stages.evaluate import labels_of, predict
from tutelage.pipeline.stages.preflight import Checked
from tutelage.pipeline.stages.teacher_inputs import recorded_faults

FEWEST = 100  # labelled images of val; on fewer, even a gap of ten points is hardly ever significant


def check_teacher(checked: Checked, control: Model | None) -> None:
    """Compare the teacher with the control on val, and stop where the teacher is not shown to be better.

    A student that learns from labels alone has reached the control already, so a teacher that is no better than that
    has nothing to teach. The control was selected on val, which favours it slightly. Several teachers are compared by
    their joint predictions, from which the student learns. Nothing is compared without a control, or where no image of
    val has a label; on fewer than 100 labelled images the result is reported, and the run goes on.

    Args:
        checked: the teachers and their predictions on val.
        control: the student trained with hard labels only; None where the run has none.

    Raises:
        WeakTeacher: the teacher is not significantly better, and the recipe does not allow it.
    """
    prepared = checked.prepared
    context, path = prepared.context, prepared.run.teacher_check
    if control is None or not (prepared.splits.val.labels >= 0).any():
        return
    if path.exists():
        record = read_json(path)
    else:
        val = prepared.splits.val
        teacher, labels_only = in_common([checked.teacher_on_val, predict(prepared, control, val)])
        record = judged(teacher.logits, labels_only.logits, labels_of(prepared, val, teacher))
        if (
            context.runtime.is_main
        ):  # the others have looked for the file before they took part in the prediction
            write_json(path, record)
    context.progress.say(record["sentence"])
    if not record["weak"] or prepared.recipe.preflight.allow_weak_teacher:
        return
    run = prepared.run
    causes = recorded_faults(run)
    advice = "; ".join(causes) or "A longer fit (teacher.fit) or a larger teacher may help"
    raise WeakTeacher(
        f"{run.path}: stopped before the distillation, since the teacher is not shown to have anything to teach. "
        f"{record['sentence']} The control is kept in {run.control}. {advice}; set "
        "preflight.allow_weak_teacher=true to continue in spite of this"
    )


def judged(teacher: Tensor, control: Tensor, labels: Tensor) -> dict[str, Any]:
    """Return the content of teacher_check.json.

    Args:
        teacher: (N, C) logits on val, joint ones of several teachers.
        control: (N, C) logits.
        labels: (N,) classes; -1: not labelled, left out.
    """
    pair = paired(teacher.numpy(), control.numpy(), labels.numpy())
    top1 = [top1_and_nll(logits, labels)[0] for logits in (teacher, control)]
    found = outcome(pair)
    if pair.n < FEWEST:
        words = "These are too few images to show a difference of a realistic size."
    elif found == "not significantly different":
        words = "This does not show that the teacher is better."
    else:
        words = f"The teacher is significantly {found}."
    return {
        "outcome": found,
        "weak": found != "better" and pair.n >= FEWEST,
        "teacher_top1": top1[0],
        "control_top1": top1[1],
        **asdict(pair),
        "sentence": f"On {pair.n:,} images of val the teacher has {top1[0]:.2f} top-1 and the labels-only control "
        f"{top1[1]:.2f}: {pair.difference:+.2f} points, 95% interval {pair.low:+.2f} to {pair.high:+.2f}. {words}",
    }


def allow_weak_teacher(recipe: Recipe, run: Run) -> Recipe:
    """Set ``preflight.allow_weak_teacher`` in the recipe of a run, and in those of its seeds; return the recipe."""
    allowed = {"preflight": recipe.preflight.model_copy(update={"allow_weak_teacher": True})}
    for seed in run.path.glob("seed-*/recipe.yaml"):
        own = load_recipe(seed)
        write_text(seed, dump_recipe(own.model_copy(update=allowed)))
    write_text(run.recipe, dump_recipe(recipe.model_copy(update=allowed)))
    return recipe.model_copy(update=allowed)
