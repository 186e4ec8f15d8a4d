"""The figures' arithmetic, without a browser."""

from __future__ import annotations

import json
import re
import shutil
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn.metrics import precision_score, recall_score

from tutelage.core.errors import TutelageError
from tutelage.core.files import read_json, read_jsonl, write_json, write_text
from tutelage.core.records import RunPredictions, TopClasses, read_predictions
from tutelage.core.run_dir import Run
from tutelage.report import class_tables, plots, tables
from tutelage.report.class_names import class_names
from tutelage.report.page import embed
from tutelage.report.predictions import (
    ClassFigures,
    Reliability,
    agreement,
    class_figures,
    confusion_matrix,
    confusions,
    greatest_changes,
    hardest_classes,
    reliability,
    wilson,
    worst_mistakes,
)
from tutelage.report.run_records import read_run_records
from tutelage.report.sections.training import training_section
from tutelage.report.style import text


def predictions(*classes: int, sure: float = 0.8) -> TopClasses:
    top = np.array([[c, (c + 1) % 3] for c in classes])
    return TopClasses(top, np.tile([sure, 1 - sure], (len(classes), 1)))


@pytest.fixture
def small() -> RunPredictions:
    """Six images, the last without a label."""
    roles = {
        "teacher": predictions(0, 0, 1, 1, 2, 0),
        "start": predictions(0, 1, 1, 2, 2, 1, sure=0.6),
        "distilled": predictions(0, 0, 1, 1, 0, 2),
    }
    return RunPredictions(np.array(list("abcdef")), np.array([0, 0, 1, 1, 2, -1]), ("x", "y", "z"), roles)


def test_agreement_parts_sum_to_all(small: RunPredictions) -> None:
    parts = agreement(small, "start")
    assert parts.agreement == pytest.approx(60)
    assert (parts.both_right, parts.only_teacher_right) == (pytest.approx(60), pytest.approx(40))
    assert parts.both_right + parts.both_wrong_same == pytest.approx(parts.agreement)


def test_reliability_agrees_with_the_expected_calibration_error(finished: Run) -> None:
    predictions = read_predictions(finished.predictions)
    ece = {row["role"]: row["ece"] for row in read_json(finished.comparison)["rows"]}
    for role, stored in predictions.roles.items():
        line = reliability(predictions, role)
        left_out = len(stored.first) - line.count.sum()
        gap = np.sum(np.abs(line.confidence - line.accuracy) * line.count) / len(stored.first)
        assert gap == pytest.approx(ece[role], abs=100 * left_out / len(stored.first) + 0.01)


def test_class_changes_are_sorted_and_right(small: RunPredictions) -> None:
    found = class_figures(small, ["start", "distilled"])
    assert [(c.name, c.n, c.recall("start"), c.recall("distilled"), c.change("start")) for c in found] == [
        ("x", 2, 50.0, 100.0, 50.0),
        ("y", 2, 50.0, 100.0, 50.0),
        ("z", 1, 100.0, 0.0, -100.0),
    ]
    bars = plots.class_changes(found[::-1], "start", {"x": "x", "y": "y", "z": "z"}).data[0]
    assert (list(bars.x), [row[0] for row in bars.customdata]) == ([50.0, 50.0, -100.0], ["x", "y", "z"])


def test_recall_and_precision_are_sklearns(finished: Run) -> None:
    predictions = read_predictions(finished.predictions)
    roles = ["distilled", "control", "teacher", "start"]
    found = class_figures(predictions, roles)
    sheet = class_tables.over_classes(found, class_names(predictions.classes))
    for role, line in zip(roles, sheet.rows, strict=True):
        called = predictions.roles[role].first
        options = {"average": None, "zero_division": np.nan}
        recalls = recall_score(predictions.labels, called, **options)
        precisions = precision_score(predictions.labels, called, **options)
        assert [one.recall(role) for one in found] == pytest.approx((100 * recalls).tolist())
        assert [one.precision(role) for one in found] == pytest.approx(
            (100 * precisions).tolist(), nan_ok=True
        )
        assert (line[1].sort, line[2].sort) == pytest.approx((100 * recalls.mean(), 100 * precisions.mean()))
        assert line[3].text == predictions.classes[int(recalls.argmin())]
        assert line[4].sort == pytest.approx(100 * recalls.min())


