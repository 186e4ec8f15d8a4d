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
