"""What must hold on a GPU: the CPU's losses and gradients, exact resume, a whole run; and what is worth knowing."""

from __future__ import annotations

import copy
import math
import os
import re
import signal
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from benchmarks.losses import SETTINGS
from benchmarks.scene import CPU, PAIRS, Pair
from tutelage.api import distill
from tutelage.core.progress import Silent
from tutelage.core.recipe import DataRecipe, LossRecipe, TrainRecipe, ViewRecipe
from tutelage.core.run_dir import Run
from tutelage.core.runtime import Runtime, device_name
from tutelage.data.loading import Loading
from tutelage.data.splits import make_splits
from tutelage.deploy.gpu import BATCHES, GpuTable, rows_of, ways
from tutelage.deploy.parity import HALF
from tutelage.distillation.distiller import Distiller
from tutelage.distillation.losses import CrossEntropy, make_term, names
from tutelage.distillation.losses.registry import is_built_in
from tutelage.distillation.objective import Objective, terms_of
from tutelage.distillation.stage import Stage, Trained
from tutelage.distillation.stop import Interrupted
from tutelage.distillation.teacher import Teacher
from tutelage.models.fold import AGREE, _fold, _probe
from tutelage.models.registry import load_model
from tutelage.models.source import with_channels_last
from tutelage.pipeline.context import Context
from tutelage.pipeline.early import can_export

TINY = Pair("test_resnet", "test_efficientnet", 64, batch=16)
SMALL = replace(TINY, resolution=32, batch=4)
SYNCHRONISED = "called a synchronizing CUDA operation"  # torch's warning
STEPS = 6  # of an epoch of `_stage`


@dataclass(frozen=True)
class Tolerance:
    """Differences that come from sums in another order.

    Two implementations of convolutions on one CPU (oneDNN and PyTorch's own) differ over three steps by up to 4e-6 and
    2e-5 with the tiny networks, and by up to 5e-4 and 9e-3 with EfficientNet-Lite0 and four images.

    Attributes:
        loss: of a loss, or of 1 where it is smaller.
        gradient: of the gradient's length.
    """

    loss: float
    gradient: float


FOR_TINY, FOR_REAL = Tolerance(1e-4, 1e-3), Tolerance(5e-3, 5e-2)


@contextmanager
def tf32(enabled: bool) -> Iterator[None]:
    """Let convolutions and matrix products in fp32 round their inputs to TF32 (10 bits), or not."""
    backends = (torch.backends.cudnn, torch.backends.cuda.matmul)
    before = [backend.allow_tf32 for backend in backends]
    for backend in backends:
        backend.allow_tf32 = enabled
    try:
        yield
    finally:
        for backend, value in zip(backends, before, strict=True):
            backend.allow_tf32 = value


# --- losses and gradients


@dataclass
class Steps:
    """Losses of a few steps, and the gradient (P,) of the first."""

    losses: list[float]
    gradient: Tensor


def train_steps(pair: Pair, terms: Sequence[str], device: torch.device, steps: int = 3) -> Steps:
    """Train a few steps on random images in fp32: cross-entropy, and the named losses; all seeds are fixed."""
    torch.manual_seed(0)
    student, teacher = pair.load("student"), pair.load("teacher")
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(pair.batch, 3, pair.resolution, pair.resolution, generator=generator).to(device)
    labels = torch.randint(student.num_classes, (pair.batch,), generator=generator).to(device)
    index = torch.arange(pair.batch, device=device)
    student.module.to(device)
    made = [CrossEntropy(), *(make_term(name, SETTINGS.get(name, {})) for name in terms)]
    distiller = Distiller(student, Teacher(teacher, device), made, train_images=pair.batch)
    distiller.train()
    optimizer = torch.optim.SGD(distiller.trainable_parameters(), 1e-3)
    losses: list[float] = []
    gradient = torch.empty(0)
    for number in range(steps):
        loss = distiller(images, labels, index=index)["loss"]
        loss.backward()
        if number == 0:
            found = [p.grad for p in distiller.trainable_parameters() if p.grad is not None]
            gradient = torch.cat([grad.flatten() for grad in found]).to(CPU, torch.float64)
        losses.append(loss.item())
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return Steps(losses, gradient)


def compare(
    pair: Pair, terms: Sequence[str], device: torch.device, tolerance: Tolerance = FOR_TINY
) -> dict[str, Any]:
    """Compare the steps of a device with the CPU's: the largest differences, and whether both are small enough."""
    with tf32(False):
        found, wanted = train_steps(pair, terms, device), train_steps(pair, terms, CPU)
    loss = max(
        abs(a - b) / max(1.0, abs(b)) if math.isfinite(a) else math.inf
        for a, b in zip(found.losses, wanted.losses, strict=True)
    )
    gradient = float((found.gradient - wanted.gradient).norm() / wanted.gradient.norm())
    return {
        "passed": loss <= tolerance.loss and gradient <= tolerance.gradient,
        "loss_difference": loss if math.isfinite(loss) else str(loss),
        "gradient_difference": gradient if math.isfinite(gradient) else str(gradient),
        "tolerance": asdict(tolerance),
    }


