"""The benchmarks run, and their arithmetic is right; what they measure is not tested here."""

import time

import pytest
from benchmarks.scene import Clock, alternate, summary


def test_contenders_take_turns_and_the_first_round_is_not_counted() -> None:
    calls: list[str] = []

    def block(name: str, rates: list[float]) -> float:
        calls.append(name)
        return rates.pop(0)

    a, b = [1.0, 10.0, 30.0, 20.0], [1.0, 40.0, 50.0, 60.0]
    rates = alternate({"a": lambda: block("a", a), "b": lambda: block("b", b)}, rounds=3)
    assert calls == ["a", "b"] * 4
    assert summary(rates, "a")["b"] == {"median": 50.0, "low": 40.0, "high": 60.0, "ratio": 2.5}


def test_the_clock_leaves_out_the_first_step() -> None:
    clock = Clock()
    time.sleep(0.2)
    for _ in range(3):
        clock.tick(10)
        time.sleep(0.02)
    assert 200 < clock.rate < 1100


@pytest.mark.slow
def test_all_contenders_run() -> None:
    from benchmarks.speed import measure, table

    result = measure("small", steps=3, rounds=1)
    assert len(result["summary"]) == 8
    assert all(row["median"] > 0 for row in result["summary"].values())
    assert table(result).row_count == 8


def test_a_loss_costs_more_than_labels_only_and_the_table_adds_the_teacher() -> None:
    from benchmarks.losses import LABELS, TEACHER, measure, table
    from benchmarks.scene import Pair

    result = measure(Pair("test_resnet", "test_efficientnet", 32, batch=4), 1, 1, ["kl", "crd"])
    assert set(result["cost"]) == {LABELS, TEACHER, "kl", "crd"}
    assert result["cost"][LABELS] == 1
    assert all(
        result["lowest"][name] <= result["cost"][name] <= result["highest"][name] for name in result["cost"]
    )
    result |= {
        "cost": {LABELS: 1.0, TEACHER: 0.5, "kl": 1.25, "crd": 1.125},
        "lowest": {"kl": 1.0, "crd": 1.0},
    }
    result["highest"] = {"kl": 1.5, "crd": 2.0}
    lines = table(result).splitlines()[2:]
    assert lines == ["| `crd` | 1.12 | 1.00 to 2.00 | 1.62 |", "| `kl` | 1.25 | 1.00 to 1.50 | 1.75 |"]
