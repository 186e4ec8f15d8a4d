"""What a run chooses for the keys of the recipe that are `auto`."""

from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import pytest
from PIL import Image
from tests.helpers.clip_files import write_clip
from tests.helpers.heard import Heard
from tests.helpers.stages import network

from tutelage.core.components import AUTO, FitRecipe, TrainRecipe
from tutelage.core.errors import TutelageError
from tutelage.core.files import read_json, read_jsonl
from tutelage.core.progress import Silent
from tutelage.core.recipe import dump_recipe, load_recipe, parse_recipe
from tutelage.core.recipe_tree import read_yaml
from tutelage.models.registry import load_model
from tutelage.models.weights import save_weights
from tutelage.pipeline.choices import settings_of, with_fit_choices, with_train_choices
from tutelage.pipeline.early import check_early
from tutelage.pipeline.run import begin, distill
from tutelage.pipeline.stages.fit import Fitted, fit_head, fit_teachers
from tutelage.pipeline.stages.preflight import preflight
from tutelage.pipeline.stages.prepare import prepare
from tutelage.pipeline.stages.train import kept_line


@pytest.mark.parametrize(
    ("images", "epochs"),
    [(3068, 18), (10_000, 16), (1_000_000, 16), (500, 40), (10, 40)],
)
def test_epochs_are_counted_in_steps(images: int, epochs: int) -> None:
    train = TrainRecipe(batch_size=64)
    assert with_train_choices(train, images, load_model("test_resnet@none")).epochs == epochs


def test_random_weights_have_a_higher_rate_and_longer_fits() -> None:
    random = load_model("test_resnet@none")
    train = with_train_choices(TrainRecipe(), 3000, random)
    assert train.lr == 3e-3
    assert with_fit_choices(FitRecipe(), 3000, 64, random).epochs == train.epochs
    mine = TrainRecipe(epochs=2, lr=0.5)
    assert with_train_choices(mine, 3000, random) == mine  # what a recipe gives stays


def test_auto_is_written_as_auto_and_read_again(tmp_path: Path) -> None:
    recipe = parse_recipe({"teacher": {"fit": {"lr": "auto", "epochs": 3}}, "train": {"epochs": "auto"}})
    assert recipe.train.epochs == AUTO
    path = tmp_path / "recipe.yaml"
    path.write_text(dump_recipe(recipe))
    tree = read_yaml(path)
    assert tree["train"]["epochs"] == tree["train"]["lr"] == tree["teacher"]["fit"]["lr"] == "auto"
    assert tree["loss"]["temperature"] == tree["loss"]["teacher_temperature"] == "auto"
    assert load_recipe(path) == recipe


def test_a_difference_from_the_start_is_called_noise_where_its_interval_holds_zero() -> None:
    one = {"difference": 1.0, "low": 0.25, "high": 1.75, "n": 1200, "within_noise": False}
    line = "kept: ema, +1.00 points of top-1 against the start on val (95% interval +0.25 to +1.75, 1,200 images)"
    assert kept_line("ema", one) == line
    noise = one | {"low": -0.25, "within_noise": True}
    assert kept_line("ema", noise) == line.replace("+0.25", "-0.25") + ", which is within noise"
    assert kept_line("ema", None) == "kept: ema"
    assert (
        kept_line("start", one | {"difference": 0.0}) == "kept: start; no trained candidate is better on val"
    )


@pytest.mark.parametrize("value", [0, -1, "soon", True, 2.5])
def test_other_words_and_numbers_below_one_are_refused(value: object) -> None:
    with pytest.raises(TutelageError, match=r"train\.epochs"):
        parse_recipe({"train": {"epochs": value}})


def test_a_run_records_what_it_chose_and_resumes_with_it(tiny: dict, tmp_path: Path) -> None:
    tiny["loss"] = {"label_weight": 0.1}
    tiny["train"] |= {"epochs": "auto", "lr": "auto", "batch_size": 8, "patience": 1}
    tiny["data"] |= {"limit": 64, "val_fraction": "auto"}
    tiny["control"] = False
    recipe = parse_recipe(tiny)
    run = begin(recipe, tmp_path, "test")
    distill(recipe, run, heard := Heard())
    found = read_json(run.candidates)
    assert kept_line(found["kept"], found["training"]["kept_against_start"]) in heard.lines
    assert f"auto: data.val_fraction = {300 / 1797:.4f} (300 of 1,797 images" in "\n".join(heard.lines)
    chosen = {key: entry["value"] for key, entry in read_json(run.choices).items()}
    assert chosen["data.val_fraction"] == round(300 / 1797, 4)
    assert chosen["train.epochs"] == 40
    assert chosen["train.lr"] == 3e-3
    assert 1 <= chosen["loss.temperature"] <= 4
    assert chosen["loss.teacher_temperature"] > 0
    settings = settings_of(run)
    assert settings.train.epochs == 40
    assert settings.loss.temperature == chosen["loss.temperature"]
    stopped = [row for row in read_jsonl(run.metrics) if row["stage"] == "distill"]
    assert len(stopped) < 40  # of the patience
    for row in stopped[:-2]:
        assert row["epochs"] == 40
    before = {path: path.read_bytes() for path in (run.choices, run.student, run.preflight)}
    distill(load_recipe(run.recipe), run, Silent())
    assert {path: path.read_bytes() for path in before} == before


