"""The page that is served while its run goes."""

from __future__ import annotations

import http.client
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from small_run import make_run
from tests.helpers.chromium import until
from tests.report.conftest import Visits

from tutelage.core.errors import TutelageError
from tutelage.core.files import append_jsonl, read_jsonl, write_json, write_text
from tutelage.core.run_dir import Run
from tutelage.report.build import find_runs
from tutelage.report.server import Page, Server

SMALL = {"data": {"train": "digits", "limit": 200}, "train": {"epochs": 4, "lr": 1e-2}}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(make_run(tmp_path, "going", stop="distill", overrides=SMALL).path)
    server.start()
    yield server
    server.stop()


def ask(
    server: Server, path: str = "/", host: str | None = None, method: str = "GET", tag: str = ""
) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=20)
    connection.putrequest(method, path, skip_host=True)
    if host != "":
        connection.putheader("Host", host or f"127.0.0.1:{server.server_port}")
    if tag:
        connection.putheader("If-None-Match", tag)
    connection.endheaders()
    return connection.getresponse()


def test_the_page_follows_its_run_and_keeps_its_place(server: Server, visit: Visits) -> None:
    page = visit(server.url)
    assert "epoch 3 of 4 of the distillation" in page.locator(".progress").inner_text()
    page.locator("#training details summary").click()
    page.locator("#record").scroll_into_view_if_needed()
    view = "document.querySelector('#record h2').getBoundingClientRect().top"
    before = page.evaluate(view)
    page.evaluate("document.querySelector('#views').kept = true")

    row = list(read_jsonl(Run(server.page.path).metrics))[-1]
    append_jsonl(Run(server.page.path).metrics, row | {"epoch": 4, "val": row["val"] | {"top1": 99.5}})
    until(page, "!document.querySelector('.progress').innerText.includes('epoch 3 of 4')", seconds=20)
    assert "and “model selection” was next" in page.locator(".progress").inner_text()
    drawn = "document.querySelector('#training .canvas').data.find((t) => t.name === 'distilled, val').y"
    until(page, f"Boolean(document.querySelector('#training .canvas').data) && {drawn}.includes(99.5)")
    assert page.locator("#training details").evaluate("details => details.open")
    assert page.evaluate("document.querySelector('#views').kept"), "a section that is the same is left alone"
    assert page.evaluate(view) == pytest.approx(before, abs=2)


def test_sections_come_in_their_order_when_they_have_something_to_show(tmp_path: Path, visit: Visits) -> None:
    whole = make_run(tmp_path, "whole", overrides=SMALL)
    run = make_run(tmp_path, "going", stop="control", overrides=SMALL)
    server = Server(run.path)
    server.start()
    page = visit(server.url)
    shown = "[...document.querySelectorAll('main > section')].map((part) => part.id)"
    listed = "[...document.querySelectorAll('nav a')].map((link) => link.getAttribute('href').slice(1))"
    assert (
        page.evaluate(shown) == page.evaluate(listed) == ["verdict", "training", "views", "checks", "record"]
    )
    for path in (whole.metrics, whole.candidates, whole.comparison, whole.predictions, whole.diagnosis):
        shutil.copy(path, run.path / path.name)
    until(page, "document.querySelectorAll('main > section').length === 12", seconds=20)
    assert page.evaluate(shown) == page.evaluate(listed) == [
        "verdict", "comparison", "tradeoff", "data", "training", "selection", "agreement", "classes", "images", "views",
        "checks", "record",
    ]  # fmt: skip
    assert page.locator(".progress").count() == 0
    server.stop()


def test_the_page_says_when_its_server_is_gone(tmp_path: Path, browser: object) -> None:
    server = Server(make_run(tmp_path, "ended", stop="preflight", overrides=SMALL).path)
    server.start()
    visits = Visits(browser)
    page = visits(server.url)
    assert page.locator(".live").inner_text().endswith("updates automatically")
    server.stop()
    until(page, "document.documentElement.dataset.state === 'lost'", seconds=20)
    assert page.locator(".live").inner_text().startswith("The server has stopped")
    visits.complaints.clear()  # the browser says that it cannot connect
    visits.end()


