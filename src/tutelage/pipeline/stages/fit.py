"""Fits before the distillation: teachers whose head does not match the data's classes, and a student's new head."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tutelage.core.errors import TutelageError
from tutelage.core.files import entry, write_json
from tutelage.core.recipe import FitRecipe, TrainRecipe
from tutelage.core.runtime import Precision
from tutelage.data.splits import Subset
from tutelage.distillation.checkpoint import load_checkpoint, save_checkpoint, state_of
from tutelage.distillation.folds import Folds, assign_folds, with_fold_heads
from tutelage.distillation.looks import Looks
from tutelage.distillation.losses import CrossEntropy
from tutelage.distillation.objective import Objective
from tutelage.distillation.probe import can_be_probed, fit_probe, load_probe
from tutelage.distillation.stage import Stage
from tutelage.distillation.teacher import Teacher
from tutelage.models import precision
from tutelage.models.digest import state_digest
from tutelage.models.source import Model
from tutelage.pipeline.choices import fitted_teachers, record_choice, with_fit_choices
from tutelage.pipeline.memo import made_once, train_once
from tutelage.pipeline.stages.evaluate import evaluate_state
from tutelage.pipeline.stages.prepare import Prepared
from tutelage.pipeline.stages.speeds import measured

KEYS = {
    "teacher-fit": "teacher.fit",
    "head-fit": "student.head_fit",
}  # in the recipe; further teachers share one


@dataclass(frozen=True)
class Fitted:
    """The models at the beginning of the distillation, on the device.

    Attributes:
        prepared: the data, the recipe and the context of the run.
        teachers: fitted to the data where necessary.
        student: the starting student.
    """

    prepared: Prepared
    teachers: tuple[Model, ...]
    student: Model


def fit_teachers(prepared: Prepared) -> tuple[Model, ...]:
    """Fit each teacher whose head was not made for the data's classes, with hard labels.

    A new head on pretrained weights begins as a linear probe, one that was cut from a larger head as it is. With
    ``auto`` all layers are then trained, and the state with the lowest NLL on val is kept, which may be the first one,
    since a fit on few images can damage pretrained features. The images are those of ``data.teacher`` where it is
    given, else the labelled training images.

    Raises:
        TutelageError: ``data.teacher`` is given, and every teacher has the data's classes already.
    """
    recipe = prepared.recipe.teacher.fit
    images, mapping = prepared.splits.taught, prepared.class_mapping
    if not images.labelled:
        return _known_teachers(prepared)
    if (
        prepared.splits.teacher
        and recipe == "auto"
        and not mapping.due & {model.spec for model in prepared.teachers}
    ):
        raise TutelageError(
            f"data.teacher={images.images.name}: {prepared.teachers[0].spec} has the classes of the data already, so "
            "that it is not fitted; leave data.teacher out, or fit it further, such as with teacher.fit.epochs=5"
        )
    settings = fitted_teachers(prepared.recipe, prepared.teachers, mapping.due)
    teachers = []
    for place, model in enumerate(prepared.teachers):
        name = _fit_name(place)
        probed = _probed(prepared, name, model, images) if recipe != "no" else None
        if (
            recipe == "probe"
            and probed is None
            and (model.spec in mapping.new or prepared.recipe.targets.folds)
        ):
            raise _no_probe("teacher.fit", model)
        fitted = probed or model
        if place in settings:
            keep = probed is not None or model.spec in mapping.cut
            fitted = _fit(prepared, name, fitted, settings[place], images, keep_start=keep)
        if place == 0 and fitted is not model:
            prepared.save(fitted, prepared.run.teacher)
        fitted.module.to(prepared.device)
        teachers.append(fitted)
    return tuple(teachers)


def _known_teachers(prepared: Prepared) -> tuple[Model, ...]:
    """Return the teachers as they are, since no training image has a label to fit them with.

    Raises:
        TutelageError: one of them needs a fit, or the recipe asks for one.
    """
    why = "no training image has a label to fit it with"
    if prepared.recipe.teacher.fit not in ("auto", "no"):
        raise TutelageError(f"teacher.fit: {why}; leave it out")
    for model in prepared.teachers:
        if model.spec in prepared.class_mapping.new:
            raise TutelageError(
                f"teacher.model={model.spec}: its head does not have the classes of the data, and {why}; name a "
                "teacher that was trained for these classes, or label some images"
            )
        model.module.to(prepared.device)
    return prepared.teachers


def fit_head(prepared: Prepared) -> Model:
    """Fit a new head of the student, with its body frozen, and return the starting student.

    On pretrained weights the head is a linear probe, which is trained further only where the recipe gives epochs. So
    the start that the distilled student is compared with has already learnt the data's classes.
    """
    recipe, student = prepared.recipe.student.head_fit, prepared.student
    new = student.spec in prepared.class_mapping.new and student.pretrained
    if not prepared.splits.train.labelled:
        if recipe not in ("auto", "no"):
            raise TutelageError(
                "student.head_fit: no training image has a label to fit it with; leave it out"
            )
        if new:
            prepared.context.progress.say(
                f"head-fit: no training image has a label, so that the new head of {student.spec} begins at zero"
            )
        student.module.to(prepared.device)
        prepared.save(student, prepared.run.start)
        return student
    images = prepared.splits.train
    probed = _probed(prepared, "head-fit", student, images) if recipe != "no" else None
    if recipe == "probe" and new and probed is None:
        raise _no_probe("student.head_fit", student)
    settings = recipe if isinstance(recipe, FitRecipe) else None
    if recipe == "auto" and new and probed is None:
        settings = FitRecipe(lr=3e-3)  # the head alone, which is random
    student = probed or student
    if settings is not None and settings.epochs != 0:
        keep = probed is not None
        student = _fit(prepared, "head-fit", student, settings, images, head_only=True, keep_start=keep)
    student.module.to(prepared.device)
    prepared.save(student, prepared.run.start)
    return student


def _probed(prepared: Prepared, name: str, model: Model, images: Subset) -> Model | None:
    """Return a copy of a model with a linear probe of some images as its head.

    None where its head is not new or its weights are random, where the head is not a single linear layer, and where it
    has classes that the data does not have.
    """
    mapping, context = prepared.class_mapping, prepared.context
    new = model.spec in mapping.new and model.pretrained
    if not new or len(mapping.index) != model.num_classes or not can_be_probed(model):
        return None
    val, path = prepared.splits.val, probe_file(prepared, name)

    def key() -> dict[str, object]:
        network = [state_digest(model.module.state_dict()), model.input_spec.to_dict()]
        return {"network": network, "images": [images.digest(), val.digest()]}

    with made_once(context, path, key):
        if path.exists():
            probe = load_probe(path)
        else:
            index = mapping.index
            probe = fit_probe(model, images, val, index, context.runtime, context.loading)
            if context.runtime.is_main:
                figures = {"strength": probe.strength, "top1": probe.top1, "nll": probe.nll}
                save_checkpoint(path, {"head": {"weight": probe.weight, "bias": probe.bias}}, figures)
        context.runtime.wait()
    context.progress.say(
        f"{name}: a linear probe of {model.spec} has {probe.top1:.2f} top-1 and an NLL of {probe.nll:.3f} on val"
    )
    return probe.put_on(model)


def _fit_name(place: int) -> str:
    return "teacher-fit" if place == 0 else f"teacher-fit-{place + 1}"


def probe_file(prepared: Prepared, name: str) -> Path:
    """Return the file of the linear probe that a fit of this name (``head-fit``, ``teacher-fit``) begins with."""
    return prepared.context.run.checkpoints / f"{name}.probe.safetensors"


def teacher_of_targets(
    prepared: Prepared, teachers: Sequence[Model], precision: Precision, temperature: float = 1.0
) -> Teacher:
    """Make the teacher that answers for the training images, with the looks and the folds of the recipe.

    Args:
        prepared: the recipe and the training images.
        teachers: at the resolution of their targets.
        precision: in which they run.
        temperature: divides their logits.
    """
    splits, targets = prepared.splits, prepared.recipe.targets
    images = splits.images
    models, folds = _out_of_fold(prepared, teachers, images)
    looks = Looks.of(targets)
    return Teacher(models, prepared.device, precision, looks=looks, temperature=temperature, folds=folds)


def _out_of_fold(
    prepared: Prepared, teachers: Sequence[Model], images: int
) -> tuple[Sequence[Model], Folds | None]:
    """Give teachers that are linear probes a head for each fold; without ``targets.folds`` they stay as they are.

    Args:
        prepared: the recipe and the training images.
        teachers: at the resolution of their targets.
        images: number of the student's training images, of which the labelled ones are the first.
    """
    count, train = prepared.recipe.targets.folds, prepared.splits.train
    if not count:
        return teachers, None
    context, index = prepared.context, prepared.class_mapping.index
    folds = assign_folds(train, images, count, prepared.recipe.train.seed)
    wide = []
    for place, model in enumerate(teachers):
        strength = load_checkpoint(probe_file(prepared, _fit_name(place)))[1]["strength"]
        wide.append(with_fold_heads(model, folds, strength, train, index, context.runtime, context.loading))
    context.progress.say(
        f"targets: each labelled training image is answered by one of {count} probes, without it"
    )
    return wide, folds


def _no_probe(key: str, model: Model) -> TutelageError:
    return TutelageError(
        f"{key}=probe: {model.spec} cannot have a linear probe, since its weights are random, or its head is not one "
        f"linear layer for the data's classes; use {key}=auto"
    )


def _fit(
    prepared: Prepared,
    name: str,
    model: Model,
    fit: FitRecipe,
    images: Subset,
    head_only: bool = False,
    keep_start: bool = False,
) -> Model:
    """Train a copy of a model on some images, and return the best of its states on val.

    The best is the one with the lowest NLL, since a teacher is used for its probabilities. With `keep_start` the start
    is one of them.
    """
    base = prepared.recipe.train
    batch_size = max(2, min(base.batch_size, len(images)))  # with few labels, a batch has all of them
    fit = _with_choices(prepared, name, fit, len(images), batch_size, model)
    settings = TrainRecipe(
        epochs=fit.epochs,
        patience=fit.patience,
        lr=fit.lr,
        weight_decay=fit.weight_decay,
        batch_size=batch_size,
        accumulate=math.gcd(batch_size // prepared.context.runtime.world_size, base.accumulate),
        sync_batchnorm=base.sync_batchnorm,
        optimizer=base.optimizer,
        seed=base.seed,
        checkpoint_minutes=base.checkpoint_minutes,
        max_bad_steps=base.max_bad_steps,
    )
    view = prepared.recipe.view
    if not fit.use_mixup:
        view = view.model_copy(update={"mixup": 0.0, "cutmix": 0.0})
    fitted = model.copied()
    stage = Stage(
        name,
        fitted,
        settings,
        view,
        Objective([CrossEntropy(1.0, fit.label_smoothing)]),
        images,
        prepared.splits.val,
        prepared.class_mapping.index,
        head_only=head_only,
        metric="nll",  # as for the selection below
    )
    context = prepared.context.in_precision(_precision(prepared, name, fitted))
    states = {key: state for key, state in train_once(stage, context).states.items() if state}
    if keep_start:
        states["start"] = state_of(model.module)
    nll = {key: evaluate_state(prepared, fitted, state)["nll"] for key, state in states.items()}
    fitted.module.load_state_dict(states[min(nll, key=nll.__getitem__)])
    fitted.module.eval().requires_grad_(True)  # a fit of the head has frozen the body
    return fitted


def _with_choices(
    prepared: Prepared, name: str, fit: FitRecipe, images: int, batch_size: int, model: Model
) -> FitRecipe:
    """Replace ``auto`` in the settings of a fit; tell what was chosen, and record it for keys of the recipe."""
    chosen = with_fit_choices(fit, images, batch_size, model)
    whys = {
        "epochs": "by the number of steps",
        "lr": "pretrained weights" if model.pretrained else "random weights",
    }
    for setting, why in whys.items():
        if (value := getattr(chosen, setting)) != getattr(fit, setting):
            prepared.context.progress.say(f"auto: {name}: {setting} = {value} ({why})")
            if name in KEYS and prepared.context.runtime.is_main:
                record_choice(prepared.run, f"{KEYS[name]}.{setting}", value, why)
    return chosen


def _precision(prepared: Prepared, name: str, model: Model) -> Precision:
    """Choose the precision of a fit: the recipe's, or the faster one in a few measured steps.

    The choice is written beside the fit's checkpoint, so that a resumed run uses the same precision.
    """
    recipe, context = prepared.recipe.train, prepared.context
    if recipe.precision != "auto":
        return recipe.precision
    size = prepared.batch_per_process
    path = context.run.checkpoints / f"{name}.precision.json"

    def key() -> dict[str, object]:
        network = [state_digest(model.module.state_dict()), model.input_spec.to_dict()]
        return {"network": network, "size": size, "device": context.runtime.device.type}

    with made_once(context, path, key):

        def choose() -> Precision:
            if path.exists():
                found: Precision = entry(path, "chosen")
                return found
            rates = measured(prepared, precision.probe_training, model, name)
            write_json(path, {"chosen": precision.faster(rates), "images_per_s": rates})
            return precision.faster(rates)

        return context.runtime.on_main(choose)
