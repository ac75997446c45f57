"""A post in a browser: it is looked up, blocked and unblocked, and serving follows."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

from contract.experiment import VARIANTS
from contract.keys import Keys
from demo.gunicorn import http_get
from tests.support.batch import wait_until
from tests.support.browser import OPERATOR, LiveConsole, check_accessible, check_fits

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytest_plugins = ("tests.support.operators_fixtures", "tests.support.browser_fixtures")

KEYS = Keys()


def served(console: LiveConsole, users: list[int]) -> set[int]:
    """Return the posts that serving answers these users and an unknown one with."""
    answers = (http_get(f"{console.serving_url}/users/{user}/recommendations?limit=10") for user in users)
    return {post["post_id"] for answer in answers for post in json.loads(answer.body)["recommendations"]}


def test_a_post_that_is_blocked_leaves_all_answers_and_comes_back(
    live_console: LiveConsole, page: Page
) -> None:
    night, users = live_console.night, [*range(1, 61), 999_999]
    first = {
        variant: json.loads(str(night.client.get(KEYS.manifest(night.run_of(variant)))))["first_fives"][0]
        for variant in VARIANTS
    }
    post, lists = first["control"]
    assert post in served(live_console, users)

    page.goto(f"{live_console.url}/posts?show=newest")
    check_accessible(page)
    check_fits(page)
    page.get_by_role("link", name=re.compile("^[0-9]+$")).first.click()
    page.wait_for_url("**/posts/*")
    page.goto(f"{live_console.url}/posts/{post}")  # not among the newest 50, perhaps
    assert f"control: in {lists:,} of" in page.inner_text("main")
    check_accessible(page)
    check_fits(page)
    page.get_by_role("link", name="Block", exact=True).click()
    page.get_by_label("Reason").fill('a "reason" <b>')
    page.get_by_role("button", name="Block the post").click()
    wait_until(lambda: post not in served(live_console, users))

    page.goto(f"{live_console.url}/posts?show=blocked")
    page.get_by_role("link", name=str(post), exact=True).click()
    notice = page.locator(".notice.bad").inner_text()
    assert f"console by {OPERATOR}@" in notice
    assert notice.endswith(': a "reason" <b>.')
    check_accessible(page)
    check_fits(page)
    page.get_by_role("link", name="Unblock").click()
    page.get_by_label("Reason").fill("an error")
    page.get_by_role("button", name="Unblock the post").click()
    wait_until(lambda: post in served(live_console, users))
    page.goto(f"{live_console.url}/posts/{post}")
    assert page.locator(".notice.bad").count() == 0
    assert "an error" in page.inner_text("main")


def test_search_and_data_are_found_from_every_page(live_console: LiveConsole, page: Page) -> None:
    run_id = live_console.night.run_of("test")
    page.goto(f"{live_console.url}/data")
    assert run_id in page.inner_text("main")
    check_accessible(page)
    check_fits(page)
    search = page.get_by_role("searchbox", name="Find")
    search.fill(run_id)
    search.press("Enter")
    page.wait_for_url(f"**/runs/{run_id}")
    search.fill("20")
    search.press("Enter")
    page.get_by_role("link", name="20", exact=True).first.wait_for()
    check_accessible(page)
    check_fits(page)
