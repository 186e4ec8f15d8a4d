"""The student and all that learns with it as one module; terms on layers, with their projectors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.helpers.stages import StopAt, network, same, small_context, small_stage, train
from torch import Tensor, nn

from tutelage.core.errors import TutelageError
from tutelage.data.input_spec import InputSpec
from tutelage.distillation.checkpoint import load_checkpoint, state_of
from tutelage.distillation.distiller import Distiller, converted
from tutelage.distillation.losses import KL, CrossEntropy, FeatureMSE, TermBatch, hard_label_loss, kl
from tutelage.distillation.objective import Objective
from tutelage.distillation.outputs import Outputs
from tutelage.distillation.stop import Interrupted
from tutelage.distillation.teacher import Teacher
from tutelage.models.features import NetworkInfo, layer_name, network_info, run_with_features

IMAGES = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 2, -1])


def tiny(width: int, classes: int = 3) -> nn.Module:
    """Any module: no library's, and nothing is told about its input."""
    torch.manual_seed(width)
    return nn.Sequential(
        nn.Conv2d(3, width, 3, stride=2),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(width, classes),
    )


# --- any module, any loop


def test_the_losses_are_those_of_the_functions() -> None:
    student, teacher = tiny(4), tiny(8)
    found = Distiller(student, teacher, [KL(0.5, temperature=3), CrossEntropy(2)])(IMAGES, LABELS)
    ours, theirs = student(IMAGES), teacher(IMAGES)
    assert torch.equal(found["logits"], ours)
    assert found["kl"].item() == pytest.approx(0.5 * kl(ours, theirs, 3).item(), rel=1e-5)
    assert found["cross_entropy"].item() == pytest.approx(2 * hard_label_loss(ours, LABELS).item(), rel=1e-5)
    assert found["loss"].item() == pytest.approx((found["kl"] + found["cross_entropy"]).item(), rel=1e-5)


def test_a_few_steps_lower_the_loss_and_leave_the_teacher_as_it_was() -> None:
    teacher = timm.create_model("test_resnet", num_classes=3)
    before = state_of(teacher)
    distiller = Distiller(tiny(8), Teacher(teacher), [KL(), FeatureMSE("0", -1)], image_size=(32, 32))
    optimizer = torch.optim.AdamW(distiller.trainable_parameters(), lr=1e-2)
    distiller.train()
    assert not teacher.training
    losses = []
    for _ in range(8):
        losses.append(distiller(IMAGES)["loss"])
        losses[-1].backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < losses[0]
    assert same(state_of(teacher), before)
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_the_teacher_is_neither_parameter_nor_state_nor_copy() -> None:
    student, teacher = tiny(4), tiny(8)
    distiller = Distiller(student, teacher, [FeatureMSE("0", "0")], image_size=(32, 32))
    own = {f"student.{name}" for name in student.state_dict()}
    projector = {"objective.terms.feature_mse.projector.weight", "objective.terms.feature_mse.projector.bias"}
    assert set(distiller.state_dict()) == own | projector
    theirs = {id(parameter) for parameter in teacher.parameters()}
    assert not theirs & {id(parameter) for parameter in distiller.parameters()}


def test_images_without_labels_and_a_student_without_a_teacher() -> None:
    assert Distiller(tiny(4))(IMAGES)["loss"] == 0
    assert set(Distiller(tiny(4))(IMAGES, LABELS)) == {"loss", "logits", "cross_entropy"}
    assert set(Distiller(tiny(4), tiny(8))(IMAGES, LABELS)) == {"loss", "logits", "kl", "cross_entropy"}
    with pytest.raises(TutelageError, match="a term compares with a teacher, but none was given"):
        Distiller(tiny(4), None, [KL()])


def test_the_teacher_sees_the_view_as_it_wants_it() -> None:
    """Mean, std and resolution are the teacher's own; the pixels are the student's."""
    ours = InputSpec(32, 32, mean=(0.5,) * 3, std=(0.5,) * 3)
    theirs = InputSpec(32, 32, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))
    pixels = torch.rand(2, 3, 32, 32)
    given = converted((pixels - 0.5) / 0.5, ours, theirs)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (theirs.mean, theirs.std))
    assert torch.allclose(given, (pixels - mean) / std, atol=1e-5)
    assert converted(IMAGES, ours, ours.at(48)).shape == (4, 3, 48, 48)
    assert converted(IMAGES[..., :24], ours, ours.at(64)).shape == (4, 3, 64, 48)


