import csv
import io
import json
import math
from dataclasses import replace

import pytest
from rich.console import Console

from tutelage.evaluation.paired import Paired
from tutelage.evaluation.table import FIGURES, Row, Table, change

TEACHER = Row(
    "big",
    resolution=224,
    size_mb=185.75,
    params_m=48.65,
    gmacs=3.954,
    latency_ms=200.0,
    latency_p10=190.0,
    latency_p90=260.0,
    images_per_s=6.0,
    top1=83.44,
    top5=96.5,
    nll=0.71,
    ece=3.0,
    n=1000,
    conditions={"device": "cpu"},
)
STUDENT = Row(
    "small|er",
    resolution=192,
    size_mb=34.77,
    latency_ms=50.0,
    images_per_s=30.0,
    top1=79.25,
    n=1000,
    paired=Paired(-4.19, -6.0, -2.4, 0.001, 60, 18, 88.0, 1000),
    why={"nll": "not measured here", "ece": "not measured here"},
)
TABLE = Table([TEACHER, STUDENT], ["a note"])


def drawn(table: Table, width: int = 80) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(table.rich())
    return console.export_text()


def changes(row: Row) -> dict[str, float | None]:
    return {figure.key: change(figure, row, TEACHER) for figure in FIGURES}


def test_changes_are_factors_of_cost_and_differences_of_quality() -> None:
    changed = changes(STUDENT)
    assert changed["size_mb"] == pytest.approx(5.342, abs=1e-3)
    assert changed["latency_ms"] == 4.0
    assert changed["images_per_s"] == 5.0
    assert changed["top1"] == pytest.approx(-4.19)
    assert changed["gmacs"] is None
    assert changes(Row("nothing", size_mb=0.0))["size_mb"] is None


def test_records_are_json_with_every_key_and_nulls_with_a_why() -> None:
    teacher, student = json.loads(json.dumps(TABLE.records(), allow_nan=False))
    keys = "model size_mb params_m gmacs latency_ms images_per_s top1 top5 nll ece"
    assert set(keys.split()) <= set(student)
    assert student["nll"] is None
    assert student["why"]["nll"] == "not measured here"
    assert student["change"]["size_mb"] == pytest.approx(5.342, abs=1e-3)
    assert teacher["conditions"] == {"device": "cpu"}


def test_a_row_comes_back_from_its_record() -> None:
    assert [Row.from_dict(json.loads(json.dumps(r))) for r in TABLE.records()] == [TEACHER, STUDENT]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_absent_and_says_so(value: float) -> None:
    (record,) = Table([Row("broken", nll=value)]).records()
    json.dumps(record, allow_nan=False)
    assert record["nll"] is None
    assert record["why"]["nll"] == "not a finite number"


def test_csv_reads_back() -> None:
    teacher, student = csv.DictReader(io.StringIO(TABLE.csv()))
    assert float(teacher["size_mb"]) == 185.75
    assert student["nll"] == ""
    assert student["why_nll"] == "not measured here"
    assert float(student["paired_low"]) == -6.0
    assert float(student["change_images_per_s"]) == 5.0


def test_markdown_has_a_column_a_model_and_escapes_their_names() -> None:
    lines = TABLE.markdown().splitlines()
    assert lines[0] == "|  | big | small\\|er |"
    assert "| size, MiB | 185.75 | 34.77 (5.34x) |" in lines
    assert "| top-1, % | 83.44 | 79.25 (-4.19) |" in lines
    assert "| NLL | 0.710 | – |" in lines
    assert "a note" in lines
    assert "– NLL, ECE of small|er: not measured here" in lines


def test_the_terminals_table_has_figures_changes_and_reasons() -> None:
    text = drawn(TABLE)
    for wanted in ("185.75", "34.77", "5.34x", "4.00x", "190–260", "-4.19", "-6.00 to -2.40", "88.00"):
        assert wanted in text
    assert "not measured here" in text
    assert "data only" not in text  # no row has it, and none says why


@pytest.mark.parametrize("rows", [1, 2, 4, 8])
def test_any_number_of_models_fits_a_terminal_of_80_columns(rows: int) -> None:
    text = drawn(Table([TEACHER, *[STUDENT] * (rows - 1)]))
    assert max(map(len, text.splitlines())) <= 80
    assert text.count("-6.00 to -2.40") == rows - 1
    assert text.count("34.77") == rows - 1


def test_names_are_not_taken_for_markup() -> None:
    assert "[red]x[/red]" in drawn(Table([Row("[red]x[/red]", size_mb=1.0)]))


def test_a_reason_that_all_rows_share_is_said_once_without_names() -> None:
    rows = [Row("a", why={"top1": "no data", "nll": "no data"}), Row("b", why={"top1": "no data"})]
    assert Table(rows).footnotes() == ["– top-1, NLL: no data"]


def test_a_role_names_its_row() -> None:
    assert "distilled" in drawn(Table([Row("some@file", role="distilled", size_mb=1.0)]))


def test_the_terminal_has_the_cost_of_one_network_once() -> None:
    """Start, control and student are one network, which is measured once."""
    small = replace(STUDENT, model="s", latency_p10=45.0, latency_p90=60.0, paired=None)
    roles = ("start", "control", "distilled")
    alike = [replace(small, role=role, top1=70.0 + place) for place, role in enumerate(roles)]
    lines = drawn(Table([replace(TEACHER, role="teacher"), *alike])).splitlines()
    cells = {line[:16].strip(): line[16:].split() for line in lines if line[:16].strip()}
    assert cells["size, MiB"] == ["185.75", "34.77", "″", "″"]
    assert cells["latency, ms"] == ["200.00", "50.00", "″", "″"]
    assert cells["p10–p90, ms"] == ["190–260", "45.0–60.0", "″", "″"]
    assert cells["top-1, %"] == ["83.44", "70.00", "71.00", "72.00"]
    assert "″" not in Table(alike).markdown()  # in a document the columns may be far apart
    others = [replace(alike[0], role=""), replace(alike[1], model="another"), replace(alike[2], size_mb=1.0)]
    assert "″" not in drawn(Table(others)).partition("parameters")[0].partition("size")[2].splitlines()[0]
