"""The threshold of a cascade: the bound holds over many draws, and the figures are those of the definition."""

import numpy as np
import pytest
from scipy.stats import beta

from tutelage.evaluation.cascade import (
    STARTS,
    THRESHOLDS,
    average_costs,
    chosen,
    curve,
    fewest_images,
    lower_bound,
    outcome,
    tried,
)


def draw(rng: np.random.Generator, n: int, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Confidences, and whether the models agree; `true` gives the agreement above each threshold."""
    confidence = rng.beta(5, 1, n)
    return confidence, rng.random(n) < agree_given(confidence, kind)


def agree_given(confidence: np.ndarray, kind: str) -> np.ndarray:
    if kind == "calibrated":
        return confidence
    if kind == "dips":  # the most confident images are not the ones that agree most
        return np.where(confidence > 0.97, 0.85, np.where(confidence > 0.8, 0.97, 0.6))
    return np.full_like(confidence, 0.9)  # it says nothing


@pytest.mark.parametrize("kind", ["calibrated", "dips", "nothing"])
def test_the_agreement_is_below_the_stated_one_in_at_most_five_of_a_hundred_draws(kind: str) -> None:
    rng = np.random.default_rng(0)
    many = rng.beta(5, 1, 400_000)
    agree = agree_given(many, kind)
    draws, stated = 300, 0.9
    failed = found = 0
    for _ in range(draws):
        step = chosen(tried(*draw(rng, 400, kind), stated))
        if step is not None:
            found += 1
            failed += agree[many >= step.threshold].mean() < stated - 1e-3
    assert failed / draws <= 0.05
    assert (
        found / draws > {"calibrated": 0.5, "dips": 0.2, "nothing": -1}[kind]
    )  # it is not valid by refusing


def test_taking_the_best_of_all_thresholds_would_not_hold() -> None:
    """What the sequence is for: the loosest threshold whose own bound holds fails far more often."""
    rng = np.random.default_rng(1)
    draws, failed = 60, 0
    for _ in range(draws):
        confidence, agrees = draw(rng, 400, "nothing")
        naive = [
            t
            for t in THRESHOLDS
            if lower_bound(int(agrees[confidence >= t].sum()), int((confidence >= t).sum()), 0.95) >= 0.9
        ]
        failed += bool(naive)
    assert failed / draws > 0.1


def test_thresholds_go_from_strict_to_loose_and_share_the_error() -> None:
    assert list(THRESHOLDS) == sorted(set(THRESHOLDS), reverse=True)
    assert set(STARTS) < set(THRESHOLDS)
    steps = tried(np.full(1000, 0.93), np.ones(1000, bool), 0.95)
    by = {step.threshold: step for step in steps}
    assert by[0.96].error == 0
    assert by[0.95].error == pytest.approx(0.05 / 3)
    assert not by[0.95].passed  # it answers nothing, so what it may use is gone
    assert by[0.93].answered == 1000
    assert by[0.93].error == 0
    assert by[0.8].passed
    assert by[0.79].error == pytest.approx(0.05 / 3)
    assert by[0.5].error == pytest.approx(2 * 0.05 / 3)
    assert chosen(steps) == by[0.0]
    assert by[0.0].error == pytest.approx(2 * 0.05 / 3)


def test_the_bound_is_clopper_and_pearsons() -> None:
    assert lower_bound(95, 100, 0.95) == pytest.approx(beta.ppf(0.05, 95, 6))
    assert lower_bound(0, 0, 0.95) == 0
    assert lower_bound(100, 100, 1.0) == 0


def test_the_fewest_images_are_just_enough() -> None:
    n = fewest_images(0.95)
    for count, found in ((n, True), (n - 1, False)):
        assert (chosen(tried(np.full(count, 0.96), np.ones(count, bool), 0.95)) is not None) == found


CONFIDENCE = np.array([0.9, 0.8, 0.7, 0.2])
STUDENT, TEACHER = np.array([0, 1, 1, 2]), np.array([0, 0, 1, 0])
LABELS = np.array([0, 0, 1, 0])


def test_images_below_the_threshold_have_the_teachers_class() -> None:
    found = outcome(CONFIDENCE, STUDENT, TEACHER, LABELS, 0.7)
    assert (found["n"], found["answered"], found["agreed"]) == (4, 3, 2)
    assert found["coverage"] == 0.75
    assert found["agreement"] == pytest.approx(2 / 3)
    assert found["top1"] == {"student": 50.0, "teacher": 100.0, "cascade": 75.0}
    assert found["paired"]["teacher"]["negative_flips"] == 1
    assert found["paired"]["student"]["corrections"] == 1


def test_without_labels_or_confident_images_there_is_no_figure() -> None:
    found = outcome(CONFIDENCE, STUDENT, TEACHER, np.full(4, -1), 0.95)
    assert found["top1"] is None
    assert found["paired"] is None
    assert found["agreement"] is None
    assert found["coverage"] == 0


def test_an_image_that_is_handed_on_costs_both_models() -> None:
    student, teacher = {"gmacs": 1.0, "latency_ms": 2.0}, {"gmacs": 10.0, "latency_ms": None}
    assert average_costs(0.75, student, teacher) == {"gmacs": 3.5, "latency_ms": None}


def test_the_curve_runs_from_the_teacher_alone_to_the_student_alone() -> None:
    rows = [{"gmacs": 1.0}, {"gmacs": 10.0}]
    points = curve(CONFIDENCE, STUDENT, TEACHER, LABELS, rows)
    assert [point["coverage"] for point in points] == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert [point["gmacs"] for point in points] == [11.0, 8.5, 6.0, 3.5, 1.0]
    assert [point["top1"] for point in points] == [100.0, 100.0, 75.0, 75.0, 50.0]
    assert points[0]["agreement"] is None