# --- layers


def test_layers_by_name_and_by_number() -> None:
    module = network("test_resnet", 0).module
    last = layer_name(module, -1)
    assert last == module.feature_info[-1]["module"]
    output, found = run_with_features(module, module, IMAGES, [-1, "layer1"])
    assert torch.equal(output, module(IMAGES))
    assert found["layer1"].shape[1] == module.feature_info[1]["num_chs"]
    assert not any(layer._forward_hooks for layer in module.modules())  # copies made later carry none
    info = network_info(module, [-1, "layer1"], 32, 32, torch.device("cpu"))
    assert info.channels(-1) == module.feature_info[-1]["num_chs"]
    with pytest.raises(
        TutelageError, match=r"layer 'layer9': ResNet has no such layer; did you mean 'layer4'\?"
    ):
        layer_name(module, "layer9")
    with pytest.raises(TutelageError, match=r"layer 9: ResNet has 0 to 4"):
        layer_name(module, 9)
    with pytest.raises(TutelageError, match=r"layer -1: Sequential has none: name the layer"):
        layer_name(tiny(4), -1)


def test_a_teacher_whose_layers_are_tapped_is_not_folded() -> None:
    teacher = Teacher([network("test_resnet", 1)], torch.device("cpu"))
    assert teacher._networks[0] is not teacher.models[0].module
    plain = teacher.outputs([IMAGES])
    teacher.tap(["layer1.0.bn1"])
    tapped = teacher.outputs([IMAGES])
    assert teacher._networks[0] is teacher.models[0].module
    assert set(tapped.features) == {"layer1.0.bn1"}
    assert torch.allclose(tapped.logits, plain.logits, atol=1e-4)


# --- feature_mse


