"""Any module as a model: its logits, head, weights and input."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from tutelage.core.errors import TutelageError
from tutelage.data.input_spec import InputSpec
from tutelage.models.class_mapping import align_heads
from tutelage.models.registry import load_model
from tutelage.models.source import Model, with_channels_last
from tutelage.models.weights import save_weights

SPEC = InputSpec(16, 16, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


class Net(nn.Module):
    """A network with its head in the middle of its attributes."""

    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU())
        self.head = nn.ModuleDict({"norm": nn.LayerNorm(8), "last": nn.Linear(8, classes)})
        self.unused = nn.Linear(8, 9)

    def forward(self, images: Tensor) -> Tensor:
        return self.head["last"](self.head["norm"](self.stem(images).mean((2, 3))))


class Convolutional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 1, bias=False))

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images).mean((2, 3))


class Fixed(nn.Module):
    """Logits from no layer that could be replaced."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))

    def forward(self, images: Tensor) -> Tensor:
        return images.mean((2, 3)) * self.scale


def test_a_module_is_made_ready_and_its_logits_are_counted() -> None:
    module = Net().double()
    model = Model.of(module, input_spec=SPEC, name="net", class_ids=list("abcde"))
    assert model.module is module
    assert not module.training
    assert {p.dtype for p in module.parameters()} == {torch.float32}
    assert (model.spec, model.num_classes, model.class_ids, model.pretrained) == (
        "net",
        5,
        tuple("abcde"),
        True,
    )


def test_all_kernels_have_channels_last_in_memory_those_of_one_pixel_or_one_channel_too() -> None:
    """They fit both layouts, and a convolution takes the one that the strides say."""
    network = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 4, 3))
    wanted = copy.deepcopy(network).to(memory_format=torch.channels_last)
    with_channels_last(network)
    for own, other in zip(network, wanted, strict=True):
        assert own.weight.stride() == other.weight.stride()
        assert torch.equal(own.weight, other.weight)
    assert network[0].weight.stride() == (3, 1, 3, 3)


def test_a_module_of_timm_knows_its_input() -> None:
    model = Model.of(timm.create_model("test_resnet", num_classes=4))
    assert model.input_spec == load_model("test_resnet@none").input_spec
    assert model.with_head(["a", "b"]).num_classes == 2
    assert len(model.head_parameters()) == 2


@pytest.mark.parametrize(
    ("module", "options", "line"),
    [
        (
            Net(),
            {},
            "Net: which images it takes is unknown; give input_spec=InputSpec(height, width, mean, std)",
        ),
        (
            Net(),
            {"input_spec": SPEC, "class_ids": ["a"]},
            "gives 5 logits, but there are 1 class_ids; give 5",
        ),
        (
            nn.Conv2d(3, 4, 1),
            {"input_spec": SPEC},
            "gives a tensor of shape (2, 4, 16, 16) for images of shape",
        ),
        (nn.Linear(7, 2), {"input_spec": SPEC}, "Linear: does not take images of shape (B, 3, 16, 16) ("),
        (nn.LSTM(16, 2), {"input_spec": SPEC}, "LSTM: does not take"),
    ],
)
def test_a_module_that_is_no_classifier(module: nn.Module, options: dict, line: str) -> None:
    with pytest.raises(TutelageError) as caught:
        Model.of(module, **options)
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_no_tensor_is_named() -> None:
    class Answer(nn.Module):
        def forward(self, images: Tensor) -> dict:
            return {"logits": images}

    with pytest.raises(
        TutelageError, match=r"Answer: gives dict for .* wrap it in a module that returns the logits"
    ):
        Model.of(Answer(), input_spec=SPEC)


def test_a_new_head_keeps_everything_below_it() -> None:
    model = Model.of(Net(), input_spec=SPEC)
    before = {key: tensor.clone() for key, tensor in model.module.state_dict().items()}
    torch.manual_seed(1)
    new = model.with_head(["a", "b"])
    assert (new.num_classes, new.class_ids) == (2, ("a", "b"))
    after = new.module.state_dict()
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert changed == {"head.last.weight", "head.last.bias"}
    assert all(torch.equal(before[key], tensor) for key, tensor in model.module.state_dict().items())
    torch.manual_seed(1)
    assert torch.equal(model.with_head(2).module.state_dict()["head.last.weight"], after["head.last.weight"])


