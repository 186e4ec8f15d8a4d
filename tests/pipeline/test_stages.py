"""What the stages of a run hand on: records that later stages leave as they are."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from tests.helpers.stages import network, small_context, small_splits
from torch import nn

from tutelage.core.progress import Silent
from tutelage.core.recipe import parse_recipe
from tutelage.core.runtime import Runtime
from tutelage.data.splits import Splits, Subset
from tutelage.distillation.selection import FINALISTS
from tutelage.distillation.stage import Stage, Trained
from tutelage.evaluation.predict import Predictions
from tutelage.models.batchnorm import decode_sample
from tutelage.models.digest import state_digest
from tutelage.models.source import Model
from tutelage.models.weights import with_state
from tutelage.pipeline.context import Context
from tutelage.pipeline.run import begin
from tutelage.pipeline.stages.assemble import shared_splits
from tutelage.pipeline.stages.evaluate import predict_entries, predict_jointly
from tutelage.pipeline.stages.fit import Fitted, fit_head, fit_teachers
from tutelage.pipeline.stages.preflight import Checked, preflight
from tutelage.pipeline.stages.prepare import prepare
from tutelage.pipeline.stages.train import train_control, train_student


def checked_run(tree: dict, root: Path, name: str = "run") -> Checked:
    """A run as far as its pre-flight."""
    recipe = parse_recipe(tree | {"name": name})
    prepared = prepare(recipe, begin(recipe, root, "test"), Silent())
    return preflight(Fitted(prepared, fit_teachers(prepared), fit_head(prepared)))


def weights(model: Model) -> str:
    return state_digest(model.module.state_dict())


def test_each_model_keeps_the_weights_it_had_when_its_record_was_made(tiny: dict, tmp_path: Path) -> None:
    tiny["train"]["epochs"] = 1
    tiny["teacher"]["fit"] = {"epochs": 1, "lr": 3e-3}
    recipe = parse_recipe(tiny | {"name": "run"})
    prepared = prepare(recipe, begin(recipe, tmp_path, "test"), Silent())
    loaded = weights(prepared.teachers[0])
    fitted = Fitted(prepared, fit_teachers(prepared), fit_head(prepared))
    assert weights(prepared.teachers[0]) == loaded != weights(fitted.teachers[0])
    checked = preflight(fitted)
    teacher, start = weights(checked.teachers[0]), weights(checked.student)
    control, distilled = train_control(checked), train_student(checked)
    assert control is not None
    assert (weights(checked.teachers[0]), weights(checked.student)) == (teacher, start)
    assert weights(checked.student) == weights(fitted.student) == state_digest(checked.start)
    assert weights(distilled.model) == state_digest(distilled.choice.kept.state)
    assert len({start, weights(control), weights(distilled.model)}) == 3


def test_a_module_has_its_own_weights_back_even_after_an_error() -> None:
    module = nn.Linear(2, 1)
    own = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    other = {name: torch.zeros_like(tensor) for name, tensor in own.items()}
    seen = []

    def body() -> None:
        with with_state(module, other):
            seen.append(bool(module.weight.any()))
            raise RuntimeError("in the body")

    with pytest.raises(RuntimeError, match="in the body"):
        body()
    assert seen == [False]
    assert all(torch.equal(own[name], tensor) for name, tensor in module.state_dict().items())


@pytest.mark.parametrize(
    "other", [{"weight": torch.zeros(1, 2)}, {"weight": torch.zeros(1), "bias": torch.zeros(1)}]
)
def test_a_module_is_given_no_weights_of_other_names_or_shapes(other: dict[str, torch.Tensor]) -> None:
    module = nn.Linear(2, 1)
    with pytest.raises(RuntimeError, match="in loading state_dict"), with_state(module, other):
        raise AssertionError("the weights were taken")


def test_an_unreadable_training_image_is_counted_and_no_image_is_decoded_again_for_the_selection(
    tiny: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    for number in range(80):
        place = tmp_path / "photos" / "ab"[number % 2] / f"{number}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(place)
    tiny["data"] = {"train": f"folder:{tmp_path / 'photos'}", "workers": 0, "max_bad_images": 3}
    tiny["data"] |= {"val_fraction": 0.2, "test_fraction": 0.2, "cache": False}
    tiny["train"] |= {"batch_size": 16, "epochs": 1}
    tiny["teacher"]["fit"] = "no"
    checked = checked_run(tiny, tmp_path)
    train = checked.prepared.splits.train
    broken = tmp_path / "photos" / train.id(0)
    broken.write_bytes(broken.read_bytes()[:100])
    decoded = []
    monkeypatch.setattr(
        "tutelage.pipeline.stages.preflight.decode_sample",
        lambda *arguments: decoded.append(1) or decode_sample(*arguments),
    )
    val = checked.prepared.splits.val
    image = Subset.image
    on_val = []
    monkeypatch.setattr(
        Subset,
        "image",
        lambda self, position: (self is val and on_val.append(position)) or image(self, position),
    )
    train_control(checked)
    distilled = train_student(checked)
    assert on_val == []  # the pre-flight has read val, and its pixels are kept
    assert {c.recalibrated for c in distilled.choice.candidates} == {True, False}
    assert decoded == [1]
    assert list(checked.prepared.context.loading.bad.reasons) == [train.id(0)]


@pytest.mark.parametrize(("wanted", "probed"), [("auto", ("fp32", "bf16")), ("bf16", ("bf16",))])
def test_each_process_probes_its_share_of_the_batch_in_the_precisions_that_may_be_used(
    tiny: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wanted: str, probed: tuple[str, ...]
) -> None:
    asked, ahead = [], []

    def probe(module: object, spec: object, size: int, device: object, precisions: tuple) -> dict:
        asked.append((size, tuple(precisions)))
        return dict.fromkeys(precisions, 100.0)

    def estimate(recipe: object, images: object, rates: dict, *_: object, **__: object) -> dict:
        ahead.append(rates)
        return {"steps": 1, "estimated_seconds": 1.0, "seconds": {"training": 1.0}, "disk_mb": 1.0}

    for name in ("probe_training", "probe_inference"):
        monkeypatch.setattr(f"tutelage.models.precision.{name}", probe)
    monkeypatch.setattr("tutelage.pipeline.stages.preflight.estimate", estimate)
    tiny["train"] |= {"precision": wanted, "batch_size": 32}
    tiny["teacher"]["fit"] = "no"
    recipe = parse_recipe(tiny | {"name": "run"})
    prepared = prepare(recipe, begin(recipe, tmp_path, "test"), Silent())
    fitted = Fitted(prepared, fit_teachers(prepared), fit_head(prepared))
    with monkeypatch.context() as patched:
        patched.setattr(Runtime, "world_size", 4)
        patched.setattr(
            "tutelage.pipeline.stages.evaluate.predict_logits",
            lambda module, spec, subset, *_: Predictions(
                torch.rand(len(subset), 10), torch.arange(len(subset))
            ),
        )
        preflight(fitted)
    assert asked == [
        (8, probed),
        (8, probed),
        (8, ("fp32",)),
    ]  # the last for evaluations, which are in float32
    assert ahead == [dict.fromkeys(("student", "teacher", "student_inference"), 400.0)]


@pytest.mark.parametrize("wanted", ["fp32", "bf16"])
def test_fits_are_in_the_precision_that_the_recipe_names(
    tiny: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wanted: str
) -> None:
    tiny["train"]["precision"] = wanted
    tiny["teacher"]["fit"] = {"epochs": 1}
    tiny["student"]["head_fit"] = {"epochs": 1}
    recipe = parse_recipe(tiny | {"name": "run"})
    prepared = prepare(recipe, begin(recipe, tmp_path, "test"), Silent())
    seen = set()
    autocast = Runtime.autocast

    def watched(runtime: Runtime, *arguments: object) -> object:
        seen.add(runtime.precision)
        return autocast(runtime, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Runtime, "autocast", watched)
    fit_teachers(prepared)
    fit_head(prepared)
    assert seen == {wanted}


def test_a_fit_takes_the_faster_precision_and_keeps_to_it(
    tiny: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fits were in fp32 where train.precision is auto, however slow that was."""
    rates = {"fp32": 100.0, "bf16": 200.0}
    probes, trained_in = [], []

    def probe(module: nn.Module, *_: object) -> dict[str, float]:
        probes.append(module)
        return dict(rates)

    def train_once(stage: Stage, context: Context) -> Trained:
        trained_in.append(context.runtime.precision)
        return context.train(stage)

    monkeypatch.setattr("tutelage.models.precision.probe_training", probe)
    monkeypatch.setattr("tutelage.pipeline.stages.fit.train_once", train_once)
    tiny["train"] |= {"precision": "auto"}
    recipe = parse_recipe(tiny | {"name": "run"})
    run = begin(recipe, tmp_path, "test")
    fit_teachers(prepare(recipe, run, Silent()))
    assert trained_in == ["bf16"]
    assert len(probes) == 1
    rates["bf16"] = 1.0  # on another day; the checkpoint of the fit is in bf16
    fit_teachers(prepare(recipe, run, Silent()))
    assert trained_in == ["bf16", "bf16"]
    assert len(probes) == 1


