"""`tutelage advise`: figures are those of probes on images that neither the probes nor a run's test part have."""

from __future__ import annotations

import json
import math
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

import tutelage
from tutelage.cli import main
from tutelage.core.recipe import DataRecipe, load_recipe
from tutelage.core.runtime import Runtime
from tutelage.data.input_spec import InputSpec
from tutelage.data.loading import Loading
from tutelage.data.splits import Subset, make_splits
from tutelage.distillation.probe import Head
from tutelage.evaluation.paired import Paired
from tutelage.evaluation.predict import predict_logits, predict_together
from tutelage.models import timm as timm_models
from tutelage.models.registry import load_model
from tutelage.models.source import Model
from tutelage.models.weights import save_weights
from tutelage.pipeline.advise import Candidate, candidates, command
from tutelage.pipeline.advise.advice import judged, recommended, sentences, warnings_of
from tutelage.pipeline.advise.probing import _probed, parts
from tutelage.pipeline.cost import Cost


@pytest.fixture(autouse=True)
def few_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Times are not what is tested here."""
    monkeypatch.setattr(command, "LATENCY_SECONDS", 0.0)


class Pooled(nn.Module):
    """Grey values of an image of so many pixels a side, and a head."""

    def __init__(self, side: int, classes: int = 10) -> None:
        super().__init__()
        self.side = side
        self.fc = nn.Linear(side**2, classes)

    def forward(self, images: Tensor) -> Tensor:
        grey = nn.functional.adaptive_avg_pool2d(images.mean(1, keepdim=True), self.side)
        return self.fc(grey.flatten(1))


def pooled(side: int, **known: Any) -> Model:
    """A model whose probe is good with 8 pixels a side, and poor with 2."""
    return Model.of(Pooled(side), input_spec=InputSpec(32, 32, crop_pct=1.0), name=f"pooled{side}", **known)


def unfitted(side: int) -> Model:
    """The same with the classes of something else, so that it is probed."""
    return pooled(side, class_ids=[f"other-{number}" for number in range(10)])


def weights(tmp_path: Path, name: str) -> str:
    """A checkpoint without known classes, and its NAME@FILE."""
    torch.manual_seed(0)
    file = tmp_path / f"{name}.safetensors"
    state = load_model(f"{name}@none", num_classes=7).module.state_dict()
    save_file({key: tensor.contiguous() for key, tensor in state.items()}, file)
    return f"{name}@{file}"


def lead(difference: float, low: float, high: float, n: int = 500) -> Paired:
    return Paired(difference, low, high, 1.0, 0, 0, 50.0, n)


def row(name: str, top1: float | None, latency: float, **more: Any) -> Candidate:
    low, high = (None, None) if top1 is None else (top1 - 3, top1 + 3)
    return Candidate(name, 96, 1.0, 4.0, latency, top1, low, high, **more)


# --- the figures


def test_the_lead_is_that_of_probes_on_the_same_held_out_images() -> None:
    advice = tutelage.advise("digits", unfitted(8), [unfitted(2)], student_resolutions=[32])
    (student,) = advice.students
    assert advice.teacher.top1 is not None
    assert student.top1 is not None
    assert student.lead is not None
    assert advice.teacher.top1 > 90 > 60 > student.top1
    assert student.lead.difference == pytest.approx(advice.teacher.top1 - student.top1)
    assert student.lead.n == advice.held_out == (1258 + 180) // 3
    assert advice.trained_on == 1258 + 180 - advice.held_out
    assert (advice.answer, advice.student) == ("distil", student)
    assert student.low is not None
    assert student.low < student.top1 < (student.high or 0)
    assert advice.command is None  # objects have no names to type
    assert advice.minutes is not None
    assert advice.minutes > 0


def test_a_teacher_that_is_behind_is_named_as_such() -> None:
    advice = tutelage.advise("digits", unfitted(2), [unfitted(8)], student_resolutions=[32])
    assert advice.answer == "not ahead"
    assert "little to teach" in advice.sentences[0]


@pytest.mark.parametrize("images", [40, 300, 5000])
def test_no_image_is_used_twice_and_test_not_at_all(images: int) -> None:
    splits = make_splits(DataRecipe(train="digits"))
    used = parts(splits, images)
    ids = [name for part in (used.fit, *used.held) for name in part.ids]
    assert len(ids) == len(set(ids)) == len(used)
    assert not set(ids) & set(splits.test.ids)
    assert len(used.fit) <= images
    held = sum(map(len, used.held))
    assert held == min(images // 2, (len(splits.train) + len(splits.val)) // 3)
    share = np.bincount(used.fit.labels, minlength=10) / len(used.fit)
    assert np.abs(share - 0.1).max() < 0.03  # each class in proportion


def test_the_strength_is_chosen_on_images_that_it_does_not_answer() -> None:
    """The first head is right on the even images, the second on the odd ones: chosen on its own half, each would be."""
    truth = torch.tensor([0, 1] * 4)
    features = nn.functional.one_hot(torch.arange(8)).float()
    right = 5 * nn.functional.one_hot(truth, 2).float().T
    even = torch.arange(8) % 2 == 0
    heads = [Head(torch.where(mine, right, -right), torch.zeros(2), 1.0) for mine in (even, ~even)]
    assert (_probed(heads, features, truth) == truth.numpy()).sum() == 0


def test_a_head_that_knows_the_classes_is_taken_as_it_is(tmp_path: Path) -> None:
    torch.manual_seed(0)
    classes = make_splits(DataRecipe(train="digits")).classes
    model = load_model("test_efficientnet@none").at(32).with_head(classes)
    nn.init.normal_(model.module.get_classifier().weight)  # type: ignore[operator,union-attr]
    file = tmp_path / "fitted.safetensors"
    save_weights(model.module, file, model.metadata())
    spec = f"test_efficientnet@{file}"
    advice = tutelage.advise("digits", unfitted(8), [spec], student_resolutions=[32], images=200)
    (student,) = advice.students
    used = parts(make_splits(DataRecipe(train="digits")), 200)
    right = total = 0
    loaded = load_model(spec)
    for part in used.held:
        found = predict_logits(loaded.module, loaded.input_spec, part, Runtime.start("cpu"))
        right += int((found.logits.argmax(1).numpy() == part.labels).sum())
        total += len(part)
    assert student.own_head
    assert student.top1 == pytest.approx(100 * right / total, abs=1.0)  # features may be computed in bf16


def test_several_networks_see_an_image_that_is_decoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    part = parts(make_splits(DataRecipe(train="digits")), 60).fit
    models = [load_model("test_efficientnet@none").at(size) for size in (32, 48)]
    runtime = Runtime.start("cpu")
    alone = [predict_logits(model.module, model.input_spec, part, runtime) for model in models]
    decoded: list[int] = []
    plain = Subset.image
    monkeypatch.setattr(Subset, "image", lambda self, place: decoded.append(place) or plain(self, place))
    done: list[int] = []
    together = predict_together(
        [(model.module, model.input_spec) for model in models],
        part,
        runtime,
        Loading(0),
        on_batch=done.append,
    )
    assert decoded == list(range(len(part)))
    assert sum(done) == len(part)
    for one, other in zip(alone, together, strict=True):
        assert torch.equal(one.logits, other.logits)


# --- the recommendation


@pytest.mark.parametrize(
    ("found", "answer"),
    [
        (lead(5.0, 1.0, 9.0), "distil"),
        (lead(1.0, 0.2, 1.8), "distil"),
        (lead(5.0, -1.0, 11.0), "too few images"),
        (lead(0.5, -1.0, 2.0), "not ahead"),
        (lead(-5.0, -9.0, -1.0), "not ahead"),
        (lead(0.0, 0.0, 0.0), "not ahead"),
    ],
)
def test_a_lead_counts_where_it_is_larger_than_noise(found: Paired, answer: str) -> None:
    student = row("small", 80.0, 2.0, lead=found)
    assert judged(student) == answer
    (said, *_) = sentences(judged(student), row("big", 85.0, 9.0), student, [student])
    assert f"{found.low:+.1f} to {found.high:+.1f}, 500 held-out images" in said


def test_no_student_has_no_lead() -> None:
    assert judged(None) == "no student"


def test_too_few_images_names_how_many_are_enough() -> None:
    student = row("small", 80.0, 2.0, lead=lead(3.0, -1.0, 7.0, n=250))
    (said, *_) = sentences("too few images", row("big", 83.0, 9.0), student, [student])
    assert (
        "About 1,000 held-out images would show a lead of 2 points" in said
    )  # twice as narrow: four times as many


def test_the_best_student_within_the_limits_is_recommended() -> None:
    ahead = lead(5.0, 1.0, 9.0)
    students = [
        row("a", 80.0, 2.0, lead=ahead),
        row("b", 90.0, 9.0, lead=ahead, within=False, why="its latency is above 5"),
        row("c", 80.0, 1.0, lead=ahead),
        row("d", None, 0.5, why="random weights have no features to probe"),
        row("e", 70.0, 0.5, lead=ahead),
    ]
    best = recommended(students)
    assert best is students[2]
    (_, faster) = sentences("distil", row("big", 95.0, 20.0), best, students)
    assert faster == "Faster, against that student: e at 96 px (2.0x as fast, -10.0 points)."
    assert recommended([students[1], students[3]]) is None


def test_warnings() -> None:
    teacher, small = row("big", 52.0, 9.0), row("small", 51.0, 2.0, lead=lead(1.0, 0.5, 1.5))
    (near_chance, small_lead) = warnings_of(teacher, [small], small, "distil", chance=50.0)
    assert "hardly better than always giving the most frequent class (50.0%)" in near_chance
    assert "less than 3 points" in small_lead
    random = row("new@none", None, 2.0, why="random weights have no features to probe")
    (warning,) = warnings_of(row("big", 80.0, 9.0), [random], None, "no student", chance=10.0)
    assert "12 points below a linear probe of a pretrained one on our clothes data" in warning


# --- which students


def test_students_that_are_not_named_are_smaller_and_at_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"teacher.tag": 100, "a.x": 10, "a.y": 10, "b.x": 20, "c": 30, "d.x": 40, "e.x": 81}
    monkeypatch.setattr(timm_models, "at_hand", lambda: list(sizes))
    monkeypatch.setattr(timm_models, "parameters", sizes.__getitem__)
    module = nn.Linear(99, 1)  # 100 parameters with the bias
    teacher = Model("teacher@file", "teacher", module, InputSpec(32, 32), None, None, "", True, 1)
    assert candidates._at_hand(teacher) == ["a.x", "c", "d.x"]
    monkeypatch.setattr(timm_models, "at_hand", lambda: ["teacher.tag", "e.x"])
    assert candidates._at_hand(teacher) == [candidates.WITHOUT_WEIGHTS]


def test_weights_in_the_hubs_cache_are_at_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(timm_models, "PACKAGES", {})
    assert timm_models.at_hand() == []
    place = tmp_path / "models--timm--test_resnet.r160_in1k"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text("abc")
    (place / "snapshots" / "abc").mkdir(parents=True)
    (place / "snapshots" / "abc" / "model.safetensors").write_bytes(b"")
    assert timm_models.at_hand() == ["test_resnet.r160_in1k"]
    assert timm_models.parameters("test_resnet.r160_in1k") == sum(
        parameter.numel() for parameter in load_model("test_resnet@none").module.parameters()
    )


def test_without_resolutions_a_student_is_tried_at_three() -> None:
    model = load_model("test_efficientnet@none").at(224)
    assert [one.input_spec.height for one in candidates._at(model, "test_efficientnet", ())] == [224, 128, 96]
    assert [one.input_spec.height for one in candidates._at(model, "test_efficientnet", (64, 32, 64))] == [
        64,
        32,
    ]


def test_the_fit_of_a_teacher_whose_head_is_cut_is_in_the_estimate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    splits = make_splits(DataRecipe(train="digits"))
    student, found = weights(tmp_path, "test_efficientnet"), []
    monkeypatch.setattr(command, "cost_of", lambda *given: found.append(given[-1]) or Cost({}, 0, 1))
    monkeypatch.setattr(command, "measure_speeds", lambda *_, fits: found.append(fits))
    for number, more in enumerate(((), ("ten", "eleven"))):
        model = load_model("test_resnet@none").at(32).with_head([*splits.classes, *more])
        file = tmp_path / f"{number}.safetensors"
        save_weights(model.module, file, model.metadata())
        pair = candidates.contenders(f"test_resnet@{file}", [student], splits.classes, 32, [32])
        command._cost("digits", splits, pair[0], pair[1], Runtime.start("cpu"))
        assert pair[0].own_head is not None
    assert found == [False, frozenset(), True, frozenset({pair[0].model.spec})]


# --- the command


def advised(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """Exit code, stdout and stderr."""
    with pytest.raises(SystemExit) as ended:
        main(["advise", *arguments])
    out, err = capsys.readouterr()
    return int(ended.value.code or 0), out, err


def test_the_command_that_is_shown_is_one_that_works(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher, student = weights(tmp_path, "test_resnet"), weights(tmp_path, "test_efficientnet")
    file = tmp_path / "advice.json"
    code, out, _ = advised(
        ["--data", "digits", "--teacher", teacher, "--teacher-resolution", "32", "--student", student,
         "--student-resolution", "48", "--student-resolution", "160", "--images", "120", "--json", str(file)],
        capsys,
    )  # fmt: skip
    assert code == 0
    advice = json.loads(file.read_text())
    assert [one["resolution"] for one in advice["students"]] == [48, 160]
    assert advice["held_out"] == 60
    assert all(math.isfinite(one["lead"]["difference"]) for one in advice["students"])
    (line,) = [line for line in out.splitlines() if line.startswith("    tutelage distill")]
    assert line.strip() == advice["command"]
    program, verb, *options = shlex.split(line)
    assert (program, verb) == ("tutelage", "distill")
    named = {option: options[options.index(option) + 1] for option in ("--teacher", "--student", "--data")}
    assert named == {"--teacher": teacher, "--student": student, "--data": "digits"}
    recipe = load_recipe(None, [word for word in options if "=" in word and "@" not in word])
    chosen = advice["student"]["resolution"]
    assert recipe.teacher.resolution == 32
    assert recipe.student.resolution == (48 if chosen == 48 else "own")  # 160 px is its own


def test_random_weights_have_size_and_latency_and_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = advised(
        ["--data", "digits", "--teacher", weights(tmp_path, "test_resnet"), "--teacher-resolution", "32",
         "--student", "test_efficientnet@none", "--student-resolution", "32", "--images", "60"],
        capsys,
    )  # fmt: skip
    said = " ".join(out.split())
    assert code == 0
    assert "warning: random weights: a small network from random weights was 12 points below" in said
    assert "none can be recommended" in said
    assert "tutelage distill" not in said


def test_a_limit_that_no_student_meets(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    student = weights(tmp_path, "test_efficientnet")
    code, out, _ = advised(
        ["--data", "digits", "--teacher", weights(tmp_path, "test_resnet"), "--teacher-resolution", "32",
         "--student", student, "--student-resolution", "32", "--images", "60", "--max-size-mb", "0.1"],
        capsys,
    )  # fmt: skip
    said = " ".join(out.split())
    assert code == 0
    assert "No student is within the limits: the fastest is" in said
    assert "its size is above 0.1" in said


def test_a_broken_photograph_is_counted(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for number in range(30):
            Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(
                tmp_path / name / f"{number}.png"
            )
    for broken in tmp_path.glob("*/7.png"):
        broken.write_bytes(b"no picture")
    teacher, student = (
        Model.of(Pooled(side, 2), input_spec=InputSpec(32, 32), class_ids=["x", "y"]) for side in (8, 2)
    )
    advice = tutelage.advise(tmp_path, teacher, [student], student_resolutions=[32])
    splits = make_splits(DataRecipe(train=str(tmp_path)))
    seen = [name for part in (splits.train, splits.val) for name in part.ids if name.endswith("/7.png")]
    remarks = [note for note in advice.notes if "cannot be decoded" in note]
    assert remarks == ([f"{len(seen)} images cannot be decoded and are left out"] if seen else [])
    assert seen


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--data", "nowhere"], "data source 'nowhere': unknown kind, and no such path"),
        (["--data", "digits", "--teacher", "test_resnet@none"], "--teacher test_resnet@none: random weights"),
        (["--data", "digits", "--teacher", "resnet1234"], "unknown model 'resnet1234'; did you mean"),
        (["--data", "digits", "--device", "tpu"], "--device tpu: use one of cpu, cuda, mps"),
        (
            ["--data", "digits", "--student", "levit_128@none", "--student-resolution", "100"],
            "--student-resolution=100: levit_128 cannot run at 100 px",
        ),
        (["--data", "UNLABELLED"], "advise needs labelled training images of two classes or more"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str], line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "plain").mkdir()
    for number in range(40):
        Image.new("RGB", (16, 16)).save(tmp_path / "plain" / f"{number}.png")
    given = [str(tmp_path / "plain") if word == "UNLABELLED" else word for word in arguments]
    if "--teacher" not in given:
        given += ["--teacher", weights(tmp_path, "test_resnet")]
    code, out, err = advised(given, capsys)
    errors = [one for one in err.splitlines() if one.strip() and not one.startswith("loading")]
    assert (code, out) == (2, "")
    assert len(errors) == 1
    assert errors[0].startswith("error: ")
    assert line in errors[0]
