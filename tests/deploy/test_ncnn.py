"""Files for ncnn: made by pnnx, run by ncnn, and refused with the operation's name where there is no layer for it."""

import copy
import json
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from tests.helpers.architectures import SIX_SMALL, network
from tests.helpers.command_line import call
from torch import Tensor, nn

from tutelage.core.errors import TutelageError
from tutelage.data.input_spec import InputSpec
from tutelage.deploy.container import write_dockerfile
from tutelage.deploy.predictor import Predictor
from tutelage.deploy.runtimes.registry import open_session

pnnx = pytest.importorskip("pnnx", reason="needs the extra `ncnn`")
pytest.importorskip("ncnn", reason="needs the extra `ncnn`")

from tutelage.deploy.formats.ncnn import to_ncnn  # noqa: E402

SMALL = InputSpec(32, 32)


class Tiny(nn.Module):
    """A convolution, an attention layer of timm's, and a head of four classes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 8, 8)
        self.attention = timm.layers.Attention(16, num_heads=2, qkv_bias=True)
        self.head = nn.Linear(16, 4)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.stem(images).flatten(2).transpose(1, 2)
        return self.head(self.attention(tokens).mean(1))


def tiny() -> nn.Module:
    torch.manual_seed(0)
    return Tiny().eval()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ncnn")
    to_ncnn(tiny(), SMALL, folder / "model.ncnn.param")
    to_ncnn(tiny(), SMALL, folder / "model-fp16.ncnn.param", half=True)
    return folder


def logits(module: nn.Module, images: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return module(torch.from_numpy(images)).numpy()


def noise(count: int, spec: InputSpec = SMALL) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((count, 3, spec.height, spec.width), dtype=np.float32)


def test_logits_are_pytorchs_for_any_batch(files: Path) -> None:
    images = noise(5)
    wanted = logits(tiny(), images)
    session = open_session(files / "model.ncnn.param", threads=1)
    assert session.num_classes == 4
    np.testing.assert_allclose(session(images), wanted, atol=1e-5)
    np.testing.assert_allclose(session(images[:, :, :, ::-1][:, :, :, ::-1]), wanted, atol=1e-5)  # strided
    half = open_session(files / "model-fp16.ncnn.param", arithmetic="f16")(images)
    assert 1e-6 < np.abs(half - wanted).max() < 0.01


def test_float16_takes_half_the_space(files: Path) -> None:
    whole, half = ((files / f"{name}.ncnn.bin").stat().st_size for name in ("model", "model-fp16"))
    assert half < 0.55 * whole


def test_threads_share_a_session(files: Path) -> None:
    session, images = open_session(files / "model.ncnn.param", threads=1), noise(40)
    wanted = session(images)
    with ThreadPoolExecutor(8) as pool:
        found = np.concatenate(list(pool.map(lambda image: session(image[None]), images)))
    np.testing.assert_array_equal(found, wanted)


def test_the_network_is_not_changed_and_nothing_is_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    net = tiny().train()
    before = copy.deepcopy(net.state_dict())
    to_ncnn(net, SMALL, Path("model.ncnn.param"))
    assert {path.name for path in tmp_path.iterdir()} == {"model.ncnn.param", "model.ncnn.bin"}
    assert "forward" not in vars(net.attention)
    assert net.training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


# --- what is refused


class Spectrum(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return torch.fft.rfft2(images).abs().mean((2, 3))


class Untraceable(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        if images.is_leaf:
            raise ValueError("no\ntrace")
        return images


@pytest.mark.parametrize(
    ("net", "cause"), [(Spectrum(), "no layer of ncnn's for torch.fft.rfft2"), (Untraceable(), "no trace")]
)
def test_what_cannot_be_converted_is_one_line_with_the_operation(
    net: nn.Module, cause: str, tmp_path: Path
) -> None:
    with pytest.raises(TutelageError) as raised:
        to_ncnn(net.eval(), SMALL, tmp_path / "model.ncnn.param")
    line = str(raised.value)
    assert line.startswith(f"{type(net).__name__}: cannot be converted to ncnn (")
    assert cause in line
    assert "\n" not in line
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(sys.platform == "win32", reason="a shell script stands in for pnnx")
@pytest.mark.parametrize(
    ("script", "cause"),
    [
        ("echo loading; echo 'broken  pipe' >&2; exit 3", "(broken pipe)"),
        ("kill -SEGV $$", "(pnnx ended by SIGSEGV)"),
        ("echo done", "(done)"),
    ],
)
def test_an_error_of_pnnx_is_passed_on(
    script: str, cause: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = tmp_path / "pnnx"
    fake.write_text(f"#!/bin/sh\n{script}\n")
    fake.chmod(0o755)
    monkeypatch.setattr(pnnx, "EXEC_PATH", str(fake))
    with pytest.raises(TutelageError, match="cannot be converted to ncnn") as raised:
        to_ncnn(tiny(), SMALL, tmp_path / "model.ncnn.param")
    assert cause in str(raised.value)


def cut(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


@pytest.mark.parametrize(
    ("damage", "line"),
    [
        (lambda param: param.with_suffix(".bin").unlink(), "model.ncnn.bin: missing; it belongs to"),
        (lambda param: cut(param.with_suffix(".bin"), 500), "model.ncnn.bin: damaged model file"),
        (lambda param: cut(param, 300), "model.ncnn.param: damaged model file (it ends early)"),
        (lambda param: cut(param, 0), "model.ncnn.param: damaged model file (no size of an input"),
        (lambda param: param.write_text("7767517\nx y\nz\n"), "(no size of an input"),
        (lambda param: param.write_text(param.read_text().replace(" 2=3", "", 1)), "(no size of an input"),
    ],
)
def test_damaged_files_are_named(damage: object, line: str, files: Path, tmp_path: Path) -> None:
    for end in ("param", "bin"):
        shutil.copy(files / f"model.ncnn.{end}", tmp_path)
    damage(tmp_path / "model.ncnn.param")  # type: ignore[operator]
    with pytest.raises(TutelageError) as raised:
        open_session(tmp_path / "model.ncnn.param")
    assert line in str(raised.value)
    assert "\n" not in str(raised.value)


# --- the command


def test_export_and_predict_need_no_images_to_calibrate_on(tmp_path: Path) -> None:
    torch.manual_seed(0)
    weights = tmp_path / "net.safetensors"
    save_file(timm.create_model("test_efficientnet", num_classes=4).state_dict(), weights)
    out = tmp_path / "out"
    assert call("export", f"test_efficientnet@{weights}", "--format", "ncnn", "--out", str(out)) == 0
    report = json.loads((out / "deploy.json").read_text())
    assert [check["file"] for check in report["checks"]] == ["model.ncnn.param", "model-fp16.ncnn.param"]
    origin = json.loads((out / "preprocess.json").read_text())["provenance"]
    assert {"ncnn", "pnnx"} <= origin.keys()
    assert "nncf" not in origin
    Image.new("RGB", (60, 40), "teal").save(tmp_path / "teal.png")
    whole, half = (Predictor(out, precision=p)(tmp_path / "teal.png")[0] for p in ("fp32", "fp16"))
    assert half.label == whole.label
    assert 0 < abs(half.probability - whole.probability) < 1e-3


def test_a_container_for_the_files_has_ncnn(files: Path, tmp_path: Path) -> None:
    pytest.importorskip("fastapi", reason="needs the extra `serve`")
    (tmp_path / "preprocess.json").touch()
    text = write_dockerfile(tmp_path, files / "model.ncnn.param").read_text()
    assert f"ncnn=={metadata.version('ncnn')}" in text
    assert "onnxruntime" not in text


# --- real architectures


@pytest.mark.slow
@pytest.mark.parametrize("name", SIX_SMALL)
def test_six_architectures_agree(name: str, tmp_path: Path) -> None:
    net, spec = network(name)
    images = noise(4, spec)
    wanted = logits(net, images)
    scale = np.abs(wanted).max()
    for half, bound in ((False, max(1e-3, 1e-4 * scale)), (True, 0.02 * scale)):
        to_ncnn(net, spec, tmp_path / "model.ncnn.param", half)
        found = open_session(tmp_path / "model.ncnn.param", arithmetic="f16" if half else "f32")(images)
        assert np.abs(found - wanted).max() < bound
        np.testing.assert_array_equal(found.argmax(1), wanted.argmax(1))