def losses(device: torch.device, small: bool) -> dict[str, Any]:
    """Compare every built-in loss, and both pairs of the benchmark, with the CPU."""
    every = [name for name in names() if is_built_in(name) and name != "cross_entropy"]
    checks = {name: compare(SMALL if small else TINY, [name], device) for name in every}
    if not small:
        for name in ("lite2-lite0", "b3-b1"):
            checks[f"kl, {name}, 224 px"] = compare(replace(PAIRS[name], batch=8), ["kl"], device, FOR_REAL)
    return {
        "passed": all(check["passed"] for check in checks.values()),
        "failed": [name for name, check in checks.items() if not check["passed"]],
        "checks": checks,
    }


# --- the fold of BatchNorm


def fold(device: torch.device, small: bool) -> dict[str, Any]:
    """Measure how much a fold of BatchNorm moves the logits, with TF32 and without.

    A run refuses a folded teacher that differs by more than `AGREE` of the largest logit.
    """
    pairs = {"small": SMALL} if small else {name: PAIRS[name] for name in ("lite2-lite0", "b3-b1")}
    differences: dict[str, dict[str, float]] = {}
    for pair in pairs.values():
        torch.manual_seed(0)
        model = pair.load("teacher", device)
        module = model.module.eval()
        folded = copy.deepcopy(module)
        _fold(folded)
        with_channels_last(folded)
        probe = _probe(model.input_spec, device)
        found = differences[pair.teacher] = {}
        for enabled in (False, True):
            with torch.no_grad(), tf32(enabled):
                answer, wanted = folded(probe), module(probe)
            difference = (answer - wanted).abs().max() / wanted.abs().max()
            found["with TF32" if enabled else "without TF32"] = float(difference)
    return {
        "passed": all(found["without TF32"] <= AGREE for found in differences.values()),
        "refused_above": AGREE,
        "differences": differences,
    }


# --- the training loop


def _stage(device: torch.device, epochs: int) -> Stage:
    """A short stage on the bundled digits, with dropout, mixup, EMA and a live teacher."""

    def network(name: str, seed: int) -> Any:
        torch.manual_seed(seed)
        model = load_model(f"{name}@none", num_classes=10, dropout=0.2).at(32)
        model.module.to(device)
        return model

    splits = make_splits(DataRecipe(train="digits", limit=16 * STEPS))
    return Stage(
        "distill",
        network("test_efficientnet", 0),
        TrainRecipe(epochs=epochs, batch_size=16, lr=3e-3, warmup_epochs=0, ema=0.9),
        ViewRecipe(crop_scale=(0.7, 1.0), flip=0.0, mixup=0.2),
        Objective(terms_of(LossRecipe())),
        splits.train,
        splits.val,
        torch.arange(10).numpy(),
        teacher=Teacher([network("test_resnet", 1)], device),
        val_targets=torch.zeros(len(splits.val), 10),
    )


class StopAt(Silent):
    """Asks the training to stop at a step, as SIGTERM does."""

    def __init__(self, step: int) -> None:
        self.left = step

    def step(self, losses: dict[str, float], images: int) -> None:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGTERM)


def _train(device: torch.device, place: Path, progress: Silent | None = None, epochs: int = 2) -> Trained:
    place.mkdir(exist_ok=True)
    context = Context(Run(place), Runtime.start(device.type), progress or Silent(), Loading(0))
    return context.train(_stage(device, epochs))


def resume(device: torch.device, small: bool) -> dict[str, Any]:
    """Stop a stage at some steps and resume it: in deterministic mode all weights must be the same, bit for bit.

    `CUBLAS_WORKSPACE_CONFIG` must be set before CUDA begins.
    """
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        with tempfile.TemporaryDirectory() as directory:
            place = Path(directory)
            whole = _train(device, place / "whole")
            differing = {}
            for step in (STEPS + 2,) if small else (1, STEPS, STEPS + 2):
                path = place / f"stopped-{step}"
                try:
                    _train(device, path, StopAt(step))
                    differing[step] = ["it was not stopped"]
                except Interrupted:
                    differing[step] = differences(whole, _train(device, path))
    finally:
        torch.use_deterministic_algorithms(before)
    return {
        "passed": not any(differing.values()),
        "stopped_at": sorted(differing),
        "differing": [f"step {step}: {name}" for step, found in differing.items() for name in found],
    }


def differences(one: Trained, other: Trained) -> list[str]:
    """Return the names of the tensors that are not the same, bit for bit, in two results of a stage."""
    return [
        f"{kind} {name}"
        for kind, state in one.states.items()
        for name, tensor in state.items()
        if not tensor.cpu().equal(other.states[kind][name].cpu())
    ]


