"""What a terminal shows of a run."""

import io

import pytest
from rich.console import Console

from tutelage.core.errors import TutelageError
from tutelage.pipeline.console import Bars, Plain, open_progress


def row(epoch: int, stage: str = "control", **loss: float) -> dict:
    loss = loss or {"total": 1.5, "cross_entropy": 1.5}
    val = {"top1": 50.0 + epoch, "nll": 1.0}
    return {
        "stage": stage, "epoch": epoch, "epochs": 12, "loss": loss, "val": val, "ema_val": val, "images_per_s": 123.4,
    }  # fmt: skip


@pytest.mark.parametrize("kind", [Bars, Plain])
def test_epochs_are_a_table_with_aligned_columns(kind: type[Plain]) -> None:
    screen = io.StringIO()
    shown = kind(Console(file=screen, width=80))
    for epoch in (9, 10):
        shown.epoch(row(epoch))
    shown.epoch(row(1, "distill", total=12.25, kl=10.0, cross_entropy=2.25))
    lines = screen.getvalue().splitlines()
    assert lines[0] == "training the labels-only control"
    assert lines[1].split() == ["epoch", "total", "cross_entropy", "val", "top-1", "of", "EMA", "images/s"]
    assert [len(line) for line in lines[1:4]] == [
        len(lines[1])
    ] * 3  # one header for two epochs, and all right-aligned
    assert lines[3].split() == ["10/12", "1.500", "1.500", "60.00", "60.00", "123"]
    assert lines[4] == "distilling"  # another stage has a header of its own
    assert "kl" in lines[5].split()
    assert max(map(len, lines)) <= 80


def test_a_message_between_epochs_brings_the_header_again() -> None:
    screen = io.StringIO()
    plain = Plain(Console(file=screen, width=80))
    plain.epoch(row(1))
    plain.say("a step was left out")
    plain.epoch(row(2))
    assert screen.getvalue().count("training the labels-only control") == 2


def test_auto_is_plain_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert type(open_progress("auto")) is Plain
    assert type(open_progress("plain")) is Plain
    assert type(open_progress("rich")) is Bars
    with pytest.raises(TutelageError, match="use auto, rich, plain, json or none"):
        open_progress("fancy")


def test_a_warning_stands_out_on_a_terminal() -> None:
    screen = io.StringIO()
    plain = Plain(Console(file=screen, width=80, force_terminal=True, color_system="standard"))
    plain.say("pre-flight: done")
    plain.say("warning: t.onnx?range=[0,255]: its images")
    assert screen.getvalue().splitlines() == [
        "pre-flight: done",
        "\x1b[33mwarning: t.onnx?range=[0,255]: its images\x1b[0m",
    ]
