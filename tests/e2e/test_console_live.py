"""Pages that keep themselves up to date, forms that are sent once, sign-in and other sites, in chromium."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from flask import Flask, abort, render_template_string
from werkzeug.serving import make_server

from console.sign_in import MAX_TRIES, make_user
from contract.settings import Settings
from tests.support.batch import wait_until
from tests.support.browser import Problems, check_accessible, check_fits
from tests.support.console import open_console

if TYPE_CHECKING:
    from playwright.sync_api import BrowserContext, Page

pytest_plugins = ("tests.support.operators_fixtures", "tests.support.browser_fixtures")

PASSWORD = "correct horse"
PAGE = """
{% extends "layout.html" %}{% from "macros.html" import live %}
{% block title %}News{% endblock %}
{% block main %}
<h1>News</h1>
<section {{ live("news") }}>
<p id="count">{{ count }}</p>
<details><summary>More</summary><p><a id="link" href="/healthz">A link</a></p></details>
</section>
<form method="post" action="/sent"><button>Send</button></form>
{% endblock %}
"""

LOOK_MS = 2_000
"""Time between two looks of app.js."""

COUNT_LOOKS = "window.looks = 0; document.body.addEventListener('look', () => window.looks += 1)"
HIDE = "Object.defineProperty(document, 'visibilityState', {get: () => 'hidden', configurable: true})"
SHOW = "delete document.visibilityState; document.dispatchEvent(new Event('visibilitychange'))"
SEND_THRICE = """
    const form = document.querySelector("main form");
    for (let again = 0; again < 3; again++) form.requestSubmit();
    new Promise(done => setTimeout(() => done(form.querySelectorAll("button[disabled]").length)));
