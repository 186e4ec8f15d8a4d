"""Fine-tuning of a run's student for int8: by its teacher and its float32 form, and by labels only, as the control."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tutelage.core.components import QadRecipe
from tutelage.core.errors import TutelageError
from tutelage.core.files import digest, read_json
from tutelage.core.progress import Often, Silent
from tutelage.core.recipe import Recipe, TrainRecipe
from tutelage.core.run_dir import Run
from tutelage.core.runtime import Runtime
from tutelage.core.values import AUTO
from tutelage.data.classes import map_classes
from tutelage.data.joined import join
from tutelage.data.loading import BadImages, Loading
from tutelage.data.splits import Splits, Subset
from tutelage.deploy.qad.fake import fake_quantised, float_state
from tutelage.deploy.qad.words import QAD, QAT
from tutelage.distillation.checkpoint import state_of
from tutelage.distillation.loop import train
from tutelage.distillation.losses import KL, CrossEntropy, mean_teacher_logits
from tutelage.distillation.objective import Objective, label_smoothing_of
from tutelage.distillation.stage import Stage
from tutelage.distillation.teacher import Teacher
from tutelage.evaluation.fidelity import FIDELITY
from tutelage.evaluation.predict import in_common, predict_together
from tutelage.models.kept import kept_teacher
from tutelage.models.source import Model

LABELS = 0.5  # weight of the labels beside the teachers' 1, which is the default of a run's loss too
BATCH = 64  # images of a batch, where the recipe leaves it to the run and the run has not recorded it
Say = Callable[[str], object]


@dataclass(frozen=True)
class Tuned:
    """A student that was fine-tuned for int8.

    Attributes:
        name: ``qad``, or ``qat`` for the control with labels only.
        model: with float32 weights, to be quantised as any other.
        rows: of the training, one for each epoch; accuracies are those of the fake-quantised network.
    """

    name: str
    model: Model
    rows: list[dict[str, Any]]


class Tuner:
    """Fine-tunes a run's student for int8, on the run's images and with its augmentation and batch size.

    The student computes as in int8 (`fake.fake_quantised`) and learns from two teachers at once, the run's own and
    itself in float32, and from the labels. The control learns from the labels alone, for as many steps, from the same
    start. AdamW's rate falls from `lr` to 0; there is no weight decay, and BatchNorm keeps its statistics, since those
    of a few epochs at a low rate are no better than the run's. The epoch with the best val is kept.

    A training that was stopped, also by SIGKILL, continues from its checkpoint in the run and ends with the same
    weights, bit for bit. Its name has a digest of all that it depends on, so that no other is continued.
    """

    def __init__(
        self,
        run: Run,
        recipe: Recipe,
        student: Model,
        splits: Splits,
        settings: QadRecipe,
        calibration: np.ndarray,
        say: Say = lambda line: None,
    ) -> None:
        """Prepare the images.

        Args:
            run: has the teacher and gets the checkpoints.
            recipe: of the run.
            student: that the run selected; it is not changed.
            splits: the run's images.
            settings: of the fine-tuning.
            calibration: uint8 (N, H, W, 3) evaluation views of training images, for the ranges of activations.
            say: called with a line for each epoch, and every few seconds in between.
        """
        self.run, self.recipe, self.student, self.splits = run, recipe, student, splits
        self.settings, self.calibration, self.say = settings, calibration, say
        self.runtime = Runtime.start()
        self.loading = Loading(recipe.data.workers, BadImages(recipe.data.max_bad_images))
        self.labelled = bool((splits.train.labels >= 0).any()) if splits.train.labelled else False
        self.images = join(splits.train, splits.unlabelled) if splits.unlabelled else splits.train
        self.batch_size = min(_batch_size(run, recipe), len(self.images))

    def tuned(self) -> list[Tuned]:
        """Fine-tune the student and, where there are labels, the control.

        Raises:
            Interrupted: a signal asked to stop; the checkpoint is written.
            TutelageError: there are several processes, or the training fails.
        """
        if self.runtime.world_size > 1:  # an export is the first process's alone
            raise TutelageError(
                f"the student is fine-tuned by one process; run `tutelage export {self.run.path} --qad "
                f"{self.settings.epochs}` without a launcher"
            )
        network = fake_quantised(self.student.module, self.calibration, self.student.input_spec)
        found = [self._trained(self._distillation(), copy.deepcopy(network))]
        if self.labelled and self.splits.val.labelled:
            found.append(self._trained(self._control(), network))
        return found

    def _distillation(self) -> Stage:
        own = replace(self.student, module=copy.deepcopy(self.student.module).eval())
        models = [*self._teacher(), own]
        teacher = Teacher(models, self.runtime.device)
        # KL to the mean of two teachers' probabilities at temperature 1 has the gradient of the mean of both KLs
        terms = [KL(1.0, temperature=1.0), *([self._labels(LABELS)] if self.labelled else [])]
        stage = self._stage(QAD, Objective(terms), self.images)
        return replace(stage, teacher=teacher, val_targets=self._val_targets(models))

    def _control(self) -> Stage:
        stage = self._stage(QAT, Objective([self._labels(1.0)]), self.splits.train)
        return replace(stage, steps=len(self.images) // self.batch_size)

    def _labels(self, weight: float) -> CrossEntropy:
        loss = self.recipe.loss
        term = CrossEntropy(weight, label_smoothing_of(loss))
        if loss.class_weights != "none":
            labels = np.where(self.splits.train.labels >= 0, self._head_index()[self.splits.train.labels], -1)
            term.weigh_classes(loss.class_weights, torch.from_numpy(labels), self.student.num_classes)
        return term

    def _stage(self, name: str, objective: Objective, images: Subset) -> Stage:
        return Stage(
            name,
            self.student,  # `_trained` puts its fake-quantised copy here
            self._loop_settings(),
            self.recipe.view,
            objective,
            images,
            self.splits.val,
            self._head_index(),
            metric=self.recipe.selection.metric if self.splits.val.labelled else FIDELITY,
        )

    def _loop_settings(self) -> TrainRecipe:
        own = self.recipe.train
        return TrainRecipe(
            epochs=self.settings.epochs,
            lr=self.settings.lr,
            batch_size=self.batch_size,
            warmup_epochs=min(0.1 * self.settings.epochs, 0.5),
            weight_decay=0.0,
            frozen_batchnorm=True,
            ema=0.0,
            precision="fp32",
            labelled_share=None,
            clip_grad=own.clip_grad,
            checkpoint_minutes=own.checkpoint_minutes,
            max_bad_steps=own.max_bad_steps,
            seed=own.seed,
        )

    def _trained(self, stage: Stage, network: nn.Module) -> Tuned:
        stage = replace(stage, model=replace(self.student, module=network))
        checkpoint = self.run.checkpoints / f"{stage.name}-{self._key()}.safetensors"
        checkpoint.parent.mkdir(exist_ok=True)
        done = train(
            stage,
            self.runtime,
            checkpoint,
            loading=self.loading,
            progress=_Spoken(stage.name.upper(), self.say),
        )
        state = float_state(self.student.module, done.states["best"] or state_of(network))
        return Tuned(stage.name, self.student.copied(state), done.rows)

    def _key(self) -> str:
        """Digest of all that the training depends on, besides the images, which the run does not let change."""
        parts = {
            "settings": self._loop_settings().model_dump(mode="json"),
            "view": self.recipe.view.model_dump(mode="json"),
            "student": digest(self.run.student)["sha256"],
            "teacher": digest(self.run.teacher)["sha256"] if self.run.teacher.is_file() else None,
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]

    def _teacher(self) -> list[Model]:
        """The run's teacher with the student's classes, or none where its weights are gone."""
        try:
            model = kept_teacher(self.run, self.recipe)
        except TutelageError as error:
            self.say(f"fine-tuning without the teacher: {error}")
            return []
        parts = {"train": self.images, "val": self.splits.val}
        return [_with_classes_of(self.student, model.for_images(parts))]

    def _val_targets(self, models: list[Model]) -> Tensor:
        """(N, C) joint logits of the teachers on val; zeros for images that cannot be decoded."""
        for model in models:
            model.module.to(self.runtime.device)
        networks = [(model.module, model.input_spec) for model in models]
        found = in_common(predict_together(networks, self.splits.val, self.runtime, self.loading))
        joint = found[0].logits if len(found) == 1 else mean_teacher_logits([one.logits for one in found])
        targets = joint.new_zeros(len(self.splits.val), joint.shape[1])
        targets[found[0].index] = joint
        return targets

    def _head_index(self) -> np.ndarray:
        """(data classes,) place in the student's head of each class of the data."""
        classes, known = self.splits.classes, self.student.class_ids
        index = map_classes(classes, known) if classes and known is not None else None
        return np.arange(self.student.num_classes) if index is None else index