def test_a_class_that_is_never_predicted_has_no_precision(small: RunPredictions) -> None:
    called = predictions(0, 0, 0, 0, 2, 0)
    found = class_figures(
        replace(small, roles={"distilled": called, "start": called}), ["distilled", "start"]
    )
    assert [one.precision("distilled") for one in found] == [50.0, None, 100.0]
    sheet = class_tables.each_class(found, {"x": "x", "y": "y", "z": "z"}, "start")
    place = sheet.columns.index("Student, precision %")
    assert [row[place].text for row in sheet.rows] == ["50.0", "–", "100.0"]


@pytest.mark.parametrize(("right", "n"), [(0, 1), (1, 1), (3, 5), (6, 6), (50, 60), (0, 200)])
def test_the_interval_of_a_class_is_wilsons(right: int, n: int) -> None:
    found = ClassFigures("x", n, {"start": right}, {"start": right}).interval("start")
    expected = binomtest(right, n).proportion_ci(method="wilson")
    assert found == wilson(right, n) == pytest.approx((100 * expected.low, 100 * expected.high), abs=1e-3)


@pytest.mark.parametrize(("n", "told"), [(1, True), (5, True), (6, False), (60, False)])
def test_a_class_of_few_images_is_too_few_to_tell(n: int, told: bool) -> None:
    assert bool(binomtest(n, n).pvalue >= 0.05) is told  # McNemar's exact test if all images change
    one = ClassFigures("x", n, {"start": 0, "distilled": n}, {"start": 0, "distilled": n})
    sheet = class_tables.each_class([one], {"x": "x"}, "start")
    change = sheet.rows[0][sheet.columns.index("Change, from start")]
    assert (change.note == "too few to tell") is told


def test_a_diagram_without_a_filled_bin_can_be_drawn() -> None:
    nothing = np.array([])
    found = Reliability("teacher", nothing, nothing, nothing.astype(int), np.zeros(15, int))
    assert len(plots.reliability(found).data) == 3


def test_a_diagram_has_the_images_of_each_bin_and_the_interval_of_each_accuracy(finished: Run) -> None:
    found = reliability(read_predictions(finished.predictions), "distilled")
    _, points, bars = plots.reliability(found).data
    assert sum(bars.y) == read_json(finished.comparison)["test"]["n"]
    assert [int(n) for n in bars.y if n >= 5] == list(points.customdata) == found.count.tolist()
    for x, n, up, down, y in zip(
        found.confidence, found.count, points.error_y.array, points.error_y.arrayminus, points.y, strict=True
    ):
        low, high = wilson(y * n / 100, n)
        assert (y - down, y + up) == pytest.approx((low, high), abs=0.05), x


def test_the_greatest_changes_are_those_of_the_verdict(finished: Run, small: RunPredictions) -> None:
    predictions = read_predictions(finished.predictions)
    pair = next(p for p in read_json(finished.comparison)["verdict"]["pairs"] if p["old"] == "start")
    found = greatest_changes(predictions, "start", "distilled", len(predictions))
    assert len(found["negative_flips"]) == pair["negative_flips"]
    assert len(found["corrections"]) == pair["corrections"]
    few = greatest_changes(small, "start", "distilled", 1)
    assert (few["negative_flips"].tolist(), few["corrections"].tolist()) == ([4], [1])


def test_confusions_are_counted(small: RunPredictions) -> None:
    matrix = confusion_matrix(small, "start")
    assert matrix.toarray().tolist() == [[1, 1, 0], [0, 1, 1], [0, 0, 1]]
    assert hardest_classes(matrix, 1).tolist() == [1]
    assert confusions(small, "start", 5) == []  # none is made twice
    again = RunPredictions(
        np.array(["a", "b"]),
        np.array([0, 0]),
        ("x", "y"),
        {"start": predictions(1, 1), "teacher": predictions(0, 1)},
    )
    (pair,) = confusions(again, "start", 5)
    assert (pair.true, pair.called, pair.n, pair.counts) == ("x", "y", 2, {"start": 2, "teacher": 1})


