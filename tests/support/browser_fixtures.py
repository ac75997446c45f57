"""Fixtures for tests in a browser; a test module loads them, and those of operators_fixtures.

    pytest_plugins = ("tests.support.operators_fixtures", "tests.support.browser_fixtures")

    def test_x(live_console: LiveConsole, page: Page, problems: Problems) -> None:
        page.goto(f"{live_console.url}/runs")

`live_console` is a console that may act, with serving, over a database and a Redis that are as the night left
them, whatever the test before it did. Other consoles: `run_console(live_console.night, tmp_path, ...)`.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import sqlalchemy as sa

from tests.support.batch_live import copy_database, replace_database, restore
from tests.support.browser import CHROMIUM, WIDE, LiveConsole, Problems, run_live_console
from tests.support.operators_fixtures import LiveNight

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

REQUIRED = "BROWSER_TESTS"
"""Variable that `.ci/run` sets to `required`: then a missing browser fails the tests."""


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Debian's chromium; the tests are skipped without it unless it is required."""
    reason = _why_no_browser()
    if reason is not None:
        (pytest.fail if os.environ.get(REQUIRED) == "required" else pytest.skip)(reason)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        arguments = ["--no-sandbox", "--disable-dev-shm-usage"]  # root has no sandbox
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield found
        found.close()


def _why_no_browser() -> str | None:
    try:
        import axe_playwright_python.sync_playwright  # noqa: F401
        import playwright.sync_api  # noqa: F401
    except ImportError as error:
        return f"no browser tests: {error}; install requirements-dev.txt"
    return None if Path(CHROMIUM).exists() else f"no browser tests: no {CHROMIUM}; apt-get install chromium"


@pytest.fixture
def problems() -> Iterator[Problems]:
    """Problems of the test's pages; the test fails if there is one that it does not allow."""
    found = Problems()
    yield found
    found.check()


@pytest.fixture
def page(browser: Browser, problems: Problems) -> Iterator[Page]:
    """A page of a new visitor."""
    with browser.new_context(viewport=WIDE) as context:  # type: ignore[arg-type]
        context.set_default_timeout(15_000)
        opened = context.new_page()
        problems.watch(opened)
        yield opened


@pytest.fixture(scope="session")
def running_console(
    browser: Browser,
    network_after_night: LiveNight,
    postgres_server: sa.URL,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[LiveConsole]:
    """The processes behind `live_console`, one of each per session."""
    night, keys = network_after_night
    folder = tmp_path_factory.mktemp("console")
    shutil.copytree(night.model_dir, folder / "models")
    restore(night.redis_url, keys)
    with (
        copy_database(postgres_server, sa.make_url(night.database_url).database) as database_url,
        run_live_console(
            replace(night, database_url=database_url, model_dir=folder / "models"), folder
        ) as console,
    ):
        yield console


@pytest.fixture
def live_console(
    running_console: LiveConsole, network_after_night: LiveNight, postgres_server: sa.URL
) -> Iterator[LiveConsole]:
    """A console that may act, and serving, over what the night left; its log must have no traceback."""
    night, keys = network_after_night
    replace_database(postgres_server, running_console.night.database_url, night.database_url)
    restore(night.redis_url, keys)
    before = len(running_console.log.read_text())
    yield running_console
    logged = running_console.log.read_text()[before:]
    assert "Traceback" not in logged, logged
