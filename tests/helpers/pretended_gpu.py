"""A GPU that is pretended: its tensors say that they are on ``cuda:0``, and are computed on the CPU.

An operation on tensors of different devices is refused as CUDA refuses it, random numbers on the GPU come from a
generator of its own, and each wait of the host for the GPU is counted. So code for CUDA runs on a machine without a
GPU: what is on the wrong device, what a resume forgets, and where the host waits are found. Kernels with their
rounding, speed, memory and the order of queued work are not.
"""

from __future__ import annotations

import time
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
import torch._dynamo  # before functions of torch.cuda are replaced: it lists them
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

GPU, CPU, META = torch.device("cuda", 0), torch.device("cpu"), torch.device("meta")
MEMORY = 16 * 2**30
# Operations whose result, or its size, the host has to know: they wait for all queued work.
READ = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "_unique2", "unique_dim"}
COPIES = {"copy_", "_to_copy", "_foreach_copy_"}
INDEXED = {"index", "index_put", "index_put_", "_index_put_impl_"}  # the second argument may be on the CPU
# What raises an error on CUDA where deterministic algorithms are asked for, see `torch.use_deterministic_algorithms`.
NOT_DETERMINISTIC = {
    "_adaptive_avg_pool2d_backward", "adaptive_max_pool2d_backward", "upsample_bilinear2d_backward",
    "upsample_bicubic2d_backward", "_upsample_bilinear2d_aa_backward", "_upsample_bicubic2d_aa_backward",
    "reflection_pad2d_backward", "grid_sampler_2d_backward", "nll_loss2d_forward", "kthvalue", "histc", "put_",
}  # fmt: skip
LOW = {  # what `torch.autocast` computes in the low precision on CUDA, by the name of the function
    "conv1d", "conv2d", "conv3d", "conv_transpose2d", "linear", "matmul", "__matmul__", "mm", "bmm", "addmm", "baddbmm",
    "einsum", "scaled_dot_product_attention",
}  # fmt: skip
HIGH = {  # what it computes in fp32
    "softmax", "log_softmax", "cross_entropy", "nll_loss", "kl_div", "mse_loss", "l1_loss", "smooth_l1_loss",
    "cosine_similarity", "layer_norm", "group_norm", "exp", "log", "log1p", "pow", "__pow__", "norm", "sum", "prod",
    "cumsum", "cdist", "rsqrt", "logsumexp",
}  # fmt: skip


_quantised = torch.ops.aten._fake_quantize_per_tensor_affine_cachemask_tensor_qparams.default


class OnGpu(Tensor):
    """A tensor of the pretended GPU; `host` has its values, on the CPU.

    For C++ it is a meta tensor, since autograd asks the GPU's driver about any other one.
    """

    host: Tensor

    @staticmethod
    def __new__(cls, host: Tensor) -> OnGpu:
        with torch._C._DisableTorchDispatch(), torch.inference_mode(host.is_inference()):
            meta = torch.empty_strided(host.size(), host.stride(), dtype=host.dtype, device=META)
            made: OnGpu = Tensor._make_subclass(cls, meta, False)
        made.host = host.detach()
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return computed(func, args, kwargs or {})

    device = property(lambda self: GPU)
    is_cuda = property(lambda self: True)
    is_cpu = is_meta = property(lambda self: False)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _on_gpu, (self.host, self.requires_grad)


def _on_gpu(host: Tensor, requires_grad: bool) -> OnGpu:
    made: OnGpu = OnGpu(host).requires_grad_(requires_grad)
    return made


class _Generator(torch.Generator):
    """Random numbers of the device that it was made for; on CUDA, another device's are refused."""

    device: torch.device

    def __new__(cls, device: Any = "cpu") -> _Generator:
        made = super().__new__(cls)
        made.__dict__["device"] = _numbered(device)
        return made


class Gpu:
    """What the pretended GPU has done, and its random numbers."""

    def __init__(self) -> None:
        self.waits: Counter[str] = Counter()
        self.random = torch.Generator().manual_seed(0).get_state()

    def wait(self, what: str) -> None:
        """Count a wait of the host, by the line of tutelage's code."""
        lines = [frame for frame in traceback.extract_stack() if "/src/tutelage/" in frame.filename]
        place = (
            f"{lines[-1].filename.rpartition('/src/tutelage/')[2]}:{lines[-1].lineno}"
            if lines
            else "elsewhere"
        )
        self.waits[f"{what} in {place}"] += 1

    @contextmanager
    def generator(self, func: Any) -> Iterator[None]:
        """Let a random operation take the GPU's numbers, and leave the CPU's as they are."""
        if torch.Tag.nondeterministic_seeded not in func.tags:
            yield
            return
        before = torch.get_rng_state()
        torch.set_rng_state(self.random)
        try:
            yield
        finally:
            self.random = torch.get_rng_state()
            torch.set_rng_state(before)

    def seed(self, seed: int) -> None:
        """Begin the random numbers anew."""
        self.random = torch.Generator().manual_seed(seed).get_state()


