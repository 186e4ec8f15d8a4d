"""A network that computes in float32 what it would compute in int8 (fake quantisation), and that can be trained.

Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference".
NNCF decides where numbers are rounded, and measures the ranges of the activations on calibration images; the rounding
itself is PyTorch's, with the straight-through estimator's gradient (Bengio et al. 2013).
"""

from __future__ import annotations

import copy
import importlib
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from tutelage.data.input_spec import InputSpec, normalised
from tutelage.deploy.quantise import silent

SMALLEST = 1e-12  # step between two values: the reciprocal of a smaller one is not finite
PRODUCTS = ("matmul", "__matmul__", "bmm", "baddbmm", "einsum", "scaled_dot_product_attention")


def fake_quantised(module: nn.Module, calibration: np.ndarray, spec: InputSpec) -> nn.Module:
    """Return a copy of a network on the CPU whose weights and activations are rounded as int8 rounds them.

    Its parameters have the names and the values of the network's, so that `float_state` gives them back. The ranges of
    activations are those on the calibration images, and stay. Those of weights follow the weights: symmetric, each
    output channel with its own largest value, as in quantisation after training.

    Args:
        module: on any device; it is not changed.
        calibration: uint8 (N, H, W, 3) evaluation views.
        spec: input of the network.
    """
    os.environ.setdefault("NNCF_CI", "1")  # else NNCF reports its use to Intel
    with silent():
        nncf: Any = importlib.import_module("nncf")
        parameters: Any = importlib.import_module("nncf.quantization.advanced_parameters")
        hooks: Any = importlib.import_module("nncf.torch.function_hook.wrapper")
    twin = copy.deepcopy(module).cpu().float().eval()
    pixels = list(calibration)

    def transform(one: np.ndarray) -> Tensor:
        return torch.from_numpy(normalised(one[None], spec))

    has_products = _has_products(twin, transform(pixels[0]))
    with silent():
        made = nncf.quantize(
            twin,
            nncf.Dataset(pixels, transform),
            subset_size=len(pixels),
            model_type=nncf.ModelType.TRANSFORMER if has_products else None,
            # as in the files, see `deploy.quantise`: products of two activations stay in float32
            ignored_scope=nncf.IgnoredScope(types=list(PRODUCTS), validate=False) if has_products else None,
            advanced_parameters=parameters.AdvancedQuantizationParameters(
                # the weights stay the network's own
                disable_bias_correction=True,
                smooth_quant_alphas=parameters.AdvancedSmoothQuantParameters(matmul=-1, convolution=-1),
                # one scale for all channels, as ONNX Runtime needs it
                activations_quantization_params=parameters.QuantizationParameters(per_channel=False),
            ),
        )
    storage = hooks.get_hook_storage(made)
    made_of: dict[nn.Module, nn.Module] = {}  # what is added up or joined has one quantiser at several places
    for name, quantiser in list(storage.named_hooks(remove_duplicate=False)):
        made_of.setdefault(quantiser, _rounding(quantiser))
        storage.set_submodule(name, made_of[quantiser])
    return made


def float_state(module: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the part of a fake-quantised network's state that is the state of the network itself.

    Args:
        module: the network that `fake_quantised` copied.
        state: of the copy.
    """
    return {name: state[name] for name in module.state_dict()}


def _rounding(quantiser: Any) -> nn.Module:
    """PyTorch's rounding in place of a quantiser of NNCF, whose own needs a C++ compiler to be fast."""
    if quantiser.narrow_range:  # as weights alone have
        axis = int(np.argmax(quantiser.scale_shape)) if quantiser.per_channel else None
        return WeightRounding(axis, quantiser.level_high)
    low, high = (bound.detach().reshape(()) for bound in quantiser.get_input_low_input_high())
    return ActivationRounding(low, high, quantiser.levels)


class WeightRounding(nn.Module):
    """Rounds weights to multiples of a step: their largest value, or each channel's, is `level` steps.

    Args:
        axis: of the channels that have a step each; None: one step for all.
        level: largest integer, such as 127.
    """

    def __init__(self, axis: int | None, level: int) -> None:
        super().__init__()
        self.axis, self.level = axis, level

    def forward(self, weight: Tensor) -> Tensor:
        """Round a tensor of any shape."""
        sizes = weight.detach().abs()
        if self.axis is None:
            step = sizes.max().clamp_min(SMALLEST) / self.level
            return torch.fake_quantize_per_tensor_affine(
                weight, step.float(), torch.zeros((), dtype=torch.int32), -self.level, self.level
            )
        others = [place for place in range(weight.ndim) if place != self.axis]
        steps = sizes.amax(others).clamp_min(SMALLEST) / self.level
        zeros = torch.zeros(len(steps), dtype=torch.int32, device=weight.device)
        return torch.fake_quantize_per_channel_affine(
            weight, steps, zeros, self.axis, -self.level, self.level
        )


class ActivationRounding(nn.Module):
    """Rounds activations to one of `levels` values, evenly spaced between two bounds; zero is one of them.

    Args:
        low: smallest value, at most 0; a scalar.
        high: largest value; a scalar.
        levels: number of values, such as 256.
    """

    step: Tensor
    zero: Tensor

    def __init__(self, low: Tensor, high: Tensor, levels: int) -> None:
        super().__init__()
        self.last = levels - 1
        step = ((high - low) / self.last).clamp_min(SMALLEST)
        self.register_buffer("step", step)
        self.register_buffer("zero", torch.round(-low / step).to(torch.int32))

    def forward(self, values: Tensor) -> Tensor:
        """Round a tensor of any shape; what is out of bounds becomes the bound, and gets no gradient."""
        return torch.fake_quantize_per_tensor_affine(values, self.step, self.zero, 0, self.last)


def _has_products(module: nn.Module, images: Tensor) -> bool:
    """Whether a network multiplies activations with each other, as attention does."""
    seen: set[str] = set()

    class Watch(TorchFunctionMode):
        def __torch_function__(
            self,
            func: Callable[..., Any],
            types: Sequence[type],
            args: tuple[Any, ...] = (),
            kwargs: dict[str, Any] | None = None,
        ) -> Any:
            seen.add(getattr(func, "__name__", ""))
            return func(*args, **(kwargs or {}))

    with torch.no_grad(), Watch():
        module(images)
    return bool(seen & set(PRODUCTS))