def test_the_classes_of_imagenet_21k_take_little_memory() -> None:
    """A dense matrix of 21,841 classes takes 3.8 GB for each model."""
    rng = np.random.default_rng(0)
    classes, images = 21_841, 50_000
    labels = rng.integers(0, classes, images)
    labels[:20] = 7

    def model() -> TopClasses:
        top = np.where(rng.random(images) < 0.6, labels, rng.integers(0, classes, images))
        top[:20] = 9
        return TopClasses(np.stack([top, (top + 1) % classes], 1), np.tile([0.8, 0.1], (images, 1)))

    roles = {role: model() for role in ("teacher", "start", "distilled")}
    many = RunPredictions(np.arange(images), labels, tuple(map(str, range(classes))), roles)
    tracemalloc.start()
    matrix = confusion_matrix(many, "distilled")
    chosen = hardest_classes(matrix, 30)
    found = confusions(many, "distilled", 5)
    changes = class_figures(many, ["start", "distilled", "teacher"])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 100e6
    assert matrix.sum() == images
    assert 7 in chosen
    assert (found[0].true, found[0].called, found[0].counts["distilled"]) == ("7", "9", 20)
    assert sum(c.n for c in changes) == images


PAIRS = {
    "start": (93.0, 92.0, 94.0), "control": (1.5, 0.5, 2.5), "teacher": (-3.0, -4.0, -2.0),
}  # fmt: skip


def pairs(*roles: str, scale: float = 1.0) -> list[dict[str, Any]]:
    keys = ("difference", "low", "high")
    return [{"old": role} | dict(zip(keys, (scale * v for v in PAIRS[role]), strict=True)) for role in roles]


def test_a_difference_that_would_flatten_the_others_is_an_arrow() -> None:
    figure = plots.intervals(pairs("start", "control", "teacher"))
    low, high = figure.layout.xaxis.range
    assert (low, high) == pytest.approx((-4.39, 2.89))  # the others fill the width
    arrow, control, teacher = figure.data
    assert (arrow.x[0], arrow.marker.symbol, arrow.text[0]) == (
        high,
        "triangle-right",
        "+93.00",
    )
    assert (control.x[0], teacher.x[0]) == (1.5, -3.0)
    downwards = plots.intervals(pairs("start", "control", scale=-1)).data[0]
    assert (downwards.marker.symbol, downwards.text[0]) == ("triangle-left", "\u221293.00")


@pytest.mark.parametrize("roles", [("start",), ("control", "teacher"), ("start", "start"), ()])
def test_differences_of_one_size_are_on_one_scale(roles: tuple[str, ...]) -> None:
    assert plots.beyond(pairs(*roles)) == set()
    assert plots.beyond(pairs(*roles, scale=0.0)) == set()


def test_changed_images_are_of_each_class_in_turn() -> None:
    """The greatest changes were often all of one class."""
    labels = np.array([0, 0, 0, 1, 2, 1])
    before = TopClasses(np.array([[9, c] for c in labels]), np.tile([0.9, 0.1], (6, 1)))
    chances = np.array([0.99, 0.98, 0.97, 0.9, 0.8, 0.95])
    after = TopClasses(np.array([[c, 9] for c in labels]), np.stack([chances, 1 - chances], 1))
    changed = RunPredictions(
        np.array(list("abcdef")), labels, tuple("0123456789"), {"start": before, "distilled": after}
    )
    found = greatest_changes(changed, "start", "distilled", 5)["corrections"]
    assert found.tolist() == [0, 5, 4, 1, 3]


@pytest.mark.parametrize(
    ("points", "front"),
    [
        ([(3, 90), (1, 80), (2, 70), (4, 89)], [1, 0]),
        ([(1, 80), (1, 85)], [1]),
        ([(2, 80), (1, 80)], [1]),
        ([], []),
    ],
)
def test_pareto(points: list[tuple[float, float]], front: list[int]) -> None:
    assert plots.pareto(points) == front


