"""The code for CUDA on a pretended GPU: nothing is on the wrong device, no step waits, a resume forgets nothing."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState, PartialState
from benchmarks import gpu_checks
from benchmarks.gpu import figures
from benchmarks.gpu_checks import SETTINGS, SMALL, STEPS, compare
from tests.helpers.pretended_gpu import CPU, GPU, Gpu, pretended_gpu
from tests.helpers.run_settings import SETTINGS as SMALL_RUN

from tutelage import distill
from tutelage.core.errors import TutelageError
from tutelage.core.progress import Silent
from tutelage.core.recipe import LossRecipe
from tutelage.core.run_dir import Run
from tutelage.core.runtime import Precision, Runtime, algorithms
from tutelage.data.loading import Loading
from tutelage.distillation.losses import names
from tutelage.distillation.losses.registry import is_built_in
from tutelage.distillation.objective import Objective, terms_of
from tutelage.evaluation.compare import compare as compare_models
from tutelage.pipeline.context import Context

LOSSES = [name for name in names() if is_built_in(name)]


@pytest.fixture
def gpu() -> Iterator[Gpu]:
    """A GPU for this test, which is the device of all that starts within it."""

    def forget_device() -> None:
        AcceleratorState._reset_state(reset_partial_state=True)
        PartialState._reset_state()

    forget_device()
    with pretended_gpu() as found:
        yield found
    forget_device()


# --- what is pretended


def test_tensors_of_two_devices_are_refused_and_copies_are_not(gpu: Gpu) -> None:
    here, there = torch.ones(3), torch.arange(3.0, device="cuda")
    assert there.is_cuda
    assert (there * 2).device == GPU
    assert (there * torch.tensor(2.0)).sum().item() == 6  # a number without a dimension may be on the CPU
    for call in (lambda: here + there, lambda: torch.cat([here, there]), lambda: here[there.long()]):
        with pytest.raises(RuntimeError, match="same device"):
            call()
    with pytest.raises(TypeError, match=r"can't convert cuda:0"):
        there.numpy()
    assert torch.equal(there.cpu(), torch.arange(3.0))
    assert torch.equal(there[torch.tensor([2])].cpu(), torch.tensor([2.0]))


def test_gradients_are_on_the_gpu_and_are_those_of_the_cpu(gpu: Gpu) -> None:
    torch.manual_seed(0)
    layer = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Flatten())
    images = torch.randn(5, 3, 6, 6)
    grads = []
    for place in (CPU, GPU):
        layer.to(place).zero_grad()
        layer(images.to(place)).square().sum().backward()
        found = layer[0].weight.grad
        assert found.device == place
        grads.append(found.cpu())
    assert torch.equal(*grads)
    with torch.autocast("cuda", torch.bfloat16):
        assert layer[0](images.to(GPU)).dtype == torch.bfloat16


def test_its_random_numbers_are_its_own(gpu: Gpu) -> None:
    torch.manual_seed(1)
    first, state = torch.rand(3), torch.cuda.get_rng_state()
    torch.manual_seed(1)
    there = torch.rand(3, device="cuda")
    assert torch.equal(torch.rand(3), first)
    torch.cuda.set_rng_state(state)
    assert torch.equal(torch.rand(3, device="cuda"), there)
    with pytest.raises(RuntimeError, match="'cuda' device type for generator"):
        torch.rand(3, device="cuda", generator=torch.Generator())


@pytest.mark.parametrize(
    ("call", "waits"),
    [
        (lambda x: x * 2, 0),
        (lambda x: torch.zeros(3, device="cuda"), 0),
        (lambda x: x.item(), 1),
        (lambda x: bool(x > 0), 1),
        (lambda x: x.view(1).tolist(), 1),
        (lambda x: x.view(1)[x.view(1) > 0], 1),
        (lambda x: x.cpu(), 1),
        (lambda x: torch.ones(3).to("cuda"), 1),
        (lambda x: torch.ones(3).to("cuda", non_blocking=True), 1),  # it is not in page-locked memory
        (lambda x: torch.ones(3).pin_memory()[1:].to("cuda", non_blocking=True), 0),
        (lambda x: torch.tensor(1.0, device="cuda"), 1),
        (lambda x: torch.cuda.synchronize(), 1),
    ],
)
def test_waits_are_counted(call: Any, waits: int, gpu: Gpu) -> None:
    number = torch.ones((), device="cuda")
    call(number)
    assert gpu.waits.total() == waits


def test_an_operation_without_a_deterministic_algorithm_is_refused_where_one_is_asked_for(gpu: Gpu) -> None:
    images = torch.ones(1, 2, 5, 5, device="cuda", requires_grad=True)
    torch.nn.functional.adaptive_avg_pool2d(images, 2).sum().backward()
    with (
        pytest.raises(TutelageError, match=r"train\.deterministic: _adaptive_avg_pool2d_backward"),
        algorithms(True),
    ):
        torch.nn.functional.adaptive_avg_pool2d(images, 2).sum().backward()


# --- tutelage on it


@pytest.mark.parametrize("name", [name for name in LOSSES if name != "cross_entropy"])
def test_a_loss_is_computed_on_the_gpu(name: str, gpu: Gpu) -> None:
    """All its constants, banks and projectors have to be there."""
    found = compare(SMALL, [name], GPU)
    assert found["passed"], found
    assert found["loss_difference"] == found["gradient_difference"] == 0


class WaitsAtEachStep(Silent):
    """Notes the waits until each step of a training."""

    def __init__(self, gpu: Gpu) -> None:
        self.gpu = gpu
        self.at: list[Counter[str]] = []

    def step(self, losses: dict[str, float], images: int) -> None:
        self.at.append(self.gpu.waits.copy())


def waits_until_each_step(
    gpu: Gpu,
    place: Path,
    epochs: int = 2,
    settings: Any = None,
    view: Any = None,
    precision: Precision = "fp32",
    loss: Any = None,
) -> list[Counter[str]]:
    """Train a stage, and return the waits until each of its steps, by place in the code."""
    stage = gpu_checks._stage(GPU, epochs)
    stage = replace(
        stage,
        settings=stage.settings.model_copy(update=settings or {}),
        view=stage.view.model_copy(update=view or {}),
        objective=Objective(terms_of(LossRecipe(**(loss or {})))),
    )
    seen = WaitsAtEachStep(gpu)
    Context(Run(place), replace(Runtime.start("cuda"), precision=precision), seen, Loading(0)).train(stage)
    return seen.at


def waits(gpu: Gpu, place: Path, **changes: Any) -> dict[str, int]:
    """Train two epochs, and return the waits of the steps of the second but its first, by place in the code."""
    until = waits_until_each_step(gpu, place, **changes)
    return dict(until[2 * STEPS - 1] - until[STEPS])


def is_only_the_epochs_figures(found: dict[str, int]) -> bool:
    """Whether the host waited once, at the last step, for the figures of all steps since the last time."""
    return list(found.values()) == [1] and next(iter(found)).startswith("tolist in distillation/metrics.py")


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"view": {"mixup": 0.0, "cutmix": 1.0}},
        {"precision": "bf16"},
        {"precision": "fp16"},
        {"settings": {"accumulate": 2, "clip_grad": 1.0, "l2_sp": 0.01, "layer_decay": 0.8}},
        {"settings": {"frozen_batchnorm": True, "ema": 0.0}},
    ],
    ids=["mixup", "cutmix", "bf16", "fp16", "in parts", "frozen batchnorm"],
)
def test_no_step_waits_for_the_gpu(changes: dict[str, Any], gpu: Gpu, tmp_path: Path) -> None:
    found = waits(gpu, tmp_path, **changes)
    assert is_only_the_epochs_figures(found), found


@pytest.mark.parametrize("name", LOSSES)
def test_no_step_waits_with_any_loss_and_its_algorithms_are_deterministic(
    name: str, gpu: Gpu, tmp_path: Path
) -> None:
    terms = [{"cross_entropy": {}}] + ([] if name == "cross_entropy" else [{name: SETTINGS.get(name, {})}])
    with algorithms(deterministic=True):
        found = waits(gpu, tmp_path, view={"mixup": 0.0}, loss={"terms": terms})
    assert is_only_the_epochs_figures(found), found


def test_the_figures_of_fifty_steps_are_read_at_once(gpu: Gpu, tmp_path: Path) -> None:
    settings = {"batch_size": 1, "frozen_batchnorm": True}
    until = waits_until_each_step(gpu, tmp_path, epochs=1, settings=settings)
    before = [found.total() for found in until]
    waited = [number for number in range(2, 1 + len(before)) if before[number - 1] > before[number - 2]]
    assert len(before) == 16 * STEPS
    assert waited == [50, 16 * STEPS]


def test_an_optimizer_other_than_fused_adamw_waits_once_a_step(gpu: Gpu, tmp_path: Path) -> None:
    found = waits(gpu, tmp_path, settings={"optimizer": "sgd"})
    assert sorted(found.values()) == [1, STEPS - 1], found


def test_a_resumed_stage_ends_with_the_same_weights(gpu: Gpu) -> None:
    """Dropout on the GPU takes that device's random numbers, so these have to be continued, too."""
    found = gpu_checks.resume(GPU, small=True)
    assert found["passed"], found["differing"]


