"""Models on a GPU, run in the ways in which they would be deployed there, and timed with CUDA events.

**No GPU has run this yet**: its logic is tested on a CPU, where the clock, the device and the provider are put in.
"""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from rich.table import Table as RichTable
from torch import Tensor, nn

from tutelage.core.errors import one_line
from tutelage.core.runtime import Runtime, device_name
from tutelage.deploy.convert import INPUT, OUTPUT, to_onnx, write_onnx
from tutelage.deploy.formats.making import Say
from tutelage.deploy.parity import Parity, parity
from tutelage.deploy.quiet import quiet
from tutelage.deploy.runtimes.base import is_installed
from tutelage.evaluation.latency import Call, Clock, Latency, alternating_latency, wall_clock
from tutelage.models.registry import load_model
from tutelage.models.source import Model

BATCHES = (1, 16, 64, 256)
PROVIDERS = {"TensorrtExecutionProvider": "TensorRT", "CUDAExecutionProvider": "CUDA"}
CHECKED = 16  # random images on which the answers are compared
SECONDS = 20.0  # of a batch size, after which no further round is timed
Network = Callable[[Tensor], Tensor]  # (B, 3, H, W) float32 on the device to logits (B, C) there


@dataclass(frozen=True)
class Way:
    """A way to run a model.

    Attributes:
        name: ``PyTorch, bf16``, ``ONNX Runtime, CUDA``, ``AOTInductor``...
        make: builds it, given a folder for its files.
        layout: of the images in memory.
    """

    name: str
    make: Callable[[Path], Network]
    layout: torch.memory_format = torch.contiguous_format


@dataclass(frozen=True)
class GpuRow:
    """A model run in one way.

    Attributes:
        model: its name.
        way: see `Way`.
        times: of a batch, in ms, by its size.
        parity: of its logits with those of PyTorch in fp32, on random images; None where it could not be built.
        why: reasons of absent figures, by batch size; by 0 where there is none at all.
    """

    model: str
    way: str
    times: Mapping[int, Latency] = field(default_factory=dict)
    parity: Parity | None = None
    why: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class GpuTable:
    """The rows of all models on one device."""

    device: str
    batches: tuple[int, ...]
    rows: tuple[GpuRow, ...]

    def rich(self) -> RichTable:
        """For a terminal; the device is in the head."""
        shown = RichTable(title=f"{self.device}: ms a batch (images/s), median", caption=self.caption)
        for name in self.header:
            shown.add_column(name, justify="left" if name in self.header[:2] else "right")
        for cells in self.cells():
            shown.add_row(*cells)
        return shown

    @property
    def header(self) -> list[str]:
        """The names of the columns."""
        return ["model", "run by", *(f"batch {batch}" for batch in self.batches), "same class"]

    @property
    def caption(self) -> str:
        """What is not in the table, and why."""
        reasons = {
            f"{row.way}{f', batch {batch}' if batch else ''}: {why}"
            for row in self.rows
            for batch, why in row.why.items()
        }
        return "; ".join(sorted(reasons))

    def cells(self) -> list[list[str]]:
        """The texts of each row."""
        return [
            [
                row.model,
                row.way,
                *(_time(row.times.get(batch), batch) for batch in self.batches),
                "–" if row.parity is None else f"{row.parity.agreement:.0f}%",
            ]
            for row in self.rows
        ]

    def markdown(self) -> str:
        """A table in Markdown, with the device above it."""
        lines = [self.header, ["---"] * len(self.header), *self.cells()]
        table = "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
        return f"{self.device}\n\n{table}\n" + (f"\n{self.caption}\n" if self.caption else "")

    def csv(self) -> str:
        """A line for each row and batch: device, model, way, batch, median in ms, images/s."""
        lines = ["device,model,run_by,batch,ms,images_per_s"]
        for row in self.rows:
            for batch, taken in row.times.items():
                values = (self.device, row.model, row.way, batch, taken.median_ms, _per_second(taken, batch))
                lines.append(
                    ",".join(f'"{value}"' if isinstance(value, str) else str(value) for value in values)
                )
        return "\n".join(lines) + "\n"

    def records(self) -> list[dict[str, Any]]:
        """The rows as JSON values."""
        return [
            {
                "device": self.device,
                "model": row.model,
                "run_by": row.way,
                "ms": {str(batch): taken.median_ms for batch, taken in row.times.items()},
                "images_per_s": {str(b): _per_second(taken, b) for b, taken in row.times.items()},
                "agreement": None if row.parity is None else row.parity.agreement,
                "why": {str(batch): why for batch, why in row.why.items()},
            }
            for row in self.rows
        ]