@pytest.mark.parametrize("ratio", [1.0, 1.5, 40.0])
def test_names_in_the_picture_do_not_cover_each_other(ratio: float) -> None:
    roles = ["teacher", "start", "control", "distilled", "onnx", "int8"]
    costs = [ratio, 1, 1, 1, 0.9, 0.5]
    rows = [
        {"role": r, "top1": 70 + i / 10, "latency_ms": c}
        for i, (r, c) in enumerate(zip(roles, costs, strict=True))
    ]
    figure = plots.tradeoff(rows)
    assert figure is not None
    low, high = figure.layout.yaxis.range
    left, right = figure.layout.xaxis.range
    boxes = []
    for note in figure.layout.annotations:
        x = 290 * (note.x - left) / (right - left) + note.ax
        y = 320 * (high - note.y) / (high - low) + note.ay
        width = 6.4 * len(note.text)
        start = x if note.xanchor == "left" else x - width
        boxes.append((start, y - 7, start + width, y + 7))
    assert len(boxes) == len(rows)
    for i, a in enumerate(boxes):
        for b in boxes[:i]:
            assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]


def test_a_picture_needs_two_models() -> None:
    assert plots.tradeoff([{"role": "teacher", "top1": 70.0, "latency_ms": 3.0}]) is None
    assert plots.tradeoff([{"role": "teacher", "top1": 70.0, "size_mb": None}] * 3, "size_mb") is None


def test_curves_hold_every_term_and_stage(finished: Run) -> None:
    rows = list(read_jsonl(finished.metrics))
    figures = plots.curves(rows, references={"teacher": 97.0, "start": 94.0})
    assert list(figures) == ["accuracy", "loss: total", "loss: kd", "loss: label", "lr", "speed"]
    val = next(t for t in figures["accuracy"].data if t.name == "distilled, val")
    assert list(val.y) == [94.0] + [r["val"]["top1"] for r in rows if r["stage"] == "distill"]
    kd = {t.name: t for t in figures["loss: kd"].data}
    assert list(kd) == ["distilled, val", "distilled, train"]
    assert list(kd["distilled, train"].y) == [r["loss"]["kd"] for r in rows if r["stage"] == "distill"]


def test_curves_bear_missing_figures() -> None:
    row = {"stage": "teacher-fit-2", "epoch": 1, "loss": {"total": None}, "val": {"top1": 50.0}, "lr": 0.1}
    figures = plots.curves([row])
    assert [t.name for t in figures["accuracy"].data] == ["teacher, val"]


@pytest.mark.parametrize("key", ["choose", "selection"])
def test_the_best_epoch_is_that_of_the_metric(finished: Run, tmp_path: Path, key: str) -> None:
    figures = [(90.0, 0.4), (91.0, 0.5), (89.0, 0.3), (88.0, 0.6)]  # the best by top-1 is 2, by NLL 3
    run = Run(tmp_path / "run")
    shutil.copytree(finished.path, run.path)
    rows = [
        {"stage": "distill", "epoch": n, "epochs": 4, "loss": {}, "val": {"top1": t, "nll": v}, "lr": 0.1}
        for n, (t, v) in enumerate(figures, 1)
    ]
    write_text(run.metrics, "".join(json.dumps(row) + "\n" for row in rows))
    kept = {
        "name": "best@0.5",
        "source": "best",
        "alpha": 0.5,
        "val": {"top1": 92.0, "nll": 0.2},
        "kept": True,
    }
    for metric, epoch in (("nll", 3), ("top1", 2)):
        write_text(run.recipe, f"{key}: {{metric: {metric}}}\n")
        write_json(run.candidates, {"metric": metric, "candidates": [kept]})
        assert _starred(run) == epoch
    # older runs took the best epoch by top-1 even where the metric was NLL: the candidate has its figures
    write_text(run.recipe, f"{key}: {{metric: nll}}\n")
    best = {"name": "best", "source": "best", "alpha": 1.0, "val": {"top1": 91.0, "nll": 0.5}}
    write_json(run.candidates, {"metric": "nll", "candidates": [best, kept]})
    assert _starred(run) == 2


def _starred(run: Run) -> int:
    html = str(training_section(read_run_records(run)).html)
    figure = json.loads(re.findall(r'<script type="application/json">(.*?)</script>', html)[0])
    (star,) = (trace for trace in figure["data"] if trace["name"].startswith("kept"))
    return star["x"][0]


