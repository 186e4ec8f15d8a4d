from math import comb

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import bootstrap

from tutelage.evaluation.paired import Paired, paired

Case = tuple[np.ndarray, np.ndarray, np.ndarray]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Classes given by a new and an old model, and labels, some missing."""
    n = draw(st.integers(1, 200))
    rng = np.random.default_rng(draw(st.integers(0, 2**31)))
    labels = rng.integers(0, 4, n)
    new = np.where(rng.random(n) < draw(st.floats(0, 1)), labels, rng.integers(0, 4, n))
    old = np.where(rng.random(n) < draw(st.floats(0, 1)), labels, rng.integers(0, 4, n))
    missing = rng.random(n) < 0.2
    missing[0] = False
    return new, old, np.where(missing, -1, labels)


def run(case: Case) -> Paired:
    new, old, labels = case
    return paired(new, old, labels, resamples=500)


@settings(max_examples=80, deadline=None)
@given(cases())
def test_the_difference_is_that_of_the_accuracies_and_lies_in_its_interval(case: Case) -> None:
    new, old, labels = case
    result, counted = run(case), labels >= 0
    right_new, right_old = ((predictions == labels)[counted] for predictions in (new, old))
    assert result.n == counted.sum()
    assert result.difference == pytest.approx(100 * (right_new.mean() - right_old.mean()))
    assert result.low <= result.difference + 1e-9
    assert result.high >= result.difference - 1e-9
    assert -100 <= result.low <= result.high <= 100
    assert result.corrections - result.negative_flips == right_new.sum() - right_old.sum()
    assert result.agreement == pytest.approx(100 * (new == old)[counted].mean())


@settings(max_examples=50, deadline=None)
@given(cases())
def test_the_other_way_round_is_the_mirror_image(case: Case) -> None:
    new, old, labels = case
    there, back = run(case), run((old, new, labels))
    assert back.difference == -there.difference
    assert (back.negative_flips, back.corrections) == (there.corrections, there.negative_flips)
    assert back.mcnemar_p == pytest.approx(there.mcnemar_p)
    assert back.agreement == there.agreement


@settings(max_examples=50, deadline=None)
@given(cases(), st.randoms(use_true_random=False))
def test_the_order_of_images_does_not_matter(case: Case, random: object) -> None:
    order = np.random.default_rng(random.randint(0, 2**31)).permutation(len(case[0]))  # type: ignore[attr-defined]
    assert run(case) == run((case[0][order], case[1][order], case[2][order]))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 12), st.integers(0, 12))
def test_mcnemar_is_the_sum_of_binomial_tails(flips: int, corrections: int) -> None:
    n = flips + corrections + 5
    labels = np.zeros(n, int)
    new, old = np.zeros(n, int), np.zeros(n, int)
    new[:flips], old[flips : flips + corrections] = 1, 1
    changed = flips + corrections
    tail = sum(comb(changed, k) for k in range(min(flips, corrections) + 1)) / 2**changed
    assert paired(new, old, labels).mcnemar_p == pytest.approx(min(1.0, 2 * tail))


def test_a_model_against_itself() -> None:
    predictions = np.array([0, 1, 2, 1])
    result = paired(predictions, predictions, np.array([0, 1, 1, 2]))
    assert result == Paired(0.0, 0.0, 0.0, 1.0, 0, 0, 100.0, 4)


def test_the_interval_is_that_of_scipys_paired_bootstrap() -> None:
    rng = np.random.default_rng(3)
    new, old = rng.random(800) < 0.7, rng.random(800) < 0.65
    mine = paired(~new, ~old, np.zeros(800, int))  # class 0 is right
    theirs = bootstrap(
        (new.astype(float), old.astype(float)),
        lambda a, b, axis: 100 * (a.mean(axis) - b.mean(axis)),
        paired=True,
        method="percentile",
        n_resamples=4000,
        batch=500,
        rng=rng,
    ).confidence_interval
    assert mine.low == pytest.approx(theirs.low, abs=0.4)
    assert mine.high == pytest.approx(theirs.high, abs=0.4)


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    labels = np.zeros(400, int)
    covered = 0
    for trial in range(300):
        right = rng.multinomial(1, [0.62, 0.1, 0.08, 0.2], size=400)  # both, new only, old only, none
        new, old = 1 - right[:, 0] - right[:, 1], 1 - right[:, 0] - right[:, 2]
        result = paired(new, old, labels, seed=trial, resamples=1000)
        covered += result.low <= 2.0 <= result.high
    assert 0.91 <= covered / 300 <= 0.99


def test_the_seed_decides_the_interval() -> None:
    rng = np.random.default_rng(1)
    new, old, labels = (rng.integers(0, 3, 300) for _ in range(3))
    assert paired(new, old, labels, seed=5) == paired(new, old, labels, seed=5)
    assert paired(new, old, labels, seed=5) != paired(new, old, labels, seed=6)


def test_logits_stand_for_their_largest() -> None:
    logits = np.eye(3)[[2, 0, 1]]
    assert paired(logits, [0, 0, 0], [2, 0, 1]) == paired([2, 0, 1], [0, 0, 0], [2, 0, 1])


def test_no_label_at_all() -> None:
    with pytest.raises(ValueError, match="no labelled image"):
        paired([1], [1], [-1])
