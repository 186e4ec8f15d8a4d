"""Files for Core ML: made and inspected anywhere, run on macOS only."""

import copy
import json
import shutil
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from tests.helpers.architectures import SIX_SMALL, network
from tests.helpers.command_line import call
from torch import Tensor, nn

from tutelage.core.errors import TutelageError
from tutelage.data.input_spec import InputSpec
from tutelage.deploy.manifest import Manifest
from tutelage.deploy.predictor import Predictor
from tutelage.deploy.runtimes import coreml
from tutelage.deploy.runtimes.registry import files_of, open_session

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    coremltools = pytest.importorskip("coremltools", reason="needs the extra `coreml`")

from tutelage.deploy.formats import coreml as maker
from tutelage.deploy.formats.coreml import to_coreml

SMALL = InputSpec(160, 160)  # the network's own
SHAPE = (1, 3, 160, 160)
elsewhere = pytest.mark.skipif(sys.platform == coreml.MACOS, reason="macOS runs the files")


def manifest(spec: InputSpec = SMALL) -> Manifest:
    return Manifest("net", spec, tuple("abcd"), tuple("abcd"))


def tiny() -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model("test_efficientnet", num_classes=4).eval()


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("coreml") / "model.mlpackage"
    net = tiny().train()
    before = copy.deepcopy(net.state_dict())
    to_coreml(net, SMALL, path, manifest())
    assert net.training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    return path


def test_the_specification_is_as_it_should_be(package: Path) -> None:
    assert coreml.RUNTIME.inspect(package, SHAPE, 4) == ""
    metadata = coremltools.utils.load_spec(str(package)).description.metadata.userDefined
    assert manifest().properties().items() <= dict(metadata).items()
    size = (package / coreml.WEIGHTS).stat().st_size
    assert size < 0.55 * sum(4 * value.numel() for value in tiny().parameters())  # weights in float16
    assert {file.name for file in package.parent.iterdir()} == {package.name}
    assert files_of(package) == (package,)


def half_of(weights: Path) -> None:
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])


def not_finite(weights: Path) -> None:
    content = bytearray(weights.read_bytes())
    begin = coreml.BLOB.unpack_from(content, 64)[3]  # of the first tensor
    content[begin : begin + 2] = np.float16(np.inf).tobytes()
    weights.write_bytes(bytes(content))


def unmarked(weights: Path) -> None:
    content = bytearray(weights.read_bytes())
    content[64:68] = bytes(4)
    weights.write_bytes(bytes(content))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (Path.unlink, "weight.bin ends before the weights that are at byte"),
        (half_of, "weight.bin"),
        (not_finite, "weight.bin has weights that are not finite at byte 64"),
        (unmarked, "weight.bin has no weights at byte 64"),
    ],
)
def test_weights_are_inspected(damage: Any, words: str, package: Path, tmp_path: Path) -> None:
    copied = shutil.copytree(package, tmp_path / package.name)
    damage(copied / coreml.WEIGHTS)
    assert words in coreml.RUNTIME.inspect(copied, SHAPE, 4)


def test_input_output_and_kind_are_inspected(package: Path, tmp_path: Path) -> None:
    assert "its input is {'image': (1, 3, 160, 160)}" in coreml.RUNTIME.inspect(package, (1, 3, 64, 64), 4)
    assert "its output is {'logits': (1, 4)}" in coreml.RUNTIME.inspect(package, SHAPE, 5)
    copied = shutil.copytree(package, tmp_path / package.name)
    (copied / "Data" / "com.apple.CoreML" / "model.mlmodel").write_bytes(b"\xff" * 9)
    assert "cannot be read" in coreml.RUNTIME.inspect(copied, SHAPE, 4)


