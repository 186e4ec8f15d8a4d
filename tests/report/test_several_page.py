"""Several runs, and a study's directory of them, on one page."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from small_run import make_run, random_start
from tests.helpers.chromium import until
from tests.report.conftest import Visits

from tutelage.core.errors import TutelageError
from tutelage.core.files import read_json, write_json
from tutelage.core.run_dir import Run
from tutelage.report.build import find_runs, report
from tutelage.report.run_records import read_run_records
from tutelage.report.sections import data

TRIALS = 12


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve trials; the sixth was killed while it distilled, the eighth before its test images."""
    root = tmp_path_factory.mktemp("studies") / "lr <&> temperature"
    stops = {5: "distill", 7: "measure"}
    for trial in range(TRIALS):
        overrides = {
            "data": {"train": "digits", "limit": 300},
            "train": {"epochs": 2, "lr": 10 ** (-3 + trial / 8)},
            "loss": {"temperature": float(1 + trial % 3)},
            "name": f"trial-{trial}",
        }
        make_run(root / "trials", f"trial-{trial:02d}", stop=stops.get(trial), overrides=overrides)
    return root


def test_a_study_of_twelve_runs(study: Path, visit: Visits) -> None:
    path = report([study])
    assert path == study / "report.html"
    page = visit(path.as_uri())
    assert page.locator("h1").inner_text() == study.name
    assert page.eval_on_selector_all("main > section", "parts => parts.map((part) => part.id)") == [
        "verdict", "runs", "differences", "tradeoff", "training", "settings",
    ]  # fmt: skip
    rows = page.locator("#runs tbody tr")
    assert rows.count() == TRIALS
    assert page.locator("#runs td", has_text="unfinished").count() == 2
    assert "2 of 12 runs are unfinished" in page.locator("#verdict").inner_text()
    assert "epoch 1 of 2 of the distillation" in page.locator("#verdict .foot").inner_text()
    for canvas, runs in (("#differences .canvas >> nth=0", 10), ("#training .canvas", 12)):
        assert page.locator(canvas).evaluate("canvas => canvas.data.length") == runs
    assert page.locator("#settings th").all_inner_texts()[3:5] == ["loss.temperature", "train.lr"]


def test_the_best_on_val_is_first_and_named(study: Path, visit: Visits) -> None:
    page = visit(report([study]).as_uri())
    runs = [Run(path) for path in sorted((study / "trials").iterdir())]
    kept = {
        run.path.name: candidate["val"]["top1"]
        for run in runs
        if run.candidates.exists()
        for candidate in read_json(run.candidates)["candidates"]
        if candidate["kept"]
    }
    best = max(kept.values())
    first = page.locator("#runs tbody th").first.inner_text()
    assert kept[first] == best
    assert page.locator("p.outcome").inner_text() == f"Best on the validation images: {first}"
    shown = page.locator("#runs tbody tr").first.locator("td").nth(2).inner_text()
    assert float(shown) == pytest.approx(best, abs=0.005)


def test_its_table_sorts_and_it_fits_a_phone(study: Path, visit: Visits) -> None:
    page = visit(report([study]).as_uri(), width=390, dark=True)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    until(
        page, "[...document.querySelectorAll('.canvas .main-svg')].every((s) => s.clientWidth <= innerWidth)"
    )
    heading = page.locator("#settings th", has_text="train.lr")
    heading.locator("button").click()
    column = heading.evaluate("heading => heading.cellIndex")
    shown = page.eval_on_selector_all(
        "#settings tbody tr", f"rows => rows.map((row) => Number(row.cells[{column}].dataset.sort))"
    )
    assert shown == sorted(shown)
    assert len(shown) == TRIALS