_gpu = Gpu()


def computed(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Compute an operation of which an argument or the result is on the GPU."""
    name = func.overloadpacket.__name__
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    on_gpu = [tensor for tensor in tensors if isinstance(tensor, OnGpu)]
    asked = _asked(kwargs)
    place = asked or (GPU if on_gpu else CPU)
    if place == META:  # for C++, the tensors of the GPU are on it
        place = GPU
    if on_gpu and any(tensor.device == META for tensor in tensors):
        raise NotImplementedError(f"{func} has a number that was lost; see `_Function`")
    _refuse_mixed(name, tensors, args)
    if name in NOT_DETERMINISTIC and torch.are_deterministic_algorithms_enabled():
        raise RuntimeError(
            f"{name}_cuda does not have a deterministic implementation, but you set it to True"
        )
    _note(name, args, kwargs, place)
    real_args, real_kwargs = tree_map(_real, (args, kwargs))
    if asked is not None:
        real_kwargs["device"] = CPU
    given = kwargs.get("generator")
    if given is not None and (getattr(given, "device", CPU) == GPU) != (place == GPU):
        raise RuntimeError(
            f"Expected a '{place.type}' device type for generator but found '{given.device.type}'"
        )
    with _gpu.generator(func) if place == GPU else nullcontext():
        result = func(*real_args, **real_kwargs)
    # what is changed in place stays the tensor that it was; a copy is another one
    known = {} if name == "_to_copy" else {id(_real(tensor)): tensor for tensor in tensors}

    def placed(one: Any) -> Any:
        if not isinstance(one, Tensor):
            return one
        if id(one) in known:
            return known[id(one)]
        return OnGpu(one) if place == GPU else one

    return tree_map(placed, result)


def _asked(kwargs: dict[str, Any]) -> torch.device | None:
    device = kwargs.get("device")
    return None if device is None else torch.device(device)


def _real(one: Any) -> Any:
    return one.host if isinstance(one, OnGpu) else one


def _refuse_mixed(name: str, tensors: list[Tensor], args: Any) -> None:
    """Refuse tensors of two devices, but for numbers without a dimension, copies, and indices on the CPU."""
    if name in COPIES:
        return
    if name in INDEXED:
        tensors = [args[0], *(one for one in args[1] if isinstance(one, OnGpu)), *args[2:3]]
    places = {isinstance(tensor, OnGpu) for tensor in tensors if tensor.dim() or isinstance(tensor, OnGpu)}
    if len(places) > 1:
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu! ({name})"
        )


def _note(name: str, args: Any, kwargs: dict[str, Any], place: torch.device) -> None:
    """Count an operation for which the host waits."""
    if name == "_foreach_copy_":
        for target, source in zip(*args[:2], strict=True):
            _note("copy_", (target, source), {}, place)
    elif name in COPIES:
        source = args[1] if name == "copy_" else args[0]
        target = args[0].device if name == "copy_" else place
        free = args[2] if name == "copy_" and len(args) > 2 else kwargs.get("non_blocking", False)
        if target != source.device and not (free and (source.device == GPU or is_pinned(source))):
            _gpu.wait(f"a copy from {source.device.type} to {target.type}")
    elif place == GPU and (name in READ or (name in INDEXED and any(
        index is not None and index.dtype == torch.bool for index in args[1]
    ))):  # fmt: skip
        _gpu.wait(name)


def is_pinned(tensor: Tensor, device: Any = None) -> bool:
    """Whether a tensor is in page-locked memory, which a GPU reads without the host."""
    return getattr(tensor.untyped_storage(), "is_page_locked", False)


def pin(tensor: Tensor, device: Any = None) -> Tensor:
    """Copy a tensor of the CPU to page-locked memory."""
    if isinstance(tensor, OnGpu):
        raise RuntimeError("cannot pin 'torch.cuda.FloatTensor' only dense CPU tensors can be pinned")
    copied = tensor.clone()
    copied.untyped_storage().is_page_locked = True
    return copied


class _Dispatch(TorchDispatchMode):
    """Makes new tensors on the GPU, and copies there; other operations come from the tensors of the GPU."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        asked = _asked(kwargs)
        in_backward = torch._C._current_graph_task_id() != -1
        if OnGpu in types or (asked and (asked.type == "cuda" or (asked == META and in_backward))):
            return computed(func, args, kwargs)
        return func(*args, **kwargs)


class _Function(TorchFunctionMode):
    """Does what PyTorch does in C++ by the device: `to`, automatic mixed precision, values for the host."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        own = args[0] if args and isinstance(args[0], Tensor) else None
        if kwargs.get("device") is not None and name != "to":
            kwargs["device"] = _numbered(kwargs["device"])
        if name in {"tensor", "as_tensor", "new_tensor"} and (
            kwargs.get("device") == GPU or isinstance(own, OnGpu)
        ):
            return _tensor(func, name, args, kwargs)
        if own is not None and name in {"to", "cuda", "cpu"}:
            return _to(func, name, own, args[1:], kwargs)
        if name == "_has_compatible_shallow_copy_type":
            return isinstance(own, OnGpu) == isinstance(args[1], OnGpu)
        if func == Tensor.data.__set__:
            return _set_data(own, args[1])
        if isinstance(own, OnGpu) and name == "tolist":
            _gpu.wait(name)
            return own.host.tolist()
        if isinstance(own, OnGpu) and name in {"__repr__", "__format__"}:
            _gpu.wait(name)
            return getattr(own.host, name)(*args[1:])
        if isinstance(own, OnGpu) and name in {"numpy", "__array__"}:
            raise TypeError(
                "can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy it first"
            )
        if name == "fake_quantize_per_tensor_affine" and isinstance(own, OnGpu):
            enabled = torch.ones(1, dtype=torch.long, device=GPU)
            return _quantised(*args[:3], enabled, *args[3:])[0]
        if name == "where":  # it makes tensors of numbers on the device that it has for C++
            args = tuple(torch.tensor(one) if isinstance(one, bool | int | float) else one for one in args)
        if torch.is_autocast_enabled("cuda"):
            args, kwargs = _autocast(name, args, kwargs)
        return func(*args, **kwargs)


def _numbered(device: Any) -> Any:
    device = torch.device(device)
    return GPU if device.type == "cuda" else device


def _tensor(func: Any, name: str, args: Any, kwargs: dict[str, Any]) -> Any:
    """`torch.tensor`, `torch.as_tensor` and `Tensor.new_tensor` make a tensor on the CPU first, and copy it."""
    kwargs.pop("device", None)
    requires_grad = kwargs.pop("requires_grad", False)
    if name == "new_tensor":
        kwargs.setdefault("dtype", args[0].dtype)
        func, args = torch.tensor, args[1:]
    if isinstance(args[0], OnGpu):
        return args[0].to(**kwargs) if name == "as_tensor" else args[0].clone()
    return _to(Tensor.to, "to", func(*args, **kwargs), (GPU,), {}).requires_grad_(requires_grad)


def _to(func: Any, name: str, own: Tensor, args: Any, kwargs: dict[str, Any]) -> Any:
    """`Tensor.to`, `cuda` and `cpu`: the tensor itself where nothing is to be done."""
    if name != "to":
        args, func = (GPU if name == "cuda" else CPU, *args[1:]), Tensor.to
    copy = kwargs.pop("copy", False)
    if args and isinstance(args[0], Tensor):
        args = (args[0].device, args[0].dtype, *args[1:])
    device, dtype, non_blocking, layout = torch._C._nn._parse_to(*args, **kwargs)
    if device is not None and _numbered(device) == own.device:
        device = None
    if device is None and dtype is None and layout is None and not copy:
        return own
    if device is None:
        kept = layout or torch.preserve_format
        return func(own, dtype or own.dtype, non_blocking, copy=copy, memory_format=kept)
    return torch.ops.aten._to_copy.default(
        own, dtype=dtype or own.dtype, device=_numbered(device), non_blocking=non_blocking,
        memory_format=layout or torch.preserve_format,
    )  # fmt: skip


def _set_data(own: Any, value: Tensor) -> None:
    if isinstance(own, OnGpu) != isinstance(value, OnGpu):
        raise RuntimeError(
            "Attempted to call `variable.set_data(tensor)`, but they have incompatible tensor type"
        )
    Tensor.data.__set__(own, value)
    if isinstance(own, OnGpu):
        own.host = value.host


def _autocast(name: str, args: Any, kwargs: Any) -> Any:
    low = torch.get_autocast_dtype("cuda")
    if name in LOW:
        wanted, given = low, (torch.float32, torch.float16, torch.bfloat16)
    elif name in HIGH:
        wanted, given = torch.float32, (torch.float16, torch.bfloat16)
    else:
        return args, kwargs

    def cast(one: Any) -> Any:
        return one.to(wanted) if isinstance(one, OnGpu) and one.dtype in given else one

    return tree_map(cast, (args, kwargs))


class _Stream:
    cuda_stream = 0
    device = GPU

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def __enter__(self) -> _Stream:
        return self

    def __exit__(self, *error: object) -> None: ...

    def is_capturing(self) -> bool:
        return False

    def wait_stream(self, other: Any) -> None: ...

    def wait_event(self, event: Any) -> None: ...

    def record_event(self, event: Any = None) -> _Event:
        return _Event()

    def synchronize(self) -> None:
        _gpu.wait("synchronize")


class _Event:
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.time = 0.0

    def record(self, stream: Any = None) -> None:
        self.time = time.perf_counter()

    def elapsed_time(self, end: _Event) -> float:
        return 1000 * (end.time - self.time)

    def wait(self, stream: Any = None) -> None: ...

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        _gpu.wait("synchronize")


def _properties(device: Any = None) -> SimpleNamespace:
    return SimpleNamespace(
        name="pretended GPU", total_memory=MEMORY, major=8, minor=0, multi_processor_count=1
    )


def _nothing(*args: Any, **kwargs: Any) -> None: ...


def _set_random(state: Tensor, device: Any = None) -> None:
    _gpu.random = state.clone()


CUDA: dict[str, Any] = {
    "_lazy_init": _nothing,
    "is_available": lambda: True,
    "is_initialized": lambda: True,
    "is_bf16_supported": lambda *args, **kwargs: True,
    "device_count": lambda: 1,
    "current_device": lambda: 0,
    "set_device": _nothing,
    "synchronize": lambda device=None: _gpu.wait("synchronize"),
    "empty_cache": _nothing,
    "Stream": _Stream,
    "Event": _Event,
    "stream": lambda stream: stream,
    "current_stream": lambda device=None: _Stream(),
    "default_stream": lambda device=None: _Stream(),
    "get_device_name": lambda device=None: "pretended GPU",
    "get_device_properties": _properties,
    "get_device_capability": lambda device=None: (8, 0),
    "mem_get_info": lambda device=None: (MEMORY, MEMORY),
    "memory_allocated": lambda device=None: 0,
    "memory_reserved": lambda device=None: 0,
    "max_memory_allocated": lambda device=None: 0,
    "max_memory_reserved": lambda device=None: 0,
    "reset_peak_memory_stats": _nothing,
    "manual_seed": lambda seed: _gpu.seed(seed),
    "manual_seed_all": lambda seed: _gpu.seed(seed),
    "get_rng_state": lambda device=None: _gpu.random.clone(),
    "get_rng_state_all": lambda: [_gpu.random.clone()],
    "set_rng_state": _set_random,
    "set_rng_state_all": lambda states: _set_random(states[0]),
}
ACCELERATOR: dict[str, Any] = {
    "is_available": lambda: True,
    "current_accelerator": lambda check_available=False: torch.device("cuda"),
    "current_device_index": lambda: 0,
    "set_device_index": _nothing,
    "device_count": lambda: 1,
    "current_stream": lambda device=None: _Stream(),
    "synchronize": lambda device=None: _gpu.wait("synchronize"),
}


@contextmanager
def pretended_gpu() -> Iterator[Gpu]:
    """Give this thread a GPU within the `with`; what was counted is that of this `with`."""
    _gpu.__init__()  # type: ignore[misc]
    with ExitStack() as stack:
        for name, value in CUDA.items():
            stack.enter_context(patch.object(torch.cuda, name, value))
        for name, value in ACCELERATOR.items():
            stack.enter_context(patch.object(torch.accelerator, name, value))
        stack.enter_context(patch.object(torch, "Generator", _Generator))
        stack.enter_context(patch.object(Tensor, "pin_memory", pin))
        stack.enter_context(patch.object(Tensor, "is_pinned", is_pinned))
        stack.enter_context(_Dispatch())
        stack.enter_context(_Function())
        yield _gpu
