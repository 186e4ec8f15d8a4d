"""The page of one run, driven in a browser."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_run import STAGES, make_folder, make_run, random_start
from tests.helpers.chromium import until
from tests.report.conftest import Visits

from tutelage.core.files import read_json, read_jsonl, write_json
from tutelage.core.records import RunPredictions, TopClasses, write_predictions
from tutelage.core.run_dir import Run
from tutelage.report.build import write_report
from tutelage.report.predictions import class_figures
from tutelage.report.run_records import read_run_records
from tutelage.report.sections import data
from tutelage.report.sections.images import images_section

SHORT = {"train": {"epochs": 3, "lr": 1e-2}}
SECTIONS = [
    "verdict", "comparison", "tradeoff", "data", "training", "selection", "agreement", "classes", "images", "views",
    "checks", "record",
]  # fmt: skip
HOSTILE = ['<img src=x onerror="window.hacked=1">', "a & b &amp; \"c\" 'd'", "שלום <b>عربي</b>", "</script>"]
MEGABYTE = 2**20
NONE_WIDER = """[...document.querySelectorAll('.canvas')].every((canvas) =>
    canvas.clientWidth <= Math.max(innerWidth, parseInt(canvas.style.minWidth) || 0)
    && Math.abs(canvas.querySelector('.main-svg').clientWidth - canvas.clientWidth) < 2
    && canvas.parentElement.getBoundingClientRect().right <= innerWidth)"""


def overflow(page: Any) -> int:
    return page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")


def background(page: Any) -> str:
    return page.evaluate("getComputedStyle(document.body).backgroundColor")


def ink(page: Any) -> str:
    return page.evaluate("getComputedStyle(document.documentElement).getPropertyValue('--ink').trim()")


def test_every_section_is_there_and_says_something(finished: Run, page: Any) -> None:
    assert page.eval_on_selector_all("main > section", "parts => parts.map((part) => part.id)") == SECTIONS
    assert page.locator(".missing").count() == 0
    assert page.locator(".progress").count() == 0
    assert page.locator("nav a").count() == len(SECTIONS)
    assert page.locator("h1").inner_text() == "finished"
    assert (
        page.locator("p.verdict").text_content().replace("−", "-")
        == read_json(finished.comparison)["verdict"]["sentence"]
    )
    assert finished.report.stat().st_size < 8 * MEGABYTE


def test_the_table_holds_the_figures_and_sorts(finished: Run, page: Any) -> None:
    rows = read_json(finished.comparison)["rows"]
    heading = page.locator("#comparison th", has_text="NLL")
    column = heading.evaluate("heading => heading.cellIndex")

    def shown() -> list[str]:
        return page.eval_on_selector_all(
            "#comparison tbody tr", f"rows => rows.map((r) => r.cells[{column}].innerText)"
        )

    figures = [row["nll"] for row in rows]
    assert [float(text.split()[0]) for text in shown()] == [round(figure, 3) for figure in figures]
    heading.locator("button").click()
    assert heading.get_attribute("aria-sort") == "ascending"
    assert [float(text.split()[0]) for text in shown()] == sorted(round(figure, 3) for figure in figures)
    heading.locator("button").press("Enter")
    assert heading.get_attribute("aria-sort") == "descending"
    assert [float(text.split()[0]) for text in shown()] == sorted(
        (round(f, 3) for f in figures), reverse=True
    )


def test_absent_figures_sort_last(finished: Run, page: Any) -> None:
    heading = page.locator("#comparison th", has_text="GMACs")
    for _ in range(2):
        heading.locator("button").click()
        last = page.locator("#comparison tbody tr").last.inner_text()
        assert last.startswith("Deployed: int8")
    assert "not counted for a deployed file" in page.locator("#comparison .foot").inner_text()


def test_a_curve_shows_its_value_under_the_pointer(finished: Run, page: Any) -> None:
    figure = page.locator("#training .plot", has_text="Accuracy").first
    figure.scroll_into_view_if_needed()
    row = next(r for r in read_jsonl(finished.metrics) if r["stage"] == "distill" and r["epoch"] == 5)
    x, y = figure.locator(".canvas").evaluate(
        """(canvas, [epoch, top1]) => {
            const { xaxis, yaxis } = canvas._fullLayout;
            const box = canvas.getBoundingClientRect();
            return [box.left + xaxis._offset + xaxis.d2p(epoch), box.top + yaxis._offset + yaxis.d2p(top1)];
        }""",
        [5, row["val"]["top1"]],
    )
    page.mouse.move(x - 3, y)
    page.mouse.move(x, y)
    hover = figure.locator(".hoverlayer")
    hover.locator("text", has_text="distilled, val").first.wait_for()
    assert f"{row['val']['top1']:.2f}%" in hover.text_content()


def test_kept_epoch_and_findings_are_drawn_where_they_are(finished: Run, page: Any) -> None:
    layout = page.locator("#training .canvas").first.evaluate("canvas => canvas.layout")
    lines = sorted(shape["x0"] for shape in layout["shapes"])
    findings = read_json(finished.diagnosis)["findings"]
    marked = {finding["epoch"]: str(n) for n, finding in enumerate(findings, 1) if finding["epoch"]}
    assert {a["x"]: a["text"] for a in layout["annotations"]} == {e: f"<b>{n}</b>" for e, n in marked.items()}
    assert set(marked) <= set(lines)
    names = page.locator("#training .canvas").first.evaluate(
        "canvas => canvas.data.map((trace) => trace.name)"
    )
    assert f"kept: {read_json(finished.candidates)['kept']}" in names
    for finding in findings:
        assert finding["sentence"] in page.locator(".findings").first.inner_text()


def test_no_layout_overflows(finished: Run, visit: Visits) -> None:
    page = visit(finished.report.as_uri(), width=390, dark=True)
    assert background(page) != "rgb(255, 255, 255)"
    long_path = "/a-name-of-a-directory-that-a-user-may-have" * 4
    page.locator(".commands code").first.evaluate("(code, path) => { code.textContent += path }", long_path)
    for width in (390, 768, 1280):
        page.set_viewport_size({"width": width, "height": 900})
        until(page, NONE_WIDER)
        assert overflow(page) == 0


def test_figures_follow_the_scheme(finished: Run, visit: Visits) -> None:
    page = visit(finished.report.as_uri())
    assert background(page) == "rgb(255, 255, 255)"
    same = "document.querySelector('.canvas')._fullLayout.font.color === '{}'"
    assert page.evaluate(same.format(ink(page)))
    light = ink(page)
    page.emulate_media(color_scheme="dark")
    assert ink(page) != light
    until(page, same.format(ink(page)))


def test_it_prints_within_the_paper(finished: Run, visit: Visits) -> None:
    page = visit(finished.report.as_uri(), dark=True)
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    drawn = "all => all.map(({ _fullLayout }) => ({ width: _fullLayout.width, ink: _fullLayout.font.color }))"
    layouts = page.eval_on_selector_all(".canvas", drawn)
    assert max(layout["width"] for layout in layouts) <= 680
    assert {layout["ink"] for layout in layouts} == {"#1a1e23"}, "ink for white paper"
    assert page.pdf(format="A4").startswith(b"%PDF")


def test_pictures_show_what_changed_with_three_answers(finished: Run, page: Any) -> None:
    pair = next(p for p in read_json(finished.comparison)["verdict"]["pairs"] if p["old"] == "start")
    predictions = page.locator("#images .lead").all_inner_texts()
    by = "by the starting student and {} by the distilled student"
    told = f"{pair['negative_flips']} test images were classified correctly {by.format('wrongly')}"
    assert predictions[0].startswith(told)
    told = f"{pair['corrections']} test images were classified wrongly {by.format('correctly')}"
    assert predictions[1].startswith(told)
    assert predictions[2].endswith("These are the 12 that it is most confident of.")
    worst = page.locator("#images .cards").nth(2).locator("li")
    assert worst.locator(".file").count() == worst.count() == 12
    assert worst.first.locator("dd.right, dd.wrong").nth(1).get_attribute("class") == "wrong"
    card = page.locator("#images .cards").nth(1).locator("li").first  # of the corrections
    assert card.locator("dt").all_inner_texts() == ["Starting student", "Distilled student", "Teacher"]
    assert card.locator("dd.wrong, dd.right").evaluate_all("all => all.map((d) => d.className)")[:2] == [
        "wrong",
        "right",
    ]
    assert page.locator("#images img, #views img").evaluate_all(
        "all => all.every((i) => i.complete && i.naturalWidth)"
    )
    assert page.locator("img:not([alt]), img[alt='']").count() == 0


def test_views_are_shown_at_both_resolutions(finished: Run, page: Any) -> None:
    rows = page.locator("#views tbody tr")
    assert rows.count() == 6
    cell = rows.first.locator("td").nth(1).locator("img")
    assert cell.evaluate_all("all => all.map((i) => i.naturalWidth)") == [64, 32]


def test_headings_and_figures_can_be_heard(finished: Run, page: Any) -> None:
    assert page.locator("h1").count() == 1
    assert (
        page.locator(".canvas:not([aria-label]), table:not([aria-labelledby]):not([aria-label])").count() == 0
    )
    ids = page.eval_on_selector_all("[id]", "all => all.map((e) => e.id)")
    assert len(ids) == len(set(ids))


REACHED = {
    "preflight": "it had just begun",
    "control": "it had reached epoch 2 of 3 of the labels-only control",
    "distill": "it had reached epoch 2 of 3 of the distillation",
    "choose": "it had finished “distillation”, and “model selection” was next",
    "measure": "it had finished “model selection”, and “final evaluation” was next",
    "diagnose": "it had finished “final evaluation”, and “diagnosis” was next",
}


BEGUN = ["verdict", "record"]
TRAINED = ["verdict", "training", "views", "checks", "record"]
GOING = {  # the sections of a run that has not got further than to this stage; those without figures are left out
    "preflight": BEGUN, "control": TRAINED, "distill": TRAINED, "choose": TRAINED,
    "measure": ["verdict", "training", "selection", "views", "checks", "record"],
    "diagnose": [section for section in SECTIONS if section != "data"],
}  # fmt: skip


@pytest.mark.parametrize("stage", STAGES)
def test_a_killed_run_says_how_far_it_got(tmp_path: Path, visit: Visits, stage: str) -> None:
    run = make_run(tmp_path, stage, stop=stage, overrides={"data": {"train": "digits", "limit": 150}} | SHORT)
    write_report(run)
    page = run.report.read_text(encoding="utf-8")
    assert re.findall(r'<section id="(\w+)"', page) == GOING[stage]
    assert re.findall(r'<li><a href="#(\w+)"', page) == GOING[stage]
    assert f"{REACHED[stage]}. Its last file" in page
    assert '<p class="missing">' not in page
    if stage == "distill":
        shown = visit(run.report.as_uri(), width=390)
        assert "tutelage resume" in shown.locator(".progress").inner_text()
        assert shown.locator("#training .canvas").count() > 3
        assert overflow(shown) == 0


def test_a_thousand_classes_stay_light_and_sort(finished: Run, tmp_path: Path, visit: Visits) -> None:
    run = Run(tmp_path / "many")
    shutil.copytree(finished.path, run.path)
    rng = np.random.default_rng(0)
    classes, images = 1000, 8000
    labels = np.arange(images) % classes
    roles = {}
    for role, share in (("teacher", 0.8), ("start", 0.6), ("control", 0.6), ("distilled", 0.7)):
        first = np.where(rng.random(images) < share, labels, rng.integers(0, classes, images))
        roles[role] = TopClasses(
            np.stack([first, (first + 1) % classes], 1), np.tile([0.6, 0.2], (images, 1))
        )
    names = tuple(f"class {n:03}" for n in range(classes))
    many = RunPredictions(np.arange(images).astype(str), labels, names, roles)
    write_predictions(run.predictions, many)
    write_report(run)
    page = visit(run.report.as_uri())
    table = page.locator("#classes details table")
    page.locator("#classes details").first.locator("summary").click()
    assert table.locator("tbody tr").count() == 100
    assert page.locator("#classes *").count() < 5000
    recall = {one.name: one.recall("distilled") for one in class_figures(many, list(roles))}
    weakest = sorted(recall, key=lambda name: (recall[name], name))
    assert table.locator("tbody th").all_inner_texts() == weakest[:100]
    heading = table.locator("thead th", has_text="Class")
    heading.locator("button").click()
    heading.locator("button").click()
    assert heading.get_attribute("aria-sort") == "descending"
    assert table.locator("tbody th").all_inner_texts() == [f"class {n:03}" for n in range(999, 899, -1)]
    cells = table.locator("tbody tr").first.locator("td").all_inner_texts()
    one = class_figures(many, list(roles))[-1]
    assert cells[0] == "8"
    assert cells[1].split("\n")[0] == f"{one.recall('distilled'):.1f}"
    page.locator("#classes button.whole").click()
    assert table.locator("tbody tr").count() == 1000
    assert overflow(page) == 0


def test_damaged_files_are_named(tmp_path: Path, visit: Visits) -> None:
    run = make_run(
        tmp_path,
        "damaged",
        overrides={"data": {"train": "digits", "limit": 200}, "train": {"epochs": 2, "lr": 1e-2}},
    )
    run.candidates.write_text("{")
    run.predictions.write_bytes(run.predictions.read_bytes()[:500])
    run.diagnosis.write_text("[]")
    run.metrics.write_text(run.metrics.read_text()[:-40])  # the last line is cut
    write_report(run)
    page = visit(run.report.as_uri())
    told = " ".join(page.locator("#verdict .missing").all_inner_texts())
    for path in (run.candidates, run.predictions, run.diagnosis):
        assert path.name in told
    assert [row["epoch"] for row in read_run_records(run).stage("distill")] == [1]
    assert "distillation" in page.locator(".progress").inner_text()


def test_images_that_are_gone_are_missed_not_fatal(tmp_path: Path, visit: Visits) -> None:
    folder = make_folder(tmp_path / "photos", ["one", "two", "three"], ["scan"])
    overrides = {
        "data": {"train": f"folder:{folder}", "test_fraction": 0.4},
        "train": {"epochs": 2, "lr": 1e-2},
    }
    run = make_run(tmp_path, "moved", overrides=overrides)
    folder.rename(tmp_path / "elsewhere")
    write_report(run)
    page = visit(run.report.as_uri())
    assert "cannot be read" in page.locator("#views .missing").inner_text()
    assert page.locator("#classes .plot").count() > 0


def test_hostile_names_are_text_and_run_nothing(tmp_path: Path, visit: Visits) -> None:
    classes = [name.replace("/", "⁄") for name in HOSTILE]
    folder = make_folder(tmp_path / "photos", classes, [name.replace("/", "⁄") for name in HOSTILE])
    overrides = {
        "data": {"train": f"folder:{folder}", "test_fraction": 0.5},
        "teacher": {"model": f"{HOSTILE[3]}{HOSTILE[0]}"},
        "train": {"epochs": 2, "lr": 0.05},
    }
    run = make_run(tmp_path, "hostile", overrides=overrides)
    diagnosis = read_json(run.diagnosis)
    diagnosis["findings"][0]["name"] = diagnosis["findings"][0]["sentence"] = HOSTILE[0]
    run.diagnosis.write_text(json.dumps(diagnosis))
    write_report(run)
    page = visit(run.report.as_uri())
    assert page.evaluate("window.hacked") is None
    assert page.locator("img[src='x']").count() == 0
    assert HOSTILE[0] in page.locator(".findings").first.inner_text()
    assert f"{HOSTILE[3]}{HOSTILE[0]}" in page.locator("#checks").inner_text()
    page.locator("#classes details").first.locator("summary").click()
    shown = page.locator("#classes details tbody th").all_inner_texts()
    assert sorted(shown) == sorted(" ".join(name.split()) for name in classes)
    ticks = page.locator("#classes .canvas").last.locator(".ytick text").all_text_contents()
    assert len(ticks) == len(classes)
    assert any(tick.strip("\u2068\u2069").startswith("<img src=x") for tick in ticks)
    assert any("שלום <b>" in tick for tick in ticks)
    assert page.locator(".canvas b, .canvas a[href]").count() == 0
    for canvas in page.locator("#classes .canvas").all():
        canvas.hover()
    assert page.evaluate("window.hacked") is None


def test_names_that_are_no_unicode_are_shown_as_latin_1(tmp_path: Path, visit: Visits) -> None:
    folder = make_folder(tmp_path / "photos", ["caf\udce9", "plain"], ["scan"])
    overrides = {
        "data": {"train": f"folder:{folder}", "test_fraction": 0.4},
        "train": {"epochs": 2, "lr": 1e-2},
    }
    run = make_run(tmp_path, "latin", overrides=overrides)
    write_report(run)
    page = visit(run.report.as_uri())
    page.locator("#classes details").first.locator("summary").click()
    assert "café" in page.locator("#classes").inner_text()


def test_the_page_may_run_only_its_own_scripts(finished: Run, browser: Any) -> None:
    context = browser.new_context()
    page = context.new_page()
    refused: list[str] = []
    page.on("console", lambda message: refused.append(message.text))
    page.goto(finished.report.as_uri())
    page.evaluate(
        """() => {
            const script = document.createElement("script");
            script.textContent = "window.hacked = 1";
            document.body.append(script);
            document.querySelector("main").insertAdjacentHTML("beforeend", "<img src=x onerror='window.hacked = 1'>");
            return fetch("https://example.com/").catch(() => null);
        }"""
    )
    assert page.evaluate("window.hacked") is None
    assert any("Content Security Policy" in text for text in refused)
    context.close()


def test_a_resolution_that_does_not_work_is_named_beside_the_others(
    finished: Run, tmp_path: Path, visit: Visits
) -> None:
    run = Run(tmp_path / "probed")
    shutil.copytree(finished.path, run.path)
    preflight = read_json(run.preflight)
    preflight["resolutions"] = [
        {"who": "teacher", "resolution": 48, "top1": 91.5, "nll": 0.3},
        {"who": "teacher", "resolution": 64, "top1": None, "nll": None},
    ]
    write_json(run.preflight, preflight)
    write_report(run)
    rows = visit(run.report.as_uri()).locator("#checks tbody tr")
    works, fails = (" ".join(text.split()) for text in rows.all_inner_texts())
    assert works == "Teacher 48 91.50 0.300"
    assert fails == "Teacher does not work at this resolution 64 – –"


@pytest.mark.parametrize("against", ["control", None])
def test_a_random_start_is_no_opponent(
    finished: Run, tmp_path: Path, visit: Visits, against: str | None
) -> None:
    run = random_start(finished, tmp_path / "scratch", against)
    write_report(run)
    page = visit(run.report.as_uri())
    verdict = read_json(run.comparison)["verdict"]
    control = {"better": "better than", "worse": "worse than"}.get(
        verdict["outcome"] if against else "better", "not significantly different from"
    )
    told = page.locator("p.outcome").inner_text()
    assert told.lower() == f"{control} the labels-only control; worse than the teacher"
    assert page.locator("p.outcome .worse").inner_text() == "worse than the teacher"
    assert "start" not in page.locator("p.verdict").inner_text()
    # the figures are about the others
    names = "canvas => canvas.data.map((trace) => trace.customdata[0][0])"
    assert page.locator("#verdict .canvas").evaluate(names) == [
        "against the labels-only control", "against the teacher",
    ]  # fmt: skip
    assert "start is left out" in page.locator("#verdict figcaption").inner_text()
    names = "canvas => canvas.data.map((trace) => trace.name)"
    for section in ("#tradeoff", "#training"):
        shown = page.locator(f"{section} .canvas").first.evaluate(names)
        assert not any(name.lower().startswith("start") for name in shown)
    assert "start is left out" in page.locator("#tradeoff .lead").inner_text()
    assert page.locator("#images .cards dt").first.inner_text() == "Labels-only control"


def test_the_data_are_summed_up_with_who_sees_the_labels(finished: Run, page: Any) -> None:
    found = data.splits(read_run_records(finished).recipe_text, "")
    rows = page.locator("#data table").first.locator("tbody tr")
    shown = {row.locator("th").inner_text(): row.locator("td").all_inner_texts() for row in rows.all()}
    assert list(shown) == ["Training", "Validation", "Test"]
    for name, part in zip(shown, (found.train, found.val, found.test), strict=True):
        counts = np.bincount(part.labels)
        assert shown[name][:3] == [f"{len(part):,}", f"{len(part):,}", "10"]
        assert shown[name][3] == f"{counts.min()} to {counts.max()}"
    assert [cells[4] for cells in shown.values()] == [
        "student and control", "model selection", "the final evaluation only",
    ]  # fmt: skip
    page.locator("#data details summary").click()
    each = page.locator("#data details tbody tr").first.locator("td").all_inner_texts()
    assert each == [str(int((part.labels == 0).sum())) for part in (found.train, found.val, found.test)]


def test_the_next_commands_are_copied(finished: Run, visit: Visits) -> None:
    page = visit(finished.report.as_uri())
    command = page.locator("#verdict .commands code").first.inner_text()
    button = page.locator("#verdict .commands button.copy").first
    page.evaluate("void (navigator.clipboard.writeText = async (text) => { window.copied = text; })")
    button.click()
    until(page, "window.copied !== undefined")
    assert page.evaluate("window.copied") == command
    assert button.inner_text() == "Copied"
    page.evaluate("void (navigator.clipboard.writeText = async () => { throw new Error('not allowed'); })")
    page.locator("#verdict .commands button.copy").last.click()
    until(page, "String(getSelection()) !== ''")
    assert (
        page.evaluate("String(getSelection())") == page.locator("#verdict .commands code").last.inner_text()
    )


def test_findings_have_a_number_where_the_plot_has_it(finished: Run, page: Any) -> None:
    findings = read_json(finished.diagnosis)["findings"]
    marks = page.locator("#training .findings > li").evaluate_all(
        "all => all.map((item) => item.querySelector('.mark')?.innerText ?? '')"
    )
    assert marks == [str(n) if finding["epoch"] else "" for n, finding in enumerate(findings, 1)]
    assert "" in marks  # one of them is about no epoch


def test_the_ends_of_an_interval_stand_out_behind_its_mark(
    finished: Run, tmp_path: Path, visit: Visits
) -> None:
    """An interval that is narrower than the mark was not to be seen."""
    run = random_start(finished, tmp_path / "narrow")
    comparison = read_json(run.comparison)
    for pair in comparison["verdict"]["pairs"]:
        pair |= {"low": pair["difference"] - 0.01, "high": pair["difference"] + 0.01}
    write_json(run.comparison, comparison)
    write_report(run)
    for width in (390, 1440):
        page = visit(run.report.as_uri(), width=width)
        mark, whisker = (
            page.locator(f"#verdict .canvas {part}").first.bounding_box()
            for part in (".points path", ".errorbar path")
        )
        assert whisker["y"] < mark["y"] - 2
        assert whisker["y"] + whisker["height"] > mark["y"] + mark["height"] + 2


def test_an_older_outcome_of_no_difference_is_told_in_new_words(finished: Run, tmp_path: Path) -> None:
    run = Run(tmp_path / "older")
    shutil.copytree(finished.path, run.path)
    for outcome in ("no different", "not significantly different"):
        comparison = read_json(run.comparison)
        comparison["verdict"]["outcome"] = outcome
        write_json(run.comparison, comparison)
        write_report(run)
        page = run.report.read_text(encoding="utf-8")
        assert '<span class="same">Not significantly different from its start</span>' in page


def test_the_licence_of_the_teachers_weights_is_told(finished: Run, tmp_path: Path) -> None:
    """At the head of the page, and with the checks; without a licence nothing is said of one."""
    run = Run(tmp_path / "licensed")
    shutil.copytree(finished.path, run.path)
    preflight = read_json(run.preflight)
    for licence, times in ((None, 0), ("cc-by-nc-4.0", 2)):
        preflight["teacher"]["licence"] = licence
        write_json(run.preflight, preflight)
        write_report(run)
        page = run.report.read_text(encoding="utf-8")
        assert (
            len(re.findall(r"[Ll]icence of the (?:teacher’s )?weights: (?:<bdi>)?cc-by-nc-4.0", page))
            == times
        )
        assert ("Licence of the teacher" in page) == bool(times)


def test_the_page_does_not_look_for_copies_again(finished: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run has them in its record; to find them, the beginnings of all files are read."""
    monkeypatch.setattr(
        "tutelage.data.duplicates.Copies.find", lambda *_: pytest.fail("it looked for copies")
    )
    data.splits.cache_clear()
    found = read_run_records(finished)
    assert found.copies == ""  # a record of an older version has none
    records = replace(found, splits={**(found.splits or {}), "copies": {}})
    assert len(data.splits(records.recipe_text, records.copies).test) > 0
    data.splits.cache_clear()
    images = images_section(records)
    assert "cannot be read" not in str(images)
