import time

import pytest
import torch
from torch import nn

from tutelage.evaluation.latency import alternating_latency, forward_call


def test_calls_take_turns_and_begin_in_turn() -> None:
    predictions: list[str] = []
    calls = {name: lambda name=name: predictions.append(name) for name in "abc"}
    alternating_latency(calls, rounds=3, warmup=1, settling=0, burst=1)
    assert "".join(predictions) == "abc" + "abc" + "bca" + "cab"


def test_the_first_calls_of_a_turn_are_not_timed() -> None:
    predictions: list[str] = []

    def call(name: str) -> None:
        if predictions[-1:] != [name]:
            time.sleep(0.01)  # another model's data is in the caches
        predictions.append(name)

    calls = {name: lambda name=name: call(name) for name in "ab"}
    found = alternating_latency(calls, rounds=3, warmup=0, settling=1, burst=2)
    assert max(took.p90_ms for took in found.values()) < 5
    assert {took.rounds for took in found.values()} == {6}
    assert "".join(predictions[:12]) == "aaabbbbbbaaa"


def test_warmup_is_not_counted() -> None:
    pauses = iter([0.05, 0.0, 0.0, 0.0])
    calls = {"a": lambda: time.sleep(next(pauses))}
    latency = alternating_latency(calls, rounds=3, warmup=1, settling=0, burst=1)["a"]
    assert latency.rounds == 3
    assert latency.p90_ms < 40


def test_percentiles_are_of_the_calls() -> None:
    pauses = iter([0.0, 0.01, 0.01, 0.01, 0.03])
    calls = {"a": lambda: time.sleep(next(pauses))}
    latency = alternating_latency(calls, rounds=5, warmup=0, settling=0, burst=1)["a"]
    assert latency.p10_ms < latency.median_ms < latency.p90_ms
    assert latency.median_ms >= 10


def test_stops_when_time_is_up_but_not_before_three_rounds() -> None:
    calls = {"a": lambda: time.sleep(0.002)}
    latency = alternating_latency(calls, rounds=1000, warmup=0, seconds=0.0, burst=1)["a"]
    assert latency.rounds == 3


def test_a_forward_call_sees_the_shape_and_no_gradients() -> None:
    seen: list[tuple[torch.Size, bool]] = []
    module = nn.Identity()
    module.register_forward_hook(lambda _, images, out: seen.append((out.shape, torch.is_grad_enabled())))
    forward_call(module, (2, 3, 8, 12), torch.device("cpu"))()
    assert seen == [((2, 3, 8, 12), False)]


@pytest.mark.parametrize("kind", ["cuda", "mps"])
def test_a_forward_call_waits_for_its_device(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such a device returns before it has computed: without waiting, the time would be that of asking."""
    order: list[str] = []
    monkeypatch.setattr(f"torch.{kind}.synchronize", lambda *_: order.append("waited"))
    monkeypatch.setattr(torch.Tensor, "to", lambda tensor, *_, **__: tensor)
    module = nn.Identity()
    module.register_forward_hook(lambda *_: order.append("asked"))
    forward_call(module, (1, 3, 8, 8), torch.device(kind))()
    assert order == ["asked", "waited"]


def test_a_call_that_fails_is_not_hidden() -> None:
    with pytest.raises(ZeroDivisionError):
        alternating_latency({"a": lambda: 1 / 0})
