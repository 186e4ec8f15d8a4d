"""Whatever the figures are, the kept student is never worse on val than the start."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.helpers.real_runs import KINDS, real_run
from tests.helpers.shared import common_folder

from tutelage.core.files import read_json
from tutelage.core.recipe import SelectionRecipe
from tutelage.distillation.checkpoint import State
from tutelage.distillation.selection import (
    CALIBRATED,
    ERROR,
    FINALISTS,
    Candidate,
    Screening,
    Work,
    average,
    best_of,
    choose,
    count,
    in_order,
    interpolate,
)
from tutelage.evaluation.quality import merit

FIGURE = st.floats(0, 100, allow_nan=False) | st.sampled_from([math.nan, math.inf])
NLL = st.floats(0, 1e6, allow_nan=False) | st.sampled_from([math.nan, math.inf])
RECIPES = st.builds(
    SelectionRecipe, metric=st.sampled_from(["top1", "nll"]), interpolate=st.booleans(), soup=st.booleans()
)
VALUES = st.floats(-1e6, 1e6, width=32)


def state(*values: float, count: int = 0) -> State:
    return {"weight": torch.tensor(values), "batches": torch.tensor(count)}


@settings(max_examples=150, deadline=None)
@given(data=st.data(), recipe=RECIPES, same=st.booleans())
def test_the_kept_figure_is_never_below_the_start_s(
    data: st.DataObject, recipe: SelectionRecipe, same: bool
) -> None:
    """`evaluate` is random: it gives every state whatever figures it likes, NaN and infinity among them."""
    start_val = {"top1": data.draw(st.floats(0, 100)), "nll": data.draw(st.floats(0, 1e6))}
    start = state(0.0, 1.0)
    trained = {
        "last": state(1.0, 2.0),
        "best": state(1.0, 2.0) if same else state(3.0, -1.0),
        "ema": state(0.5, 1.5),
    }

    def evaluate(candidate: State) -> dict[str, float]:
        if candidate is start:
            return start_val
        return {"top1": data.draw(FIGURE), "nll": data.draw(NLL)}

    choice = choose(start, trained, evaluate, lambda averaged: dict(averaged), recipe)
    assert merit(choice.kept.val, recipe.metric) >= merit(start_val, recipe.metric)
    assert choice.kept.val[recipe.metric] == pytest.approx(
        (max if recipe.metric == "top1" else min)(
            c.val[recipe.metric] for c in choice.candidates if not math.isnan(c.val[recipe.metric])
        )
    )
    record = choice.record()
    assert [c["name"] for c in record["candidates"] if c["kept"]] == [record["kept"]]
    assert all(v is None or math.isfinite(v) for c in record["candidates"] for v in c["val"].values())


@settings(max_examples=60, deadline=None)
@given(data=st.data(), metric=st.sampled_from(["top1", "nll"]))
def test_the_soup_is_never_worse_on_val_than_its_best_ingredient(data: st.DataObject, metric: str) -> None:
    def evaluate(_: State) -> dict[str, float]:
        return {"top1": data.draw(FIGURE), "nll": data.draw(NLL)}

    recipe = SelectionRecipe(metric=metric, interpolate=False, soup=True)
    trained = {"last": state(1.0), "best": state(2.0), "ema": state(3.0)}
    choice = choose(state(0.0), trained, evaluate, lambda averaged: averaged, recipe)
    soup = next((c for c in choice.candidates if c.name == "soup"), None)
    if soup is not None:
        ingredients = [c for c in choice.candidates if c.name in soup.source.split("+")]
        assert len(ingredients) > 1
        assert merit(soup.val, metric) >= max(merit(c.val, metric) for c in ingredients)


@given(st.lists(st.tuples(VALUES, VALUES), min_size=1, max_size=5))
def test_interpolation_has_both_its_ends_exactly(
    pairs: list[tuple[float, float]],
) -> None:
    start = state(*(a for a, _ in pairs), count=3)
    trained = state(*(b for _, b in pairs), count=9)
    assert torch.equal(interpolate(start, trained, 0.0)["weight"], start["weight"])
    assert torch.equal(interpolate(start, trained, 1.0)["weight"], trained["weight"])
    assert interpolate(start, trained, 0.5)["batches"] == 9  # whole numbers are not averaged


@given(st.floats(0, 1), VALUES, VALUES)
def test_interpolation_lies_between(alpha: float, a: float, b: float) -> None:
    between = interpolate(state(a), state(b), alpha)["weight"].item()
    slack = 1e-6 * max(abs(a), abs(b), 1)
    assert min(a, b) - slack <= between <= max(a, b) + slack


def test_the_average_of_several_is_their_mean() -> None:
    mean = average([state(1.0, 4.0), state(2.0, 5.0), state(6.0, 0.0)])
    assert mean["weight"].tolist() == pytest.approx([3.0, 3.0])


def test_a_trained_state_that_is_another_s_copy_is_weighed_once() -> None:
    weighed: list[State] = []

    def evaluate(candidate: State) -> dict[str, float]:
        weighed.append(candidate)
        return {"top1": 1.0, "nll": 1.0}

    recipe = SelectionRecipe(interpolate=False, soup=False)
    trained = {"last": state(1.0), "best": state(1.0), "ema": {}}
    choice = choose(state(0.0), trained, evaluate, lambda averaged: averaged, recipe)
    assert [c.name for c in choice.candidates] == ["start", "last"]
    assert len(weighed) == 2


@pytest.mark.parametrize(
    ("better", "kept"),
    [(1.0, "last-recalibrated"), (-1.0, "last"), (0.0, "last")],
    ids=["new", "old", "same"],
)
def test_all_but_the_start_are_weighed_with_old_and_with_new_statistics(better: float, kept: str) -> None:
    weight = {"last": 2.0, "ema": 1.0}
    choice = choose(
        state(0.0),
        {name: state(value) for name, value in weight.items()},
        lambda s: {"top1": s["weight"].item(), "nll": 1.0},
        lambda s: {**s, "weight": s["weight"] + better},
        SelectionRecipe(interpolate=True, soup=True),
    )
    assert choice.kept.name == kept
    plain = [c for c in choice.candidates if not c.recalibrated and c.name not in ("start", "soup")]
    mended = {c.name: c for c in choice.candidates if c.recalibrated}
    assert len(plain) >= 2 * 4
    for candidate in plain:
        other = mended[f"{candidate.name}-recalibrated"]
        assert (other.source, other.alpha) == (candidate.source, candidate.alpha)
        assert candidate.val["top1"] == pytest.approx(candidate.alpha * weight[candidate.source])
        assert other.val["top1"] == pytest.approx(candidate.val["top1"] + better)


def test_without_statistics_nothing_is_weighed_twice() -> None:
    choice = choose(
        state(0.0),
        {"last": state(1.0)},
        lambda s: {"top1": s["weight"].item(), "nll": 1.0},
        lambda s: s,
        SelectionRecipe(),
    )
    assert not any(c.recalibrated for c in choice.candidates)


OLD, ROUGH, THOROUGH = 0.0, 1.0, 2.0  # BatchNorm statistics of a candidate


def with_statistics(value: float) -> Callable[[State], State]:
    return lambda averaged: {**averaged, "statistics": torch.tensor(value)}


def with_old_statistics() -> tuple[State, dict[str, State]]:
    """A start, and three trained states."""
    old = with_statistics(OLD)
    return old(state(0.0)), {"last": old(state(1.0)), "best": old(state(3.0)), "ema": old(state(0.5))}


@settings(max_examples=100, deadline=None)
@given(data=st.data(), recipe=RECIPES)
def test_after_a_screening_in_a_faster_precision_the_start_and_the_best_others_are_measured_exactly(
    data: st.DataObject, recipe: SelectionRecipe
) -> None:
    start, trained = with_old_statistics()
    exact: list[State] = []

    def screen(_: State) -> dict[str, float]:
        return {"top1": data.draw(FIGURE), "nll": data.draw(NLL)}

    def evaluate(candidate: State) -> dict[str, float]:
        exact.append(candidate)
        first = candidate is start
        return {"top1": data.draw(st.floats(0, 100) if first else FIGURE), "nll": 1.0}

    screening = Screening(with_statistics(ROUGH), screen)
    choice = choose(start, trained, evaluate, with_statistics(THOROUGH), recipe, screening=screening)
    finalists = [c for c in choice.candidates if not c.screened]
    others = len(choice.candidates) - 1
    assert len(exact) == len(finalists) == 1 + min(FINALISTS, others)
    assert exact[0] is start
    assert finalists[0].name == "start"
    assert any(choice.kept is finalist for finalist in finalists)
    assert merit(choice.kept.val, recipe.metric) == max(merit(c.val, recipe.metric) for c in finalists)
    flags = [c.get("screened", False) for c in choice.record()["candidates"]]
    assert flags == [c.screened for c in choice.candidates]
    for candidate in choice.candidates:  # statistics on few images serve the screening alone
        wanted = (ROUGH if candidate.screened else THOROUGH) if candidate.recalibrated else OLD
        assert candidate.state["statistics"] == wanted


@settings(max_examples=100, deadline=None)
@given(data=st.data(), recipe=RECIPES)
def test_a_screening_in_the_same_precision_recalibrates_the_best_candidate_on_all_images(
    data: st.DataObject, recipe: SelectionRecipe
) -> None:
    start, trained = with_old_statistics()
    again: list[dict[str, float]] = []

    def evaluate(candidate: State) -> dict[str, float]:
        figures = {"top1": data.draw(FIGURE), "nll": data.draw(NLL)}
        if candidate["statistics"] == THOROUGH:
            again.append(figures)
        return figures

    screening = Screening(with_statistics(ROUGH))
    choice = choose(start, trained, evaluate, with_statistics(THOROUGH), recipe, screening=screening)
    assert not any(c.screened for c in choice.candidates)
    best = max(merit(c.val, recipe.metric) for c in choice.candidates)
    assert merit(choice.kept.val, recipe.metric) == best
    assert len(again) <= 1
    if choice.kept.state["statistics"] == THOROUGH:
        assert choice.kept.val == again[0]
    elif choice.kept.recalibrated:  # the statistics of all images were tried, and are worse
        assert merit(again[0], recipe.metric) <= best
    else:
        assert not again


SOUND = st.floats(0, 100, allow_nan=False)


@settings(max_examples=150, deadline=None)
@given(data=st.data(), recipe=RECIPES, error=st.floats(0, 5), faster=st.booleans(), screened=st.booleans())
def test_of_those_within_a_standard_error_of_the_best_the_lowest_calibrated_nll_is_kept(
    data: st.DataObject, recipe: SelectionRecipe, error: float, faster: bool, screened: bool
) -> None:
    """It is never below the start either, whatever precision the candidates were screened in."""

    def evaluate(_: State) -> dict[str, float]:
        nll = data.draw(st.floats(0, 9))
        return {"top1": data.draw(SOUND), "nll": nll, CALIBRATED: data.draw(st.floats(0, 9)), ERROR: error}

    trained = {"last": state(1.0), "best": state(3.0), "ema": state(0.5)}
    screening = Screening(lambda s: s, evaluate if faster else None) if screened else None
    choice = choose(state(0.0), trained, evaluate, lambda s: s, recipe, screening=screening)
    found = [c.val for c in choice.candidates if not c.screened]
    kept, start = choice.kept.val, choice.candidates[0].val
    if recipe.metric == "nll":
        assert kept["nll"] == min(val["nll"] for val in found)
        return
    best = max(val["top1"] for val in found)
    assert kept["top1"] >= max(best - error, start["top1"])
    near = [val for val in found if val["top1"] >= max(best - error, start["top1"])]
    assert kept[CALIBRATED] == min(val[CALIBRATED] for val in near)


def test_a_lucky_candidate_does_not_win_against_one_that_is_better_by_all_its_answers() -> None:
    def one(name: str, top1: float, calibrated: float) -> Candidate:
        val = {"top1": top1, "nll": 2.0, CALIBRATED: calibrated, ERROR: 1.57}
        return Candidate(name, name, 1.0, val, {})

    start, lucky, better, worse = (
        one("start", 43.4, 2.9),
        one("best", 56.2, 1.9),
        one("ema", 55.2, 1.7),
        one("x", 54, 1.6),
    )
    assert [c.name for c in in_order([start, lucky, better, worse], "top1", start)] == [
        "ema",
        "best",
        "x",
        "start",
    ]
    good = one("start", 55.5, 2.9)  # a start that is better than it on val
    assert in_order([good, lucky, better, worse], "top1", good)[0].name == "best"


def test_the_work_of_a_screening_is_counted() -> None:
    recipe = SelectionRecipe()
    same, faster = (count(3, recipe, batchnorm=True, faster=one) for one in (False, True))
    made = 3 * (1 + 3 + 1) + 2
    assert same == Work(1 + 2 * made + 1, 1, made)
    assert faster == Work(1 + 2 * made + 1 + FINALISTS, FINALISTS, made)
    assert count(3, recipe, batchnorm=False) == Work(1 + made, 0)


def test_a_screening_that_ranks_wrongly_among_the_best_does_not_decide() -> None:
    trained = {"last": state(1.0), "best": state(2.0), "ema": state(3.0)}
    recipe = SelectionRecipe(interpolate=False, soup=False)

    def figures(shift: float, candidate: State) -> dict[str, float]:
        value = candidate["weight"].item()
        return {"top1": 50 + shift * value, "nll": 1.0}

    choice = choose(
        state(0.0),
        trained,
        lambda s: figures(-1.0, s),
        lambda s: s,
        recipe,
        screening=Screening(lambda s: s, lambda s: figures(1.0, s)),
    )
    assert choice.kept.name == "start"
    assert [c.val["top1"] for c in choice.candidates] == [50.0, 49.0, 48.0, 47.0]


def test_equal_top1_goes_to_the_lower_nll_and_then_to_the_start() -> None:
    def one(name: str, nll: float) -> Candidate:
        return Candidate(name, name, 1.0, {"top1": 70.0, "nll": nll}, {})

    assert best_of([one("start", 1.3), one("last", 1.2)], "top1").name == "last"
    assert best_of([one("start", 1.3), one("last", 1.3)], "top1").name == "start"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return common_folder(tmp_path_factory)


@pytest.mark.parametrize("kind", KINDS)
def test_a_real_run_keeps_no_student_below_its_start(kind: str, runs: Path) -> None:
    """`wild` trains with a learning rate 100 times too high, `shuffled` with labels that mean nothing."""
    record = read_json(real_run(kind, runs).candidates)
    by_name = {c["name"]: c["val"]["top1"] for c in record["candidates"]}
    assert by_name[record["kept"]] >= by_name["start"]
    if kind in {"wild", "shuffled"}:
        assert record["kept"] == "start"
        assert by_name["last"] < by_name["start"] - 50