class _Spoken(Silent):
    """Reports a training as lines."""

    def __init__(self, name: str, say: Say) -> None:
        self.name, self._say = name, say
        self._steps, self._often = 0, Often(lambda count: None)

    def begin(self, stage: str, steps: int) -> None:
        """Begin to count steps."""
        self._steps = steps
        self._often = Often(lambda count: self._say(f"{self.name}: step {count:,} of {steps:,}"))

    def step(self, losses: dict[str, float], images: int) -> None:
        """Count a step."""
        self._often.add(1)

    def epoch(self, row: dict[str, Any]) -> None:
        """Show what val says."""
        val = row["val"]
        what = f"top-1 {val['top1']:.2f}%" if val["top1"] is not None else f"KL {val[FIDELITY]:.4f}"
        self._say(f"{self.name}: epoch {row['epoch']} of {row['epochs']}, val {what} in simulated int8")

    def say(self, text: str) -> None:
        """Show one line of text."""
        self._say(f"{self.name}: {text}")


class _SomeLogits(nn.Module):
    """A network whose logits are put in another order, or of which some are left out."""

    def __init__(self, network: nn.Module, index: np.ndarray) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("index", torch.from_numpy(index))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(images)
        return logits.index_select(1, self.get_buffer("index"))


def _with_classes_of(student: Model, teacher: Model) -> Model:
    """The teacher with the logits of the student's classes alone, as it taught.

    Raises:
        TutelageError: it has other classes.
    """
    if teacher.class_ids == student.class_ids or student.class_ids is None:
        return teacher
    index = map_classes(student.class_ids, teacher.class_ids)
    if index is None:
        if teacher.num_classes == student.num_classes:
            return teacher
        raise TutelageError(
            f"{teacher.spec}: has other classes than {student.spec}, so that it cannot teach it; leave --qad out"
        )
    return replace(
        teacher,
        module=_SomeLogits(teacher.module, index),
        head_size=len(index),
        class_ids=student.class_ids,
        class_names=student.class_names,
    )


def _batch_size(run: Run, recipe: Recipe) -> int:
    """The batch size of the run's training: the recipe's, or what the run has chosen."""
    size = recipe.train.batch_size
    if size != AUTO:
        return int(size)
    chosen = read_json(run.choices) if run.choices.exists() else {}
    return int(chosen.get("train.batch_size", {}).get("value", BATCH))
