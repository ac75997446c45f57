"""The experiment in the console in a browser: a report is made, the split is changed, and serving follows."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

from contract.experiment import CONTROL, TEST, Experiment
from demo.gunicorn import http_get
from tests.support.batch import wait_until
from tests.support.browser import OPERATOR, LiveConsole, check_accessible, check_fits

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytest_plugins = ("tests.support.operators_fixtures", "tests.support.browser_fixtures")


def assigned_variant(console: LiveConsole, user: int) -> str:
    """Return the variant that serving assigns a user to."""
    answer = http_get(f"{console.serving_url}/users/{user}/recommendations")
    return str(json.loads(answer.body)["assigned_variant"])


def test_a_report_appears_without_a_reload_and_a_changed_split_and_a_pin_reach_serving(
    live_console: LiveConsole, page: Page
) -> None:
    split = Experiment.from_fields(live_console.night.run_json("experiment", "show")["in_force"])
    page.goto(f"{live_console.url}/experiment")
    page.get_by_role("button", name="Make a report now").click()
    page.locator(".verdict.empty").wait_for()
    check_accessible(page)
    check_fits(page)

    wanted = replace(split, percent_test=10)
    moved = next(
        user for user in range(1, 100) if (split.variant_of(user), wanted.variant_of(user)) == (TEST, CONTROL)
    )
    assert assigned_variant(live_console, moved) == TEST
    page.get_by_role("link", name="Change the split").click()
    page.get_by_label("Percentage").fill("10")
    page.get_by_role("button", name="See what will change").click()
    assert "40 % of users go to control, the others stay" in page.inner_text("main")
    check_accessible(page)
    check_fits(page)
    page.get_by_label("Reason").fill("test is too slow")
    page.get_by_role("button", name="Change it").click()
    wait_until(lambda: assigned_variant(live_console, moved) == CONTROL)
    page.goto(f"{live_console.url}/experiment")
    newest = page.locator("table", has_text="Every change of the split").locator("tbody tr").first
    assert f"console by {OPERATOR}@" in newest.inner_text()
    assert "test is too slow" in newest.inner_text()

    page.get_by_role("link", name="Pin a user").click()
    page.get_by_label("User").fill(str(moved))
    page.get_by_label("Variant").select_option(TEST)
    page.get_by_role("button", name="See what will change").click()
    page.get_by_label("Reason").fill("a tester")
    page.get_by_role("button", name="Pin the user").click()
    wait_until(lambda: assigned_variant(live_console, moved) == TEST)
    page.goto(f"{live_console.url}/experiment")
    page.get_by_role("link", name="Unpin").click()
    assert f"User {moved} moves from test to control." in page.inner_text("main")
    page.get_by_label("Reason").fill("tested")
    page.get_by_role("button", name="Unpin the user").click()
    wait_until(lambda: assigned_variant(live_console, moved) == CONTROL)
