"""ONNX files as teachers."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from tests.helpers.onnx_files import Takes, write_onnx
from tests.helpers.refusals import model_refusal as refusal
from torch import Tensor

from tutelage.core.errors import TutelageError
from tutelage.data.input_spec import InputSpec
from tutelage.data.loading import normalise
from tutelage.models.digest import state_digest
from tutelage.models.registry import load_model
from tutelage.models.source import Model

NCHW = torch.zeros(1, 3, 32, 32)
MEAN, STD = InputSpec.mean, InputSpec.std


@pytest.fixture(scope="module")
def live() -> Model:
    torch.manual_seed(0)
    return load_model("test_resnet@none", num_classes=10).at(32)


@pytest.fixture
def pixels() -> Tensor:
    return torch.randint(
        0, 256, (5, 3, 32, 32), generator=torch.Generator().manual_seed(1), dtype=torch.uint8
    )


def logits(model: Model, pixels: Tensor) -> Tensor:
    with torch.no_grad():
        found: Tensor = model.module(normalise(pixels, model.input_spec, torch.device("cpu")))
    return found


def expected(live: Model, pixels: Tensor) -> Tensor:
    spec = InputSpec(32, 32, MEAN, STD)
    with torch.no_grad():
        found: Tensor = live.module(normalise(pixels, spec, torch.device("cpu")))
    return found


def test_the_input_is_described_by_metadata_a_file_beside_it_or_settings(
    live: Model, pixels: Tensor, tmp_path: Path
) -> None:
    plain = write_onnx(live.module, tmp_path / "plain.onnx", NCHW)
    assumed = load_model(f"onnx:{plain}")
    assert "ImageNet's are assumed" in assumed.origin
    torch.testing.assert_close(logits(assumed, pixels), expected(live, pixels), atol=1e-3, rtol=0)

    mean, std = [255 * x for x in MEAN], [255 * x for x in STD]
    settings = f"?range=[0,255]&mean={mean}&std={std}".replace(" ", "")
    torch.testing.assert_close(
        logits(load_model(f"onnx:{plain}{settings}"), pixels), expected(live, pixels), atol=1e-3, rtol=0
    )

    half = write_onnx(live.module, tmp_path / "half.onnx", NCHW, {"mean": "0.5", "std": "[0.5, 0.5, 0.5]"})
    assert load_model(f"onnx:{half}").input_spec == InputSpec(32, 32, (0.5,) * 3, (0.5,) * 3)
    (tmp_path / "preprocess.json").write_text(json.dumps({"mean": 0.25, "crop_pct": 1.0}))
    spec = load_model(f"onnx:{plain}").input_spec
    assert (spec.mean, spec.std, spec.crop_pct) == ((0.25,) * 3, (1.0,) * 3, 1.0)
    assert load_model(f"onnx:{half}").input_spec.mean == (0.5,) * 3  # the file's own words come first


@pytest.mark.parametrize("bgr", [False, True])
def test_another_layout_range_type_and_order_of_channels(
    live: Model, pixels: Tensor, tmp_path: Path, bgr: bool
) -> None:
    """A network that takes uint8 NHWC (as TensorFlow's do), blue first, and gives probabilities."""
    network = Takes(live.module, nhwc=True, bgr=bgr, scale=1 / 255, mean=MEAN, std=STD, softmax=True)
    path = write_onnx(network, tmp_path / "model.onnx", torch.zeros(1, 32, 32, 3, dtype=torch.uint8))
    model = load_model(f"onnx:{path}?channels={'bgr' if bgr else 'rgb'}")
    torch.testing.assert_close(
        logits(model, pixels).softmax(1), expected(live, pixels).softmax(1), atol=1e-3, rtol=0
    )
    torch.testing.assert_close(
        logits(model, pixels).exp().sum(1), torch.ones(5)
    )  # logarithms, of which KL is right


def test_blue_first_with_a_mean_for_each_channel(live: Model, pixels: Tensor, tmp_path: Path) -> None:
    """Mean and std are in the order of the file's channels."""
    path = write_onnx(Takes(live.module, bgr=True), tmp_path / "model.onnx", NCHW)
    mean, std = list(MEAN[::-1]), list(STD[::-1])
    model = load_model(f"onnx:{path}?channels=bgr&mean={mean}&std={std}".replace(" ", ""))
    torch.testing.assert_close(logits(model, pixels), expected(live, pixels), atol=1e-3, rtol=0)


def test_a_signed_input_without_a_scale_has_pixels_less_128(
    live: Model, pixels: Tensor, tmp_path: Path
) -> None:
    shifted = tuple(mean - 128 / 255 for mean in MEAN)
    network = Takes(live.module, scale=1 / 255, mean=shifted, std=STD)
    path = write_onnx(network, tmp_path / "model.onnx", NCHW.to(torch.int8))
    torch.testing.assert_close(
        logits(load_model(f"onnx:{path}"), pixels), expected(live, pixels), atol=1e-3, rtol=0
    )


def test_targets_are_cached_by_the_content_of_the_file(live: Model, tmp_path: Path) -> None:
    one = load_model(f"onnx:{write_onnx(live.module, tmp_path / 'a.onnx', NCHW)}")
    other = load_model(f"onnx:{write_onnx(Takes(live.module, scale=2.0), tmp_path / 'b.onnx', NCHW)}")
    again = copy.deepcopy(one.module)
    assert state_digest(one.module.state_dict()) == state_digest(again.state_dict())
    assert state_digest(one.module.state_dict()) != state_digest(other.module.state_dict())


def test_classes_come_from_a_list_or_the_metadata(live: Model, tmp_path: Path) -> None:
    names = [f"class {number}" for number in range(10)]
    path = write_onnx(live.module, tmp_path / "model.onnx", NCHW, {"class_ids": "\n".join(names)})
    assert load_model(f"onnx:{path}").class_ids == tuple(names)
    (tmp_path / "classes.txt").write_text("\n".join(reversed(names)))
    assert load_model(f"onnx:{path}?classes={tmp_path / 'classes.txt'}").class_ids == tuple(reversed(names))
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    assert "gives 10 logits, but there are 2 class_ids" in refusal(
        f"onnx:{path}?classes={tmp_path}/classes.txt"
    )
    with pytest.raises(TutelageError, match=r"write \?classes=FILE behind its name"):
        load_model(f"onnx:{path}", num_classes=3)


def test_what_cannot_be_used_is_refused_in_one_line(live: Model, tmp_path: Path) -> None:
    path = write_onnx(live.module, tmp_path / "model.onnx", NCHW)
    assert "there is no file" in refusal("onnx:missing.onnx")
    assert "unknown setting 'men'" in refusal(f"onnx:{path}?men=0.5")
    assert "give a number, or three" in refusal(f"onnx:{path}?mean=grey")
    assert "use RGB or BGR" in refusal(f"onnx:{path}?channels=cmyk")
    assert "with 32 channels, not 3" in refusal(f"onnx:{path}?layout=NHWC")
    (tmp_path / "noise.onnx").write_bytes(b"noise")
    assert "ONNX Runtime cannot open it" in refusal(f"onnx:{tmp_path / 'noise.onnx'}")
    with pytest.raises(TutelageError, match="images of 32 px alone"):
        load_model(f"onnx:{path}").at(64)
