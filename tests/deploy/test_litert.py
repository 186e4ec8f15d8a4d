"""LiteRT files: how they are run, and how they are made and quantised."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.helpers.architectures import SIX
from tests.helpers.litert_files import write_litert
from tests.helpers.litert_making import (
    CHANNELS,
    CLASSES,
    NAMES,
    RNG,
    SIDE,
    answers,
    made,
    needs_converter,
    pictures,
)
from torch import Tensor, nn

from tutelage.core.errors import TutelageError
from tutelage.core.litert import LiteRTFile
from tutelage.data.input_spec import InputSpec, eval_pixels, normalised
from tutelage.deploy.container import write_dockerfile
from tutelage.deploy.formats import litert, litert_int8
from tutelage.deploy.formats.making import Making, require
from tutelage.deploy.manifest import Manifest
from tutelage.deploy.predictor import Predictor
from tutelage.deploy.quantise import Pictures
from tutelage.deploy.runtimes.registry import open_session, runtimes_of
from tutelage.models.registry import load_model

# --- running files, which needs ai-edge-litert alone


def test_any_batch_size_and_many_threads(tmp_path: Path) -> None:
    weight = RNG.normal(0, 0.1, (CLASSES, 8 * 8 * 3)).astype(np.float32)
    path = write_litert(tmp_path / "model.tflite", weight, np.zeros(CLASSES, np.float32), 8)
    session = open_session(path, threads=1)
    assert session.num_classes == CLASSES
    batches = [RNG.normal(size=(1 + n % 5, 8, 8, 3)).astype(np.float32) for n in range(200)]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(session, batches))
    for images, found in zip(batches, answers, strict=True):
        np.testing.assert_allclose(found, images.reshape(len(images), -1) @ weight.T, atol=1e-4)


def test_a_damaged_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "model.tflite").write_bytes(b"\x00\x00\x00\x00TFL3" * 50)
    with pytest.raises(TutelageError, match="damaged model file") as raised:
        open_session(tmp_path / "model.tflite")
    assert "\n" not in str(raised.value)


def test_a_dockerfile_installs_the_files_runtime(tmp_path: Path) -> None:
    Manifest("net", InputSpec(8, 8), NAMES, NAMES).write(tmp_path)
    written = write_dockerfile(tmp_path, tmp_path / "model.tflite").read_text()
    assert f" ai-edge-litert=={metadata.version('ai-edge-litert')}" in written
    assert "torch" not in written


def test_what_makes_the_files_is_an_extra_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "litert_torch", None)
    with pytest.raises(TutelageError) as raised:
        require(runtimes_of(["litert"]))
    assert str(raised.value) == (
        "exporting to LiteRT needs litert_torch, which is not installed: "
        "run `pip install tutelage[litert-export]`"
    )


@pytest.mark.parametrize(
    ("message", "name"),
    [
        ("Type INT8 is currently not supported by Div.Node number 7 (DIV) failed to invoke.", "DIV"),
        ("x != y\nNode number 12 (BATCH_MATMUL) failed to prepare.\nFailed to apply", "BATCH_MATMUL"),
    ],
)
def test_the_operation_that_cannot_be_run_is_found_in_the_message(message: str, name: str) -> None:
    assert litert_int8.refused_operation(RuntimeError(message)) == name


# --- making them


@pytest.fixture(scope="module")
def converter() -> None:
    needs_converter()


class LinearAttention(nn.Module):
    """A depthwise net that divides activations by activations, as EfficientViT does."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, CHANNELS, 4, 4),
            nn.ReLU(),
            nn.Conv2d(CHANNELS, CHANNELS, 3, 1, 1, groups=CHANNELS),
            nn.ReLU(),
        )
        self.head = nn.Linear(CHANNELS, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        features = self.stem(images).flatten(2)
        shares = features / (features.sum(2, keepdim=True) + 1)
        return self.head((shares * features).sum(2))


@pytest.fixture(scope="module")
def files(converter: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Making, list[str]]:
    torch.manual_seed(0)
    module, said = LinearAttention().eval(), list[str]()
    making = made(module, tmp_path_factory.mktemp("litert"), InputSpec(SIDE, SIDE), pictures(), said)
    assert not making.failures
    return module, making, said


def test_float_and_int8_agree_with_the_network(files: tuple[nn.Module, Making, list[str]]) -> None:
    module, making, _ = files
    images = normalised(pictures(5).pixels, making.model.input_spec)
    with torch.no_grad():
        wanted = module(torch.from_numpy(images)).numpy()
    assert np.abs(answers(making, "model.tflite", images) - wanted).max() < 1e-5
    error = np.abs(answers(making, "model-int8.tflite", images) - wanted).max()
    assert 0 < error < 0.1 * np.abs(wanted).max()


def in_int8(content: bytes) -> set[str]:
    """The kinds of operations of a file that have an output in int8."""
    tools = importlib.import_module("ai_edge_litert.tools.flatbuffer_utils")
    schema = importlib.import_module("ai_edge_litert.schema_py_generated")
    model = tools.read_model_from_bytearray(bytearray(content))
    (graph,) = model.subgraphs
    return {
        tools.opcode_to_name(model, one.opcodeIndex)
        for one in graph.operators
        if graph.tensors[one.outputs[0]].type == schema.TensorType.INT8
    }


def test_an_operation_that_cannot_be_run_in_int8_stays_in_float(
    files: tuple[nn.Module, Making, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, making, said = files

    def refuse(self: litert_int8.Quantiser, content: bytes) -> None:
        if "DIV" in in_int8(content):
            raise RuntimeError("Type INT8 is not supported.Node number 3 (DIV) failed to prepare.")

    quantiser = litert_int8.Quantiser((making.directory / "model.tflite").read_bytes(), making)
    assert "DIV" in in_int8(quantiser._runnable(litert_int8.ALL))
    monkeypatch.setattr(litert_int8.Quantiser, "_run", refuse)
    assert "DIV" not in in_int8(quantiser._runnable(litert_int8.ALL))
    assert said[-1].startswith(
        "net: LiteRT: DIV stays in float, since LiteRT cannot have it in int8 (Type INT8"
    )


def crashing(kinds: set[str]) -> Callable[[litert_int8.Quantiser, bytes], None]:
    """A trial that ends as LiteRT does that crashes with any of these kinds in int8."""

    def crash(self: litert_int8.Quantiser, content: bytes) -> None:
        if kinds & in_int8(content):
            raise litert_int8.CrashError("LiteRT crashes with it, by signal 11")

    return crash


def test_an_operation_that_crashes_litert_is_found_and_stays_in_float(
    files: tuple[nn.Module, Making, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, making, said = files
    monkeypatch.setattr(litert_int8.Quantiser, "_run", crashing({"DIV"}))
    content = (making.directory / "model.tflite").read_bytes()
    found = in_int8(litert_int8.Quantiser(content, making)._runnable(litert_int8.ALL))
    assert "DIV" not in found
    assert {"MUL", "SUM", "FULLY_CONNECTED"} <= found
    assert said[-1].startswith("net: LiteRT: DIV stays in float, since LiteRT cannot have it in int8 (LiteRT")


def test_where_no_single_operation_crashes_litert_only_layers_are_in_int8(
    files: tuple[nn.Module, Making, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, making, said = files
    monkeypatch.setattr(litert_int8.Quantiser, "_run", crashing({"DIV", "MUL"}))
    content = (making.directory / "model.tflite").read_bytes()
    found = litert_int8.Quantiser(content, making).best()
    assert not {"DIV", "MUL"} & in_int8(found)
    assert len(found) < 0.6 * len(content)
    (line,) = [one for one in said if one.endswith("int8 of layers alone is tried")]
    assert "LiteRT crashes with it, by signal 11, whichever of TRANSPOSE, CONV_2D, " in line


def test_a_layer_that_crashes_litert_is_named_in_the_refusal(
    files: tuple[nn.Module, Making, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, making, _ = files
    monkeypatch.setattr(litert_int8.Quantiser, "_run", crashing({"DEPTHWISE_CONV_2D"}))
    content = (making.directory / "model.tflite").read_bytes()
    with pytest.raises(TutelageError, match=r"^DEPTHWISE_CONV_2D cannot be in int8"):
        litert_int8.Quantiser(content, making).best()


class PaddedPool(nn.Module):
    """The stem of a ResNet, whose max pooling pads by minus infinity."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, CHANNELS, 3, 2, 1), nn.Hardtanh(-1, 1), nn.MaxPool2d(3, 2, 1))
        self.head = nn.Linear(CHANNELS, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.stem(images).mean((2, 3)))


def test_a_max_pool_with_padding_is_in_int8(converter: None, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module, said = PaddedPool().eval(), list[str]()
    making = made(module, tmp_path, InputSpec(SIDE, SIDE), pictures(), said)
    assert not making.failures
    assert {"PADV2", "MAX_POOL_2D"} <= in_int8((tmp_path / "model-int8.tflite").read_bytes())
    images = normalised(pictures(5).pixels, making.model.input_spec)
    with torch.no_grad():
        wanted = module(torch.from_numpy(images)).numpy()
    assert np.abs(answers(making, "model-int8.tflite", images) - wanted).max() < 0.05 * np.abs(wanted).max()


def test_one_form_does_not_change_the_next_ones_ranges(
    files: tuple[nn.Module, Making, list[str]], converter: None, tmp_path: Path
) -> None:
    _, making, _ = files
    quantiser = litert_int8.Quantiser((making.directory / "model.tflite").read_bytes(), making)
    first = quantiser._quantised(litert_int8.LAYERS)
    quantiser._quantised(litert_int8.ALL)
    assert quantiser._quantised(litert_int8.LAYERS) == first


def test_a_file_is_tried_in_a_process_of_its_own(files: tuple[nn.Module, Making, list[str]]) -> None:
    _, making, _ = files
    content = (making.directory / "model.tflite").read_bytes()
    quantiser = litert_int8.Quantiser(content, making)
    quantiser._run(content)
    with pytest.raises(RuntimeError, match=r"(?i)model"):
        quantiser._run(content[:100])


class ClassToken(nn.Module):
    """A token before those of the image, as a ViT has it: ai-edge-quantizer cannot quantise the joining of both."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 1, 16))
        self.patch = nn.Conv2d(3, 16, 8, 8)
        self.head = nn.Linear(16, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.patch(images).flatten(2).transpose(1, 2)
        return self.head(torch.cat([self.token, tokens], 1).mean(1))


def test_an_operation_that_cannot_be_quantised_stays_in_float(converter: None, tmp_path: Path) -> None:
    torch.manual_seed(0)
    said = list[str]()
    making = made(ClassToken().eval(), tmp_path, InputSpec(SIDE, SIDE), pictures(), said)
    assert not making.failures
    assert [line.split(",")[0] for line in said if "stays" in line] == [
        "net: LiteRT: CONCATENATION stays in float"
    ]


def test_the_files_have_the_manifest_and_no_vector_twice(files: tuple[nn.Module, Making, list[str]]) -> None:
    tools = importlib.import_module("ai_edge_litert.tools.flatbuffer_utils")
    _, making, _ = files
    for name in ("model.tflite", "model-int8.tflite"):
        content = (making.directory / name).read_bytes()
        model = tools.read_model_from_bytearray(bytearray(content))
        noted = {
            entry.name.decode(): bytes(model.buffers[entry.buffer].data).decode() for entry in model.metadata
        }
        expected = {f"tutelage.{key}": value for key, value in making.manifest.properties().items()}
        assert expected.items() <= noted.items()
        (signature,) = model.signatureDefs
        assert (signature.inputs[0].name, signature.outputs[0].name) == (b"image", b"logits")
        weights = [bytes(buffer.data) for buffer in model.buffers if buffer.data is not None]
        places = [content.index(one) for one in weights if len(one) > 64]
        assert places
        assert all(place % 16 == 0 for place in places)
    zeros = np.zeros(CHANNELS, np.int64).tobytes()  # the zero points of a layer's channels
    assert content.count(zeros) == 1


def test_the_predictor_runs_them(files: tuple[nn.Module, Making, list[str]]) -> None:
    _, making, _ = files
    making.manifest.write(making.directory)
    picture, spec = Image.fromarray(pictures(1).pixels[0]), making.model.input_spec
    predictor = Predictor(making.directory, runtime="litert", precision="fp32")
    assert predictor.file.name == "model.tflite"
    images = normalised(eval_pixels(picture, spec), spec)[None]
    np.testing.assert_array_equal(predictor.logits(picture), answers(making, "model.tflite", images)[0])


class Branching(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.mean((2, 3)) if float(images.sum()) > 0 else images.amax((2, 3))


def test_what_cannot_be_converted_is_one_line_with_the_cause(converter: None) -> None:
    with pytest.raises(TutelageError) as raised:
        litert.to_litert(Branching(), InputSpec(SIDE, SIDE))
    line = str(raised.value)
    assert line.startswith("Branching: cannot be converted to LiteRT (")
    assert "data-dependent" in line
    assert not {"\n", "\x1b"} & set(line)


@pytest.mark.slow
@pytest.mark.parametrize("name", SIX)
def test_six_architectures_are_converted_and_agree(name: str, converter: None, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module, spec = (model := load_model(f"{name}@none", num_classes=CLASSES)).module.eval(), model.input_spec
    for part in module.modules():
        if isinstance(
            part, nn.GroupNorm
        ):  # timm's begin with 0 in some, and the converter leaves out what is times 0
            nn.init.ones_(part.weight)
    given = Pictures(
        RNG.integers(0, 256, (4, spec.height, spec.width, 3), dtype=np.uint8), np.zeros(4, np.int64)
    )
    making = made(module, tmp_path, spec, given, [])
    images = normalised(given.pixels, spec)
    with torch.no_grad():
        wanted = module(torch.from_numpy(images)).numpy()
    assert np.abs(answers(making, "model.tflite", images) - wanted).max() < 1e-3 * max(
        1, np.abs(wanted).max()
    )
    assert not making.failures
    assert np.isfinite(answers(making, "model-int8.tflite", images)).all()
    assert (tmp_path / "model-int8.tflite").stat().st_size < 0.4 * (tmp_path / "model.tflite").stat().st_size


def test_a_file_can_be_read_from_memory(tmp_path: Path) -> None:
    weight = RNG.normal(0, 0.1, (CLASSES, 8 * 8 * 3)).astype(np.float32)
    path = write_litert(tmp_path / "model.tflite", weight, np.zeros(CLASSES, np.float32), 8)
    image = RNG.normal(size=(1, 8, 8, 3)).astype(np.float32)
    np.testing.assert_array_equal(LiteRTFile(path.read_bytes())(image), LiteRTFile(path)(image))
