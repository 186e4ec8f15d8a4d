"""The first screen of a run: what a user wants to know first."""

from dataclasses import replace
from pathlib import Path

import pytest
from tests.report.conftest import Visits
from tests.report.small_run import make_run

from tutelage.core.files import read_json, write_json
from tutelage.core.run_dir import Run
from tutelage.evaluation.roles import Role
from tutelage.report.build import write_report
from tutelage.report.run_records import read_run_records
from tutelage.report.summary import summary


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return make_run(tmp_path_factory.mktemp("runs"))


def test_a_run_that_is_not_finished_has_none(tmp_path: Path) -> None:
    assert summary(read_run_records(make_run(tmp_path, stop="distill"))) is None


def test_lines_fit_a_terminal_and_begin_with_the_file(run: Run) -> None:
    comparison = read_json(run.comparison)
    rows = [row for row in comparison["rows"] if row["role"] in set(Role)]  # nothing has been exported
    found = summary(replace(read_run_records(run), comparison=comparison | {"rows": rows}))
    assert found is not None
    lines = found.lines()
    assert lines[0].split()[0] == "file"
    assert str(run.student) in lines[0]
    assert "smaller" in lines[1]
    student = next(row for row in read_json(run.comparison)["rows"] if row["role"] == "distilled")
    assert f"{student['top1']:.2f}% of {student['n']:,} test images" in lines[2]
    assert [line for line in lines if len(line) > 80 and not line.split()[-1].startswith(str(run.path))] == []
    assert "another training seed can change the figures as well, which --seeds 3 shows)" in " ".join(
        " ".join(lines).split()
    )


def test_each_badge_says_what_its_interval_shows(run: Run) -> None:
    records = read_run_records(run)
    comparison = read_json(run.comparison)
    pair = next(p for p in comparison["verdict"]["pairs"] if p["old"] == "control")
    for low, high, p, answer, css_class in (
        (1.0, 3.0, 0.001, "Yes", "better"),
        (-3.0, -1.0, 0.001, "No", "worse"),
        (-1.0, 3.0, 0.2, "Not shown", "same"),
        (1.0, 3.0, 0.2, "Not shown", "same"),  # McNemar's test decides with the interval, as in the verdict
    ):
        pair |= {"difference": (low + high) / 2, "low": low, "high": high, "mcnemar_p": p}
        found = summary(replace(records, comparison=comparison, diagnosis=None))
        assert found is not None
        badge = next(b for b in found.badges if b.question == "Teacher helped?")
        assert (badge.answer, badge.css_class) == (answer, css_class)
        reason = ", McNemar p = 0.200" if low > 0 and p > 0.05 else ""  # why the interval does not decide
        assert f"({low:+.2f} to {high:+.2f}{reason}) points against labels only" in badge.figures


def test_a_doubted_gain_says_why(run: Run) -> None:
    records = read_run_records(run)
    pair = next(p for p in records.verdict["pairs"] if p["old"] == "control")
    pair |= {"difference": 2.0, "low": 1.0, "high": 3.0, "mcnemar_p": 0.001}
    doubted = {"findings": [{"reservation": "the control is below the linear probe"}]}
    found = summary(replace(records, diagnosis=doubted))
    assert found is not None
    badge = next(b for b in found.badges if b.question == "Teacher helped?")
    assert (badge.answer, badge.css_class) == ("Yes, but the control is below the linear probe", "same")


def test_the_deployed_file_is_named_where_there_is_one(run: Run) -> None:
    comparison = read_json(run.comparison)
    comparison["rows"] = [row for row in comparison["rows"] if row["role"] in set(Role)]
    teacher = next(row for row in comparison["rows"] if row["role"] == "teacher")
    slow, fast = (
        teacher
        | {"role": role, "model": f"test_net {role}", "size_mb": teacher["size_mb"] / 4, "latency_ms": ms}
        for role, ms in (("onnx", 1.0), ("int8", 0.5))
    )
    found = summary(
        replace(read_run_records(run), comparison=comparison | {"rows": [*comparison["rows"], slow, fast]})
    )
    assert found is not None
    assert found.file == run.deploy / "model-int8.xml"
    assert "4.0x smaller" in found.gains
    assert found.gains.endswith("than the teacher in PyTorch")
    assert next(iter(found.commands)).startswith("tutelage predict")


def test_a_rejected_file_is_not_the_one_to_deploy(run: Run, tmp_path: Path) -> None:
    comparison = read_json(run.comparison)
    teacher = next(row for row in comparison["rows"] if row["role"] == "teacher")
    rows = [row for row in comparison["rows"] if row["role"] in set(Role)]
    rows += [teacher | {"role": "onnx", "latency_ms": 1.0}, teacher | {"role": "int8", "latency_ms": 0.5}]
    rejected = tmp_path / "deploy" / "rejected" / "model-int8.xml"
    rejected.parent.mkdir(parents=True)
    rejected.touch()
    found = summary(replace(read_run_records(run), run=Run(tmp_path), comparison=comparison | {"rows": rows}))
    assert found is not None
    assert found.file == tmp_path / "deploy" / "model.onnx"


def test_the_prediction_of_an_example_follows_the_file(run: Run) -> None:
    found = summary(read_run_records(run))
    assert found is not None
    names = [
        line.split("  ")[0] for line in found.lines("example.png is of class 4 (98.0%)") if line[0] != " "
    ]
    assert names[:3] == ["file", "prediction", "top-1"]
    assert "prediction" not in "".join(found.lines())


def test_commands_are_not_broken_into_lines(run: Run) -> None:
    found = summary(read_run_records(run))
    assert found is not None
    long = "tutelage export " + "runs/" * 30
    lines = replace(found, gains="much smaller " * 20, commands={long: "write files"}).lines()
    assert lines[-1].endswith(long)
    assert max(map(len, lines[:-1])) <= max(80, len(lines[0]))


def test_the_page_begins_with_it(run: Run, visit: Visits) -> None:
    page = visit(write_report(run).resolve().as_uri())
    found = summary(read_run_records(run))
    assert found is not None
    assert page.locator(".first dd").first.inner_text().startswith(str(found.file))
    shown = [line.replace("−", "-") for line in page.locator(".badges li").all_inner_texts()]
    assert len(shown) == len(found.badges) > 1
    for text, badge in zip(shown, found.badges, strict=True):
        assert badge.answer in text
        assert badge.figures in text
    assert page.locator(".commands code").all_inner_texts() == list(found.commands)


def test_a_file_of_an_older_version_does_not_stop_the_page(run: Run, tmp_path: Path) -> None:
    old = make_run(tmp_path)
    comparison = read_json(old.comparison)
    for row in comparison["rows"]:
        row.pop("latency_ms", None)
    write_json(old.comparison, comparison)
    found = summary(read_run_records(old))
    assert found is not None
    assert "faster" not in found.gains
