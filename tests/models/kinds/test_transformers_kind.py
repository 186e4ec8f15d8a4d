"""Image classifiers of transformers as models, from folders: the hub is never asked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    ConvNextImageProcessor,
    MobileViTImageProcessor,
    ResNetConfig,
    ResNetForImageClassification,
    ResNetModel,
    ViTImageProcessor,
)

from tutelage.core.errors import TutelageError
from tutelage.data.input_spec import eval_pixels, normalised
from tutelage.distillation.probe import can_be_probed
from tutelage.models.class_mapping import align_heads
from tutelage.models.registry import load_model
from tutelage.models.weights import save_weights


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    names = {0: "cat", 1: "dog", 2: "owl"}
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], num_labels=3, id2label=names)
    ResNetForImageClassification(config).save_pretrained(tmp_path / "model")
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "model")
    (tmp_path / "model/README.md").write_text("---\nlicense: apache-2.0\ntags: [x]\n---\n# A model\n")
    return tmp_path / "model"


def test_its_own_processor_and_classes_are_used(folder: Path) -> None:
    """The logits are those that transformers gives for the pixels of the model's processor."""
    model = load_model(f"hf:{folder}")
    assert (model.class_ids, model.licence, model.pretrained) == (("cat", "dog", "owl"), "apache-2.0", True)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8))
    ours = torch.from_numpy(normalised(eval_pixels(image, model.input_spec), model.input_spec))[None]
    theirs = ViTImageProcessor.from_pretrained(folder)(image, return_tensors="pt")["pixel_values"]
    assert (ours - theirs).abs().mean() < 0.02  # the filters of Pillow and of tensors differ by a shade
    with torch.no_grad():
        expected = ResNetForImageClassification.from_pretrained(folder).eval()(ours).logits
        torch.testing.assert_close(model.module(ours), expected)


def test_crop_and_channels_of_other_processors(folder: Path) -> None:
    ConvNextImageProcessor(size={"shortest_edge": 56}, crop_pct=0.875).save_pretrained(folder)
    spec = load_model(f"hf:{folder}").input_spec
    assert (spec.height, spec.crop_pct, spec.crop_mode) == (56, 0.875, "center")
    plain = load_model(f"hf:{folder}").module
    size, crop = {"shortest_edge": 64}, {"height": 56, "width": 56}
    MobileViTImageProcessor(size=size, crop_size=crop, do_flip_channel_order=True).save_pretrained(folder)
    model = load_model(f"hf:{folder}")
    spec = model.input_spec
    assert (spec.height, spec.crop_pct, spec.mean, spec.std) == (56, 56 / 64, (0.0,) * 3, (1.0,) * 3)
    images = torch.rand(2, 3, 56, 56)
    with torch.no_grad():
        torch.testing.assert_close(model.module(images), plain(images.flip(1)))


def test_random_weights_and_those_that_a_run_saved(folder: Path, tmp_path: Path) -> None:
    random = load_model(f"hf:{folder}@none", num_classes=5)
    assert (random.num_classes, random.pretrained) == (5, False)
    named = load_model(f"hf:{folder}").with_head(["a", "b"])
    save_weights(named.module, tmp_path / "ours.safetensors", named.metadata())
    assert load_model(f"hf:{folder}@{tmp_path / 'ours.safetensors'}").class_ids == ("a", "b")


@pytest.mark.parametrize("name", ["nobody/no-such-model", "{}/empty"])
def test_a_model_that_cannot_be_had_gives_one_line(name: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(TutelageError, match="cannot be loaded from") as caught:
        load_model(f"hf:{name.format(tmp_path)}")
    assert "\n" not in str(caught.value)


def test_a_backbone_without_a_classifier_has_no_classes(folder: Path) -> None:
    """transformers draws a random head of two outputs, which is not taken for one of two classes."""
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1])
    ResNetModel(config).save_pretrained(folder)
    model = load_model(f"hf:{folder}")
    (teacher,), _, mapping = align_heads([model], model, ("cat", "dog"))
    assert (model.class_ids, mapping.new) == (None, {model.spec})
    assert can_be_probed(teacher)
    assert not teacher.module(torch.rand(1, 3, 32, 32)).any()  # a new head begins at zero
