"""Helpers for tests of the console's pages: its app over the stores of a test, without a browser."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from html import unescape
from html.parser import HTMLParser
from typing import Any

from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from console.app import create_app
from console.stores import open_stores
from contract.settings import Settings
from tests.support.batch import execute
from tests.support.operators import LiveNetwork

SAME_ORIGIN = {"Sec-Fetch-Site": "same-origin"}
"""Headers of a form that the console's own page sends."""

TABLE_FILE = re.compile(r'href="(/tables/[^"]*)"')


@contextmanager
def open_console(settings: Settings, **console: Any) -> Iterator[FlaskClient]:
    """Lend a client of a console that is not read-only and whose visitor is the operator `anna`.

    `console` replaces settings.
    """
    changed = settings.replace(**{"read_only": False, "local_operator": "anna"} | console)
    stores = open_stores(changed)
    try:
        app = create_app(changed, stores)
        app.testing = True
        yield app.test_client()
    finally:
        stores.engine.dispose()
        stores.redis.close()


class Form(HTMLParser):
    """The form of a confirm page: its address and the values of its inputs."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.action, self.values = "", dict[str, str]()
        self._inside = False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag == "form":
            self._inside = given.get("class") == "confirm"
            self.action = given.get("action") or "" if self._inside else self.action
        elif self._inside and tag == "input":
            self.values[str(given["name"])] = given.get("value") or ""

    def handle_endtag(self, tag: str) -> None:
        self._inside = self._inside and tag != "form"


def read_form(client: FlaskClient, name: str, /, **arguments: str) -> tuple[str, Form]:
    """Return what the confirm page of an action says, and its form."""
    answer = client.get(f"/actions/{name}", query_string=arguments)
    assert answer.status_code == 200, answer.text
    return answer.text, Form(answer.text)


def confirm(client: FlaskClient, name: str, reason: str, /, **arguments: str) -> TestResponse:
    """Do an action as its confirm page does."""
    _, form = read_form(client, name, **arguments)
    return client.post(form.action, data=form.values | {"reason": reason}, headers=SAME_ORIGIN)


def keep_earlier_run(night: LiveNetwork) -> str:
    """Make a copy of control's live run that was live before it."""
    live = night.run_of("control")
    earlier = "20260101T000000Z-control"
    for key in night.client.scan_iter(f"recs:*{live}*"):
        if night.client.type(key) != "none":
            night.client.copy(key, key.replace(live, earlier))
    execute(
        night.database_url,
        f"INSERT INTO recs.runs SELECT '{earlier}', variant, key_prefix, 'retired', cutoff, started_at, "
        f"finished_at, actor, reason, manifest FROM recs.runs WHERE run_id = '{live}'",
        f"INSERT INTO recs.run_changes VALUES ('{earlier}', 'live', '2026-01-01 03:00+00', 'cron', NULL), "
        f"('{earlier}', 'retired', '2026-01-02 03:00+00', 'cron', NULL)",
    )
    return earlier


def find_table_files(page: str) -> set[str]:
    """Return the addresses of the tables of a page as JSON and CSV."""
    return {unescape(address) for address in TABLE_FILE.findall(page)}
