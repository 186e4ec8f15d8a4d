"""Each finding on figures, or a real run, made to have it, and on one that has not."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.helpers.real_runs import KINDS, real_run
from tests.helpers.shared import common_folder

from tutelage.core.files import read_json
from tutelage.core.recipe import Recipe, load_recipe, parse_recipe
from tutelage.core.records import RunPredictions, TopClasses
from tutelage.core.run_dir import Run
from tutelage.evaluation.flips import by_class
from tutelage.pipeline.diagnose import Figures, Finding, diagnose, lines

CLASSES, N = 20, 4000
LABELS = np.arange(N) % CLASSES


def answered(right: np.ndarray) -> np.ndarray:
    """(N, 5) classes, the first being the label where `right`."""
    wrong = (LABELS + 1) % CLASSES
    return np.stack([np.where(right, LABELS, wrong), *[(LABELS + k) % CLASSES for k in range(2, 6)]], axis=1)


def changed(right: np.ndarray, won: int, lost: int, seed: int = 0) -> np.ndarray:
    """With so many wrong answers put right, and so many right ones wrong."""
    rng, new = np.random.default_rng(seed), right.copy()
    new[rng.choice(np.flatnonzero(~right), won, replace=False)] = True
    new[rng.choice(np.flatnonzero(right), lost, replace=False)] = False
    return new


START = np.random.default_rng(1).permutation(N) < 0.686 * N


def answers(**right: np.ndarray) -> RunPredictions:
    predictions = {
        "teacher": changed(START, won=400, lost=160),
        "start": START,
        "control": changed(START, won=100, lost=110),
        "distilled": changed(START, won=200, lost=100),
    } | right
    return RunPredictions(
        ids=np.arange(N).astype(str),
        labels=LABELS,
        classes=tuple(f"n{i:08d}" for i in range(CLASSES)),
        roles={role: TopClasses(answered(r), np.full((N, 5), 0.2)) for role, r in predictions.items()},
    )


def rows(
    train: list[float], val: list[float], top1: list[float], stage: str = "distill", **more: Any
) -> list[dict[str, Any]]:
    targets = {"entropy": 1.2, "confidence": 65.0, "top1": 74.0} | more.pop("targets", {})
    return [
        {
            "stage": stage,
            "epoch": place + 1,
            "epochs": len(train),
            "step": 100 * (place + 1),
            "loss": {"total": loss},
            "val": {"top1": top1[place], "nll": val[place], "loss": val[place]},
            "targets": targets,
            "bad_steps": 0,
        }
        | more
        for place, loss in enumerate(train)
    ]


SOUND = rows(
    [1.5, 1.45, 1.4, 1.38, 1.36, 1.35],
    [1.4, 1.35, 1.33, 1.32, 1.31, 1.31],
    [69.0, 69.4, 70.0, 70.1, 70.3, 70.3],
)


def candidates(
    start: float = 68.6, last: float = 70.3, mended: float = 70.2, **training: Any
) -> dict[str, Any]:
    found = {"start": start, "last": last, "last-recalibrated": mended}
    evidence = {"start_val": {"loss": 1.45}, "against_start": {}, "batchnorm": {"distance": 0.05}}
    return {
        "metric": "top1",
        "kept": "last",
        "candidates": [
            {"name": name, "alpha": None, "val": {"top1": v, "nll": 1.3}} for name, v in found.items()
        ],
        "training": evidence | training,
    }


def resolved(tree: dict[str, Any]) -> Recipe:
    """A recipe without `auto`, as a run has it."""
    chosen = {"train": {"epochs": 10, "lr": 3e-4}, "loss": {"temperature": 2.0, "teacher_temperature": 1.0}}
    return parse_recipe(tree | {part: values | tree.get(part, {}) for part, values in chosen.items()})


def figures(
    recipe: dict[str, Any] | None = None, teacher: dict[str, float] | None = None, **change: Any
) -> Figures:
    """A sound run: a better teacher with soft targets, val improving to a plateau, a gain that is sure."""
    predictions = change.pop("predictions", answers())
    table = [
        {"role": role, "n": N, "top1": 100 * float(np.mean(predictions.right(role)))}
        for role in predictions.roles
    ]
    sound = Figures(
        recipe=resolved({"loss": {"temperature": 1.0, "label_weight": 0.0}, **(recipe or {})}),
        rows=SOUND,
        preflight={
            "val": {"n": 1000},
            "chance_top1": 100 / CLASSES,
            "teacher": {
                "val": {"top1": 74.5, "confidence": 70.0, "best_temperature": 0.85} | (teacher or {})
            },
        },
        candidates=candidates(),
        comparison={"rows": table},
        predictions=predictions,
    )
    return replace(sound, **change)


def found(figures_of: Figures, name: str) -> Finding | None:
    return next((finding for finding in diagnose(figures_of) if finding.name == name), None)


def test_a_sound_run_has_nothing_but_its_gains() -> None:
    """The run that has none of the faults below: every check is tested against it."""
    assert [(f.name, f.severity) for f in diagnose(figures())] == [
        ("gain from the teacher", "good"),
        ("gain over the start", "good"),
    ]


# --- the course of the training


OVERFITTED = rows(
    [1.5, 1.2, 0.9, 0.7, 0.5, 0.4], [1.40, 1.36, 1.38, 1.42, 1.50, 1.60], [69, 69.6, 69.5, 69.3, 69.0, 68.8]
)


def test_overfitting_is_dated_to_the_epoch_after_which_val_stood_still() -> None:
    finding = found(figures(rows=OVERFITTED), "overfitting")
    assert finding is not None
    assert (finding.epoch, finding.severity, finding.stage) == (2, "problem", "distill")
    assert finding.evidence["val_loss"] == [1.36, 1.60]
    assert "view.mixup" in [t.key for t in finding.attempts]


STILL = rows([1.5, 1.2, 1.1, 1.05, 1.0], [1.40, 1.360, 1.361, 1.361, 1.362], [69, 70.3, 70.2, 70.3, 70.3])


def test_a_val_loss_that_stands_still_is_not_said_to_rise() -> None:
    finding = found(figures(rows=STILL), "overfitting")
    assert finding is not None
    assert "the loss on val stood still (1.360 then, 1.362 at the end)" in finding.sentence
    finding = found(figures(rows=OVERFITTED), "overfitting")
    assert finding is not None
    assert "the loss on val rose (1.360 then, 1.600 at the end)" in finding.sentence


def test_a_val_loss_that_stands_still_is_a_problem_only_where_nothing_was_gained() -> None:
    gained, level = figures(rows=STILL), figures(rows=STILL, predictions=answers(distilled=START))
    assert gained.gained
    assert not level.gained
    assert [getattr(found(run, "overfitting"), "severity", None) for run in (gained, level)] == [
        "note",
        "problem",
    ]


def test_overfitting_of_the_control_alone_is_a_note() -> None:
    control = [row | {"stage": "control"} for row in OVERFITTED]
    finding = found(figures(rows=[*SOUND, *control]), "overfitting")
    assert finding is not None
    assert (finding.stage, finding.severity) == ("control", "note")


def test_a_val_loss_that_rises_while_accuracy_grows_is_no_overfitting() -> None:
    growing = rows([1.5, 1.2, 0.9, 0.7], [1.40, 1.36, 1.38, 1.42], [69, 69.6, 70.5, 71.5])
    assert found(figures(rows=growing), "overfitting") is None


def test_the_pull_to_the_start_is_no_part_of_the_training_loss_that_falls() -> None:
    pulled = [
        row | {"loss": {"total": 1.2 + pull, "l2_sp": pull}}
        for row, pull in zip(OVERFITTED, (1.0, 0.9, 0.5, 0.3, 0.2, 0.1), strict=True)
    ]
    assert found(figures(rows=pulled), "overfitting") is None


WILD = rows([3.0, 2.0, 1.7], [2.5, 1.9, 1.6], [52.0, 60.0, 64.0])


SPOILT = candidates(last=64.0, mended=64.0)


def test_a_fall_in_the_first_epoch_is_too_high_an_lr() -> None:
    finding = found(figures(rows=WILD, candidates=SPOILT), "lr too high")
    assert finding is not None
    assert (finding.severity, finding.epoch) == ("problem", 1)
    assert finding.attempts[0].key == "train.lr"
    assert float(finding.attempts[0].value) == pytest.approx(figures().recipe.train.lr / 10, rel=0.1)


def test_a_fall_that_was_made_good_is_a_note() -> None:
    back = rows([3.0, 2.0, 1.2], [2.5, 1.5, 1.2], [52.0, 66.0, 70.0])
    finding = found(figures(rows=back, candidates=candidates(last=70.0, mended=68.0)), "lr too high")
    assert finding is not None
    assert finding.severity == "note"


def test_a_fall_that_new_batchnorm_statistics_undo_is_no_matter_of_the_lr() -> None:
    assert found(figures(rows=WILD, candidates=candidates(last=64.0, mended=69.0)), "lr too high") is None


def test_a_start_at_chance_has_nothing_to_lose_by_a_high_lr() -> None:
    assert (
        found(figures(rows=WILD, candidates=candidates(start=5.0, last=4.0, mended=4.0)), "lr too high")
        is None
    )


def test_a_lower_loss_with_lower_accuracy_is_no_matter_of_the_lr_but_of_the_targets() -> None:
    astray = figures(
        {"loss": {"temperature": 4.0}}, rows=rows([1.2, 1.1], [1.3, 1.2], [64.0, 63.0]), candidates=SPOILT
    )
    assert found(astray, "lr too high") is None
    finding = found(astray, "goal and accuracy part")
    assert finding is not None
    assert finding.severity == "problem"
    assert finding.attempts[0].key == "loss.temperature"


def test_val_that_still_improves_at_the_end_wants_more_epochs() -> None:
    rising = rows([1.5, 1.4, 1.3], [1.45, 1.38, 1.30], [69.0, 70.5, 72.5])
    finding = found(figures(rows=rising, recipe={"train": {"epochs": 3}}), "too few epochs")
    assert finding is not None
    assert (finding.attempts[0].key, finding.attempts[0].value) == ("train.epochs", "6")
    assert (
        "when training ended: in the last of 3 epochs, val top-1 rose from 70.50% to 72.50%"
        in finding.sentence
    )


def test_an_improvement_within_two_images_of_a_small_val_is_none() -> None:
    rising = rows([1.5, 1.4, 1.3], [1.45, 1.38, 1.30], [69.0, 70.5, 72.5])
    small = figures(rows=rising)
    assert found(replace(small, preflight={**small.preflight, "val": {"n": 80}}), "too few epochs") is None


def test_batchnorm_drift_needs_both_the_distance_and_the_recovery() -> None:
    moved = {"batchnorm": {"distance": 0.6}}
    finding = found(figures(candidates=candidates(last=60.0, mended=68.0, **moved)), "BatchNorm drift")
    assert finding is not None
    assert finding.severity == "problem"
    assert finding.attempts[0].key == "train.frozen_batchnorm"
    assert found(figures(candidates=candidates(last=68.0, mended=68.1, **moved)), "BatchNorm drift") is None
    assert found(figures(candidates=candidates(last=60.0, mended=68.0)), "BatchNorm drift") is None


def test_skipped_steps_are_told() -> None:
    finding = found(figures(rows=[row | {"bad_steps": 7} for row in SOUND]), "skipped steps")
    assert finding is not None
    assert finding.evidence["bad_steps"] == 7


# --- the teacher


def test_a_teacher_no_better_than_the_student_leaves_no_headroom() -> None:
    unsure = answers(teacher=changed(START, won=160, lost=130))
    finding = found(figures(predictions=unsure), "no headroom")
    assert finding is not None
    assert finding.severity == "note"
    same = found(figures(predictions=answers(teacher=START)), "no headroom")
    assert same is not None
    assert same.severity == "problem"


def test_targets_that_are_nearly_one_hot_are_a_saturated_teacher() -> None:
    sure = [row | {"targets": {"entropy": 0.03, "confidence": 99.5, "top1": 99.9}} for row in SOUND]
    finding = found(figures(rows=sure), "saturated teacher")
    assert finding is not None
    assert finding.severity == "note"  # it gained over the control all the same
    assert ("loss.temperature", "2") in [(t.key, t.value) for t in finding.attempts]
    lost = answers(distilled=changed(START, won=100, lost=110, seed=5))
    without = found(figures(rows=sure, predictions=lost), "saturated teacher")
    assert without is not None
    assert without.severity == "problem"


def test_a_teacher_beaten_by_labels_alone_is_not_fitted() -> None:
    beaten = figures(predictions=answers(control=changed(START, won=700, lost=50)))
    name = "teacher not fitted to the domain"
    finding = found(beaten, name)
    assert finding is not None
    assert finding.attempts[0].key == "teacher.fit"
    assert found(replace(beaten, rows=[*rows([1.0], [1.0], [70.0], "teacher-fit"), *SOUND]), name) is None


def test_a_teacher_that_names_classes_the_data_has_not_is_not_fitted() -> None:
    predictions = answers()
    classes = predictions.roles["teacher"].top
    outside = TopClasses(np.where(np.arange(N)[:, None] % 4 == 0, 500, classes), np.full((N, 5), 0.2))
    predictions = replace(predictions, roles={**predictions.roles, "teacher": outside})
    finding = found(figures(predictions=predictions), "teacher not fitted to the domain")
    assert finding is not None
    assert finding.evidence["outside_percent"] == pytest.approx(25)


def test_an_unsure_teacher_is_not_to_be_softened_further() -> None:
    smoothed = {"confidence": 60.0, "best_temperature": 0.6}
    name = "temperature too high for this teacher"
    finding = found(figures({"loss": {"temperature": 4.0}}, smoothed), name)
    assert finding is not None
    tried = [(attempt.key, attempt.value) for attempt in finding.attempts]
    assert tried[:2] == [("loss.teacher_temperature", "auto"), ("loss.temperature", "1")]
    assert found(figures({"loss": {"temperature": 1.0}}, smoothed), name) is None
    assert (
        found(figures({"loss": {"temperature": 4.0}}, {"confidence": 76.0, "best_temperature": 1.2}), name)
        is None
    )
    assert found(figures({"loss": {"temperature": 4.0, "name": "dist"}}, smoothed), name) is None


@pytest.mark.parametrize(("label_weight", "severity"), [(0.5, "problem"), (0.0, "note")])
def test_labels_that_a_good_teacher_contradicts_are_told(label_weight: float, severity: str) -> None:
    sound = figures({"loss": {"temperature": 1.0, "label_weight": label_weight}})
    shuffled = {"top1": 6.0, "nll": 9.0, "n": 500}
    teacher = {**sound.preflight["teacher"], "train": shuffled}
    finding = found(
        replace(sound, preflight={**sound.preflight, "teacher": teacher}), "labels contradict the teacher"
    )
    assert finding is not None
    assert finding.severity == severity


# --- what came of it


def test_val_that_pretraining_had_seen_is_told_by_the_gap_to_test() -> None:
    finding = found(figures(candidates=candidates(start=75.8, last=74.0)), "val seen in pretraining")
    assert finding is not None
    assert finding.severity == "problem"
    assert finding.evidence["gap"] == pytest.approx(7.2, abs=0.1)
    assert finding.attempts[0].key == "data.val"


def test_a_gap_that_a_small_val_explains_is_no_finding() -> None:
    few = figures(candidates=candidates(start=75.8, last=74.0))
    assert (
        found(replace(few, preflight={**few.preflight, "val": {"n": 100}}), "val seen in pretraining") is None
    )


def test_forgetting_names_the_classes_that_lose_most() -> None:
    lost = {
        "against_start": {
            "candidate": "last",
            **{
                "difference": -5.0,
                "low": -7.0,
                "high": -3.0,
                "negative_flips": 80,
                "corrections": 30,
                "mcnemar_p": 2e-6,
                "agreement": 80.0,
                "n": 1000,
            },
            "classes": [{"class": "n00000003", "negative_flips": 20, "corrections": 1, "n": 50, "p": 1e-5}],
        }
    }
    finding = found(figures(candidates=candidates(**lost)), "forgetting")
    assert finding is not None
    assert finding.severity == "problem"
    assert "n00000003 (20 of 50)" in finding.sentence


def test_a_class_lost_though_the_whole_gained_is_a_note() -> None:
    kept = changed(START, won=300, lost=0)
    kept[(LABELS == 7) & START] = np.arange(N)[(LABELS == 7) & START] % 2 == 0
    finding = found(figures(predictions=answers(distilled=kept)), "forgetting")
    assert finding is not None
    assert (finding.severity, finding.evidence["part"]) == ("note", "test")
    assert [c["class"] for c in finding.evidence["classes"]] == ["n00000007"]


def test_harm_and_a_misled_choice_are_told() -> None:
    worse = diagnose(figures(predictions=answers(distilled=changed(START, won=50, lost=200))))
    assert {"the teacher does harm", "worse on test than on val"} <= {
        f.name for f in worse if f.severity == "problem"
    }
    assert not [f for f in worse if f.severity == "good"]


def test_what_mcnemar_does_not_bear_out_is_neither_gain_nor_harm() -> None:
    """Five images changed, all to one side: the interval leaves zero out, McNemar's p is 0.06."""
    for won, lost in ((5, 0), (0, 5)):
        few = figures(predictions=answers(distilled=changed(START, won, lost), control=START))
        pair = few.against("distilled", "start")
        assert pair is not None
        assert not pair.low <= 0 <= pair.high
        assert not few.gained
        assert [f.name for f in diagnose(few)] == ["no gain"]


