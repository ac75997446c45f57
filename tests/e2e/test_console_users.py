"""The user page and why, in a browser: what it shows is what the commands print."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pytest

from contract.keys import Keys
from tests.support.browser import LiveConsole, check_accessible, check_fits

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytest_plugins = ("tests.support.operators_fixtures", "tests.support.browser_fixtures")

KEYS = Keys()


def attributes_of(page: Page, *names: str) -> list[tuple[str | None, ...]]:
    """Return attributes of the rows about posts, in the order of the page."""
    return [tuple(row.get_attribute(name) for name in names) for row in page.locator("tr[data-post]").all()]


def test_lists_comparison_and_why_agree_with_the_commands(live_console: LiveConsole, page: Page) -> None:
    night = live_console.night
    found = night.run_json("lookup", "20")
    blocked = str(found["posts"][1]["post_id"])
    night.client.sadd(KEYS.blocked, blocked)
    page.goto(f"{live_console.url}/users/20")
    assert attributes_of(page, "data-post") == [(str(post["post_id"]),) for post in found["posts"]]
    assert "blocked: not served" in page.locator(f'tr[data-post="{blocked}"]').inner_text()
    check_accessible(page)
    check_fits(page)

    page.get_by_role("link", name="compare").click()
    page.get_by_role("button", name="Compare").click()
    compared = night.run_json("diff", "20", "control", "test")
    wanted = [(str(row["post_id"]), row["change"]) for row in compared["changes"]]
    assert attributes_of(page, "data-post", "data-change") == wanted
    assert f"overlap@5 is {compared['overlap_at_5']}" in page.inner_text("main")
    check_accessible(page)

    page.get_by_role("link", name="served now").click()
    page.wait_for_url("**/users/20")
    loads: list[str] = []
    page.on("load", lambda loaded: loads.append(loaded.url))
    post = str(found["posts"][0]["post_id"])
    page.get_by_role("button", name=f"Why post {post}?").click()
    score = page.locator("[data-score]")
    score.wait_for(timeout=60_000)  # the child process imports all of the batch
    assert len(loads) == 1  # the page that shows the job; its parts came without another
    explanation = night.run_json("explain", "20", post)
    assert float(score.get_attribute("data-score") or "nan") == pytest.approx(explanation["score"], abs=1e-9)
    parts = [float(text) for text in page.locator("svg.bars text.value").all_text_contents()]
    assert sum(parts) == pytest.approx(explanation["score"], abs=1e-3)
    check_accessible(page)
    check_fits(page)

    at = page.locator(".as-of time").first.get_attribute("datetime")
    page.get_by_role("link", name="User 20").click()
    assert page.locator(".reasons").count() == len(found["posts"])
    other = str(found["posts"][2]["post_id"])
    page.get_by_role("link", name=f"Why post {other}?").click()
    page.locator("[data-score]").wait_for(timeout=1_000)
    assert page.locator(".as-of time").first.get_attribute("datetime") == at


def test_an_unknown_user_and_the_page_without_scripts(live_console: LiveConsole, browser: Any) -> None:
    with browser.new_context(java_script_enabled=False) as context:
        page = context.new_page()
        page.goto(f"{live_console.url}/users")
        page.get_by_label("Id of a user").fill("999999")
        page.get_by_role("button", name="Show").click()
        assert "This user gets popular posts" in page.inner_text("main")
        popular = json.loads(
            str(live_console.night.client.get(KEYS.popular(live_console.night.run_of("control"))))
        )
        shown = re.findall('<tr data-post="([0-9]+)"', page.content())
        assert shown == [str(post_id) for post_id, _ in popular]
