"""Operators in a browser: roll back, refresh with its log, the doctor; with and without JavaScript."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from batch.postgres import open_engine
from batch.runs import lock
from tests.support.batch import query, wait_until
from tests.support.browser import OPERATOR, WIDE, LiveConsole, Problems, check_accessible, check_fits
from tests.support.console import keep_earlier_run

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytest_plugins = ("tests.support.operators_fixtures", "tests.support.browser_fixtures")

REASON = "the topics were empty"
SEARCHES = {"scan", "keys", "randomkey", "sscan", "hscan"}
"""Commands of Redis that read all of something; no page sends one."""


def confirm(page: Page, reason: str, *, clicks: int = 1) -> None:
    """Give the reason on a confirm page, and click its button."""
    page.get_by_label("Reason").fill(reason)
    page.locator("form.confirm button").click(click_count=clicks)
    page.wait_for_load_state()


@pytest.mark.parametrize("javascript", [True, False])
def test_a_rollback_names_both_runs_and_happens_once(
    live_console: LiveConsole, browser: Browser, problems: Problems, *, javascript: bool
) -> None:
    night, url = live_console.night, live_console.url
    bad, good = night.run_of("control"), keep_earlier_run(night)
    users = query(night.database_url, "SELECT user_id FROM recs.users ORDER BY user_id LIMIT 40")
    user = next(user for (user,) in users if night.run_json("lookup", str(user))["run_id"] == bad)
    with browser.new_context(viewport=WIDE, java_script_enabled=javascript) as context:  # type: ignore[arg-type]
        page = context.new_page()
        problems.watch(page)
        page.goto(f"{url}/users/{user}")
        assert bad in page.inner_text("main")
        page.goto(f"{url}/runs/{bad}")
        page.get_by_role("link", name="Roll back").click()
        preview = page.inner_text("main")
        assert bad in preview
        assert f"control serves {good} again" in preview
        if javascript:
            check_accessible(page)
            check_fits(page)
        form = page.url
        confirm(page, REASON, clicks=2)
        assert night.run_of("control") == good
        page.goto(f"{url}/users/{user}")
        assert good in page.inner_text("main")
        problems.allow("409")  # the preview of what cannot be done any more
        page.goto(form)
        assert f"{bad} is not live, {good} is" in page.inner_text("main")
        page.goto(f"{url}/log?kind=action")
        assert page.get_by_role("cell", name="roll the run back", exact=True).count() == 1
    closed = "SELECT state, split_part(actor, '@', 1), reason FROM recs.run_changes WHERE run_id = '{}' "
    last = query(night.database_url, closed.format(bad) + "ORDER BY at DESC LIMIT 1")
    assert last == [("rolled_back", f"console by {OPERATOR}", f"back to {good}: {REASON}")]


def test_a_refresh_shows_its_log_while_it_runs_and_another_says_who_holds_the_lock(
    live_console: LiveConsole, page: Page, problems: Problems
) -> None:
    url, night = live_console.url, live_console.night
    problems.allow("409")  # the answer to what was not done
    page.goto(f"{url}/jobs")
    page.get_by_role("link", name="Refresh the lists").click()
    engine = open_engine(night.settings, "overnight batch refresh by ben@elsewhere")
    with lock.hold(engine, "recs", lock.REFRESH):
        page.reload()
        assert "holds the lock: overnight batch refresh by ben@elsewhere" in page.inner_text("main")
        confirm(page, "new users")
        assert "It was not done: another refresh holds the lock" in page.inner_text("main")
    engine.dispose()

    page.get_by_role("link", name="Continue").click()
    page.get_by_role("link", name="Refresh the lists").click()
    confirm(page, "new users")
    page.get_by_role("link", name="Continue").click()
    assert page.get_by_role("status").first.inner_text() in ("running", "done")
    # Without a reload: lines come, then the end.
    page.get_by_role("region", name="Log").get_by_text("Postgres at").wait_for()
    page.get_by_role("status").filter(has_text=re.compile("^done$")).wait_for()
    for line in ("python -m batch refresh", f"{OPERATOR}, on", "new users", "users since the night"):
        assert line in page.inner_text("main")
    check_accessible(page)
    check_fits(page)
    page.goto(f"{url}/jobs")
    assert page.get_by_role("row", name=re.compile("refresh .*new users.*done")).count() == 1


def test_no_page_searches_redis_before_the_doctor_is_asked(live_console: LiveConsole, page: Page) -> None:
    url, night = live_console.url, live_console.night
    night.client.sadd("recs:blocked", "no-post <b>")
    night.client.config_resetstat()
    page.goto(url)
    paths = page.locator("nav[aria-label=Pages] a").evaluate_all("links => links.map(link => link.href)")
    (post,) = query(night.database_url, "SELECT post_id FROM recs.posts LIMIT 1")[0]
    some = (
        "/users/20",
        f"/runs/{night.run_of('control')}",
        f"/posts/{post}",
        "/search?q=20",
        "/log?kind=run",
    )
    for address in [*paths, *(url + path for path in some)]:
        answer = page.goto(address)
        assert answer is not None
        assert answer.ok, address
    assert commands_of(live_console) & SEARCHES == set()

    page.goto(f"{url}/doctor")
    page.get_by_role("link", name="Run the doctor").click()
    confirm(page, "each morning")
    page.goto(f"{url}/doctor")
    page.get_by_text("1 of 1 members are not post ids").wait_for()
    assert "SREM recs:blocked MEMBER" in page.inner_text("main")
    wait_until(lambda: "scan" in commands_of(live_console))
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.get_by_role("button", name="Copy what to do about blocked posts").click()
    page.get_by_text("Copied").wait_for()
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied.startswith("redis-cli SREM recs:blocked MEMBER")
    check_accessible(page)
    check_fits(page)


def commands_of(console: LiveConsole) -> set[str]:
    """Return the commands that Redis was sent since its statistics were reset."""
    found: dict[str, object] = console.night.client.info("commandstats")
    return {name.removeprefix("cmdstat_").partition("|")[0] for name in found}
