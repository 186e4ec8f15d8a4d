"""The files for ncnn, made by pnnx from a traced module."""

from __future__ import annotations

import copy
import importlib
import re
import signal
import subprocess
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MethodType
from typing import Any

import torch
from timm.layers import Attention
from torch import Tensor, nn

from tutelage.core.errors import TutelageError, one_line
from tutelage.data.input_spec import InputSpec
from tutelage.deploy.formats.making import Making
from tutelage.deploy.quiet import quiet


def make(making: Making) -> None:
    """Write ``model.ncnn.param`` and ``model-fp16.ncnn.param``, each with its ``.bin``."""
    model = making.model

    def convert(half: bool, path: Path) -> None:
        to_ncnn(model.module, model.input_spec, path, half)

    making.attempt("model.ncnn.param", partial(convert, False))
    making.attempt("model-fp16.ncnn.param", partial(convert, True))


def to_ncnn(module: nn.Module, spec: InputSpec, path: Path, half: bool = False) -> None:
    """Write (3, H, W) normalised float32 to (C,) logits as ncnn's files.

    Args:
        module: on any device; it is not changed.
        spec: its input.
        path: the ``.param``; the weights go to a ``.bin`` beside it.
        half: weights in float16.

    Raises:
        TutelageError: a layer cannot be traced, or has no counterpart in ncnn; it is named.
    """
    twin = copy.deepcopy(module).cpu().float().eval().to(memory_format=torch.contiguous_format)
    _separate_attention(twin)
    shape = (1, 3, spec.height, spec.width)
    with TemporaryDirectory(prefix="tutelage-") as name:  # pnnx writes further files beside the model
        folder = Path(name)
        try:
            with quiet(), torch.no_grad():
                torch.jit.trace(twin, torch.zeros(shape), check_trace=False).save(folder / "model.pt")
        except Exception as error:  # the tracer's have no common base
            raise _refused(module, one_line(error)) from None
        log = _run_pnnx(module, folder, shape, half)
        param, weights = folder / "model.ncnn.param", folder / "model.ncnn.bin"
        if not (param.is_file() and weights.is_file()):
            raise _refused(module, log[-1] if log else "pnnx wrote no file")
        text = param.read_text(encoding="utf-8")
        unknown = _unknown_layers(text)
        if unknown:
            said = next((f"; pnnx: {line}" for line in log if "unsupported" in line), "")
            raise _refused(module, f"no layer of ncnn's for {', '.join(unknown)}{said}")
        path.write_text(_with_input_shape(text, spec), encoding="utf-8")
        path.with_suffix(".bin").write_bytes(weights.read_bytes())


def _run_pnnx(module: nn.Module, folder: Path, shape: tuple[int, ...], half: bool) -> list[str]:
    """Convert ``model.pt`` in a folder.

    Returns:
        The lines that pnnx printed.
    """
    pnnx: Any = importlib.import_module("pnnx")
    sizes = ",".join(map(str, shape))
    done = subprocess.run(
        [pnnx.EXEC_PATH, "model.pt", f"inputshape=[{sizes}]f32", f"fp16={int(half)}"],
        cwd=folder,
        capture_output=True,
        text=True,
        errors="replace",
    )
    lines = [" ".join(line.split()) for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    if done.returncode < 0:
        raise _refused(module, f"pnnx ended by {signal.Signals(-done.returncode).name}")
    if done.returncode:
        raise _refused(module, lines[-1] if lines else f"pnnx ended with code {done.returncode}")
    return lines


def _unknown_layers(param: str) -> list[str]:
    """Return the kinds of layers in a ``.param`` that ncnn does not have: operations that pnnx could not convert."""
    ncnn: Any = importlib.import_module("ncnn")
    kinds = dict.fromkeys(line.split()[0] for line in param.splitlines()[2:] if line.strip())
    return [kind for kind in kinds if ncnn.layer_to_index(kind) < 0]


def _with_input_shape(param: str, spec: InputSpec) -> str:
    """Write the size of the image into the line of the input, which pnnx leaves out."""
    return re.sub(
        r"^(Input\s.*?)\s*$", rf"\1 0={spec.width} 1={spec.height} 2=3", param, count=1, flags=re.MULTILINE
    )


def _separate_attention(module: nn.Module) -> None:
    """Let timm's attention layers split their queries, keys and values before they split the heads.

    timm reshapes them to five dimensions, for which ncnn has no layer. The values are the same.
    """
    for layer in module.modules():
        if type(layer) is Attention and getattr(layer, "gate", None) is None:
            layer.forward = MethodType(_attend, layer)  # type: ignore[method-assign]


def _attend(layer: Any, tokens: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
    """As `Attention.forward` in inference: tokens (B, N, D) to (B, N, D)."""
    batch, count, _ = tokens.shape
    query, key, value = (
        part.reshape(batch, count, layer.num_heads, layer.head_dim).transpose(1, 2)
        for part in layer.qkv(tokens).chunk(3, dim=-1)
    )
    found = nn.functional.scaled_dot_product_attention(
        layer.q_norm(query), layer.k_norm(key), value, attn_mask=attn_mask, is_causal=is_causal
    )
    projected: Tensor = layer.proj(layer.norm(found.transpose(1, 2).flatten(2)))
    return projected


def _refused(module: nn.Module, why: str) -> TutelageError:
    return TutelageError(
        f"{type(module).__name__}: cannot be converted to ncnn ({why[:200]}); deploy another architecture"
    )