def test_only_the_first_process_looks_for_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each process read the beginnings of all files; now the others are told what the first one found."""
    asked: list[object] = []
    found = {"train": {"0": "1"}}

    def make(data: object, copies: object = None) -> Splits:
        asked.append(copies)
        return replace(small_splits(), copies=found)

    monkeypatch.setattr("tutelage.pipeline.stages.assemble.make_splits", make)
    recipe = parse_recipe({"data": {"train": "digits"}})
    assert shared_splits(recipe, Runtime.start()).copies == found
    assert asked == [None]
    monkeypatch.setattr(Runtime, "on_main", lambda *_: found)  # as in the second process
    shared_splits(recipe, Runtime.start())
    assert asked == [None, found]


def test_control_and_student_have_the_class_weights_of_the_recipe_and_fits_have_none(
    tiny: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny["train"]["epochs"] = 1
    tiny["teacher"]["fit"] = {"epochs": 1, "lr": 3e-3}
    tiny["data"] |= {"labels_per_class": 5}
    tiny["loss"] |= {"class_weights": "balanced"}
    seen: dict[str, list[float] | None] = {}
    train = Context.train

    def watched(self: Context, stage: Stage) -> Trained:
        term = stage.objective.terms["cross_entropy"]
        seen[stage.name] = None if term.class_weights is None else term.class_weights.tolist()
        return train(self, stage)

    monkeypatch.setattr(Context, "train", watched)
    checked = checked_run(tiny, tmp_path)
    train_control(checked)
    train_student(checked)
    labels = checked.prepared.class_mapping.labels(checked.prepared.splits.train.labels)
    counts = np.bincount(labels, minlength=10)  # of the labelled images alone
    assert counts.sum() == 50
    expected = pytest.approx((counts.sum() / 10 / counts).tolist())
    assert seen == {"teacher-fit": None, "control": expected, "distill": expected}


def test_an_image_is_decoded_once_for_all_models_of_the_final_evaluation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subset, prepared = small_splits().test, SimpleNamespace(context=small_context(tmp_path))
    student, teacher, other = (
        network("test_efficientnet", 0),
        network("test_resnet", 1),
        network("test_resnet", 2),
    )
    entries = [[teacher, other.at(48)], [student]]
    apart = [predict_jointly(prepared, models, subset) for models in entries]  # type: ignore[arg-type]
    read = []
    image = Subset.image
    monkeypatch.setattr(
        Subset, "image", lambda self, position: read.append(position) or image(self, position)
    )
    together = predict_entries(prepared, entries, subset)  # type: ignore[arg-type]
    assert read == list(range(len(subset)))
    for one, wanted in zip(together, apart, strict=True):
        assert one.logits.equal(wanted.logits)
        assert one.index.equal(wanted.index)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_candidates_are_screened_in_the_precision_of_the_training_and_the_finalists_are_in_fp32(
    tiny: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    tiny["train"] |= {"precision": precision, "epochs": 1}
    tiny["teacher"]["fit"] = "no"
    checked = checked_run(tiny, tmp_path)
    low = []

    def evaluated(*_: object) -> dict[str, float]:
        low.append(torch.is_autocast_enabled("cpu"))
        return {"top1": 1.0, "nll": float(len(low))}

    monkeypatch.setattr("tutelage.pipeline.stages.train.evaluate_state", evaluated)
    candidates = train_student(checked).choice.candidates
    if precision == "fp32":
        assert not any(low)
        assert not any(c.screened for c in candidates)
    else:
        exact = min(1 + FINALISTS, len(candidates))
        assert low == [True] * (len(low) - exact) + [False] * exact
        assert len(low) >= len(candidates) + exact
        assert sum(not c.screened for c in candidates) == exact