def test_what_has_not_changed_is_not_sent_again(server: Server) -> None:
    first = ask(server, "/main")
    tag = first.headers["ETag"]
    assert first.status == 200
    assert b"<html" not in first.read()
    again = ask(server, "/main", tag=tag)
    assert (again.status, again.read()) == (304, b"")
    rows = list(read_jsonl(Run(server.page.path).metrics))
    append_jsonl(Run(server.page.path).metrics, rows[-1] | {"epoch": 4})
    assert ask(server, "/main", tag=tag).status == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:{port}", "127.0.0.1:1", "localhost", "", "[::]:{port}"]
)
def test_other_names_are_refused(server: Server, host: str) -> None:
    for path in ("/", "/main"):
        answer = ask(server, path, host=host.format(port=server.server_port))
        assert answer.status == 403
        assert b"going" not in answer.read()


def test_its_own_names_are_answered(server: Server) -> None:
    for name in ("127.0.0.1", "localhost", "LOCALHOST"):
        assert ask(server, host=f"{name}:{server.server_port}").status == 200


@pytest.mark.parametrize(
    "path",
    ["/recipe.yaml", "/../recipe.yaml", "/%2e%2e/recipe.yaml", "//etc/passwd", "/main/../recipe.yaml", "/?x"],
)
def test_nothing_but_the_page_is_served(server: Server, path: str) -> None:
    assert ask(server, path).status == 404


def test_only_reading_is_allowed(server: Server) -> None:
    assert ask(server, method="POST").status == 501
    assert ask(server, method="PUT").status == 501


def test_only_this_machine_is_listened_to(server: Server) -> None:
    assert server.server_address[0] == "127.0.0.1"
    headers = ask(server).headers
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
    assert "Access-Control-Allow-Origin" not in headers


def test_a_port_that_is_taken_is_one_line(server: Server) -> None:
    with pytest.raises(TutelageError, match=f"--port {server.server_port}"):
        Server(server.page.path, server.server_port)


def test_a_study_is_followed_while_trials_are_added(tmp_path: Path, visit: Visits) -> None:
    for trial in range(2):
        make_run(tmp_path / "trials", f"trial-{trial}", stop="distill", overrides=SMALL)
    server = Server(tmp_path)
    server.start()
    page = visit(server.url)
    assert page.locator("#runs tbody tr").count() == 2
    make_run(tmp_path / "trials", "trial-2", overrides=SMALL)
    until(page, "document.querySelectorAll('#runs tbody tr').length === 3", seconds=20)
    server.stop()


def test_the_seeds_of_a_run_are_followed_from_the_first_moment(tmp_path: Path) -> None:
    whole = Run.create(tmp_path, "whole")
    write_text(whole.recipe, "{}")
    page = Page(whole.path)
    assert b"seed-0" not in page.content().main
    for seed in (0, 1):
        make_run(whole.path, f"seed-{seed}", stop="distill", overrides=SMALL)
        assert f"seed-{seed}".encode() in page.content().main
    write_json(whole.seeds, {"pairs": [], "sentence": "Over 2 seeds the student is as good."})
    assert b"Over 2 seeds the student is as good." in page.content().main


def test_a_directory_of_runs_shows_the_seeds_of_each(tmp_path: Path) -> None:
    """The run around the seeds trains nothing: it was shown as one that does not get on."""
    whole = Run.create(tmp_path, "whole")
    write_text(whole.recipe, "{}")
    write_text(Run.create(whole.path, "seed-0").recipe, "{}")
    write_text(Run.create(whole.path, "seed-1").recipe, "{}")
    write_text(Run.create(tmp_path, "single").recipe, "{}")
    assert [run.path.name for run in find_runs([tmp_path])] == ["single", "seed-0", "seed-1"]