@pytest.mark.parametrize("recipe", [{"student": "resnet18@none"}, {"train": {"from_scratch": True}}])
def test_a_random_start_is_no_opponent_of_the_student(recipe: dict[str, Any]) -> None:
    random = np.random.default_rng(2).permutation(N) < N / CLASSES
    gains = figures(recipe, predictions=answers(start=random), candidates=candidates(start=5.0))
    assert [f.name for f in diagnose(gains)] == ["gain from the teacher"]

    even = answers(start=random, distilled=changed(START, won=100, lost=108, seed=3))
    (finding,) = diagnose(figures(recipe, predictions=even, candidates=candidates(start=5.0)))
    assert finding.name == "no gain"
    assert "the labels-only control" in finding.sentence

    even = replace(even, roles={role: top for role, top in even.roles.items() if role != "control"})
    alone = figures(recipe, predictions=even, candidates=candidates(start=5.0))
    assert not alone.gained
    assert diagnose(alone) == []


def test_no_gain_without_a_known_cause_is_said_openly() -> None:
    even = answers(distilled=changed(START, won=100, lost=100, seed=3))
    assert [f.name for f in diagnose(figures(predictions=even))] == ["no gain"]
    explained = diagnose(figures(predictions=even, rows=OVERFITTED))
    assert "no gain" not in [f.name for f in explained]


