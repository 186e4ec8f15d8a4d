"""Networks that PyTorch's exporter cannot follow as they are, and weights that do not fit into one file."""

from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from tests.helpers.architectures import SIX
from torch import Tensor, nn

from tutelage.core.errors import TutelageError
from tutelage.data.input_spec import InputSpec
from tutelage.deploy import convert, quantise
from tutelage.deploy.formats.making import require
from tutelage.deploy.manifest import Manifest
from tutelage.deploy.runtimes.registry import RUNTIMES, files_of, open_session
from tutelage.models.registry import load_model

pytest.importorskip("nncf", reason="needs the extra `deploy`")
require(RUNTIMES[:2])


def saved(module: nn.Module, spec: InputSpec, path: Path) -> Path:
    names = tuple(map(str, range(4)))
    convert.save_onnx(convert.to_onnx(module, spec), path, Manifest("net", spec, names, names))
    return path


def agree(module: nn.Module, spec: InputSpec, path: Path) -> None:
    images = torch.randn(3, 3, spec.height, spec.width)
    with torch.no_grad():
        wanted = module(images).numpy()
    assert np.abs(open_session(path)(images.numpy()) - wanted).max() < 1e-4 * max(1, np.abs(wanted).max())


@pytest.mark.slow
@pytest.mark.parametrize("name", SIX)
def test_six_architectures_are_exported_and_agree(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = load_model(f"{name}@none")
    network, spec = model.module.eval(), model.input_spec
    labels = tuple(map(str, range(model.num_classes)))
    manifest = Manifest(name, spec, labels, labels)
    convert.save_onnx(convert.to_onnx(network, spec), tmp_path / "model.onnx", manifest)
    convert.save_openvino(convert.to_openvino(tmp_path / "model.onnx"), tmp_path / "model.xml", manifest)
    for file in ("model.onnx", "model.xml"):
        agree(network, spec, tmp_path / file)


class Attention(nn.Module):
    """Attention as timm has it; fused, it holds what the exporter refuses."""

    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.fused_attn = fused
        self.head = nn.Linear(3, 4)

    def forward(self, images: Tensor) -> Tensor:
        tokens = images.flatten(2).transpose(1, 2)
        if self.fused_attn:
            if float(tokens.detach().sum()) > 1e30:  # a branch on data
                tokens = tokens * 0
            tokens = nn.functional.scaled_dot_product_attention(tokens, tokens, tokens)
        else:
            tokens = (tokens @ tokens.transpose(1, 2) * 3**-0.5).softmax(-1) @ tokens
        return self.head(tokens.mean(1))


def test_attention_that_cannot_be_exported_is_unfused_in_the_copy(tmp_path: Path) -> None:
    module, spec = Attention(fused=True).eval(), InputSpec(8, 8)
    agree(module, spec, saved(module, spec, tmp_path / "model.onnx"))
    assert module.fused_attn


@pytest.mark.slow
@pytest.mark.parametrize("name", ["nest_tiny", "hiera_tiny_224"])
def test_timms_networks_with_fused_attention_are_exported(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = load_model(f"{name}@none", num_classes=4)
    agree(model.module, model.input_spec, saved(model.module, model.input_spec, tmp_path / "model.onnx"))


class Branching(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.mean((2, 3)) if float(images.sum()) > 0 else images.amax((2, 3))


def test_what_cannot_be_exported_is_one_line_with_the_cause() -> None:
    with pytest.raises(TutelageError) as raised:
        convert.to_onnx(Branching(), InputSpec(8, 8))
    line = str(raised.value)
    assert line.startswith("Branching: cannot be exported to ONNX (")
    assert "data-dependent" in line
    assert not {"\n", "\x1b"} & set(line)


def test_large_weights_lie_beside_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convert, "EMBEDDED", 1000)
    model = load_model("test_efficientnet@none", num_classes=4).at(32)
    for _ in range(2):  # again, over the file that is there
        path = saved(model.module, model.input_spec, tmp_path / "model.onnx")
        assert files_of(path) == (path, tmp_path / "model.onnx.data")
        assert path.stat().st_size < 200_000 < (tmp_path / "model.onnx.data").stat().st_size < 2_000_000
        agree(model.module, model.input_spec, path)
    convert.save_openvino(
        convert.to_openvino(path), tmp_path / "model.xml", Manifest("net", model.input_spec, (), ())
    )
    agree(model.module, model.input_spec, tmp_path / "model.xml")


def test_a_network_of_any_size_is_run_while_it_is_quantised(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bytes of a protobuf end at 2 GiB, so that it is not made of them."""
    monkeypatch.setattr(convert, "EMBEDDED", 1000)
    model = load_model("test_efficientnet@none", num_classes=4).at(32)
    proto = convert.to_onnx(model.module, model.input_spec)
    images = torch.randn(3, 3, 32, 32)
    original = type(proto).SerializeToString

    def limited(self: Any) -> bytes:
        content: bytes = original(self)
        if len(content) > 200_000:
            raise ValueError("exceeds the maximum")
        return content

    with patch.object(type(proto), "SerializeToString", limited):
        with pytest.raises(ValueError, match="exceeds"):
            proto.SerializeToString()
        found = quantise._runner(proto)(images.numpy())
    with torch.no_grad():
        assert np.abs(found - model.module(images).numpy()).max() < 1e-4


def test_small_weights_lie_in_the_file(tmp_path: Path) -> None:
    model = load_model("test_efficientnet@none", num_classes=4).at(32)
    saved(model.module, model.input_spec, tmp_path / "model.onnx")
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]