@pytest.mark.parametrize(
    "changes",
    [
        {"export": {"enabled": True, "formats": ["onnx"], "int8": False}},
        {
            "targets": {"mode": "cached", "views": 1, "top_k": 3},
            "train.precision": "fp16",
            "train.deterministic": True,
        },
    ],
    ids=["with files to deploy", "cached targets in fp16"],
)
def test_a_run_reaches_its_end(changes: dict[str, Any], gpu: Gpu, tmp_path: Path) -> None:
    """The deployed files are measured on the CPU, while the run goes on with its GPU."""
    if "export" in changes:
        pytest.importorskip("onnxruntime")
    result = distill(
        "test_resnet@none", "test_efficientnet@none", "digits", epochs=1, lr=3e-3, runs=tmp_path,
        settings=SMALL_RUN | {"train.precision": "auto", "export.enabled": False} | changes,
    )  # fmt: skip
    assert {"teacher", "start", "control", "distilled"} <= {row.role for row in result.table.rows}
    assert result.student_file.is_file()
    assert Runtime.start().device.type == "cuda"
    if "export" in changes:
        assert result.deployed is not None
        assert (result.deployed / "model.onnx").is_file()


def test_a_program_that_goes_from_one_device_to_another_gets_what_it_asks_for(gpu: Gpu) -> None:
    for device in ("cuda", "cpu", "cuda:0", "cpu", "cuda"):
        table = compare_models(["test_resnet@none", "test_efficientnet@none"], device=device)
        assert Runtime.start().device.type == device.partition(":")[0]
        assert {row.conditions["device"] for row in table.rows} == {
            "cpu" if device == "cpu" else "pretended GPU"
        }
    assert Runtime.on_cpu().device == CPU
    assert Runtime.start().device.type == "cuda"


def test_the_figures_of_make_gpu_can_be_measured(gpu: Gpu, tmp_path: Path) -> None:
    """The other tools put tensors on the GPU in ways of their own."""
    found = figures("lite2-lite0", GPU, True, tmp_path, time.monotonic() + 600, tmp_path / "result.json")
    assert found["passed"]
    assert not found["errors"]
