"""The main job from end to end, on real digits with tiny networks."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tutelage.core.errors import TutelageError
from tutelage.core.files import read_json, read_jsonl
from tutelage.core.progress import Silent
from tutelage.core.recipe import Recipe, load_recipe, parse_recipe
from tutelage.core.records import read_predictions
from tutelage.core.run_dir import Run
from tutelage.data.loading import train_loader
from tutelage.data.views import ViewPolicy
from tutelage.distillation.loop import Trainer
from tutelage.models.registry import load_model
from tutelage.pipeline.run import begin, distill
from tutelage.pipeline.stages.evaluate import predict_jointly
from tutelage.pipeline.stages.fit import Fitted, fit_head, fit_teachers
from tutelage.pipeline.stages.preflight import preflight
from tutelage.pipeline.stages.prepare import prepare


def run_tiny(tree: dict, root: Path, name: str) -> Run:
    recipe = parse_recipe(tree | {"name": name})
    run = begin(recipe, root, "test")
    distill(recipe, run, Silent())
    return run


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Run:
    from tests.conftest import TINY

    return run_tiny(copy.deepcopy(TINY), tmp_path_factory.mktemp("runs"), "finished")


def test_all_four_rows_have_their_figures(finished: Run) -> None:
    comparison = read_json(finished.comparison)
    assert [row["role"] for row in comparison["rows"]] == ["teacher", "start", "control", "distilled"]
    for row in comparison["rows"]:
        assert all(row[key] is not None for key in ("size_mb", "gmacs", "latency_ms", "top1", "nll", "ece"))
    assert comparison["test"]["n"] == read_json(finished.splits)["parts"]["test"]["size"]


def test_a_student_from_random_weights_is_compared_with_the_control(finished: Run) -> None:
    assert load_recipe(finished.recipe).random_start
    verdict = read_json(finished.comparison)["verdict"]
    assert verdict["against"] == "control"
    assert "its start" not in verdict["sentence"]


def test_the_run_directory_is_that_of_the_design(finished: Run) -> None:
    assert finished.report.stat().st_size < 8e6
    for path in (
        finished.recipe,
        finished.preflight,
        finished.metrics,
        finished.student,
        finished.candidates,
    ):
        assert path.is_file()
    assert load_recipe(finished.recipe).name == "finished"
    stages = [row["stage"] for row in read_jsonl(finished.metrics)]
    assert stages == ["teacher-fit"] * 2 + ["control"] * 2 + ["distill"] * 2


def test_each_loss_term_is_logged(finished: Run) -> None:
    row = list(read_jsonl(finished.metrics))[-1]
    assert set(row["loss"]) == {"total", "kl", "cross_entropy"}
    assert row["loss"]["total"] == pytest.approx(row["loss"]["kl"] + row["loss"]["cross_entropy"], rel=1e-5)


def test_the_kept_student_is_the_file_and_knows_its_classes(finished: Run) -> None:
    student = load_model(f"test_efficientnet@{finished.student}")
    assert student.class_ids == tuple(str(d) for d in range(10))
    assert student.input_spec.height == 32
    assert student.input_spec.crop_pct == 1.0


def test_the_table_can_be_had_again_from_the_kept_student(finished: Run) -> None:
    """Top-1 of the file, measured apart from the run, is the table's."""
    from tutelage.core.runtime import Runtime
    from tutelage.data.splits import make_splits
    from tutelage.evaluation.predict import predict_logits

    part = make_splits(load_recipe(finished.recipe).data).test
    student = load_model(f"test_efficientnet@{finished.student}")
    predictions = predict_logits(student.module, student.input_spec, part, Runtime.start())
    top1 = 100 * np.mean(predictions.logits.argmax(1).numpy() == part.labels)
    rows = {row["role"]: row for row in read_json(finished.comparison)["rows"]}
    assert rows["distilled"]["top1"] == pytest.approx(top1, abs=1e-4)


def test_predictions_are_those_of_the_table(finished: Run) -> None:
    right = read_predictions(finished.predictions).right("distilled").mean()
    rows = {row["role"]: row for row in read_json(finished.comparison)["rows"]}
    assert rows["distilled"]["top1"] == pytest.approx(100 * right, abs=1e-4)


def test_the_kept_candidate_is_the_best_on_val_and_the_start_took_part(finished: Run) -> None:
    record = read_json(finished.candidates)
    by_name = {c["name"]: c["val"]["top1"] for c in record["candidates"]}
    assert "start" in by_name
    assert by_name[record["kept"]] == max(by_name.values())


