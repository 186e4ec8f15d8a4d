"""Networks at neighbouring resolutions, and the teacher at its best one."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.helpers.real_runs import networks, quick
from tests.helpers.shared import common_folder

from tutelage.core.errors import TutelageError
from tutelage.core.files import read_json, write_json
from tutelage.core.progress import Silent
from tutelage.core.recipe import parse_recipe
from tutelage.core.run_dir import Run
from tutelage.data.splits import sample
from tutelage.evaluation.quality import Quality
from tutelage.evaluation.resolution import IMAGES, at, best, neighbours, probe, reach
from tutelage.models.registry import load_model
from tutelage.models.source import Model
from tutelage.pipeline.run import begin, distill


def measured(top1: float, nll: float = 1.0) -> Quality:
    return Quality(top1=top1, top5=100.0, nll=nll, ece=0.0, n=100)


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        (224, [192, 224, 256, 288, 320]),
        (112, [96, 112, 128, 144, 160]),
        (260, [224, 260, 296, 332, 368]),
        (288, [256, 288, 320, 352, 384]),
        (16, [16, 18, 20, 22]),
    ],
)
def test_neighbours_of_well_known_resolutions(own: int, expected: list[int]) -> None:
    assert neighbours(own) == expected


@given(st.integers(16, 1024))
def test_neighbours_are_few_ascending_near_and_hold_the_own(own: int) -> None:
    found = neighbours(own)
    assert own in found
    assert found == sorted(set(found))
    assert len(found) in {4, 5}
    assert min(found) >= 16
    assert own < max(found) <= 2 * own


def test_best_is_by_the_metric_of_the_choice_and_among_one_s_own() -> None:
    records = [
        {"who": "teacher", "resolution": 96, "top1": 70.0, "nll": 1.1},
        {"who": "teacher", "resolution": 112, "top1": 74.0, "nll": 1.2},
        {"who": "teacher", "resolution": 128, "top1": None, "nll": None},
        {"who": "student", "resolution": 144, "top1": 99.0, "nll": 0.1},
    ]
    assert best(records, "teacher", "top1") == 112
    assert best(records, "teacher", "nll") == 96


def test_equal_figures_go_to_the_smaller_resolution_which_is_faster() -> None:
    records = [{"who": "a", "resolution": r, "top1": 70.0, "nll": 1.0} for r in (160, 128, 144)]
    assert best(records, "a", "top1") == 128


@pytest.fixture(scope="module")
def transformer() -> Model:
    return load_model("test_vit@none", num_classes=10).at(64)


def test_a_copy_is_at_another_resolution_and_the_model_stays_as_it_was(transformer: Model) -> None:
    before = {name: tensor.clone() for name, tensor in transformer.module.state_dict().items()}
    there = at(transformer, 96)
    assert there.input_spec.height == 96
    assert transformer.input_spec.height == 64
    assert all(tensor.equal(before[name]) for name, tensor in transformer.module.state_dict().items())
    with torch.no_grad():
        assert there.module(torch.zeros(1, 3, 96, 96)).shape == (1, 10)
        assert transformer.module(torch.zeros(1, 3, 64, 64)).shape == (1, 10)


def test_the_probe_measures_each_resolution_with_an_input_of_that_size(transformer: Model) -> None:
    seen: list[int] = []

    def evaluate(model: Model) -> Quality:
        seen.append(model.input_spec.height)
        model.module(torch.zeros(1, 3, model.input_spec.height, model.input_spec.width))
        return measured(top1=100 - abs(model.input_spec.height - 80))

    records = probe(transformer, "teacher", evaluate, "top1")
    assert seen == neighbours(64)
    assert best(records, "teacher", "top1") == 80


def test_a_resolution_that_a_network_cannot_work_at_is_passed_over(transformer: Model) -> None:
    def evaluate(model: Model) -> Quality:
        if model.input_spec.height == 72:
            raise RuntimeError("shapes clash")
        return measured(50.0 if model.input_spec.height < 64 else 60.0)

    records = probe(transformer, "teacher", evaluate, "top1")
    assert [r["resolution"] for r in records if r["top1"] is None] == [72]
    assert best(records, "teacher", "top1") == 64


def test_the_probe_goes_on_downwards_while_that_is_better(transformer: Model) -> None:
    """A checkpoint trained at 40 px that does not say so is used at its architecture's 64."""
    records = probe(transformer, "teacher", lambda m: measured(100 - abs(m.input_spec.height - 40)), "top1")
    assert [r["resolution"] for r in records] == [32, 40, 48, *neighbours(64)]
    assert best(records, "teacher", "top1") == 40


