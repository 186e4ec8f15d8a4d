"""Fitting what is new to the data: a teacher, a new head."""

from __future__ import annotations

from tutelage.core.recipe import FitRecipe, TrainRecipe
from tutelage.distillation.checkpoint import state_of
from tutelage.distillation.losses import CrossEntropy
from tutelage.distillation.objective import Objective
from tutelage.distillation.stage import Stage, Trained
from tutelage.models.source import Model
from tutelage.pipeline.memo import train_once
from tutelage.pipeline.stages.work import Work, evaluate, save_model


def fit_teachers(work: Work) -> None:
    """Fit each teacher that the data is new to with hard labels."""
    recipe = work.recipe.teacher.fit
    for place, model in enumerate(work.teachers):
        wanted = recipe == "auto" and model.spec in work.class_mapping.new
        settings = recipe if isinstance(recipe, FitRecipe) else FitRecipe() if wanted else None
        if settings is None or settings.epochs == 0:
            continue
        name = "teacher-fit" if place == 0 else f"teacher-fit-{place + 1}"
        trained = _fit(work, name, model, settings)
        _keep_best(work, model, trained)
        if place == 0:
            save_model(work, model, work.run.teacher)


def fit_head(work: Work) -> None:
    """Fit a new head of the student alone: what is compared as the start has seen the data's classes."""
    recipe, student = work.recipe.student.head_fit, work.student
    wanted = recipe == "auto" and student.spec in work.class_mapping.new and student.pretrained
    settings = recipe if isinstance(recipe, FitRecipe) else FitRecipe(lr=3e-3) if wanted else None
    if settings is not None and settings.epochs > 0:
        _keep_best(work, student, _fit(work, "head-fit", student, settings, head_only=True))
    work.start = state_of(student.module)
    save_model(work, student, work.run.start)


def _fit(work: Work, name: str, model: Model, fit: FitRecipe, head_only: bool = False) -> Trained:
    base = work.recipe.train
    settings = TrainRecipe(
        epochs=fit.epochs,
        lr=fit.lr,
        weight_decay=fit.weight_decay,
        batch_size=base.batch_size,
        optimizer=base.optimizer,
        seed=base.seed,
        checkpoint_minutes=base.checkpoint_minutes,
        max_bad_steps=base.max_bad_steps,
    )
    view = work.recipe.view
    if not fit.use_mixup:
        view = view.model_copy(update={"mixup": 0.0, "cutmix": 0.0})
    objective = Objective([CrossEntropy(1.0, fit.label_smoothing)])
    stage = Stage(
        name,
        model,
        settings,
        view,
        objective,
        work.splits.train,
        work.splits.val,
        work.class_mapping.index,
        head_only=head_only,
        metric="nll",  # as for the choice below: a teacher is used for its probabilities
    )
    return train_once(stage, work.context)


def _keep_best(work: Work, model: Model, trained: Trained) -> None:
    """The best of a fit's states on val, by NLL: a teacher is used for its probabilities."""
    scores = {name: evaluate(work, model, state)["nll"] for name, state in trained.states.items() if state}
    model.module.load_state_dict(trained.states[min(scores, key=scores.__getitem__)])
    model.module.eval()
