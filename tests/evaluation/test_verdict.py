"""One sentence about what came of it."""

import numpy as np
import pytest

from tutelage.evaluation.paired import Paired, paired
from tutelage.evaluation.verdict import outcome, outcome_of, verdict

N = 1000
LABELS = np.zeros(N, np.int64)


def pair(won: int, lost: int) -> Paired:
    """Of a new model with so many corrections and negative flips against an old one with 700 of 1,000 right."""
    old = (np.arange(N) >= 700).astype(np.int64)
    new = old.copy()
    new[700 : 700 + won] = 0
    new[:lost] = 1
    return paired(new, old, LABELS)


@pytest.mark.parametrize(
    ("won", "lost", "expected"),
    [
        (60, 10, "better"),
        (10, 60, "worse"),
        (30, 28, "not significantly different"),
        (0, 0, "not significantly different"),
        (1, 0, "not significantly different"),
    ],
)
def test_the_outcome_follows_the_interval(won: int, lost: int, expected: str) -> None:
    assert outcome(pair(won, lost)) == expected


def test_the_outcome_needs_both_the_interval_and_mcnemars_test() -> None:
    """Four images that were all wrong and are all right: the interval is one point, p is 0.125."""
    four = paired(np.zeros(4, np.int64), np.ones(4, np.int64), np.zeros(4, np.int64))
    assert (four.low, four.high, four.mcnemar_p) == (100, 100, 0.125)
    assert outcome(four) == "not significantly different"
    assert (
        "(+100.00 points top-1, 95% interval +100.00 to +100.00, McNemar p = 0.125)"
        in verdict({"start": four}, "last")["sentence"]
    )
    assert outcome(pair(5, 0)) == outcome(pair(0, 5)) == "not significantly different"  # p = 0.0625
    assert (outcome(pair(6, 0)), outcome(pair(0, 6))) == ("better", "worse")  # p = 0.03125


def test_an_outcome_of_an_earlier_version_is_read_in_the_words_of_today() -> None:
    assert outcome_of({"outcome": "no different"}) == "not significantly different"
    assert outcome_of({"outcome": "worse"}) == "worse"
    assert outcome_of({}) is None


def test_better_says_by_how_much_and_how_sure() -> None:
    better = pair(60, 10)
    result = verdict({"start": better}, "ema@0.5")
    assert result["outcome"] == "better"
    assert result["sentence"] == (
        f"The kept student (ema@0.5) is better than its start by 5.00 points top-1 (95% interval {better.low:+.2f} to "
        f"{better.high:+.2f}), on 1,000 test images."
    )


def test_worse_names_a_positive_amount() -> None:
    sentence = verdict({"start": pair(10, 60)}, "last")["sentence"]
    assert "worse than its start by 5.00 points" in sentence


def test_no_different_gives_the_difference_with_its_sign() -> None:
    result = verdict({"start": pair(28, 30)}, "last")
    assert result["outcome"] == "not significantly different"
    assert "is not significantly different from its start (-0.20 points top-1" in result["sentence"]


def test_a_start_that_was_kept_is_said_to_be_kept() -> None:
    result = verdict({"start": pair(0, 0), "control": pair(10, 60)}, "start")
    assert result["sentence"].startswith(
        "No trained candidate beat the start on val, so the start is kept; it is "
    )
    assert result["outcome"] == "not significantly different"
    assert "worse than the labels-only control" in result["sentence"]
    assert "its start" not in result["sentence"]  # it is the start


def test_a_start_that_was_kept_without_an_opponent_is_a_whole_sentence() -> None:
    sentence = verdict({"start": pair(0, 0)}, "start")["sentence"]
    assert (
        sentence == "No trained candidate beat the start on val, so the start is kept, on 1,000 test images."
    )


def test_a_random_start_is_no_opponent() -> None:
    """The headline is then student against control, and after it student against teacher."""
    pairs = {"start": pair(300, 0), "control": pair(28, 30), "teacher": pair(10, 60)}
    result = verdict(pairs, "last", random_start=True)
    assert result["sentence"].startswith(
        "The kept student (last) is not significantly different from the labels-only control (-0.20 points top-1"
    )
    assert "; worse than the teacher by 5.00 points" in result["sentence"]
    assert "its start" not in result["sentence"]
    assert (result["outcome"], result["against"]) == ("not significantly different", "control")
    assert {entry["old"] for entry in result["pairs"]} == set(pairs)  # the figures are kept


def test_without_a_control_a_student_from_random_weights_is_compared_with_the_teacher() -> None:
    result = verdict({"start": pair(300, 0), "teacher": pair(10, 60)}, "last", random_start=True)
    assert (result["outcome"], result["against"]) == ("worse", "teacher")
    alone = verdict({"start": pair(300, 0)}, "last", random_start=True)
    assert (alone["outcome"], alone["against"]) == (None, None)
    assert alone["sentence"] == (
        "The kept student (last) started from random weights, and no control or teacher was measured, on 1,000 test "
        "images."
    )


def test_every_opponent_is_named_in_one_order_and_the_outcome_is_that_against_the_start() -> None:
    pairs = {"teacher": pair(10, 60), "control": pair(30, 28), "start": pair(60, 10)}
    result = verdict(pairs, "soup")
    places = [
        result["sentence"].index(words) for words in ("its start", "the labels-only control", "the teacher")
    ]
    assert places == sorted(places)
    assert (result["outcome"], result["against"]) == ("better", "start")
    assert {entry["old"] for entry in result["pairs"]} == {"start", "control", "teacher"}
    assert all(entry["new"] == "distilled" and entry["n"] == N for entry in result["pairs"])
