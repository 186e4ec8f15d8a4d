"""ExecuTorch: its files, how they are run, and the operations that it refuses. CI does not install it."""

import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.deploy.conftest import DATA
from tests.helpers.architectures import SIX
from tests.helpers.fitted import fit
from torch import Tensor, nn

from tutelage.core.errors import TutelageError
from tutelage.data.loading import eval_loader, normalise
from tutelage.data.sources.synthetic import Synthetic
from tutelage.data.splits import Splits, make_splits, whole
from tutelage.deploy.build import Material, build
from tutelage.deploy.export import DeployReport, export_model
from tutelage.deploy.formats.making import require
from tutelage.deploy.manifest import Manifest
from tutelage.deploy.predictor import Predictor
from tutelage.deploy.runtimes import executorch as runtime
from tutelage.deploy.runtimes.registry import open_session
from tutelage.models.registry import load_model
from tutelage.models.source import Model

ABSENT = "needs the extra `executorch`, which CI does not install"
FORMAT = ("executorch",)


@pytest.fixture(scope="module")
def installed() -> None:
    pytest.importorskip("executorch.runtime", reason=ABSENT)


@pytest.fixture(scope="module")
def splits() -> Splits:
    return make_splits(DATA)


@pytest.fixture(scope="module")
def model(installed: None, splits: Splits, tmp_path_factory: pytest.TempPathFactory) -> Model:
    weights = tmp_path_factory.mktemp("executorch") / "student.safetensors"
    return load_model(fit("test_efficientnet", splits.train, weights, epochs=8))


@pytest.fixture(scope="module")
def report(model: Model, splits: Splits, tmp_path_factory: pytest.TempPathFactory) -> DeployReport:
    out = tmp_path_factory.mktemp("executorch") / "deploy"
    return export_model(
        model, out, calibration=splits.train, test=splits.test, max_drop=5, provenance={"run": "digits"},
        formats=FORMAT,
    )  # fmt: skip


def test_the_files_pass_the_checks(report: DeployReport) -> None:
    assert report.rejected == report.missing == {}
    exact, int8 = report.checks
    assert exact.parity.difference < 1e-3
    assert exact.parity.agreement == 100
    assert exact.row.top1 is not None
    assert exact.row.top1 > 60
    assert int8.parity.difference > 0
    sizes = [(report.directory / name).stat().st_size for name in ("model.pte", "model-int8.pte")]
    assert sizes[1] < 0.45 * sizes[0]


def test_a_file_carries_its_manifest_and_no_path_of_this_machine(report: DeployReport) -> None:
    import executorch.runtime

    expected = Manifest.read(report.directory).properties()
    for name in ("model.pte", "model-int8.pte"):
        program = executorch.runtime.Runtime.get().load_program(report.directory / name)
        assert {key: program.load_method(key).execute([])[0] for key in expected} == expected
        content = (report.directory / name).read_bytes()
        assert b"site-packages" not in content
        assert str(Path(__file__).parents[2]).encode() not in content


@pytest.mark.filterwarnings("error")  # such as torch's, of arrays that cannot be written
def test_any_number_of_threads_and_images_give_pytorchs_logits(
    report: DeployReport, model: Model, splits: Splits
) -> None:
    images = normalise(
        next(iter(eval_loader(splits.test, [model.input_spec], 24, 0)))["images"][0], model.input_spec
    )
    with torch.inference_mode():
        truth = model.module(images).numpy()
    session = open_session(report.directory / "model.pte")
    given = images.numpy()
    given.flags.writeable = False
    np.testing.assert_allclose(session(given), truth, atol=1e-3)
    assert session(given[:0]).shape == (0, 10)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda place: session(given[place : place + 1])[0], [*range(24)] * 4))
    np.testing.assert_allclose(np.stack(found), np.concatenate([truth] * 4), atol=1e-3)


def test_the_predictor_runs_the_file_that_is_asked_for(report: DeployReport) -> None:
    pixels = np.full((40, 40, 3), 128, np.uint8)
    exact = Predictor(report.directory, runtime="executorch", precision="fp32")
    assert exact.file.name == "model.pte"
    assert exact(pixels)[0].label in "0123456789"
    assert Predictor(report.directory, precision="int8").file.name == "model-int8.pte"