def test_a_finished_run_goes_through_again_unchanged(finished: Run) -> None:
    before = finished.student.read_bytes()
    distill(load_recipe(finished.recipe), finished, Silent())
    assert finished.student.read_bytes() == before


def test_an_existing_run_is_never_overwritten(finished: Run) -> None:
    recipe = load_recipe(finished.recipe)
    with pytest.raises(TutelageError, match=r"tutelage resume"):
        begin(recipe, finished.path.parent, "test")


@pytest.mark.parametrize(
    "teacher",
    ["torchvision:resnet50", f"onnx:/home/{'very-long-' * 30}/teacher.onnx", "onnx:/données/élan.onnx"],
)
def test_a_name_is_made_of_any_models(teacher: str, tmp_path: Path) -> None:
    recipe = parse_recipe({"teacher": teacher, "student": "hf:./éa/b"})
    name = begin(recipe, tmp_path, "test").path.name
    assert len(name) < 121
    assert teacher.rpartition("/")[2].rpartition("é")[2].replace(".", "_").replace(":", "_") in name


def test_changed_images_are_noticed_on_resume(finished: Run, tmp_path: Path) -> None:
    import shutil

    copied = tmp_path / "copy"
    shutil.copytree(finished.path, copied)
    Run(copied).begun.unlink()  # else the edit of the recipe is refused first
    recipe = load_recipe(finished.recipe)
    other = recipe.model_copy(update={"data": recipe.data.model_copy(update={"limit": 200})})
    with pytest.raises(TutelageError, match="images have changed since"):
        distill(other, Run.open(copied), Silent())


def test_a_weak_teacher_stops_the_run_unless_allowed(tiny: dict, tmp_path: Path) -> None:
    tiny["preflight"]["allow_weak_teacher"] = False
    tiny["teacher"]["fit"] = "no"
    with pytest.raises(TutelageError, match="teacher above chance"):
        run_tiny(tiny, tmp_path, "weak")


def test_mixup_cutmix_and_l2sp_go_through(tiny: dict, tmp_path: Path) -> None:
    tiny["view"] |= {
        "mixup": 0.8,
        "cutmix": 1.0,
        "rotation": 10,
        "blur": 0.1,
        "greyscale": 0.1,
        "cutout": 0.2,
    }
    tiny["train"] |= {"l2_sp": 0.01, "epochs": 1, "head_warmup_epochs": 1, "layer_decay": 0.8}
    tiny |= {"control": False, "track": ["tensorboard"]}
    run = run_tiny(tiny, tmp_path, "mixed")
    assert list(run.tensorboard.rglob("*tfevents*"))
    rows = list(read_jsonl(run.metrics))
    assert rows[-1]["loss"]["l2_sp"] >= 0
    assert [row["role"] for row in read_json(run.comparison)["rows"]] == ["teacher", "start", "distilled"]


def test_head_warmup_moves_the_head_only(tiny: dict, tmp_path: Path) -> None:
    tiny["train"] |= {"epochs": 1, "head_warmup_epochs": 1, "weight_decay": 0.0, "ema": 0.0}
    tiny["train"]["frozen_batchnorm"] = True
    tiny["control"] = False
    run = run_tiny(tiny, tmp_path, "head")
    start, last = load_file(run.start), _last(run)
    moved = {name for name, value in last.items() if not value.equal(start[name])}
    assert moved == {"classifier.weight", "classifier.bias"}


def test_several_teachers_teach_by_their_mean(tiny: dict, tmp_path: Path) -> None:
    tiny["teacher"]["others"] = ["test_vit@none"]
    tiny["control"] = False
    run = run_tiny(tiny, tmp_path, "several")
    stages = {row["stage"] for row in read_jsonl(run.metrics)}
    assert {"teacher-fit", "teacher-fit-2", "distill"} <= stages
    row = read_json(run.comparison)["rows"][0]  # of the two together, as they teach
    assert row["model"] == "test_resnet@none + test_vit@none"
    recipe = load_recipe(run.recipe)
    prepared = prepare(recipe, run, Silent())
    checked = preflight(Fitted(prepared, fit_teachers(prepared), fit_head(prepared)))
    joint = predict_jointly(prepared, checked.teachers, prepared.splits.test).logits.argmax(1).numpy()
    first = predict_jointly(prepared, checked.teachers[:1], prepared.splits.test).logits.argmax(1).numpy()
    stored = read_predictions(run.predictions).roles["teacher"].first
    assert stored.tolist() == joint.tolist() != first.tolist()
    assert row["top1"] == pytest.approx(100 * np.mean(joint == prepared.splits.test.labels))


