"""Evaluation of a student on val while it is trained."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tutelage.core.runtime import Runtime
from tutelage.data.loading import Loading
from tutelage.distillation.losses import TermBatch
from tutelage.distillation.outputs import Outputs
from tutelage.distillation.stage import Stage
from tutelage.evaluation.fidelity import FIDELITY, fidelity
from tutelage.evaluation.predict import predict_logits
from tutelage.evaluation.quality import top1_and_nll


def validate(stage: Stage, module: nn.Module, runtime: Runtime, loading: Loading) -> dict[str, float | None]:
    """Compute top-1 in percent, NLL in nats, and each term that needs logits only, with their sum as ``loss``.

    Where no image of val has a label, top-1 and NLL are None; agreement with the teacher and fidelity to it are added.

    Args:
        stage: has the images, the labels and the objective. Of a student with two heads, top-1 and NLL are those of
            an equal mixture of both.
        module: the student, or its moving average.
        runtime: device and processes.
        loading: how images are loaded.

    Raises:
        FloatingPointError: an output is not finite.
    """
    predictions = predict_logits(module, stage.model.input_spec, stage.val, runtime, loading)
    if not predictions.logits.isfinite().all():
        raise FloatingPointError("an output on val is not finite")
    labels = labels_in_head(torch.from_numpy(stage.val.labels), torch.from_numpy(stage.head_index))
    labels = labels[predictions.index]
    targets = Outputs(stage.val_targets[predictions.index]) if stage.val_targets is not None else None
    batch = TermBatch(Outputs(predictions.logits), targets, labels, labels)
    parts = {name: value.item() for name, value in stage.objective.on_logits(batch).items()}
    return {
        **_figures(stage.objective.answers(predictions.logits), labels, targets),
        "loss": sum(parts.values()),
        **parts,
    }


def _figures(logits: Tensor, labels: Tensor, targets: Outputs | None) -> dict[str, float | None]:
    if (labels >= 0).any():
        top1, nll = top1_and_nll(logits, labels)
        return {"top1": top1, "nll": nll}
    assert targets is not None  # without labels there is no stage but the distillation
    assert isinstance(targets.logits, Tensor)
    close = fidelity(logits, targets.logits)
    return {"top1": None, "nll": None, "agreement": close.agreement, FIDELITY: close.kl}


def labels_in_head(labels: Tensor, head_index: Tensor) -> Tensor:
    """Convert labels of the data to classes of the head, both int64; -1 (unlabelled) stays."""
    return torch.where(labels >= 0, head_index[labels.clamp_min(0)], labels)
