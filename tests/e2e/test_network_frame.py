"""All pages of the demo's network: they are accessible, fit a phone, work by keyboard and without scripts."""

from __future__ import annotations

import socket
import threading
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import sqlalchemy as sa

from benchmarks.faults.tcp_proxy import TcpProxy, address_of, url_through
from tests.support.browser import (
    Problems,
    check_accessible,
    check_fits,
    check_keyboard,
    crawl,
    pick_of_each_kind,
)
from tests.support.network_app import LivingNetwork, pick_likes, register, run_network_app, sign_in

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytest_plugins = (
    "tests.support.operators_fixtures",
    "tests.support.browser_fixtures",
    "tests.support.network_app_fixtures",
)

PAGES = ("/", "/liked", "/communities", "/communities/new", "/new", "/messages", "/people", "/me")
FOR_STRANGERS = ("/register", "/sign-in")
ODD = ("/welcome", "/people?q=nobody+is+called+so", "/person?id=210", "/nothing-is-here")
"""Pages that no link leads to, or that look unlike the others of their kind."""

LONG_NAME = "Longname" * 5
SCRIPT = "<img src=x onerror=alert(1)>"


def send(page: Page, url: str, path: str, **form: str) -> None:
    """Send a form as the page's own would."""
    origin = {"Origin": url, "Sec-Fetch-Site": "same-origin"}
    answer = page.request.post(f"{url}{path}", form=dict(form), headers=origin)
    assert answer.ok, f"{path}: {answer.status}"


def test_every_page_is_accessible_fits_a_phone_and_works_by_keyboard(
    living_network: LivingNetwork, page: Page, problems: Problems
) -> None:
    network, url = living_network, living_network.url
    problems.allow("status of 404")
    for path in FOR_STRANGERS:
        page.goto(url + path)
        check_accessible(page)
        check_fits(page)
    check_keyboard(page)
    other = register(page, network, LONG_NAME)
    page.get_by_role("button", name="Sign out").click()
    page.wait_for_url("**/register")
    check_keyboard(page)

    register(page, network, "Frame")
    pick_likes(page, 3)
    send(page, url, "/communities/new", name=f"Frame {SCRIPT}", about="W" * 300)
    send(page, url, "/new", community=f"Frame {SCRIPT}", text=f"{SCRIPT}{'W' * 300}\n\n{'word ' * 60}")
    send(page, url, "/messages/send", user=str(other), text=f"{SCRIPT}{'W' * 300}")
    network.refresh()
    found = crawl(page, f"{url}/", f"{url}/", f"{url}/people/{other}", f"{url}/messages/{other}")
    assert {url + path for path in PAGES} <= set(found)
    of_each_kind = pick_of_each_kind(found)
    assert len(of_each_kind) > 12
    for each in (*of_each_kind, *(url + path for path in ODD)):
        page.goto(each)
        assert page.locator("main h1").count() == 1, each
        check_accessible(page)
        check_fits(page)
    for path in ("/", "/me"):
        page.goto(url + path)
        check_keyboard(page)


def test_a_body_that_cannot_be_read_is_a_bad_request(living_network: LivingNetwork) -> None:
    address = urlsplit(living_network.url)
    for body in (b"ZZ\r\nname", b"4;\r\r\nname\r\n0\r\n\r\n", b"4\r\nnamenone"):
        with socket.create_connection((address.hostname, address.port or 0), timeout=20) as client:
            head = b"POST /sign-in HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
            client.sendall(head + body)
            assert client.recv(12) == b"HTTP/1.1 400"


def test_without_scripts_a_newcomer_does_everything(
    living_network: LivingNetwork, page: Page, browser: Browser, problems: Problems
) -> None:
    network = living_network
    register(page, network, "Reader")
    with browser.new_context(java_script_enabled=False) as context:
        plain = context.new_page()
        problems.watch(plain)
        user = register(plain, network, "Plain", country="Russia")
        plain.get_by_role("button", name="Like").first.click()
        plain.get_by_role("button", name="Liked").first.wait_for()
        assert plain.url.partition("#")[0] == f"{network.url}/welcome"
        plain.get_by_role("link", name="Communities").click()
        plain.get_by_role("button", name="Join").first.click()
        plain.get_by_text("joined").first.wait_for()
        plain.get_by_role("link", name="Write", exact=True).click()
        plain.get_by_label("Community").select_option(index=1)
        plain.get_by_label("Text").fill("A plain title\n\nA plain text")
        plain.get_by_role("button", name="Publish").click()
        plain.get_by_role("heading", name="A plain title").wait_for()
        plain.get_by_role("link", name="People").click()
        plain.get_by_role("link", name="Reader").click()
        plain.get_by_role("link", name="Write a message").click()
        plain.get_by_label("Message to Reader").fill("A plain message")
        plain.get_by_role("button", name="Send").click()
        plain.get_by_text("A plain message").wait_for()
        plain.goto(network.url)
        plain.get_by_role("button", name="Like").first.click()
        plain.get_by_role("link", name="Liked", exact=True).click()
        assert plain.locator("button.like.liked").count() >= 2
        plain.get_by_role("button", name="Liked").first.click()
        plain.get_by_role("button", name="Sign out").click()
        sign_in(plain, network, "Plain")
    done = [
        kind for (kind,) in network.query(f"SELECT kind FROM activity WHERE user_id = {user} ORDER BY id")
    ]
    likes = ["view", "like"]
    assert done == ["register", *likes, "join", "post", "message", *likes, "unlike", "sign_in"]
    page.goto(f"{network.url}/messages")
    page.get_by_role("link", name="Plain").first.click()
    assert "A plain message" in page.inner_text("main")


def test_a_postgres_that_says_nothing_is_told_in_words(
    living_network: LivingNetwork, page: Page, problems: Problems, tmp_path: Path
) -> None:
    answering = threading.Event()
    answering.set()

    def forward(message: bytes, server: socket.socket) -> bool:
        answering.wait()
        server.sendall(message)
        return True

    database = sa.make_url(living_network.database_url)
    with TcpProxy(address_of(database, 5432), forward) as proxy:
        url = url_through(proxy, database, {"sslmode": "disable"})
        with run_network_app(replace(living_network.night, database_url=url), tmp_path) as network:
            register(page, network, "Frozen")
            problems.allow("status of 503")
            answering.clear()
            try:
                for path in ("/", "/people"):  # on an open connection, then on a new one
                    page.goto(network.url + path)
                    assert "The database does not answer. Nothing was changed." in page.inner_text("main")
            finally:
                answering.set()
            page.goto(f"{network.url}/people")
            assert page.get_by_role("heading", name="People").is_visible()