def test_the_probe_ends_where_images_would_be_too_small(transformer: Model) -> None:
    records = probe(transformer, "teacher", lambda m: measured(100 - m.input_spec.height), "top1")
    assert min(r["resolution"] for r in records) == 16


def test_a_fault_at_the_own_resolution_is_no_matter_of_the_resolution(transformer: Model) -> None:
    def evaluate(model: Model) -> Quality:
        raise TutelageError("no image")

    with pytest.raises(TutelageError, match="no image"):
        probe(transformer, "teacher", evaluate, "top1")


def test_images_are_decoded_as_large_as_the_highest_probe(transformer: Model) -> None:
    assert reach(transformer.input_spec).height == max(neighbours(64))
    assert reach(transformer.input_spec).mean == transformer.input_spec.mean


def test_a_large_val_is_sampled_over_all_classes() -> None:
    from tests.helpers.real_runs import digits

    subset = digits().train
    big = replace(subset, indices=subset.indices.repeat(3)[: 2 * IMAGES])
    some = sample(big, IMAGES)
    assert len(some) == IMAGES
    assert set(some.labels) == set(range(10))
    assert len(sample(subset, IMAGES)) == len(subset)


# --- a real run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The teacher knows the digits at 32 px; it is offered at 28, so that one of its neighbours is better."""
    root = tmp_path_factory.getbasetemp()
    models = networks(common_folder(tmp_path_factory))
    recipe = parse_recipe(
        {
            "name": "resolutions",
            "teacher": {"model": models["teacher"], "resolution": "best", "crop_pct": 1.0, "fit": "no"},
            "student": {"model": models["start"], "resolution": 28, "crop_pct": 1.0, "head_fit": "no"},
            "data": {
                "train": "digits",
                "val_fraction": 0.1,
                "test_fraction": 0.2,
                "workers": 0,
                "limit": 200,
            },
            "train": {
                "epochs": 1,
                "lr": 1e-4,
                "batch_size": 32,
                "precision": "fp32",
                "frozen_batchnorm": True,
            },
            "preflight": {"probe_resolutions": True, "allow_weak_teacher": True},
            "selection": {"interpolate": False, "soup": False},
            "control": False,
        }
    )
    made = begin(recipe, root, "test")
    with quick():
        distill(recipe, made, Silent())
    return made


def test_preflight_has_the_figures_of_both_and_the_teacher_teaches_at_its_best(run: Run) -> None:
    record = read_json(run.preflight)
    probed = {(r["who"], r["resolution"]) for r in record["resolutions"]}
    assert probed >= {("teacher", r) for r in neighbours(32)} | {("student", r) for r in neighbours(28)}
    assert record["teacher"]["resolution"] == best(record["resolutions"], "teacher", "top1")
    top1 = {(r["who"], r["resolution"]): r["top1"] for r in record["resolutions"]}
    assert record["teacher"]["val"]["top1"] == top1["teacher", record["teacher"]["resolution"]]
    assert record["student"]["val"]["top1"] == top1["student", 28]


def test_the_kept_student_has_a_row_at_the_resolution_that_val_chose(run: Run) -> None:
    chosen = best(read_json(run.candidates)["resolutions"], "distilled", "top1")
    rows = {row["role"]: row for row in read_json(run.comparison)["rows"]}
    assert chosen != 28, "made to be better elsewhere"
    other = rows[f"distilled@{chosen}"]
    assert other["resolution"] == chosen
    assert other["size_mb"] == rows["distilled"]["size_mb"]
    assert (other["gmacs"] > rows["distilled"]["gmacs"]) == (chosen > 28)
    assert other["n"] == rows["distilled"]["n"]
    assert other["top1"] > rows["distilled"]["top1"]


def test_a_run_that_goes_on_teaches_at_the_same_resolution(run: Run) -> None:
    """Without its checkpoints a run trains again, with the pre-flight that it has."""
    from tutelage.core.recipe import load_recipe

    record = read_json(run.preflight)
    pinned = 36 if record["teacher"]["resolution"] != 36 else 40
    for row in record["resolutions"]:  # as if another had been found best
        row["top1"] = 100.0 if row["resolution"] == pinned else 1.0
    again = Run(run.path.parent / "resumed")
    again.path.mkdir()
    write_json(again.preflight, record)
    again.recipe.write_text(run.recipe.read_text())
    with quick():
        result = distill(load_recipe(run.recipe), again, Silent())
    assert next(row for row in result["rows"] if row["role"] == "teacher")["resolution"] == pinned