def compare_on_gpu(
    models: Sequence[str | Model],
    *,
    device: str,
    batches: Sequence[int] = BATCHES,
    say: Say = lambda line: None,
) -> GpuTable:
    """Time models in all ways in which this machine's GPU can run them.

    Args:
        models: NAME@WEIGHTS, KIND:WHERE or a `Model` each.
        device: ``cuda``, or one GPU such as ``cuda:1``.
        batches: ascending sizes; where the memory does not suffice, larger ones are left out.
        say: called with a line before each step.

    Raises:
        TutelageError: a model or the device is not there.
    """
    on = Runtime.start(device).device
    made = [load_model(model) if isinstance(model, str) else model for model in models]
    rows = [row for model in made for row in rows_of(model, on, ways(model, on), batches, say=say)]
    return GpuTable(device_name(on), tuple(batches), tuple(rows))


def ways(model: Model, device: torch.device, providers: Sequence[str] | None = None) -> list[Way]:
    """The ways that there are: PyTorch, and ONNX Runtime where it has a provider for GPUs, else AOTInductor.

    Args:
        model: in float32.
        device: that it is run on.
        providers: of ONNX Runtime; None: those of `PROVIDERS` that are installed.
    """
    found = [
        Way("PyTorch, fp32", lambda _: _pytorch(model, device, None), torch.channels_last),
        Way("PyTorch, bf16", lambda _: _pytorch(model, device, torch.bfloat16), torch.channels_last),
    ]
    names = gpu_providers() if providers is None else providers
    found += [
        Way(
            f"ONNX Runtime, {PROVIDERS.get(name, name)}",
            lambda folder, name=name: _onnx(model, device, name, folder),  # type: ignore[misc]
        )
        for name in names
    ]
    if not names:
        found.append(Way("AOTInductor, fp32", lambda folder: _compiled(model, device, folder)))
    return found


def gpu_providers() -> list[str]:
    """Return the providers of ONNX Runtime for NVIDIA GPUs that are installed, the faster first."""
    if not (is_installed("onnxruntime") and is_installed("onnxscript")):
        return []
    available = importlib.import_module("onnxruntime").get_available_providers()
    return [name for name in PROVIDERS if name in available]


def rows_of(
    model: Model,
    device: torch.device,
    ways: Sequence[Way],
    batches: Sequence[int] = BATCHES,
    *,
    clock: Clock | None = None,
    seconds: float = SECONDS,
    say: Say = lambda line: None,
) -> list[GpuRow]:
    """Build a model in each way, compare its logits with the first way's, and time all of them in turns.

    Args:
        model: in float32.
        device: that it is run on.
        ways: the first one's logits are the true ones.
        batches: ascending.
        clock: gives the time of a call in ms; None: CUDA events, on a CPU the wall clock.
        seconds: see `alternating_latency`, for each batch size.
        say: called with a line before each step.
    """
    built: dict[str, tuple[Way, Network]] = {}
    parities: dict[str, Parity] = {}
    times: dict[str, dict[int, Latency]] = {way.name: {} for way in ways}
    why: dict[str, dict[int, str]] = {way.name: {} for way in ways}
    truth: Tensor | None = None
    with TemporaryDirectory() as directory, _own_stream(device), torch.inference_mode():
        for number, way in enumerate(ways):
            say(f"{model.spec}: {way.name}")
            folder = Path(directory) / str(number)
            folder.mkdir()
            try:
                network = way.make(folder)
                logits = network(_noise(model, CHECKED, device, way.layout)).float().cpu()
            # each of these libraries raises exceptions of its own kinds
            except Exception as error:
                why[way.name][0] = one_line(error)[:200]
                continue
            truth = logits if truth is None else truth
            parities[way.name] = parity(logits, truth)
            built[way.name] = way, network
        for batch in batches:
            calls: dict[str, Call] = {}
            for name, (way, network) in [*built.items()]:
                try:
                    images = _noise(model, batch, device, way.layout)
                    calls[name] = _call(network, images)
                    calls[name]()
                except Exception as error:
                    calls.pop(name, None)
                    del built[name]  # a larger batch would not fit either
                    why[name][batch] = one_line(error)[:200]
                    _free(device)
            say(f"{model.spec}: batches of {batch}")
            for name, taken in alternating_latency(
                calls, seconds=seconds, clock=clock or clock_of(device)
            ).items():
                times[name][batch] = taken
    return [
        GpuRow(model.spec, way.name, times[way.name], parities.get(way.name), why[way.name]) for way in ways
    ]


