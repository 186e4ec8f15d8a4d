"""torchvision's classifiers as models."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.helpers.refusals import model_refusal as refusal
from torch import nn
from torchvision.models import get_model

from tutelage.data.input_spec import eval_pixels
from tutelage.models.registry import architecture, from_scratch, load_model
from tutelage.models.weights import save_weights

NAME = "torchvision:shufflenet_v2_x0_5"


def test_the_weights_own_transform_gives_the_input() -> None:
    """Evaluation pixels are those of torchvision's own transform."""
    import numpy as np
    from PIL import Image
    from torchvision.models import ResNet50_Weights
    from torchvision.transforms.functional import center_crop, resize

    spec = load_model("torchvision:resnet50@none", num_classes=2).input_spec  # V2: resize to 232, crop 224
    assert (spec.height, spec.interpolation) == (224, "bilinear")
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8))
    ours = ResNet50_Weights.DEFAULT.transforms()
    theirs = center_crop(resize(image, ours.resize_size, ours.interpolation), ours.crop_size)
    assert np.array_equal(eval_pixels(image, spec), np.asarray(theirs))


def test_files_random_weights_and_their_names(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = get_model("shufflenet_v2_x0_5", num_classes=7)
    torch.save({"state_dict": nn.DataParallel(network).state_dict()}, tmp_path / "theirs.pth")
    model = load_model(f"{NAME}@{tmp_path / 'theirs.pth'}")
    assert (model.num_classes, model.pretrained, model.class_ids) == (7, True, None)
    assert all(
        torch.equal(tensor, network.state_dict()[key]) for key, tensor in model.module.state_dict().items()
    )

    named = model.with_head(["a", "b", "c"])
    save_weights(named.module, tmp_path / "ours.safetensors", named.metadata())
    back = load_model(f"{NAME}@{tmp_path / 'ours.safetensors'}")
    assert (back.class_ids, back.input_spec) == (("a", "b", "c"), model.input_spec)

    random = load_model(f"{NAME}@none", num_classes=5, dropout=0.3)
    assert (random.num_classes, random.pretrained) == (5, False)
    assert architecture(f"{NAME}@none") == architecture(f"{NAME}@{tmp_path / 'theirs.pth'}") == NAME
    assert from_scratch(NAME) == f"{NAME}@none"


def test_an_imagenet_head_is_recognised_by_the_classes_of_the_data(tmp_path: Path) -> None:
    torch.save(get_model("shufflenet_v2_x0_5").state_dict(), tmp_path / "theirs.pth")
    model = load_model(f"{NAME}@{tmp_path / 'theirs.pth'}")
    assert model.class_ids is None
    assert model.recognised(["n01440764", "n01443537"]).class_ids is not None


def test_the_dropout_of_the_head_is_set_and_additional_classifiers_are_left_out() -> None:
    rates = [m.p for m in load_model("torchvision:mobilenet_v2@none", num_classes=3, dropout=0.4).module.modules()
             if isinstance(m, nn.Dropout)]  # fmt: skip
    assert rates == [0.4]
    network = load_model("torchvision:googlenet@none", num_classes=3).module.train()
    assert isinstance(network(torch.zeros(2, 3, 224, 224)), torch.Tensor)


def test_what_cannot_be_used_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert "did you mean 'resnet50'?" in refusal("torchvision:resnet51")
    assert "no such checkpoint file" in refusal(f"{NAME}@missing.pth")
    assert "write a name before the @" in refusal(f"{NAME}@")

    def unreachable(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr("torch.hub.download_url_to_file", unreachable)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    assert "cannot be fetched from https://" in refusal(NAME)
