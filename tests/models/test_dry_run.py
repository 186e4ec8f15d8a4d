"""Names and resolutions that do not fit are refused before a run has a directory."""

import warnings
from pathlib import Path

import pytest
import timm
import torch
from timm.models._registry import _deprecated_models

from tutelage.cli import main
from tutelage.core.errors import TutelageError
from tutelage.models.class_mapping import align_heads
from tutelage.models.dry_run import check_resolution, refused
from tutelage.models.registry import load_model, timm_name

MISFITS = {
    ("mixer_s32_224", 64): "224",
    ("levit_128s", 64): "224",
    ("test_vit", 100): "96, 112",
    ("inception_v3", 64): "80",
    ("pit_ti_224", 4): "224",
}


@pytest.mark.parametrize(("name", "resolution"), MISFITS)
def test_a_resolution_that_does_not_fit_is_refused_with_those_that_do(name: str, resolution: int) -> None:
    with pytest.raises(TutelageError) as raised:
        check_resolution(name, resolution, f"student.resolution={resolution}")
    line = str(raised.value)
    assert line.startswith(f"student.resolution={resolution}: {name} cannot run at {resolution} px (")
    assert MISFITS[name, resolution] in line
    assert "\n" not in line
    nearest = int(line.rpartition("=")[2])
    model = load_model(f"{name}@none", num_classes=3).at(nearest)
    assert model.module(torch.zeros(2, 3, nearest, nearest)).shape == (2, 3)


@pytest.mark.parametrize(
    ("name", "resolution"),
    [
        ("test_vit", 96),
        ("test_efficientnet", 37),
        ("test_resnet", 64),
        ("levit_128s", 224),
        ("deit_tiny_distilled_patch16_224", 64),
    ],
)
def test_others_are_taken(name: str, resolution: int) -> None:
    check_resolution(name, resolution, "student.resolution")


@pytest.mark.parametrize(
    ("role", "model", "more", "line"),
    [
        (
            "student",
            "mixer_s32_224@none",
            ["student.resolution=64"],
            "student.resolution=64: mixer_s32_224 cannot",
        ),
        (
            "teacher",
            "test_vit@none",
            ["teacher.resolution=100"],
            "teacher.resolution=100: test_vit cannot run",
        ),
        ("student", "test_efficientnt@none", [], "unknown model 'test_efficientnt'; did you mean"),
        (
            "student",
            "test_resnet@gone.pth",
            [],
            "student.model=test_resnet@gone.pth: gone.pth: no such checkpoint",
        ),
        (
            "teacher",
            "vit_base_patch32_224_sam",
            [],
            "timm calls it vit_base_patch32_224 now, and has no such weights",
        ),
    ],
)
def test_a_run_is_refused_before_it_has_a_directory(
    role: str, model: str, more: list[str], line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = {"teacher": "test_resnet@none", "student": "test_efficientnet@none", role: model}
    given = [word for key, value in models.items() for word in (f"--{key}", value)]
    with pytest.raises(SystemExit) as ended:
        main(["distill", "--runs", str(tmp_path / "runs"), "--data", "digits", *given, *more])
    assert ended.value.code == 2
    assert line in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


# --- deprecated names


def test_every_deprecated_name_has_its_current_one() -> None:
    assert len(_deprecated_models) > 100
    for old, new in _deprecated_models.items():
        assert new is not None
        found = timm_name(f"{old}@none")
        assert found in {new, new.partition(".")[0]}
        assert timm.get_pretrained_cfg(found, allow_unregistered=False).classifier


@pytest.mark.parametrize(
    "old", ["tv_resnet34", "tf_efficientnet_b0_ns", "xception", "vit_tiny_patch16_224_in21k"]
)
def test_a_deprecated_name_works_as_the_current_one(old: str, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = load_model(f"{old}@none")
    new = _deprecated_models[old]
    assert model.name == new
    assert model.origin == f"random; timm's name for {old} is {new}"
    (teacher,), student, _ = align_heads([model], load_model("test_efficientnet@none"), ["a", "b", "c"])
    side = teacher.input_spec.height
    with torch.no_grad():
        assert teacher.module(torch.zeros(1, 3, side, side)).shape == (1, 3)
    assert teacher.input_spec == load_model(f"{new}@none").input_spec
    assert student.num_classes == 3
    torch.save(teacher.module.state_dict(), tmp_path / "a.pth")
    assert load_model(f"{old}@{tmp_path / 'a.pth'}").num_classes == 3


# --- several heads

TWO_HEADS = [
    "deit_tiny_distilled_patch16_224",
    "levit_128s",
    "efficientformer_l1",
    "efficientformerv2_s0",
    "pit_ti_distilled_224",
    "swiftformer_xs",
]


@pytest.mark.parametrize("name", TWO_HEADS)
def test_two_heads_are_averaged_and_both_learn(name: str) -> None:
    torch.manual_seed(0)
    model = load_model(f"{name}@none").with_head(["a", "b", "c"])
    output = model.module.train()(torch.randn(2, 3, 224, 224))
    assert output.shape == (2, 3)
    torch.nn.functional.cross_entropy(output, torch.tensor([0, 2])).backward()
    gradients = [parameter.grad for parameter in model.head_parameters() if parameter.ndim == 2]
    assert len(gradients) == 2
    assert all(gradient is not None and gradient.abs().sum() > 0 for gradient in gradients)
    assert refused(name, torch.device("meta")) == ""