def clock_of(device: torch.device) -> Clock:
    """Return the clock of a device: CUDA events on the current stream, or the wall clock of a CPU."""
    if device.type != "cuda":
        return wall_clock

    def clock(call: Call) -> float:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        call()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end)

    return clock


def _pytorch(model: Model, device: torch.device, dtype: torch.dtype | None) -> Network:
    network = _twin(model, device).to(memory_format=torch.channels_last)

    def run(images: Tensor) -> Tensor:
        with torch.autocast(device.type, dtype) if dtype else nullcontext():
            logits: Tensor = network(images)
        return logits

    return run


def _onnx(model: Model, device: torch.device, provider: str, folder: Path) -> Network:
    """Run an ONNX file on tensors that lie on the device already; nothing is copied from there or to there."""
    runtime: Any = importlib.import_module("onnxruntime")
    file = folder / "model.onnx"
    write_onnx(to_onnx(model.module, model.input_spec), file)
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    session = runtime.InferenceSession(
        str(file), options, providers=[(provider, _provider_options(model, device, provider))]
    )
    if session.get_providers()[0] != provider:  # it falls back on the CPU where a library is missing
        raise RuntimeError(
            f"ONNX Runtime does not open it with {provider}, but with {session.get_providers()[0]}"
        )
    how = runtime.RunOptions()
    how.add_run_config_entry("disable_synchronize_execution_providers", "1")  # the events wait
    place = (device.type, device.index or 0, np.float32)

    def run(images: Tensor) -> Tensor:
        logits = torch.empty((len(images), model.num_classes), device=device)
        binding = session.io_binding()
        binding.bind_input(INPUT, *place, tuple(images.shape), images.data_ptr())
        binding.bind_output(OUTPUT, *place, tuple(logits.shape), logits.data_ptr())
        session.run_with_iobinding(binding, how)
        return logits

    return run


def _provider_options(model: Model, device: torch.device, provider: str) -> dict[str, Any]:
    if provider not in PROVIDERS:
        return {}
    stream = torch.cuda.current_stream(device).cuda_stream  # the one on which the events are
    options: dict[str, Any] = {"device_id": device.index or 0, "user_compute_stream": str(stream)}
    if PROVIDERS[provider] == "TensorRT":  # else it would build an engine for each batch size
        height, width = model.input_spec.height, model.input_spec.width
        for bound, batch in (("min", BATCHES[0]), ("opt", BATCHES[2]), ("max", BATCHES[-1])):
            options[f"trt_profile_{bound}_shapes"] = f"{INPUT}:{batch}x3x{height}x{width}"
    return options


def _compiled(model: Model, device: torch.device, folder: Path) -> Network:
    """Compile with AOTInductor into a package of one file, and load that."""
    from torch._inductor import aoti_compile_and_package, aoti_load_package

    example = torch.zeros(2, 3, model.input_spec.height, model.input_spec.width, device=device)
    with quiet():
        exported = torch.export.export(
            _twin(model, device),
            (example,),
            dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=4096)},),
        )
        package = aoti_compile_and_package(exported, package_path=str(folder / "model.pt2"))
    loaded: Network = aoti_load_package(package)
    return loaded


def _twin(model: Model, device: torch.device) -> nn.Module:
    return copy.deepcopy(model.module).to(device).float().eval()


def _noise(model: Model, batch: int, device: torch.device, layout: torch.memory_format) -> Tensor:
    """Random images, the same for all ways."""
    shape = (batch, 3, model.input_spec.height, model.input_spec.width)
    images = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return images.to(device).contiguous(memory_format=layout)


def _call(network: Network, images: Tensor) -> Call:
    return lambda: network(images)


def _own_stream(device: torch.device) -> AbstractContextManager[object]:
    """A stream whose handle can be given to other libraries: that of the default one is 0, which means none."""
    return torch.cuda.stream(torch.cuda.Stream(device)) if device.type == "cuda" else nullcontext()


def _free(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _per_second(taken: Latency, batch: int) -> float:
    return 1000 * batch / taken.median_ms


def _time(taken: Latency | None, batch: int) -> str:
    return "–" if taken is None else f"{taken.median_ms:.2f} ({_per_second(taken, batch):,.0f})"
