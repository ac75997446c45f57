"""The console's pages while Redis or Postgres is stopped, and after it is back."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import redis

from contract.keys import Keys
from demo.console_pages import example_pages
from demo.gunicorn import http_get
from tests.support.browser import run_console
from tests.support.operators import LiveNetwork
from tests.support.store_proxies import POSTGRES, REDIS, StoreProxies

pytest_plugins = ("tests.support.operators_fixtures",)

NOT_READ = re.compile("Not read: (?!serving at)")
"""Serving does not run here."""

LAST = re.compile(r"The figures are those of\s*<time datetime=")

READS = {
    REDIS: {"home", "user", "post"},
    POSTGRES: {"home", "user", "runs", "run", "experiment", "posts", "post", "log", "data"},
}
"""Server -> pages that show something of it which they cannot do without."""


def test_pages_say_that_a_server_is_down_with_the_time_of_the_last_figures_and_stay_usable(
    night: LiveNetwork, tmp_path: Path
) -> None:
    with redis.Redis.from_url(night.redis_url, decode_responses=True) as client:
        pages = example_pages(client, Keys())
    with StoreProxies(night.redis_url, night.database_url) as proxies:
        behind = replace(night, redis_url=proxies.redis_url, database_url=proxies.database_url)
        with run_console(behind, tmp_path) as url:

            def read_all() -> dict[str, str]:
                answers = {name: http_get(f"{url}{path}") for name, path in pages.items()}
                assert {name: answer.status for name, answer in answers.items()} == dict.fromkeys(pages, 200)
                return {name: answer.body for name, answer in answers.items()}

            assert [name for name, body in read_all().items() if NOT_READ.search(body)] == []
            for store in (REDIS, POSTGRES):
                with proxies.stopped(store):
                    for name, body in read_all().items():
                        if name in READS[store]:
                            assert NOT_READ.search(body), (store, name)
                            assert f"{store} at 127.0.0.1" in body, (store, name)
                            assert LAST.search(body), (store, name)
                    other = http_get(f"{url}/users/59")  # never looked at before
                    assert (other.status, bool(NOT_READ.search(other.body))) == (200, True), store
                    assert http_get(f"{url}/healthz").status == 200
                assert [name for name, body in read_all().items() if NOT_READ.search(body)] == [], store
