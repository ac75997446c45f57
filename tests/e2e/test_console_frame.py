"""The console's frame in chromium: every page is accessible, fits a phone, works by keyboard and by path."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from console.sign_in import make_user
from tests.support.browser import (
    OPERATOR,
    LiveConsole,
    Problems,
    check_accessible,
    check_fits,
    check_keyboard,
    crawl,
    pick_of_each_kind,
    run_console,
)
from tests.support.nginx import run_nginx

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytest_plugins = ("tests.support.operators_fixtures", "tests.support.browser_fixtures")

PAGES = ("/", "/runs", "/experiment", "/posts", "/doctor", "/jobs", "/log", "/data")
LOOKED_UP = ("/users/7", "/posts/101", "/search?q=7")
ODD = ("/users/999999", "/users/7?a=control&b=test", "/search?q=nothing+has+these+words")
"""Pages of a kind that look unlike the others of their kind."""

PASSWORD = "correct horse"


def test_every_page_is_accessible_fits_a_phone_and_works_by_keyboard(
    live_console: LiveConsole, page: Page
) -> None:
    url = live_console.url
    found = crawl(page, f"{url}/", f"{url}/", *(url + path for path in LOOKED_UP))
    assert {url + path for path in PAGES} <= set(found)
    of_each_kind = pick_of_each_kind(found)
    assert len(of_each_kind) > 15
    for each in (*of_each_kind, *(url + path for path in ODD)):
        answer = page.goto(each)
        assert answer is not None
        assert answer.status == 200, each
        check_accessible(page)
        check_fits(page)
    for path in ("/runs", "/actions/split"):
        page.goto(url + path)
        check_keyboard(page)


def test_under_a_path_of_a_proxy_every_link_stays_in_it(
    live_console: LiveConsole, page: Page, tmp_path: Path
) -> None:
    prefix = "/overnight/console"
    settings = {
        "OVERNIGHT_CONSOLE_PREFIX": prefix,
        "OVERNIGHT_CONSOLE_TRUST_PROXY": "on",
        "OVERNIGHT_CONSOLE_USERS": make_user("anna", "operator", PASSWORD),
        "OVERNIGHT_CONSOLE_READ_ONLY": "off",
    }
    with (
        run_console(live_console.night, tmp_path, **settings) as console,
        run_nginx(console, prefix, tmp_path) as (strips, keeps),
    ):
        page.goto(f"{strips}/runs")
        page.fill("[name=name]", "anna")
        page.fill("[name=password]", PASSWORD)
        page.press("[name=password]", "Enter")
        page.wait_for_url(f"{strips}/runs")
        (cookie,) = page.context.cookies(f"{strips}/runs")
        assert (cookie["path"], cookie["httpOnly"], cookie["sameSite"]) == (prefix, True, "Strict")
        found = crawl(page, f"{strips}/", f"{strips}/", *(strips + path for path in LOOKED_UP))
        assert {strips + path for path in PAGES} <= set(found)
        page.goto(f"{keeps}/log")  # cookies do not tell ports apart
        page.click("text=Sign out")
        page.wait_for_selector("[name=password]")


def test_without_scripts_pages_are_read_and_actions_confirmed(
    live_console: LiveConsole, browser: Browser, problems: Problems
) -> None:
    url = live_console.url
    with browser.new_context(java_script_enabled=False) as context:
        page = context.new_page()
        problems.watch(page)
        for path in (*PAGES, *LOOKED_UP):
            answer = page.goto(url + path)
            assert answer is not None
            assert answer.status == 200, path
            assert page.locator("main h1").count() == 1, path
        page.goto(f"{url}/experiment")
        page.locator("a[href*='/actions/split']").first.click()
        page.locator("input[name=percent]").fill("30")
        page.click("main button")
        page.fill("[name=reason]", "seen without scripts")
        page.click("main button")
        page.goto(f"{url}/log")
        line = page.locator("tr", has_text="seen without scripts").first.inner_text()
        assert OPERATOR in line