def test_loss_terms_of_any_name_are_drawn() -> None:
    loss = {"total": 3.0, "cross_entropy": 1.0, "kl": 1.0, "my_loss": 0.5, "feature_mse_2": 0.5, "top1": 0.1}
    val = {"top1": 50.0, "nll": 1.0, "loss": 2.5, "kl": 1.5, "cross_entropy": 1.0}
    row = {"stage": "distill", "epoch": 1, "loss": loss, "train_top1": None, "val": val, "lr": 0.1}
    figures = plots.curves([row, row | {"epoch": 2}])
    terms = ["total", "kl", "feature_mse_2", "my_loss", "top1", "cross_entropy"]
    assert [name.removeprefix("loss: ") for name in figures if name.startswith("loss")] == terms
    assert {t.name: list(t.y) for t in figures["loss: total"].data} == {
        "distilled, val": [2.5, 2.5],
        "distilled, train": [3.0, 3.0],
    }
    assert [t.name for t in figures["loss: feature_mse_2"].data] == ["distilled, train"]
    assert [t.name for t in figures["loss: top1"].data] == ["distilled, train"], (
        "no accuracy among the losses"
    )
    assert figures["loss: feature_mse_2"].layout.yaxis.title.text == "feature MSE 2 loss"
    assert [t.name for t in figures["accuracy"].data] == ["distilled, val"], "train top-1 is not defined"
    columns = tables.epochs([row]).columns
    assert columns[2:8] == [
        "Total loss", "Cross-entropy loss", "KL loss", "My loss", "Feature MSE 2 loss", "Top1 loss",
    ]  # fmt: skip


def test_candidates_ring_what_is_kept() -> None:
    options = [
        {"name": "start", "source": "start", "alpha": 0.0, "val": {"top1": 60.0, "nll": 1.0}},
        {"name": "ema", "source": "ema", "alpha": 1.0, "val": {"top1": 61.0, "nll": 0.9}},
        {"name": "ema@0.5", "source": "ema", "alpha": 0.5, "val": {"top1": 62.0, "nll": 0.8}, "kept": True},
        {"name": "soup", "source": "start+ema", "alpha": None, "val": {"top1": 61.5, "nll": 0.85}},
    ]
    figure = plots.candidates(options)
    way, ring = figure.data
    assert (list(way.x), list(way.y)) == ([0.0, 0.5, 1.0], [60.0, 62.0, 61.0])
    assert (ring.x[0], ring.y[0]) == (0.5, 62.0)
    assert [note.text for note in figure.layout.annotations] == ["soup"]
    assert list(plots.candidates(options, "nll").data[0].y) == [1.0, 0.8, 0.9]


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("cat", "cat"),
        ("<b>&", "&lt;b&gt;&amp;"),
        ("two\nlines", "two lines"),
        ("שלום", "\u2068שלום\u2069"),
        ("abcdefgh", "\u2068abcd…\u2069"),
    ],
)
def test_names_in_figures_are_escaped(name: str, shown: str) -> None:
    assert text(name, 5 if name == "abcdefgh" else 0) == shown


def test_figures_cannot_end_their_script() -> None:
    figure = plots.val_curves({"</script><!--": [{"epoch": 1, "val": {"top1": 5.0}}]}, None)
    embedded = str(embed(figure).json)
    assert not set("<>&") & set(embedded)
    assert json.loads(embedded)["data"][0]["customdata"] == ["&lt;/script&gt;&lt;!--"]


def test_wordnet_ids_get_their_names() -> None:
    assert class_names(["n01443537", "n01629819"]) == {
        "n01443537": "goldfish",
        "n01629819": "European fire salamander",
    }
    assert class_names(["cat", "n01443537"]) == {"cat": "cat", "n01443537": "n01443537"}