def test_a_range_test_chooses_one_rate_for_control_and_student(tiny: dict, tmp_path: Path) -> None:
    tiny["train"] |= {"lr": "range", "epochs": 1, "schedule": "constant"}
    recipe = parse_recipe(tiny | {"name": "one"})
    run = begin(recipe, tmp_path, "test")
    distill(recipe, run, Silent(), memo=tmp_path / "shared")
    choice = read_json(run.choices)["train.lr"]
    assert 1e-4 < choice["value"] < 1
    assert "range test of" in choice["why"]
    rates = {row["stage"]: row["lr"] for row in read_jsonl(run.metrics)}
    assert rates["control"] == rates["distill"] == choice["value"]
    assert settings_of(run).train.lr == choice["value"]
    curve = read_json(run.checkpoints / "lr-range.json")
    assert len(curve["rates_and_losses"]) > 50
    before = {path: path.read_bytes() for path in (run.choices, run.student, run.control)}
    with patch("tutelage.pipeline.stages.rate.range_test", side_effect=AssertionError("tested again")):
        distill(load_recipe(run.recipe), run, Silent(), memo=tmp_path / "shared")  # resumed
        assert {path: path.read_bytes() for path in before} == before
        other = begin(parse_recipe(tiny | {"name": "two"}), tmp_path, "test")  # of the same study
        distill(load_recipe(other.recipe), other, Silent(), memo=tmp_path / "shared")
    assert read_json(other.choices)["train.lr"] == choice


def test_a_range_test_needs_labels_and_a_fit_has_none(tiny: dict, tmp_path: Path) -> None:
    for number in range(40):
        place = tmp_path / "photos" / f"{number}.png"
        place.parent.mkdir(exist_ok=True)
        Image.new("RGB", (32, 32), (number * 4, 90, 250 - number * 4)).save(place)
    classes = tmp_path / "classes.txt"
    classes.write_text("a\nb\n")
    tiny["data"] = {"train": f"folder:{tmp_path / 'photos'}", "workers": 0}
    teacher = {"model": f"zero-shot:{write_clip(tmp_path / 'clip')}?classes={classes}"}
    settings = {"name": "pictures", "teacher": teacher, "train": {"lr": "range", "batch_size": 8}}
    recipe = parse_recipe(tiny | settings)
    with pytest.raises(TutelageError, match=r"train\.lr=range: no training image has a label"):
        distill(recipe, begin(recipe, tmp_path / "runs", "test"), Silent())
    with pytest.raises(TutelageError, match=r"teacher\.fit\.lr"):
        parse_recipe({"teacher": {"fit": {"lr": "range"}}})


def test_runs_that_share_a_preflight_record_its_temperatures_too(tiny: dict, tmp_path: Path) -> None:
    tiny |= {"loss": {"label_weight": 0.1}, "control": False}
    tiny["train"]["epochs"] = 1
    runs = []
    for name, rate in (("one", 1e-3), ("two", 2e-3)):
        recipe = parse_recipe(tiny | {"name": name, "train": tiny["train"] | {"lr": rate}})
        run = begin(recipe, tmp_path, "test")
        distill(recipe, run, Silent(), memo=tmp_path / "shared")
        runs.append(run)
    assert len(list((tmp_path / "shared").glob("preflight-*.json"))) == 1
    one, two = (read_json(run.choices) for run in runs)
    for key in ("loss.temperature", "loss.teacher_temperature"):
        assert two[key]["value"] == one[key]["value"]
    assert settings_of(runs[1]).loss == settings_of(runs[0]).loss


def test_a_preflight_is_shared_between_seeds_but_not_between_views(tiny: dict, tmp_path: Path) -> None:
    """The temperature of kl is chosen on training views, which do not depend on the seed there."""
    tiny["loss"] = {"label_weight": 0.1}
    for role, name in (("teacher", "test_resnet"), ("student", "test_efficientnet")):
        model = replace(network(name, 0), class_ids=tuple("0123456789"))
        save_weights(model.module, tmp_path / f"{name}.safetensors", model.metadata())
        tiny[role] |= {"model": f"{name}@{tmp_path / name}.safetensors"}  # the same with any seed
    tiny["teacher"]["fit"] = "no"
    tiny["student"]["head_fit"] = "no"
    shared = tmp_path / "shared"

    def preflights(name: str, part: str, changes: dict) -> int:
        recipe = parse_recipe(tiny | {"name": name, part: tiny[part] | changes})
        prepared = prepare(recipe, begin(recipe, tmp_path, "test"), Silent(), shared)
        preflight(Fitted(prepared, fit_teachers(prepared), fit_head(prepared)))
        return len(list(shared.glob("preflight-*.json")))

    assert preflights("first", "train", {}) == 1
    assert preflights("seed", "train", {"seed": 1}) == 1
    assert preflights("views", "view", {"crop_scale": [0.1, 0.2]}) == 2


def test_a_fit_has_fewer_labelled_images_than_a_batch_and_records_what_it_chose(
    tiny: dict, tmp_path: Path
) -> None:
    tiny["data"]["labels_per_class"] = 2  # 20 images, and 220 without a label
    tiny["teacher"]["fit"] = {"epochs": 1}
    recipe = parse_recipe(tiny)
    check_early(recipe, tmp_path)
    prepared = prepare(recipe, begin(recipe, tmp_path, "test"), Silent())
    fit_teachers(prepared)
    assert [row["step"] for row in read_jsonl(prepared.run.metrics)] == [1]
    assert read_json(prepared.run.choices)["teacher.fit.lr"]["value"] == 3e-3
    assert settings_of(prepared.run).teacher == recipe.teacher
