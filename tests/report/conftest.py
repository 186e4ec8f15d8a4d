"""One browser, and runs made once, for all tests of the pages."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from small_run import make_run
from tests.helpers.chromium import chromium, until

from tutelage.core.run_dir import Run
from tutelage.report.build import write_report


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    with chromium() as browser:
        yield browser


class Visits:
    """Pages opened in contexts of their own; whatever they complain of or fetch is remembered."""

    def __init__(self, browser: Any) -> None:
        self.browser = browser
        self.contexts: list[Any] = []
        self.complaints: list[str] = []

    def __call__(self, address: str, width: int = 1280, dark: bool = False) -> Any:
        """Open an address, and wait for its figures."""
        context = self.browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme="dark" if dark else "light"
        )
        self.contexts.append(context)
        context.set_default_timeout(60_000)  # a busy machine is slow, not wrong
        page = context.new_page()
        page.on("console", lambda message: self.complaints.append(message.text))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("request", lambda request: self._fetched(request.url, address))
        page.goto(address)
        until(page, "[...document.querySelectorAll('.canvas')].every((c) => c.querySelector('.main-svg'))")
        return page

    def end(self) -> None:
        """Close everything; fail on complaints."""
        for context in self.contexts:
            context.close()
        assert self.complaints == []

    def _fetched(self, url: str, address: str) -> None:
        if not url.startswith((address, "data:")):
            self.complaints.append(f"fetched {url}")


@pytest.fixture
def visit(browser: Any) -> Iterator[Visits]:
    """To open pages; they must not complain of anything, nor fetch anything."""
    visits = Visits(browser)
    yield visits
    visits.end()


@pytest.fixture(scope="module")
def page(browser: Any, finished: Run) -> Iterator[Any]:
    """The finished run's page at 1280 pixels, for tests that leave it as it is."""
    visits = Visits(browser)
    yield visits(finished.report.as_uri())
    visits.end()


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = make_run(tmp_path_factory.mktemp("runs"), "finished")
    write_report(run)
    return run