class Seen(Silent):
    """Notes how many warnings there were at each step."""

    def __init__(self, caught: list[warnings.WarningMessage]) -> None:
        self.caught = caught
        self.at: list[int] = []

    def step(self, losses: dict[str, float], images: int) -> None:
        self.at.append(len(self.caught))


def waits(device: torch.device, small: bool) -> dict[str, Any]:
    """Count how often a training step waits for the GPU, by torch's warnings, and where.

    The steps of the second epoch but its first and last are counted, without checkpoints and evaluations.
    """
    on_gpu = device.type == "cuda"
    with tempfile.TemporaryDirectory() as directory, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        seen = Seen(caught)
        if on_gpu:
            torch.cuda.set_sync_debug_mode("warn")
        try:
            _train(device, Path(directory), seen)
        finally:
            if on_gpu:
                torch.cuda.set_sync_debug_mode("default")
    first, last = seen.at[STEPS], seen.at[2 * STEPS - 1]
    return {"passed": True, "counted": on_gpu, **waits_per_step(caught[first:last], STEPS - 1)}


def waits_per_step(caught: Sequence[warnings.WarningMessage], steps: int) -> dict[str, Any]:
    """Return torch's warnings about waits for a step, all and by place in the code, from the most to the fewest."""
    places = Counter(
        f"{re.sub(r'^.*(site-packages|src)/', '', warning.filename)}:{warning.lineno}"
        for warning in caught
        if SYNCHRONISED in str(warning.message)
    )
    return {
        "waits_per_step": places.total() / steps,
        "places": {place: count / steps for place, count in places.most_common(20)},
    }


# --- a whole run


def stations(device: torch.device, small: bool) -> dict[str, Any]:
    """Run a distillation from its beginning to its page, and the files to deploy where their packages are installed."""
    Runtime.start(device.type)  # the run takes the device that this process has
    export = can_export() and not small
    why = "it takes too long for --small" if small else "a package of the extra `deploy` is not installed"
    settings: dict[str, Any] = {
        "teacher.resolution": 32,
        "teacher.fit": {"epochs": 1, "lr": 3e-3},
        "student.resolution": 32,
        "data.limit": 240 if small else 1000,
        "data.workers": 0 if small else 2,
        "train.batch_size": 32,
        "preflight.allow_weak_teacher": True,
        "export.enabled": export,
    }
    with tempfile.TemporaryDirectory() as directory:
        result = distill(
            "test_resnet@none", "test_efficientnet@none", "digits", epochs=1 if small else 3, lr=3e-3,
            runs=directory, settings=settings,
        )  # fmt: skip
        top1 = {row.role: row.top1 for row in result.table.rows if row.top1 is not None}
        files = sorted(file.name for file in result.deployed.iterdir()) if result.deployed else []
        complete = result.report.is_file() and result.student_file.is_file()
    wanted = {"teacher", "start", "control", "distilled"}
    return {
        "passed": complete and wanted <= top1.keys() and bool(files) == export,
        "top1": {role: float(value) for role, value in top1.items()},
        "deployed": files,
        "left_out": {} if export else {"the deployed files": why},
    }


# --- deployment


def deployed(device: torch.device, small: bool) -> dict[str, Any]:
    """Time EfficientNet-Lite0 in all ways in which the GPU can run it, in batches of 1 to 256.

    It passes if PyTorch and one other way were timed, and no answer in fp32 is further from PyTorch's than TF32 may be.
    """
    pair = SMALL if small else PAIRS["lite2-lite0"]
    torch.manual_seed(0)
    model = pair.load("student")
    batches = BATCHES[:2] if small else BATCHES
    stand_in = ["CPUExecutionProvider"] if device.type == "cpu" and can_export() else None
    rows = rows_of(model, device, ways(model, device, stand_in), batches, seconds=0.1 if small else 2.0)
    table = GpuTable(device_name(device), batches, tuple(rows))
    Console().print(table.rich())
    failed = [
        row.way for row in rows if row.parity and "bf16" not in row.way
        and not row.parity.difference <= HALF * row.parity.largest  # random weights give small logits
    ]  # fmt: skip
    timed = {row.way.partition(",")[0] for row in rows if BATCHES[0] in row.times}
    return {
        "passed": not failed and "PyTorch" in timed and len(timed) > 1,
        "failed": failed,
        "left_out": {
            f"{row.way}, batch {batch}" if batch else row.way: why
            for row in rows
            for batch, why in row.why.items()
        },
        "rows": table.records(),
    }


CHECKS = {
    "losses": losses,
    "fold": fold,
    "resume": resume,
    "waits": waits,
    "stations": stations,
    "deployed": deployed,
}