def test_problems_come_first_and_lines_say_what_to_try() -> None:
    findings = diagnose(figures(rows=WILD, candidates=SPOILT))
    assert [f.severity for f in findings] == sorted(
        (f.severity for f in findings), key=["problem", "note", "good"].index
    )
    text = lines([f.record() for f in findings])
    assert text[0].startswith("problem: ")
    assert any(line.startswith("  try train.lr=3e-05: ") for line in text)


def test_nothing_is_to_be_tried_that_the_recipe_has_already() -> None:
    def keys(recipe: dict[str, Any]) -> list[str]:
        finding = found(
            figures(recipe, predictions=answers(distilled=changed(START, won=50, lost=200))),
            "the teacher does harm",
        )
        assert finding is not None
        return [t.key for t in finding.attempts]

    assert "teacher.resolution" in keys({})
    assert "teacher.resolution" not in keys({"teacher": {"resolution": "best"}})
    assert "loss.temperature" not in keys({"loss": {"temperature": 1.0}})
    assert "loss.temperature" in keys({"loss": {"temperature": 2.0}})


def test_by_class_counts_and_orders() -> None:
    labels = np.array([0, 0, 0, 1, 1, 2, -1])
    old, new = np.array([0, 0, 1, 1, 1, 0, 0]), np.array([1, 1, 0, 1, 1, 2, 1])
    first, *rest = by_class(new, old, labels)
    assert (first["class"], first["negative_flips"], first["corrections"], first["n"]) == (0, 2, 1, 3)
    assert [c["class"] for c in rest] == [1, 2]