def test_a_convolution_may_be_the_head() -> None:
    model = Model.of(Convolutional(), input_spec=SPEC)
    assert [p.shape for p in model.head_parameters()] == [(4, 8, 1, 1)]
    assert model.with_head(6).module(torch.zeros(1, 3, 16, 16)).shape == (1, 6)
    lone = Model.of(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2)), input_spec=SPEC)
    assert lone.with_head(4).num_classes == 4


def test_head_parameters_are_those_of_the_layer_that_gives_the_logits() -> None:
    model = Model.of(Net(), input_spec=SPEC)
    assert {id(p) for p in model.head_parameters()} == {id(p) for p in model.module.head["last"].parameters()}
    ours = load_model("test_efficientnet@none")
    assert {id(p) for p in ours.head_parameters()} == {id(p) for p in ours.module.classifier.parameters()}


def test_two_heads_of_a_distilled_transformer_are_both_heads() -> None:
    model = load_model("deit_tiny_distilled_patch16_224@none", num_classes=3)
    assert [tuple(p.shape) for p in model.head_parameters()] == [(3, 192), (3,), (3, 192), (3,)]


def test_every_head_of_a_network_is_replaced_although_timm_names_one() -> None:
    model = load_model("levit_384_s8@none")
    new = model.with_head(7)
    assert [tuple(p.shape) for p in new.head_parameters() if p.ndim == 2] == [(7, 768), (7, 768)]
    kept = model.module.state_dict()
    changed = {key for key, value in new.module.state_dict().items() if not torch.equal(value, kept[key])}
    assert changed == {
        f"{head}.linear.{kind}" for head in ("head", "head_dist") for kind in ("weight", "bias")
    }


def test_an_encoder_without_a_head_is_refused_in_one_line() -> None:
    with torch.device("meta"):
        encoder = load_model("gemma4_vit_167m_enc@none")
        with pytest.raises(TutelageError, match="gemma4_vit_167m_enc@none: is an encoder that has no head"):
            encoder.with_head(7)


def test_a_network_with_a_three_dimensional_convolution_is_loaded() -> None:
    with torch.device("meta"):
        model = load_model("lambda_resnet26t@none")
    dims = {p.ndim for p in model.module.parameters()}
    assert 5 in dims
    assert all(
        p.is_contiguous(memory_format=torch.channels_last) for p in model.module.parameters() if p.ndim == 4
    )


def test_a_head_that_cannot_be_found_is_said_in_one_line() -> None:
    model = Model.of(Fixed(), input_spec=SPEC, name="fixed")
    with pytest.raises(TutelageError, match=r"^fixed: no linear layer .* give a module with 7 logits$"):
        model.with_head(7)
    with pytest.raises(TutelageError, match=r"^fixed: no linear layer .* train all of it"):
        model.head_parameters()


def test_heads_are_aligned_with_the_data() -> None:
    teacher = Model.of(Net(3), input_spec=SPEC, name="teacher", class_ids=["cat", "ant", "bee"])
    student = Model.of(Net(5), input_spec=SPEC, name="student")
    (first,), second, mapping = align_heads([teacher], student, ["ant", "bee", "cat"])
    assert first is teacher
    assert mapping.class_ids == ("cat", "ant", "bee")
    assert mapping.index.tolist() == [1, 2, 0]
    assert (second.class_ids, mapping.new) == (("cat", "ant", "bee"), {"student"})


def test_heads_that_match_the_data_are_replaced_where_that_is_asked_for() -> None:
    teacher = Model.of(Net(4), input_spec=SPEC, name="teacher", class_ids=["cat", "ant", "bee", "fly"])
    student = Model.of(Net(4), input_spec=SPEC, name="student", class_ids=["cat", "ant", "bee", "fly"])
    classes = ["ant", "bee", "cat"]
    (first,), second, mapping = align_heads([teacher], student, classes, new_teachers=True, new_student=True)
    assert (first.class_ids, second.class_ids, mapping.class_ids) == (tuple(classes),) * 3
    assert mapping.index.tolist() == [0, 1, 2]
    assert mapping.new == {"teacher", "student"}
    with pytest.raises(TutelageError, match="must have the same classes in the same order"):
        align_heads([teacher], student, classes, new_teachers=True, all_classes=True)


