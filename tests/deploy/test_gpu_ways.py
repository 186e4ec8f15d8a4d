"""Deployment on a GPU, with a clock, a device and a provider that a CPU has: no GPU has run it."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

from tutelage.core.errors import TutelageError
from tutelage.data.input_spec import InputSpec
from tutelage.deploy import gpu
from tutelage.deploy.compare import compare_deployed
from tutelage.deploy.gpu import GpuTable, Way, clock_of, rows_of, ways
from tutelage.evaluation.latency import Call
from tutelage.models.source import Model

CPU = torch.device("cpu")


class Tiny(nn.Module):
    """A convolution and a head of four classes."""

    num_classes = 4

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=4)
        self.head = nn.Linear(8, 4)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(torch.relu(self.conv(images)).mean((2, 3)))


@pytest.fixture
def model() -> Model:
    torch.manual_seed(0)
    return Model("tiny", "tiny", Tiny().eval(), InputSpec(16, 16), None, None, "", pretrained=False)


def by_batch(call: Call) -> float:
    """A clock that takes a millisecond for each image, and makes the call."""
    return float(len(call()))  # type: ignore[arg-type]


def names(found: list[Way]) -> list[str]:
    return [way.name for way in found]


def test_aotinductor_stands_in_where_onnx_runtime_has_no_gpu(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch_alone = ["PyTorch, fp32", "PyTorch, bf16"]
    assert names(ways(model, CPU)) == [*torch_alone, "AOTInductor, fp32"]  # that of a CPU has none
    monkeypatch.setattr(gpu, "gpu_providers", lambda: ["TensorrtExecutionProvider", "CUDAExecutionProvider"])
    assert names(ways(model, CPU)) == [*torch_alone, "ONNX Runtime, TensorRT", "ONNX Runtime, CUDA"]


def test_providers_for_gpus_are_those_that_are_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    found = ["CPUExecutionProvider", "CUDAExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: found)
    assert gpu.gpu_providers() == ["CUDAExecutionProvider"]
    monkeypatch.setattr(gpu, "is_installed", lambda name: name != "onnxruntime")
    assert gpu.gpu_providers() == []


def test_each_way_gives_the_answers_of_pytorch(model: Model) -> None:
    """ONNX Runtime with its provider for CPUs reads and writes torch's memory as that for GPUs would."""
    pytest.importorskip("onnxruntime")
    found = ways(model, CPU, ["CPUExecutionProvider"])
    first, half, onnx = rows_of(model, CPU, found, (1, 8), clock=by_batch)
    assert onnx.way == "ONNX Runtime, CPUExecutionProvider"
    assert [row.why for row in (first, half, onnx)] == [{}, {}, {}]
    assert onnx.parity is not None
    assert onnx.parity.difference < 1e-5
    assert onnx.parity.agreement == 100
    assert half.parity is not None
    assert 0 < half.parity.difference < 0.1  # bf16 was used
    for row in (first, half, onnx):
        assert {batch: taken.median_ms for batch, taken in row.times.items()} == {1: 1.0, 8: 8.0}


@pytest.mark.slow  # Inductor starts a compiler for some kernels
def test_a_package_of_aotinductor_gives_the_answers_of_pytorch(model: Model) -> None:
    rows = rows_of(model, CPU, ways(model, CPU, []), (1, 3), seconds=0.1)
    assert rows[2].way == "AOTInductor, fp32"
    assert rows[2].why == {}
    assert rows[2].times.keys() == {1, 3}
    assert rows[2].parity is not None
    assert rows[2].parity.difference < 1e-5


def test_a_batch_that_does_not_fit_ends_the_row_and_not_the_others(model: Model) -> None:
    def small(folder: Path) -> gpu.Network:
        def run(images: Tensor) -> Tensor:
            if len(images) == 64:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore lines")
            return model.module(images)

        return run

    found = [ways(model, CPU, [])[0], Way("small", small)]
    first, row = rows_of(model, CPU, found, (1, 16, 64, 256), clock=by_batch)
    assert list(first.times) == [1, 16, 64, 256]
    assert list(row.times) == [1, 16]
    assert row.why == {64: "CUDA out of memory. Tried to allocate 2.00 GiB. More lines"}


