"""The files for ExecuTorch: programs whose layers run on XNNPACK, for one image at a time."""

from __future__ import annotations

import copy
import importlib
from pathlib import Path
from typing import Any

import torch

from tutelage.core.errors import TutelageError
from tutelage.core.progress import Often
from tutelage.data.input_spec import normalised
from tutelage.deploy.convert import cause
from tutelage.deploy.formats.making import Making
from tutelage.deploy.quantise import Pictures
from tutelage.deploy.quiet import quiet
from tutelage.deploy.runtimes.executorch import RUNTIME
from tutelage.deploy.runtimes.registry import open_session

ATEN = torch.ops.aten
CLAMPS = (ATEN.hardtanh.default, ATEN.hardtanh_.default)
LAYERS = (ATEN.conv2d.default, ATEN.linear.default)


def make(making: Making) -> None:
    """Write ``model.pte``, and ``model-int8.pte`` where there are images to calibrate on.

    The batch is 1: a program for any batch needs memory for the largest one, and is hardly faster.
    """

    def converted(path: Path) -> Any:
        exported = _exported(making)
        _save(exported, path, making)
        return exported

    exported, calibration = making.attempt("model.pte", converted), making.calibration
    if exported is not None and calibration is not None:
        making.attempt(
            "model-int8.pte", lambda path: _save(_quantised(exported, calibration, making), path, making)
        )


def _exported(making: Making) -> Any:
    """The model as a ``torch.export.ExportedProgram`` of (1, 3, H, W) normalised float32 to (1, C) logits."""
    twin = copy.deepcopy(making.model.module).cpu().float().eval().to(memory_format=torch.contiguous_format)
    for layer in twin.modules():
        if getattr(layer, "fused_attn", False):  # XNNPACK takes single steps, which give the same
            layer.fused_attn = False  # type: ignore[assignment]
    try:
        with quiet():
            return torch.export.export(twin, (_image(making),))
    # the exporter's stages raise exceptions of their own kinds, without a common base
    except Exception as error:
        raise _refusal(making, cause(error)) from None


def _refusal(making: Making, why: str) -> TutelageError:
    return TutelageError(
        f"{type(making.model.module).__name__}: cannot be exported to {RUNTIME.title} ({why.partition(' (http')[0]}); "
        "deploy another architecture"
    )


def _image(making: Making) -> torch.Tensor:
    spec = making.model.input_spec
    return torch.zeros(1, 3, spec.height, spec.width)


def _quantised(exported: Any, calibration: Pictures, making: Making) -> Any:
    """Round weights to int8 with a scale for each channel, and activations with fixed scales, measured on images."""
    with quiet():
        pt2e: Any = importlib.import_module("torchao.quantization.pt2e.quantize_pt2e")
        quantizer: Any = importlib.import_module("executorch.backends.xnnpack.quantizer.xnnpack_quantizer")
        rules = quantizer.XNNPACKQuantizer()
        rules.set_global(quantizer.get_symmetric_quantization_config(is_per_channel=True))
        annotate = rules.annotate
        rules.annotate = lambda model: _measure_after_clamps(annotate(model))
        observed = pt2e.prepare_pt2e(exported.module(), rules)
    head = f"{making.model.spec}: ExecuTorch: quantising to int8"
    making.say(f"{head}, calibrated on {len(calibration.pixels)} images")
    read = Often(lambda count: making.say(f"{head}, {count:,} images read"))
    with torch.no_grad():
        for pixels in calibration.pixels:
            observed(torch.from_numpy(normalised(pixels[None], making.model.input_spec)))
            read.add(1)
    with quiet():
        return torch.export.export(pt2e.convert_pt2e(observed), (_image(making),))


def _measure_after_clamps(model: torch.fx.GraphModule) -> torch.fx.GraphModule:
    """Measure the output of a layer with ReLU6 after the clamp, as the quantiser of ExecuTorch 1.5 does with ReLU only.

    XNNPACK computes both in one. With the range before the clamp EfficientNet-Lite0 lost 4.8 points of top-1.
    """
    quantizer: Any = importlib.import_module("torchao.quantization.pt2e.quantizer")
    key = quantizer.quantizer.Q_ANNOTATION_KEY
    for clamp in model.graph.nodes:
        layer = clamp.args[0] if clamp.target in CLAMPS else None
        if layer is None or layer.target not in LAYERS or len(layer.users) > 1 or key not in layer.meta:
            continue
        measured, layer.meta[key].output_qspec = layer.meta[key].output_qspec, None
        clamp.meta[key] = quantizer.QuantizationAnnotation(output_qspec=measured, _annotated=True)
    return model


def _save(exported: Any, path: Path, making: Making) -> None:
    """Write a program with its manifest, each entry as a method without inputs that returns text; and run it once.

    Raises:
        TutelageError: an operation cannot be lowered, or neither XNNPACK has taken it nor the runtime has it.
    """
    try:
        with quiet():
            exir: Any = importlib.import_module("executorch.exir")
            partition: Any = importlib.import_module(
                "executorch.backends.xnnpack.partition.xnnpack_partitioner"
            )
            program = exir.to_edge_transform_and_lower(
                exported,
                partitioner=[partition.XnnpackPartitioner()],
                constant_methods=making.manifest.properties(),
            ).to_executorch()
    # as above
    except Exception as error:
        raise _refusal(making, cause(error)) from None
    runtime: Any = importlib.import_module("executorch.runtime")
    known = runtime.Runtime.get().operator_registry.operator_names
    needed = {
        name for plan in program.executorch_program.execution_plan for name in map(_name, plan.operators)
    }
    if unknown := sorted(needed - known):
        raise _refusal(making, f"its runtime has no {', '.join(unknown)}")
    if needed:
        short = sorted({name.removeprefix("aten::").partition(".")[0] for name in needed})
        making.say(f"{making.model.spec}: {path.name}: outside of XNNPACK, and slower: {', '.join(short)}")
    path.write_bytes(program.buffer)
    open_session(path, threads=torch.get_num_threads())(_image(making).numpy())


def _name(operator: Any) -> str:
    """As the runtime's registry names it: ``aten::add.out``."""
    return f"{operator.name}.{operator.overload}" if operator.overload else str(operator.name)
