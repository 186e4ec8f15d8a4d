"""The benchmarks run, and their arithmetic is right; what they measure is not tested here."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from benchmarks.scene import Clock, Setting, alternate, photographs, summary


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


def test_the_first_batches_of_all_workers_are_not_timed() -> None:
    clock = Setting(workers=3, steps=5).clock()
    for images in (1, 2, 4, 8, 16):
        clock.tick(images)
    assert clock.images == 24


def test_no_block_begins_after_the_end_and_contenders_without_a_rate_are_left_out() -> None:
    assert alternate({"a": lambda: 1.0}, rounds=3, until=time.monotonic() - 1) == {"a": []}
    seen: list[dict[str, list[float]]] = []
    blocks = {"a": lambda: 1.0, "b": lambda: float("nan")}
    rates = alternate(blocks, rounds=1, on_rates=lambda rates: seen.append(dict(rates)))
    assert (rates, seen) == ({"a": [1.0], "b": []}, [rates])
    assert summary(rates, "b") == {"a": {"median": 1.0, "low": 1.0, "high": 1.0, "ratio": 0.0}}


def test_photographs_are_all_there_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.scene.PHOTOGRAPHS", tmp_path / "none")
    monkeypatch.setattr("benchmarks.scene.DIFFERENT", 2)
    place = photographs(tmp_path / "made", 5)
    assert [file.name for file in sorted(place.rglob("*.jpg"))] == [
        f"{number:06d}.jpg" for number in range(5)
    ]
    assert len({file.read_bytes() for file in place.rglob("*.jpg")}) == 2


@pytest.mark.slow
def test_all_contenders_run(tmp_path: Path) -> None:
    from benchmarks.scene import PAIRS, Setting
    from benchmarks.speed import measure, table

    result = measure(PAIRS["small"], Setting(steps=3, rounds=1), tmp_path)
    assert (result["errors"], result["left_out"]) == ({}, {})
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


def test_each_station_of_a_run_gets_its_seconds_and_the_rest_is_everything_else() -> None:
    from benchmarks.whole import Stations, selection_share, table

    now = 0.0

    def clock() -> float:
        return now

    def after(seconds: float, call: Callable[..., None], *arguments: object) -> None:
        nonlocal now
        now += seconds
        call(*arguments)

    stations = Stations(clock)
    after(1, stations.begin, "preflight", 1)
    after(2, stations.step, {}, 8)
    after(3, stations.end)
    for stage in ("control", "distill"):
        after(4, stations.begin, stage, 2)
        after(5, stations.step, {"loss": 1.0}, 8)
        after(6, stations.epoch, {})
        after(7, stations.step, {"loss": 1.0}, 8)
        after(8, stations.epoch, {})
        after(9, stations.end)
        after(10, stations.begin, "selection", 1)
        after(11, stations.step, {}, 8)
        after(12, stations.end)
    after(13, stations.finish)
    trained = {"steps": 21.0, "val after each epoch": 14.0, "selection": 23.0}
    assert stations.seconds == {
        "everything else": 1.0 + 2 * (4 + 10) + 13,
        "preflight": 5.0,
        **{f"{stage}: {name}": value for stage in ("control", "distill") for name, value in trained.items()},
    }
    assert selection_share(stations.seconds) == pytest.approx(46 / now)
    assert table(stations.seconds).row_count == len(stations.seconds) + 1


@pytest.mark.slow
def test_a_small_run_shows_all_stations() -> None:
    from benchmarks.whole import measure

    seconds = measure(200, 1, 32, ("test_efficientnet", "test_resnet"))
    parts = ("steps", "val after each epoch", "selection")
    stages = {f"{stage}: {part}" for stage in ("control", "distill") for part in parts}
    assert {"preflight", "evaluation", "everything else", *stages} <= set(seconds)
    assert all(value > 0 for value in seconds.values())


def test_the_store_is_measured_against_timm(tmp_path: Path) -> None:
    from benchmarks.store import large, loading

    found = loading(tmp_path / "loading", 32, 1)
    assert found["timm, one resolution"]["ratio"] == 1
    assert len(found) == 10
    assert all(row["low"] == row["median"] > 0 for row in found.values())
    packed = large(tmp_path / "large", 2)
    assert packed["store_mb"] < packed["file_mb"]


def test_starts_with_many_files_are_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks.store import many_files, one_start

    from tutelage.data import packed

    opened: list[object] = []
    plain = packed.opened
    monkeypatch.setattr("benchmarks.store.opened", lambda *of: opened.append(plain(*of)) or opened[-1])
    many_files(tmp_path, 2000)
    rows = [one_start(tmp_path) for _ in range(2)]
    assert [row["images"] for row in rows] == [2000, 2000]
    assert [copy is not None for copy in opened] == [False, True]