class Spectrum(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return torch.special.bessel_j0(images).mean((2, 3))


class Branching(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.mean((2, 3)) if float(images.sum()) > 0 else images.amax((2, 3))


@pytest.mark.parametrize(("net", "cause"), [(Spectrum(), "bessel_j0"), (Branching(), "data-dependent")])
def test_what_cannot_be_converted_is_one_line_with_the_operation(
    net: nn.Module, cause: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(TutelageError) as raised:
        to_coreml(net, SMALL, tmp_path / "model.mlpackage", manifest())
    line = str(raised.value)
    assert line.startswith(f"{type(net).__name__}: cannot be converted to Core ML (")
    assert cause in line
    assert "\n" not in line
    assert not list(tmp_path.iterdir())
    assert capfd.readouterr() == ("", "")


@pytest.fixture
def weights(package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of the network of the package, which is not converted again."""
    monkeypatch.setattr(maker, "to_coreml", lambda net, spec, path, given: shutil.copytree(package, path))
    save_file(tiny().state_dict(), tmp_path / "net.safetensors")
    return tmp_path / "net.safetensors"


@elsewhere
def test_the_table_says_not_run_here_and_other_files_are_used(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("pnnx", reason="needs the extra `ncnn`")
    out = tmp_path / "out"
    words = ("export", f"test_efficientnet@{weights}", "--out", str(out))
    assert call(*words, "--format", "coreml", "--format", "ncnn") == 0
    shown = capsys.readouterr().out
    assert next(line for line in shown.splitlines() if "model.mlpackage" in line).endswith("not run here")
    report = json.loads((out / "deploy.json").read_text())
    assert [check["file"] for check in report["checks"]] == ["model.ncnn.param", "model-fp16.ncnn.param"]
    (unrun,) = report["not_run"]
    size = sum(file.stat().st_size for file in (out / "model.mlpackage").rglob("*") if file.is_file())
    assert unrun == {"role": "coreml", "file": "model.mlpackage", "size_mb": size / 2**20, "complaint": None}
    card = (out / "README.md").read_text()
    assert "`model.mlpackage`" in card
    assert "- coreml" in card
    assert Predictor(out).file.name == "model.ncnn.param"
    with pytest.raises(TutelageError, match=r"model\.mlpackage cannot be run on this machine"):
        Predictor(out, runtime="coreml")
    with pytest.raises(TutelageError, match="Core ML's files run on macOS only"):
        open_session(out / "model.mlpackage")


@elsewhere
def test_a_package_alone_that_fails_is_put_aside(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = ("export", f"test_efficientnet@{weights}", "--format", "coreml", "--out", str(out))
    assert call(*words) == 0
    assert (out / "model.mlpackage").is_dir()
    assert "No file passed the checks" not in (out / "README.md").read_text()
    monkeypatch.setattr(coreml, "MARK", 0)
    capsys.readouterr()
    assert call(*words) == 1
    told = capsys.readouterr()
    assert "rejected/model.mlpackage: weight.bin has no weights at byte" in told.err
    assert next(line for line in told.out.splitlines() if "model.mlpackage" in line).endswith("rejected")
    assert (out / "rejected" / "model.mlpackage").is_dir()
    assert not (out / "model.mlpackage").exists()
    assert "No file passed the checks" in (out / "README.md").read_text()


def test_a_session_gives_one_image_at_a_time(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in for Core ML, which is on macOS only."""
    spec = coremltools.utils.load_spec(str(package))

    class StandIn:
        def __init__(self, path: str) -> None:
            assert path == str(package)

        def get_spec(self) -> Any:
            return spec

        def predict(self, given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            (image,) = given["image"]
            return {"logits": np.full((1, 4), image.mean(), np.float16)}

    monkeypatch.setattr(coremltools, "models", SimpleNamespace(MLModel=StandIn))
    monkeypatch.setattr(coreml, "MACOS", sys.platform)
    session = open_session(package)
    assert session.num_classes == 4
    images = np.arange(3, dtype=np.float32)[:, None, None, None] * np.ones((1, 3, 160, 160), np.float32)
    found = session(images)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, np.arange(3)[:, None] * np.ones((1, 4)))


@pytest.mark.slow
@pytest.mark.parametrize("name", SIX_SMALL)
def test_six_architectures_are_converted(name: str, tmp_path: Path) -> None:
    net, spec = network(name)
    to_coreml(net, spec, tmp_path / "model.mlpackage", manifest(spec))
    assert coreml.RUNTIME.inspect(tmp_path / "model.mlpackage", (1, 3, spec.height, spec.width), 1000) == ""