def test_runs_side_by_side_link_to_their_own_pages(
    finished: Run, study: Path, tmp_path: Path, visit: Visits, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = report([finished.path, study / "trials" / "trial-00"])
    assert path == tmp_path / "report.html"
    page = visit(path.as_uri())
    link = page.locator("#runs a")
    assert link.count() == 1
    assert link.evaluate("a => a.href") == finished.report.as_uri()


def test_runs_of_one_name_are_told_apart(tmp_path: Path) -> None:
    small = {"data": {"train": "digits", "limit": 150}, "train": {"epochs": 1, "lr": 1e-2}}
    paths = [make_run(tmp_path / place, "same", overrides=small).path for place in ("a", "b")]
    page = report(paths, out=tmp_path / "both.html").read_text(encoding="utf-8")
    assert "<bdi>a/same</bdi>" in page
    assert "<bdi>b/same</bdi>" in page
    assert "The recipes are the same." in page


def test_damage_in_one_run_spares_the_others(tmp_path: Path, finished: Run) -> None:
    small = {"data": {"train": "digits", "limit": 150}, "train": {"epochs": 1, "lr": 1e-2}}
    damaged = make_run(tmp_path, "damaged", overrides=small)
    write_json(damaged.comparison, [])
    page = report([damaged.path, finished.path], out=tmp_path / "page.html").read_text(encoding="utf-8")
    assert "comparison.json: damaged" in page
    assert "<bdi>finished</bdi>" in page


def test_no_run_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(TutelageError, match="neither a run directory nor a directory of runs"):
        find_runs([tmp_path])


def test_one_run_is_found_once(finished: Run) -> None:
    assert [run.path for run in find_runs([finished.path, finished.path.parent])] == [finished.path]


def test_the_page_of_one_run_stays_in_it(finished: Run, tmp_path: Path) -> None:
    assert report([finished.path]) == finished.report
    with pytest.raises(TutelageError, match="--out"):
        report([finished.path], out=tmp_path / "elsewhere.html")


def test_seeds_are_told_with_their_pooled_interval(tmp_path: Path, visit: Visits) -> None:
    from tutelage.pipeline.seeds import summary

    root = tmp_path / "thrice"
    runs = []
    for seed in range(3):
        overrides = {
            "data": {"train": "digits", "limit": 200},
            "train": {"epochs": 2, "lr": 1e-2, "seed": seed},
        }
        runs.append(make_run(root, f"seed-{seed}", overrides=overrides))
    together = Run(root)
    together.recipe.write_text(runs[0].recipe.read_text())
    write_json(together.seeds, summary(runs))
    page = visit(report([root]).as_uri())
    seeds = read_json(together.seeds)
    assert page.locator("p.verdict").inner_text().replace("−", "-") == seeds["sentence"]
    start = next(p for p in seeds["pairs"] if p["old"] == "start")
    first = page.locator("#differences .canvas").first.evaluate("canvas => canvas.data[0]")
    assert first["x"] == [start["difference"]]
    assert first["customdata"][0][0] == "all seeds"


def test_a_random_start_is_left_out_of_the_plots(finished: Run, tmp_path: Path, visit: Visits) -> None:
    scratch = random_start(finished, tmp_path / "scratch", "control")
    page = visit(report([finished.path, scratch.path], out=tmp_path / "both.html").as_uri())
    figures = page.locator("#differences .canvas")
    drawn = figures.evaluate_all("all => all.map(({ data }) => data.map((trace) => trace.customdata[0][0]))")
    assert drawn[0] == ["finished"]
    assert sorted(drawn[1]) == ["finished", "scratch"]
    assert "where its weights were random: scratch" in page.locator("#differences .lead").inner_text()
    told = page.locator("#verdict").inner_text()
    assert "compared with its start" in told
    assert "compared with the labels-only control" in told


@pytest.mark.parametrize("recorded", ["digest", "count"])
def test_runs_on_different_images_are_not_ranked(
    finished: Run, tmp_path: Path, visit: Visits, recorded: str
) -> None:
    other = Run(tmp_path / "other")
    shutil.copytree(finished.path, other.path)
    comparison = read_json(other.comparison)
    if recorded == "digest":
        write_json(other.splits, {"parts": {"test": {"digest": "another", "source": "digits", "size": 360}}})
    else:
        comparison["test"] |= {"n": 11}
        del comparison["test"]["digest"]
        write_json(other.comparison, comparison)
    page = visit(report([other.path, finished.path], out=tmp_path / "both.html").as_uri())
    told = page.locator("#verdict").inner_text()
    assert "so the runs are not ranked" in told
    assert "Best on" not in told
    assert f"{comparison['test']['n']} test images of digits" in told
    assert page.locator("#runs tr.strong").count() == 0
    assert "one plot cannot compare" in page.locator("#tradeoff .missing").inner_text()


def test_runs_are_grouped_by_their_images_and_ranked_within_a_group(tmp_path: Path, visit: Visits) -> None:
    """Two runs each on two parts of the digits, and one on the first part with another division into train and test."""
    sources = {"a": "digits#student", "b": "digits#student", "c": "digits#teacher", "d": "digits#teacher"}
    small = {"train": {"epochs": 2, "lr": 1e-2}}
    for name, source in sources.items():
        lr = 1e-2 if name in "ac" else 1e-5
        images = {"train": source, "limit": 300}
        make_run(tmp_path, name, overrides=small | {"data": images, "train": {"epochs": 2, "lr": lr}})
    make_run(
        tmp_path, "e", overrides=small | {"data": {"train": "digits#student", "limit": 300, "split_seed": 9}}
    )
    for name in (*sources, "e"):  # what the pipeline records of the images
        run, records = Run(tmp_path / name), read_run_records(Run(tmp_path / name))
        write_json(run.splits, data.splits(records.recipe_text, records.copies).record())
    page = visit(report([tmp_path]).as_uri())
    captions = page.locator("#runs .caption").all_inner_texts()
    assert [caption.partition(".")[0].split(" of ")[-1].partition(" (")[0] for caption in captions] == [
        "digits#student", "digits#teacher", "digits#student",
    ]  # fmt: skip
    assert len(set(captions)) == 3
    tables = page.locator("#runs table")
    shown = [table.locator("tbody th").all_inner_texts() for table in tables.all()]
    assert [sorted(names) for names in shown] == [["a", "b"], ["c", "d"], ["e"]]
    kept = {name: read_run_records(Run(tmp_path / name)).kept["val"]["top1"] for name in (*sources, "e")}
    assert kept[shown[0][0]] >= kept[shown[0][1]]
    assert [table.locator("tr.strong").count() for table in tables.all()] == [1, 1, 0]
    told = page.locator("#verdict p.outcome").all_inner_texts()
    assert [line.split(": ")[-1] for line in told] == [shown[0][0], shown[1][0]]
    assert "there are 3 groups" in page.locator("#verdict .missing").inner_text()
    assert page.locator("#tradeoff .canvas").count() == 4  # a run alone is compared with no other
    assert page.locator("#training .canvas").count() == 3
    assert "Val top-1" not in " ".join(page.locator("#settings th").all_inner_texts())


def test_what_runs_chose_is_compared_too(finished: Run, tmp_path: Path, visit: Visits) -> None:
    paths = []
    for name, temperature in (("one", 1.5), ("two", 4.0)):
        run = Run(tmp_path / name)
        shutil.copytree(finished.path, run.path)
        chosen = {"loss.temperature": temperature, "train.epochs": 8}
        write_json(run.choices, {key: {"value": value, "why": "it fits"} for key, value in chosen.items()})
        paths.append(run.path)
    page = visit(report(paths, out=tmp_path / "both.html").as_uri())
    heads = page.locator("#settings th").all_inner_texts()
    assert "loss.temperature" in heads
    assert "train.epochs" not in heads  # both chose the same
    cells = page.locator("#settings tbody td:last-child").all_inner_texts()
    assert sorted(cell.split() for cell in cells) == [["1.5", "auto"], ["4.0", "auto"]]


def test_runs_on_the_same_images_are_ranked_wherever_these_lie(finished: Run, tmp_path: Path) -> None:
    moved = Run(tmp_path / "moved")
    shutil.copytree(finished.path, moved.path)
    comparison = read_json(moved.comparison)
    comparison["test"]["source"] = "folder:/elsewhere"
    write_json(moved.comparison, comparison)
    page = report([moved.path, finished.path], out=tmp_path / "both.html").read_text(encoding="utf-8")
    assert "Best on the validation images" in page