def test_unlabelled_images_are_distilled_on_too(tiny: dict, tmp_path: Path) -> None:
    from PIL import Image
    from sklearn.datasets import load_digits

    folder = tmp_path / "pictures"
    folder.mkdir()
    for place, image in enumerate(load_digits().images[-40:]):
        Image.fromarray((image * 15).astype(np.uint8)).save(folder / f"{place}.png")
    tiny["data"]["unlabelled"] = f"folder:{folder}"
    run = run_tiny(tiny, tmp_path, "unlabelled")
    parts = read_json(run.splits)["parts"]
    images = parts["train"]["size"] + parts["unlabelled"]["size"]
    assert parts["unlabelled"]["size"] == 40
    for stage in ("control", "distill"):  # the control has as many steps, of labelled images alone
        rows = [row for row in read_jsonl(run.metrics) if row["stage"] == stage]
        assert rows[-1]["step"] == 2 * (images // 32)
    assert read_json(run.preflight)["steps"] == 2 * 2 * (images // 32)


def test_the_control_of_few_labels_has_the_students_steps_and_labelled_images_alone(
    tiny: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny["data"]["labels_per_class"] = 2  # 20 images, fewer than a batch
    tiny["train"] |= {"labelled_share": 0.25}
    tiny["teacher"]["fit"] = "no"
    tiny["targets"] = {"mode": "cached", "views": 2}
    batches: dict[str, list] = {"control": [], "distill": []}
    original = Trainer.train_step

    def seen(self: Trainer, batch: dict) -> None:
        batches[self.stage.name].append(
            (batch["label"].tolist(), list(zip(batch["index"].tolist(), batch["view"].tolist(), strict=True)))
        )
        original(self, batch)

    monkeypatch.setattr(Trainer, "train_step", seen)
    run = run_tiny(tiny, tmp_path, "few")
    parts = read_json(run.splits)["parts"]
    assert (parts["train"]["size"], parts["train"]["size"] + parts["unlabelled"]["size"]) == (20, 240)
    assert {stage: len(found) for stage, found in batches.items()} == {"control": 14, "distill": 14}
    for labels, images in batches["control"]:
        assert len(labels) == 32
        assert min(labels) >= 0
        assert max(view for _, view in images) <= 1  # targets.views
    for labels, images in batches["distill"]:
        assert sum(label >= 0 for label in labels) == 8
        assert max(view for _, view in images) <= 1
    used = np.bincount([position for _, images in batches["control"] for position, _ in images])
    assert used.max() - used.min() <= 1


def test_views_of_repeated_images_are_new_without_a_limit(tiny: dict, tmp_path: Path) -> None:
    tiny["data"]["labels_per_class"] = 2
    tiny["teacher"]["fit"] = "no"
    recipe = parse_recipe(tiny | {"name": "few"})
    prepared = prepare(recipe, begin(recipe, tmp_path, "test"), Silent())
    shown: list[tuple[int, int]] = []
    for batch in train_loader(
        prepared.splits.train,
        ViewPolicy(recipe.view),
        [prepared.student.input_spec],
        batch_size=32,
        seed=0,
        epoch=1,
        steps=3,
        workers=0,
    ):
        images = batch["images"][0]
        assert len({images[row].numpy().tobytes() for row in range(32)}) == 32
        shown += zip(batch["index"].tolist(), batch["view"].tolist(), strict=True)
    assert len(set(shown)) == 96


def test_versions_name_what_ran(finished: Run) -> None:
    record = json.loads(finished.versions.read_text())
    assert record["torch"] == torch.__version__.split("+")[0] or record["torch"] == torch.__version__
    assert record["command"] == "test"


def _last(run: Run) -> dict:
    from tutelage.distillation.checkpoint import load_checkpoint

    return load_checkpoint(run.checkpoints / "distill.safetensors")[0]["model"]


def test_the_default_recipe_spells_out_everything(finished: Run) -> None:
    import yaml

    assert set(yaml.safe_load(finished.recipe.read_text())) == set(Recipe.model_fields)


def test_the_deployed_files_are_rows_of_the_table(tiny: dict, tmp_path: Path) -> None:
    tiny |= {"control": False, "export": {"enabled": True, "int8": False}}
    run = run_tiny(tiny, tmp_path, "deployed")
    rows = {row["role"]: row for row in read_json(run.comparison)["rows"]}
    assert rows["onnx"]["top1"] == pytest.approx(rows["distilled"]["top1"], abs=1e-4)
    assert (run.deploy / "labels.txt").read_text().split() == [str(d) for d in range(10)]