@pytest.mark.parametrize("content", [b"", b"no program" * 200, None])
def test_a_damaged_file_is_one_line(
    content: bytes | None, report: DeployReport, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    whole = (report.directory / "model.pte").read_bytes()
    path = tmp_path / "model.pte"
    path.write_bytes(whole[: len(whole) // 2] if content is None else content)
    with pytest.raises(TutelageError, match=r"model\.pte: damaged model file \(.+\); export again"):
        open_session(path)
    assert capfd.readouterr().err == ""


def test_the_pool_of_threads_is_never_replaced_under_a_file_that_is_open(
    report: DeployReport, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next call of that file would end the process."""
    from executorch.extension.pybindings import portable_lib

    sizes: list[int] = []
    monkeypatch.setattr(portable_lib, "_unsafe_reset_threadpool", sizes.append)
    monkeypatch.setattr(runtime, "_pool_is_used", False)
    other = portable_lib._threadpool_get_thread_count() + 1
    for threads in (other, other + 1, None):
        open_session(report.directory / "model.pte", threads=threads)
    assert sizes == [other]


class Net(nn.Module):
    num_classes = 4

    def forward(self, images: Tensor) -> Tensor:
        raise NotImplementedError


class Branching(Net):
    def forward(self, images: Tensor) -> Tensor:
        return images.mean((2, 3)) if float(images.sum()) > 0 else images.amax((2, 3))


class Inverting(Net):
    def forward(self, images: Tensor) -> Tensor:
        return torch.linalg.inv(images).mean((2, 3))


class Fourier(Net):
    def forward(self, images: Tensor) -> Tensor:
        return torch.fft.fft(images).abs().mean((2, 3))


class Sorting(Net):
    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(2).sort(-1)[0][..., 0]


@pytest.mark.parametrize(
    ("net", "operation"),
    [
        (Sorting(), "its runtime has no aten::sort.values)"),
        (Branching(), "data-dependent"),
        (Inverting(), "aten.linalg_inv_ex.default is not in Core ATen opset)"),
        (Fourier(), "aten::abs"),
    ],
)
def test_what_cannot_be_lowered_is_refused_with_the_operation(
    net: nn.Module, operation: str, installed: None, tmp_path: Path
) -> None:
    model = load_model("test_efficientnet@none", num_classes=3).at(32)
    with pytest.raises(TutelageError) as raised:
        build(replace(model, module=net.eval()), tmp_path, None, formats=FORMAT)
    line = str(raised.value)
    assert operation in line
    assert "\n" not in line
    assert list(tmp_path.iterdir()) == []


class Clamped(Net):
    """Before its ReLU6, one channel has a range of thousands."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.clamp = nn.Conv2d(3, 4, 1), nn.ReLU6(inplace=True)
        with torch.no_grad():
            self.layer.weight.zero_()
            self.layer.weight[:3, :, 0, 0] = torch.eye(3)
            self.layer.weight[3, 0, 0, 0] = -1000

    def forward(self, images: Tensor) -> Tensor:
        return self.clamp(self.layer(images)).mean((2, 3))


def test_the_range_of_a_layer_with_relu6_is_measured_after_the_clamp(installed: None, tmp_path: Path) -> None:
    net = Clamped().eval()
    model = replace(load_model("test_efficientnet@none", num_classes=4).at(32), module=net)
    build(model, tmp_path, Material(whole(Synthetic(16))), formats=FORMAT)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        truth = net(images).numpy()
    # with the range before the clamp, a step is about 20
    np.testing.assert_allclose(open_session(tmp_path / "model-int8.pte")(images.numpy()), truth, atol=0.05)


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "executorch.runtime", None)
    with pytest.raises(TutelageError, match=r"ExecuTorch needs executorch\.runtime.*tutelage\[executorch\]"):
        require([runtime.RUNTIME])


@pytest.mark.slow
@pytest.mark.parametrize("name", SIX)
def test_six_architectures_are_converted_and_agree(name: str, installed: None, tmp_path: Path) -> None:
    torch.manual_seed(0)
    found: Any = export_model(load_model(f"{name}@none"), tmp_path / "out", formats=FORMAT)
    assert found.missing == found.rejected == {}
    assert [one.variant.file for one in found.checks] == ["model.pte", "model-int8.pte"]