"""
"""Returns the number of buttons that are then disabled."""

SHOW_TIMES = """offsets => {
    const main = document.querySelector("main");
    const add = (seconds, name) => {
        const cell = main.appendChild(document.createElement("dl")).appendChild(document.createElement("dd"));
        const time = cell.appendChild(document.createElement("time"));
        [time.dateTime, time.className] = [new Date(Date.now() + seconds * 1000).toISOString(), name];
        time.textContent = "the time";
        return time;
    };
    const times = [...offsets.map(seconds => add(seconds, "")), add(-20520, "full")];
    document.dispatchEvent(new Event("htmx:after:swap"));
    return times.map(time => time.textContent);
}"""


class News:
    """A page of the console that counts how often it was asked, and can be made to fail."""

    def __init__(self, app: Flask) -> None:
        self.count = self.sent = self.status = 0
        self.may_answer = threading.Event()
        app.add_url_rule("/news", "news", self._show)
        app.add_url_rule("/sent", "sent", self._send, methods=["POST"])

    def _show(self) -> str:
        self.count += 1
        if self.status:
            abort(self.status)
        return render_template_string(PAGE, count=self.count)

    def _send(self) -> str:
        self.sent += 1
        self.may_answer.wait(20)
        return render_template_string(PAGE, count=self.count)


@contextmanager
def run_app(visitor: BrowserContext | None = None, **settings: Any) -> Iterator[tuple[News, str]]:
    """Run a console in this process, with a page of news, over stores that nobody asks.

    The pages of the visitor are closed before it ends: a look without an answer is a problem.
    """
    with open_console(Settings.of(), **settings) as client:
        news = News(client.application)
        server = make_server("127.0.0.1", 0, client.application, threaded=True)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield news, f"http://localhost:{server.port}"
        finally:
            if visitor is not None:
                visitor.close()
            news.may_answer.set()
            server.shutdown()
            thread.join()
            server.server_close()


def test_live_parts_keep_focus_and_open_details_and_stop_in_a_hidden_tab(
    page: Page, problems: Problems
) -> None:
    with run_app(page.context) as (news, url):
        page.clock.install()  # time goes on, and jumps
        page.goto(f"{url}/news?q=%3Cb%3E%22")
        page.click("summary")
        page.focus("#link")
        for looks in (2, 3):
            page.clock.run_for(LOOK_MS)
            wait_until(lambda looks=looks: int(page.inner_text("#count")) >= looks)  # type: ignore[misc]
        assert page.evaluate("document.activeElement.id") == "link"
        assert page.evaluate("document.querySelector('details').open")

        page.evaluate(COUNT_LOOKS)
        page.evaluate(HIDE)
        page.clock.run_for(5 * LOOK_MS)
        assert page.evaluate("window.looks") == 0
        page.evaluate(SHOW)
        assert page.evaluate("window.looks") > 0

        # A failing console leaves the part as it is, and says so until it answers again.
        problems.allow("status of 503")
        news.status = 503
        page.clock.run_for(LOOK_MS)
        page.wait_for_selector("#stale", state="visible")
        assert int(page.inner_text("#count")) >= 3
        assert page.locator("#link").is_visible()
        news.status = 0
        page.clock.run_for(LOOK_MS)
        page.wait_for_selector("#stale", state="hidden")


def test_times_say_how_far_they_are(page: Page, problems: Problems) -> None:
    texts = {-2: "just now", -125: "2 minutes ago", -20_520: "5 h 42 min ago", 20_550: "in 5 h 42 min"}
    with run_app(page.context) as (_, url):
        page.goto(f"{url}/news")
        shown = page.evaluate(SHOW_TIMES, list(texts))
    assert shown == [*texts.values(), "the time (5 h 42 min ago)"]


def test_a_form_is_sent_once(page: Page) -> None:
    with run_app(page.context) as (news, url):
        page.goto(f"{url}/news")
        assert page.evaluate(SEND_THRICE) == 1
        news.may_answer.set()
        page.wait_for_url("**/sent")
        assert news.sent == 1


@pytest.mark.parametrize("scripts", [True, False])
def test_users_sign_in_and_out(browser: Any, problems: Problems, scripts: bool) -> None:
    users = make_user("anna", "viewer", PASSWORD)
    with (
        run_app(console_users=users, local_operator="") as (_, url),
        browser.new_context(java_script_enabled=scripts) as context,
    ):
        page = context.new_page()
        problems.watch(page)
        problems.allow("status of (403|429)")
        page.goto(f"{url}/news?a=1")
        if scripts:
            check_accessible(page)
            check_fits(page)
        assert page.title().startswith("Sign in")
        assert page.locator("nav").count() == 0
        for wrong in range(0 if scripts else MAX_TRIES + 1):
            page.fill("[name=name]", "bea")
            page.fill("[name=password]", "wrong")
            with page.expect_response("**/sign-in") as answer:
                page.press("[name=password]", "Enter")
            assert answer.value.status == (403 if wrong < MAX_TRIES else 429)
        page.goto(f"{url}/news?a=1")
        page.fill("[name=name]", "anna")
        page.fill("[name=password]", PASSWORD)
        page.press("[name=password]", "Enter")
        page.wait_for_url("**/news?a=1")
        assert "anna, viewer" in page.inner_text("header")
        if scripts:
            # Signed out elsewhere: the page that keeps itself up to date asks to sign in.
            problems.allow("status of 401")
            context.clear_cookies()
            page.wait_for_selector("[name=password]")
        else:
            page.click("text=Sign out")
            page.goto(f"{url}/news")
        assert page.title().startswith("Sign in")


def test_another_site_changes_nothing_and_its_links_open(page: Page, problems: Problems) -> None:
    users = make_user("anna", "viewer", PASSWORD)
    with (
        run_app(console_users=users, local_operator="") as (news, url),
        run_app(page.context) as (_, elsewhere),
    ):
        elsewhere = elsewhere.replace("localhost", "127.0.0.1")
        page.goto(f"{url}/sign-in?next=/news")
        page.fill("[name=name]", "anna")
        page.fill("[name=password]", PASSWORD)
        page.press("[name=password]", "Enter")
        page.wait_for_url("**/news")

        other = page.context.new_page()
        problems.watch(other)
        problems.allow("status of 403")
        other.route(f"{elsewhere}/form", lambda route: route.fulfill(content_type="text/html", body=f"""
            <form method="post" action="{url}/sent"><button>Win</button></form><a href="{url}/news">news</a>
        """))  # fmt: skip
        other.goto(f"{elsewhere}/form")
        with other.expect_response(f"{url}/sent") as answer:
            other.click("button")
        assert answer.value.status == 403
        assert news.sent == 0
        other.goto(f"{elsewhere}/form")
        other.click("a")
        other.wait_for_selector("text=anna, viewer")