def reference(student: np.ndarray, teacher: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> float:
    """In float64, place by place: maps of (B, C, H, W) whose sizes divide one another."""
    size = min(student.shape[2], teacher.shape[2])

    def pooled(x: np.ndarray) -> np.ndarray:
        step = x.shape[2] // size
        return x.reshape(*x.shape[:2], size, step, size, step).mean((3, 5))

    total, count = 0.0, 0
    ours, theirs = pooled(student), pooled(teacher)
    for image in range(len(ours)):
        for row in range(size):
            for column in range(size):
                projected = weight @ ours[image, :, row, column] + bias
                total += ((projected - theirs[image, :, row, column]) ** 2).sum()
                count += len(projected)
    return total / count


def built(student: Tensor, teacher: Tensor, projector: str = "linear") -> FeatureMSE:
    torch.manual_seed(0)
    term = FeatureMSE("s", "t", projector)
    term.build(NetworkInfo({"s": tuple(student.shape[1:])}), NetworkInfo({"t": tuple(teacher.shape[1:])}))
    return term.to(student.dtype)


def value(term: FeatureMSE, student: Tensor, teacher: Tensor) -> Tensor:
    labels = torch.zeros(len(student), dtype=torch.int64)
    return term(TermBatch(Outputs(None, {"s": student}), Outputs(None, {"t": teacher}), labels, labels))


@settings(max_examples=25, deadline=None)
@given(
    rows=st.integers(1, 3), ours=st.integers(1, 4), theirs=st.integers(1, 4),
    grow=st.sampled_from([(1, 1), (2, 1), (1, 2)]), seed=st.integers(0, 99),
)  # fmt: skip
def test_feature_mse_is_its_reference(
    rows: int, ours: int, theirs: int, grow: tuple[int, int], seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    student = torch.randn(rows, ours, 2 * grow[0], 2 * grow[0], generator=generator, dtype=torch.float64)
    teacher = torch.randn(rows, theirs, 2 * grow[1], 2 * grow[1], generator=generator, dtype=torch.float64)
    term = built(student, teacher)
    weight, bias = (parameter.detach().numpy() for parameter in term.projector.parameters())
    wanted = reference(student.numpy(), teacher.numpy(), weight, bias)
    assert value(term, student, teacher).item() == pytest.approx(wanted, rel=1e-9)


def test_feature_mse_has_the_right_gradient_and_none_for_the_teacher() -> None:
    student = torch.randn(2, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(2, 5, 2, 2, dtype=torch.float64, requires_grad=True)
    term = built(student, teacher)
    assert torch.autograd.gradcheck(lambda x: value(term, x, teacher), (student,))
    value(term, student, teacher).backward()
    assert teacher.grad is None
    assert term.projector.weight.grad is not None


def test_feature_mse_is_zero_at_equality_and_finite_in_half_precision() -> None:
    maps = torch.randn(2, 3, 4, 4)
    assert value(built(maps, maps, "none"), maps, maps) == 0
    large = torch.full((2, 3, 4, 4), 6e4, dtype=torch.float16)  # its square is no fp16 number
    assert value(built(large, large, "none"), large, -large).isfinite()


@pytest.mark.parametrize(
    ("student", "teacher"),
    [((2, 5, 3), (2, 5, 4)), ((2, 3, 4, 4), (2, 9, 4)), ((2, 6, 3), (2, 9, 4)), ((2, 3), (2, 4))],
)
def test_tokens_maps_and_vectors_meet(student: tuple[int, ...], teacher: tuple[int, ...]) -> None:
    """A CNN and a transformer, either way round."""
    ours, theirs = torch.randn(student), torch.randn(teacher)
    assert value(built(ours, theirs), ours, theirs).isfinite()


# --- in the loop


def feature_stage(**settings: Any) -> Any:
    return small_stage(objective=Objective([KL(), FeatureMSE(-1, -1, weight=0.1)]), **settings)


@pytest.mark.parametrize("step", [3, 6, 8])
def test_a_projector_is_trained_and_resumed_bit_by_bit(tmp_path: Path, step: int) -> None:
    whole, first = feature_stage(), feature_stage()
    unbroken = train(whole, small_context(tmp_path / "unbroken"))
    with pytest.raises(Interrupted):
        train(first, small_context(tmp_path / "stopped", StopAt(step)))
    again = feature_stage()
    resumed = train(again, small_context(tmp_path / "stopped"))
    assert all(same(resumed.states[name], unbroken.states[name]) for name in ("last", "best", "ema"))
    assert [row["loss"] for row in resumed.rows] == [row["loss"] for row in unbroken.rows]
    assert same(state_of(again.objective), state_of(whole.objective))
    assert set(unbroken.rows[0]["loss"]) == {"total", "kl", "feature_mse"}
    assert set(unbroken.rows[0]["val"]) == {"top1", "nll", "loss", "kl"}  # of logits alone


def test_the_projector_moves_and_only_the_student_is_a_candidate(tmp_path: Path) -> None:
    stage = feature_stage(epochs=1)
    trained = train(stage, small_context(tmp_path))
    terms = load_checkpoint(tmp_path / "checkpoints" / "distill.safetensors")[0]["terms"]
    torch.manual_seed(0)
    stage.objective.build(
        *[
            network_info(m, [-1], 32, 32, torch.device("cpu"))
            for m in (stage.model.module, stage.teacher.models[0].module)
        ]
    )
    fresh = state_of(stage.objective)
    assert terms.keys() == fresh.keys()
    assert all(not tensor.equal(fresh[name]) for name, tensor in terms.items())
    for state in trained.states.values():
        assert state.keys() == stage.model.module.state_dict().keys()


def test_features_cannot_come_from_a_cache(tmp_path: Path) -> None:
    from tutelage.distillation.targets.cache import Cache
    from tutelage.distillation.targets.layout import Layout
    from tutelage.distillation.teacher import CachedTeacher

    cached = CachedTeacher(Cache(tmp_path, {}, Layout(4, 10)), 1, torch.device("cpu"))
    with pytest.raises(
        TutelageError, match=r"targets.mode=cached: the cache holds logits only, not layer -1"
    ):
        Distiller(network("test_resnet", 0), cached, [FeatureMSE(-1, -1)])