def test_crane_and_crane_are_told_apart() -> None:
    names = class_names(["n02012849", "n03126707"])  # the bird and the machine
    assert names == {"n02012849": "crane (n02012849)", "n03126707": "crane (n03126707)"}


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.44, "0.4 s"),
        (59.94, "59.9 s"),
        (59.97, "1 min 00 s"),
        (61, "1 min 01 s"),
        (3599.6, "1 h 00 min"),
        (7260, "2 h 01 min"),
    ],
)
def test_durations(seconds: float, said: str) -> None:
    assert tables.duration(seconds) == said


def test_settings_away_from_their_defaults_are_told() -> None:
    sheet = tables.settings(
        {"train": {"lr": "auto", "epochs": 7}, "teacher": {"fit": {"epochs": 2}}, "control": False},
        {"train.lr": {"value": 3e-4, "why": "pretrained weights"}},
    )
    assert [[cell.text for cell in row] for row in sheet.rows] == [
        ["train.epochs", "7", "auto"],
        ["teacher.fit.epochs", "2", "–"],
        ["control", "false", "true"],
        ["train.lr", "0.0003 (pretrained weights)", "auto"],
    ]


def test_an_epoch_run_again_after_a_kill_counts_once(finished: Run, tmp_path: Path) -> None:
    records = read_run_records(finished)
    twice = [*records.metrics, records.metrics[-1] | {"lr": 5.0}]
    again = type(records)(
        **{**{k: getattr(records, k) for k in records.__dataclass_fields__}, "metrics": twice}
    )
    assert len(again.stage("distill")) == len(records.stage("distill"))
    assert again.stage("distill")[-1]["lr"] == 5.0


def test_damaged_predictions_are_named(tmp_path: Path) -> None:
    path = tmp_path / "predictions.npz"
    np.savez(path, ids=np.array(["a"]))
    with pytest.raises(TutelageError, match=r"predictions\.npz: damaged"):
        read_predictions(path)
    path.write_bytes(b"not a zip")
    with pytest.raises(TutelageError, match=r"predictions\.npz: damaged"):
        read_predictions(path)


def test_the_table_of_candidates_has_the_share_of_two_heads_where_there_were_two() -> None:
    plain = {"name": "start", "alpha": 0.0, "val": {"top1": 70.0, "nll": 1.0}}
    two = {"name": "ema", "alpha": 1.0, "share": 0.75, "val": {"top1": 72.0, "nll": 0.9}, "kept": True}
    assert len(tables.candidates([plain]).columns) == 4
    sheet = tables.candidates([plain, two])
    place = sheet.columns.index("Share of the teacher's head")
    assert [row[place].text for row in sheet.rows] == [tables.ABSENT, "0.75"]


def test_the_worst_mistakes_are_those_of_the_greatest_confidence(finished: Run) -> None:
    found = read_predictions(finished.predictions)
    worst = worst_mistakes(found, "distilled", len(found))
    assert len(worst) == int(((found.labels >= 0) & ~found.right("distilled")).sum()) > 3
    assert (np.diff(found.roles["distilled"].prob[worst, 0]) <= 0).all()
    assert worst_mistakes(found, "distilled", 2).tolist() == worst[:2].tolist()
    sheet = class_tables.mistakes(found, worst[:3])
    assert [row[0].text for row in sheet.rows] == [str(found.ids[position]) for position in worst[:3]]


def test_an_image_without_a_label_is_no_mistake(small: RunPredictions) -> None:
    assert worst_mistakes(small, "distilled", 6).tolist() == [4]


def test_a_confusion_matrix_has_counts_in_its_cells_and_shares_as_colours() -> None:
    matrix, images = (
        np.array([[8, 2], [1, 3]]),
        np.array([10, 8]),
    )  # four images of the second class are called others
    right, wrong = plots.confusion(matrix, images, ["cat", "dog"]).data
    assert [[*row] for row in right.text] == [["8", ""], ["", "3"]]
    assert [[*row] for row in wrong.text] == [["", "2"], ["1", ""]]
    assert wrong.z[0][1] == 20.0
    assert wrong.z[1][0] == 12.5
    assert wrong.zmax == 20.0
    assert "cat, predicted as dog: 2 images, 20.0%" in wrong.customdata[0][1]
    large = plots.confusion(np.eye(13, dtype=int), np.ones(13, int), [str(k) for k in range(13)])
    assert large.data[0].texttemplate is None
