"""LiteRT files with weights in 4 bits."""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.helpers.litert_making import CHANNELS, CLASSES, SIDE, answers, made, needs_converter, pictures
from torch import Tensor, nn

from tutelage.core.errors import TutelageError
from tutelage.core.recipe import parse_recipe
from tutelage.data.input_spec import InputSpec, normalised
from tutelage.deploy.command import export_named
from tutelage.deploy.formats import litert, litert_file, litert_int8
from tutelage.deploy.formats.making import Making
from tutelage.deploy.predictor import Predictor

SPEC = InputSpec(SIDE, SIDE)
WIDTH = 4 * CHANNELS


class HeadConvolution(nn.Module):
    """Ends as EfficientNets do: a convolution of 1x1 and ReLU, a pool, and the classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(nn.Conv2d(3, CHANNELS, 4, 4), nn.ReLU())
        self.conv_head = nn.Conv2d(CHANNELS, WIDTH, 1)
        self.classifier = nn.Linear(WIDTH, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.conv_head(self.blocks(images)).relu().mean((2, 3)))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Making, list[str]]:
    needs_converter()
    torch.manual_seed(0)
    module, said = HeadConvolution().eval(), list[str]()
    making = made(module, tmp_path_factory.mktemp("litert"), SPEC, pictures(), said, int4=True, max_drop=100)
    assert not making.failures
    return module, making, said


def in_4_bits(content: bytes) -> list[tuple[int, ...]]:
    """The shapes of the tensors of a file with 4 bits."""
    tools = importlib.import_module("ai_edge_litert.tools.flatbuffer_utils")
    schema = importlib.import_module("ai_edge_litert.schema_py_generated")
    (graph,) = tools.read_model_from_bytearray(bytearray(content)).subgraphs
    return sorted(tuple(one.shape) for one in graph.tensors if one.type == schema.TensorType.INT4)


def quantiser(making: Making) -> litert_int8.Quantiser:
    return litert_int8.Quantiser((making.directory / "model.tflite").read_bytes(), making)


def test_the_last_layers_have_4_bits(files: tuple[nn.Module, Making, list[str]]) -> None:
    module, making, said = files
    small, int8 = (making.directory / f"model-{name}.tflite" for name in ("int4", "int8"))
    assert in_4_bits(small.read_bytes()) == [(CLASSES, WIDTH), (WIDTH, 1, 1, CHANNELS)]
    assert not in_4_bits(int8.read_bytes())
    saved = WIDTH * (CLASSES + CHANNELS) / 2
    assert int8.stat().st_size - small.stat().st_size > 0.9 * saved
    images = normalised(pictures(5).pixels, SPEC)
    with torch.no_grad():
        wanted = module(torch.from_numpy(images)).numpy()
    assert 0 < np.abs(answers(making, small.name, images) - wanted).max() < 0.15 * np.abs(wanted).max()
    assert said[-1].startswith("net: LiteRT: 4 bits in the last FULLY_CONNECTED and CONV_2D lose ")


def test_the_predictor_names_them_int4(files: tuple[nn.Module, Making, list[str]]) -> None:
    _, making, _ = files
    making.manifest.write(making.directory)
    found = Predictor(making.directory, runtime="litert", precision="int4")
    assert found.file.name == "model-int4.tflite"
    assert Predictor(making.directory, runtime="litert", precision="int8").file.name == "model-int8.tflite"


def test_only_the_classifier_has_4_bits_where_both_lose_too_much(
    files: tuple[nn.Module, Making, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, making, said = files

    def lost(self: litert_int8.Quantiser, content: bytes) -> float:
        return 101.0 if len(in_4_bits(content)) == 2 else 0.0

    monkeypatch.setattr(litert_int8.Quantiser, "_lost", lost)
    assert in_4_bits(quantiser(making).small()) == [(CLASSES, WIDTH)]
    assert "CONV_2D lose 101.00 points" in said[-2]


def test_a_file_that_loses_too_much_is_not_made(
    files: tuple[nn.Module, Making, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, making, _ = files
    monkeypatch.setattr(litert_int8.Quantiser, "_lost", lambda self, content: 102.0)
    with pytest.raises(
        TutelageError, match=r"^4 bits in the last FULLY_CONNECTED lose 102\.00 points of top-1 on 12"
    ):
        quantiser(making).small()


def test_a_network_that_ends_with_a_convolution_has_no_such_file(
    files: tuple[nn.Module, Making, list[str]], tmp_path: Path
) -> None:
    net = nn.Sequential(nn.Conv2d(3, CLASSES, 4, 4), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    assert litert_file.last_layers(litert.to_litert(net, SPEC)) == ()


def test_tensors_have_the_short_names_of_their_modules(files: tuple[nn.Module, Making, list[str]]) -> None:
    _, making, _ = files
    tools = importlib.import_module("ai_edge_litert.tools.flatbuffer_utils")
    for file in making.directory.glob("*.tflite"):
        (graph,) = tools.read_model_from_bytearray(bytearray(file.read_bytes())).subgraphs
        names = [one.name.decode() for one in graph.tensors]
        assert len(set(names)) == len(names)
        assert not [one for one in names if "/" in one]
        assert {"blocks.0", "conv_head", "classifier"} <= set(names)


def test_it_needs_an_int8_file_of_litert() -> None:
    for others in ({"formats": ["onnx"]}, {"formats": ["litert"], "int8": False}):
        with pytest.raises(
            TutelageError, match=r"^--int4: it makes a smaller form of LiteRT's int8 file, and none"
        ):
            export_named("tf_efficientnet_lite0@none", changes={"int4": True, **others})
    with pytest.raises(TutelageError, match=r"export\.int4: it makes a smaller form"):
        parse_recipe({"export": {"int4": True}})
    assert parse_recipe({"export": {"int4": True, "formats": ["litert"]}}).export.int4