def test_a_head_with_more_classes_keeps_those_of_the_data() -> None:
    torch.manual_seed(0)
    teacher = Model.of(Net(4), input_spec=SPEC, name="teacher", class_ids=["cat", "ant", "bee", "fly"])
    student = Model.of(Net(4), input_spec=SPEC, name="student", class_ids=["fly", "bee", "ant", "cat"])
    images = torch.randn(3, 3, SPEC.height, SPEC.width)
    classes = ["ant", "bee", "cat"]
    (first,), second, mapping = align_heads([teacher], student, classes)
    assert (first.class_ids, second.class_ids, mapping.class_ids) == (tuple(classes),) * 3
    assert (mapping.new, mapping.cut) == (set(), {"teacher", "student"})
    torch.testing.assert_close(first.module(images), teacher.module(images)[:, [1, 2, 0]])
    torch.testing.assert_close(second.module(images), student.module(images)[:, [2, 1, 3]])
    (first,), second, mapping = align_heads([teacher], teacher, classes, all_classes=True)
    assert (first.class_ids, mapping.index.tolist(), mapping.cut) == (teacher.class_ids, [1, 2, 0], set())


def test_heads_whose_classes_have_another_order_get_that_of_the_teacher() -> None:
    torch.manual_seed(0)
    teacher = Model.of(Net(3), input_spec=SPEC, name="teacher", class_ids=["cat", "ant", "bee"])
    student = Model.of(Net(3), input_spec=SPEC, name="student", class_ids=["ant", "bee", "cat"])
    images = torch.randn(3, 3, SPEC.height, SPEC.width)
    (first,), second, mapping = align_heads([teacher], student, ["ant", "bee", "cat"])
    assert first.module is teacher.module
    assert (second.class_ids, mapping.index.tolist(), mapping.cut) == (teacher.class_ids, [1, 2, 0], set())
    torch.testing.assert_close(second.module(images), student.module(images)[:, [2, 0, 1]])


def test_a_head_that_cannot_be_cut_keeps_its_classes_and_so_do_the_others() -> None:
    class Scaled(Net):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return super().forward(images).softmax(1)  # which depends on the classes that are left out

    names = ["cat", "ant", "bee", "fly"]
    teacher = Model.of(Scaled(4), input_spec=SPEC, name="teacher", class_ids=names)
    student = Model.of(Net(4), input_spec=SPEC, name="student", class_ids=names)
    (first,), second, mapping = align_heads([teacher], student, ["ant", "bee", "cat"])
    assert (first.class_ids, second.class_ids, mapping.cut) == (tuple(names), tuple(names), set())


def test_saved_weights_come_back_into_a_copy_and_into_the_module(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Model.of(Net(), input_spec=SPEC, class_ids=list("abcde"), class_names=list("ABCDE"))
    path = tmp_path / "student.safetensors"
    save_weights(model.module, path, model.at(24).metadata())
    other = Model.of(Net(), input_spec=SPEC, name="Net")
    untouched = other.module.state_dict()["stem.0.weight"].clone()
    back = other.reload(path)
    assert all(
        torch.equal(back.module.state_dict()[key], value) for key, value in model.module.state_dict().items()
    )
    assert (back.class_ids, back.class_names, back.input_spec.height) == (tuple("abcde"), tuple("ABCDE"), 24)
    assert torch.equal(other.module.state_dict()["stem.0.weight"], untouched)
    other.module.load_state_dict(load_file(path))  # the file holds the module's own names
    assert torch.equal(other.module.state_dict()["stem.0.weight"], model.module.state_dict()["stem.0.weight"])
    seven = model.with_head(7)
    wider = tmp_path / "wider.safetensors"
    save_weights(seven.module, wider, {**seven.metadata(), "class_ids": '["1","2","3","4","5","6","7"]'})
    assert other.reload(wider).num_classes == 7


@pytest.mark.parametrize(
    ("metadata", "line"),
    [
        ({"model": "Other"}, "was saved from Other, not from Net"),
        ({"timm": "test_vit"}, "was saved from test_vit, not from Net"),
        ({"input": "{"}, "its metadata is damaged"),
        ({"class_ids": "7"}, "its metadata is damaged"),
    ],
)
def test_files_of_others_are_refused(tmp_path: Path, metadata: dict[str, str], line: str) -> None:
    model = Model.of(Net(), input_spec=SPEC)
    save_weights(model.module, tmp_path / "a.safetensors", metadata)
    with pytest.raises(TutelageError, match=line):
        model.reload(tmp_path / "a.safetensors")


def test_a_checkpoint_that_does_not_fit_names_tensors(tmp_path: Path) -> None:
    save_weights(Convolutional(), tmp_path / "a.safetensors", {})
    with pytest.raises(TutelageError, match=r"does not fit the model \(\d+ missing"):
        Model.of(Net(), input_spec=SPEC).reload(tmp_path / "a.safetensors")
