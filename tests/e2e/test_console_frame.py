"""The console's frame in a browser: every page is accessible, fits a phone, works by keyboard."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.support.browser import LiveConsole, Problems, check_accessible, check_fits

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytest_plugins = ("tests.support.operators_fixtures", "tests.support.browser_fixtures")

PAGES = ("/", "/runs", "/experiment", "/posts", "/doctor", "/jobs", "/log", "/data")


def test_every_page_is_accessible_and_fits_a_phone(
    live_console: LiveConsole, page: Page, problems: Problems
) -> None:
    for path in PAGES:
        answer = page.goto(live_console.url + path)
        assert answer is not None
        assert answer.status == 200, path
        check_accessible(page)
        check_fits(page)
    problems.check()