# --- real runs

FOUND = {
    "gentle": {"saturated teacher"},
    "wild": {"lr too high", "forgetting"},
    "shuffled": {"labels contradict the teacher"},
    "seen": {"val seen in pretraining", "temperature too high for this teacher"},
    "drift": {"BatchNorm drift", "no headroom", "views hide the object"},
}
ABSENT = {
    "gentle": {"lr too high", "forgetting", "BatchNorm drift", "labels contradict the teacher"}
    | {"val seen in pretraining", "temperature too high for this teacher"},
    "wild": {"saturated teacher", "labels contradict the teacher", "temperature too high for this teacher"},
    "shuffled": {"lr too high", "val seen in pretraining", "views hide the object"},
    "seen": {"saturated teacher", "lr too high", "no headroom", "views hide the object"},
    "drift": {"lr too high", "labels contradict the teacher", "saturated teacher", "val seen in pretraining"},
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return common_folder(tmp_path_factory)


@pytest.mark.parametrize("kind", KINDS)
def test_a_real_run_has_what_it_was_made_to_have_and_not_what_another_was(kind: str, runs: Path) -> None:
    run = real_run(kind, runs)
    names = {finding["name"] for finding in read_json(run.diagnosis)["findings"]}
    assert FOUND[kind] <= names
    assert not ABSENT[kind] & names


def test_the_diagnosis_is_a_pure_function_of_the_run_s_files(runs: Path) -> None:
    run: Run = real_run("wild", runs)
    again = [finding.record() for finding in diagnose(Figures.of(run))]
    assert json.loads(json.dumps(again)) == read_json(run.diagnosis)["findings"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_key_to_try_is_one_that_recipes_have(kind: str, runs: Path) -> None:
    run = real_run(kind, runs)
    hints = [hint for finding in read_json(run.diagnosis)["findings"] for hint in finding["try"]]
    assert hints
    for hint in hints:
        if " " not in hint["value"] or hint["value"].startswith("{"):
            load_recipe(run.recipe, [f"{hint['key']}={hint['value']}"])


# --- what keeps a run from being called good


def with_figures(comparison: dict[str, Any] | None = None, **by_role: dict[str, Any]) -> Figures:
    """A sound run whose rows of the table, and comparison.json, have more figures."""
    run = figures(predictions=answers(**{r: v.pop("right") for r, v in by_role.items() if "right" in v}))
    table = [row | by_role.get(row["role"], {}) for row in run.comparison["rows"]]
    return replace(run, comparison={"rows": table, **(comparison or {})})


def on_val(new: str, old: str, difference: float, sure: bool) -> dict[str, Any]:
    """A comparison on val; `sure`: its interval has no zero in it."""
    reach = abs(difference) / 2 if sure else 2 * abs(difference)
    pair = {"difference": difference, "low": difference - reach, "high": difference + reach}
    pair |= {"mcnemar_p": 0.001 if sure else 0.4, "negative_flips": 30, "corrections": 20, "agreement": 80.0}
    return {"val": {"n": 1000, "top1": {}, "pairs": [{"new": new, "old": old, **pair, "n": 1000}]}}


def severities(run: Figures) -> dict[str, str]:
    return {finding.name: finding.severity for finding in diagnose(run)}


BELOW = [
    (
        "distilled",
        "control",
        "the teacher does harm",
        "the distilled student is below the labels-only control",
    ),
    (
        "teacher",
        "control",
        "teacher not fitted to the domain",
        "the teacher is below the labels-only control",
    ),
    (
        "control",
        "start",
        "control below the linear probe",
        "the labels-only control is below the linear probe",
    ),
]


@pytest.mark.parametrize(("new", "old", "name", "reservation"), BELOW)
def test_a_run_is_not_good_where_a_model_is_below_another_on_val_alone(
    new: str, old: str, name: str, reservation: str
) -> None:
    run = with_figures(on_val(new, old, -5.0, sure=True), start={"is_probe": old == "start"})
    finding = found(run, name)
    assert finding is not None
    assert (finding.severity, finding.reservation) == ("problem", reservation)
    assert "-5.00 points, 95% interval -7.50 to -2.50, on val" in finding.sentence
    assert "good" not in severities(run).values()
    above = with_figures(on_val(new, old, 5.0, sure=True), start={"is_probe": old == "start"})
    assert "good" in severities(above).values()


def test_a_control_below_its_probe_on_test_is_told_and_a_start_that_is_none_is_not() -> None:
    below = {"right": changed(START, won=50, lost=200)}
    finding = found(
        with_figures(start={"is_probe": True}, control=dict(below)), "control below the linear probe"
    )
    assert finding is not None
    assert "on test" in finding.sentence
    assert found(with_figures(control=dict(below)), "control below the linear probe") is None


def test_a_student_below_a_probe_with_a_row_of_its_own_is_told() -> None:
    probe = changed(START, won=700, lost=10)
    run = with_figures(probe={"right": probe, "is_probe": True})
    assert {"distilled below the linear probe", "control below the linear probe"} <= severities(run).keys()


@pytest.mark.parametrize(
    ("new", "old"), [("teacher", "control"), ("distilled", "control"), ("control", "start")]
)
def test_merely_lower_is_not_shown_and_not_good(new: str, old: str) -> None:
    """On test teacher and student are not significantly better either, and on val they are a little lower."""
    control = changed(START, won=100, lost=110)
    right = {
        "teacher": changed(START, won=400, lost=160),
        "distilled": changed(START, won=200, lost=100),
        "control": control,
    } | ({new: control} if old == "control" else {})
    if new == "distilled":  # still better than its start
        right["distilled"] = right["control"] = changed(START, won=200, lost=100)
    run = with_figures(
        on_val(new, old, -1.0, sure=False),
        start={"is_probe": True},
        **{r: {"right": v} for r, v in right.items()},
    )
    finding = found(run, f"{new} not shown to be above the {old}")
    assert finding is not None
    assert finding.severity == "note"
    assert "does not show that there is none" in finding.sentence
    assert "good" not in severities(run).values()
    assert any("This is not called good, since" in f.sentence for f in diagnose(run)) or new == "teacher"


def test_a_significant_gain_on_test_outweighs_chance_on_val() -> None:
    assert severities(with_figures(on_val("distilled", "control", -1.0, sure=False))) == {
        "gain from the teacher": "good",
        "gain over the start": "good",
    }


def test_an_nll_of_a_guess_is_told_with_the_models_that_have_it() -> None:
    run = with_figures(start={"nll": 4.55}, control={"nll": 2.3}, distilled={"nll": np.log(CLASSES)})
    finding = found(run, "NLL no better than guessing")
    assert finding is not None
    assert "the starting student (4.55) and the distilled student (3.00)" in finding.sentence
    assert set(finding.evidence) == {"guess_nll", "start_nll", "distilled_nll"}
    assert "good" not in severities(run).values()
    assert found(with_figures(distilled={"nll": 2.99}), "NLL no better than guessing") is None
    assert (
        found(with_figures(start={"nll": np.log(CLASSES)}), "NLL no better than guessing") is None
    )  # a head at zero


def test_a_random_start_may_be_no_better_than_guessing() -> None:
    run = replace(with_figures(start={"nll": 4.55}), recipe=resolved({"student": "resnet18@none"}))
    assert found(run, "NLL no better than guessing") is None


@pytest.mark.parametrize(
    ("ece", "n", "told"), [(15.1, N, True), (14.9, N, False), (20.0, 100, False), (40.0, 100, True)]
)
def test_a_calibration_error_above_15_percent_is_told_where_images_are_enough(
    ece: float, n: int, told: bool
) -> None:
    run = with_figures(teacher={"ece": ece, "n": n})
    finding = found(run, "badly calibrated")
    assert (finding is not None) == told
    assert ("good" in severities(run).values()) != told


@pytest.mark.parametrize(("after", "told"), [(3.0, False), (20.0, True)])
def test_the_students_calibration_error_is_that_with_the_temperature_of_its_files(
    after: float, told: bool
) -> None:
    calibration = {"temperature": 0.5, "before": {"ece": 21.4}, "after": {"ece": after}}
    run = with_figures({"calibration": calibration}, distilled={"ece": 21.4, "n": N})
    finding = found(run, "badly calibrated")
    assert (finding is not None) == told
    assert finding is None or finding.evidence == {"distilled_ece": after}


def test_a_calibrated_model_is_not_called_badly_calibrated() -> None:
    """The bound on what chance does to the ECE holds for simulated calibrated models of any confidence."""
    import torch

    from tutelage.evaluation.quality import quality

    rng = np.random.default_rng(0)
    for n in (30, 100, 400):
        confidence = rng.uniform(0.5, 1, n)
        logits = np.stack([np.log(confidence), np.log(1 - confidence)], 1)
        labels = (rng.uniform(size=n) > confidence).astype(np.int64)
        ece = quality(torch.from_numpy(logits), torch.from_numpy(labels)).ece
        assert found(with_figures(teacher={"ece": ece, "n": n}), "badly calibrated") is None


@pytest.mark.parametrize(
    ("val", "n", "told"),
    [
        (60.67, 150, "note"),
        (58.0, 150, None),
        (60.67, 5000, "problem"),
        (41.7, 150, "note"),
        (53.0, 50_000, None),
    ],
)
def test_one_model_that_differs_between_val_and_test_is_told(val: float, n: int, told: str | None) -> None:
    """The flowers' teacher had 60.67% on 150 images of val, and 51.2% on 500 of test."""
    part = {"n": n, "top1": {"teacher": val}, "pairs": []}
    run = with_figures({"val": part}, teacher={"top1": 51.2, "n": 500})
    finding = found(run, "val and test apart")
    assert (finding.severity if finding else None) == told
    assert ("good" in severities(run).values()) == (told is None)


IMPROVING = rows([2.0, 1.5, 1.2], [1.6, 1.4, 1.2], [50.0, 55.0, 60.0])


@pytest.mark.parametrize(
    ("stage", "key"),
    [("teacher-fit", "teacher.fit"), ("teacher-fit-2", "teacher.fit"), ("head-fit", "student.head_fit")],
)
def test_a_fit_that_was_still_improving_is_told(stage: str, key: str) -> None:
    fit = [row | {"stage": stage} for row in IMPROVING]
    run = figures(rows=[*fit, *SOUND])
    finding = found(run, "fit ended too early")
    assert finding is not None
    assert (finding.stage, finding.epoch, finding.severity) == (stage, 3, "note")
    assert [(t.key, t.value) for t in finding.attempts] == [(key, "{epochs: 6}")]
    assert "good" not in severities(run).values()
    level = [row | {"stage": stage} for row in rows([2.0, 1.5, 1.2], [1.6, 1.2, 1.2], [50.0, 60.0, 60.0])]
    assert found(figures(rows=[*level, *SOUND]), "fit ended too early") is None


def test_a_fitted_teacher_that_labels_alone_beat_is_told_too() -> None:
    fit = rows([1.0], [1.0], [70.0], "teacher-fit")
    beaten = figures(predictions=answers(control=changed(START, won=700, lost=50)), rows=[*fit, *SOUND])
    finding = found(beaten, "teacher not good enough after its fit")
    assert finding is not None
    assert "although it was fitted to it" in finding.sentence
    assert finding.reservation == "the teacher is below the labels-only control"