def test_a_way_that_cannot_be_built_is_named(model: Model) -> None:
    def broken(folder: Path) -> gpu.Network:
        raise RuntimeError("libcublas.so.12: cannot open shared object file")

    found = [ways(model, CPU, [])[0], Way("ONNX Runtime, CUDA", broken)]
    first, row = rows_of(model, CPU, found, (1,), clock=by_batch)
    assert first.times.keys() == {1}
    assert (row.times, row.parity) == ({}, None)
    table = GpuTable("NVIDIA X", (1,), (first, row))
    assert table.caption == "ONNX Runtime, CUDA: libcublas.so.12: cannot open shared object file"


def test_a_provider_that_falls_back_on_the_cpu_is_no_figure_of_a_gpu(model: Model) -> None:
    pytest.importorskip("onnxruntime")
    found = ways(model, CPU, ["CUDAExecutionProvider"])  # which is not installed here
    row = rows_of(
        model, CPU, [found[0], Way("ONNX Runtime, CUDA", _with_options(model))], (1,), clock=by_batch
    )[1]
    assert row.times == {}
    assert "CUDAExecutionProvider" in row.why[0]


def _with_options(model: Model):  # type: ignore[no-untyped-def]
    def make(folder: Path) -> gpu.Network:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(gpu, "_provider_options", lambda *_: {})  # a CPU has no stream
            return gpu._onnx(model, CPU, "CUDAExecutionProvider", folder)

    return make


def test_the_device_is_in_the_head_of_the_table(model: Model) -> None:
    rows = rows_of(model, CPU, ways(model, CPU, [])[:2], (1, 4), clock=by_batch)
    table = GpuTable("NVIDIA X", (1, 4), tuple(rows))
    console = Console(width=120, file=io.StringIO())
    console.print(table.rich())
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert shown.splitlines()[0].strip() == "NVIDIA X: ms a batch (images/s), median"
    assert "4.00 (1,000)" in shown
    assert table.markdown().startswith("NVIDIA X\n\n| model | run by | batch 1 | batch 4 | same class |\n")
    records = json.loads(json.dumps(table.records()))
    assert records[0]["images_per_s"] == {"1": 1000.0, "4": 1000.0}
    lines = [*csv.DictReader(io.StringIO(table.csv()))]
    assert [(line["run_by"], line["batch"]) for line in lines][:2] == [
        ("PyTorch, fp32", "1"),
        ("PyTorch, fp32", "4"),
    ]


def test_the_clock_of_a_gpu_is_its_events(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            order.append("record")

        def synchronize(self) -> None:
            order.append("wait")

        def elapsed_time(self, other: Event) -> float:
            return 7.0

    monkeypatch.setattr(torch.cuda, "Event", Event)
    assert clock_of(torch.device("cuda"))(lambda: order.append("call")) == 7.0
    assert order == ["record", "call", "record", "wait"]
    assert clock_of(CPU)(lambda: sum(range(1000))) > 0


def test_compare_on_a_gpu(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """`tutelage compare --deploy --device cuda`, where CUDA is the CPU."""

    class Started:
        device = CPU

    monkeypatch.setattr(gpu.Runtime, "start", lambda device: Started())
    monkeypatch.setattr(gpu, "ways", lambda model, device: ways(model, device, [])[:2])
    monkeypatch.setattr(gpu, "BATCHES", (1,))
    monkeypatch.setattr(gpu.rows_of, "__kwdefaults__", {**gpu.rows_of.__kwdefaults__, "clock": by_batch})
    table = compare_deployed([model, model], device="cuda:0")
    assert isinstance(table, GpuTable)
    assert table.device == "cpu"
    assert [row.way for row in table.rows] == ["PyTorch, fp32", "PyTorch, bf16"] * 2


@pytest.mark.parametrize(
    ("device", "data", "line"),
    [("cuda", "digits", "leave --data out"), ("mps", None, "measured on the CPU or a CUDA GPU")],
)
def test_what_is_not_measured(model: Model, device: str, data: str | None, line: str) -> None:
    with pytest.raises(TutelageError, match=line):
        compare_deployed([model], device=device, data=data)
