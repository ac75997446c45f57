"""A read-only console, and a viewer of one that is not: pages without forms, and routes that refuse."""

from __future__ import annotations

import re
from typing import Any

import pytest

from console.sign_in import make_user
from tests.support.batch_live import dump
from tests.support.console import SAME_ORIGIN, open_console
from tests.support.operators import LiveNetwork

pytest_plugins = ("tests.support.operators_fixtures",)

PASSWORD = "correct horse"
VERA = make_user("vera", "viewer", PASSWORD)
OLGA = make_user("olga", "operator", PASSWORD)

PAGES = (
    *("/", "/runs", "/experiment", "/posts", "/doctor", "/jobs", "/log", "/data", "/search?q=7"),
    *("/users/7", "/users/7?a=control&b=test", "/users/999999", "/posts/101", "/posts?q=a"),
)
ACTIONS = (
    *("start-night", "stop-job", "refresh", "roll-back", "block", "unblock"),
    *("split", "pin", "unpin", "doctor", "webhook"),
)
ALLOWED = {"/why", "/experiment", "/sign-in", "/sign-out"}
"""Addresses of forms that a viewer may send: they change nothing of the network."""


@pytest.mark.parametrize(
    ("name", "settings", "status"),
    [("vera", {"read_only": False}, 403), ("olga", {"read_only": True}, 404)],
)
def test_who_may_not_act_sees_no_form_and_reaches_no_route(
    night: LiveNetwork, name: str, settings: dict[str, Any], status: int
) -> None:
    before = dump(night.redis_url)
    users = {"console_users": f"{VERA} {OLGA}", "local_operator": ""}
    with open_console(night.settings, **users, **settings) as client:
        signed_in = client.post("/sign-in", data={"name": name, "password": PASSWORD}, headers=SAME_ORIGIN)
        assert signed_in.status_code == 303
        forms, runs = set(), [f"/runs/{night.run_of(variant)}" for variant in ("control", "test")]
        for path in (*PAGES, *runs):
            answer = client.get(path)
            assert answer.status_code == 200, path
            assert "/actions/" not in answer.text, path
            forms |= set(re.findall(r'<form[^>]*method="post"[^>]*action="([^"]*)"', answer.text))
        assert "/sign-out" in forms
        assert forms <= ALLOWED
        for action in ACTIONS:
            assert client.get(f"/actions/{action}").status_code == status
            sent = client.post(f"/actions/{action}", data={"token": "x"}, headers=SAME_ORIGIN)
            assert sent.status_code == status
        changing = {
            rule.rule
            for rule in client.application.url_map.iter_rules()
            if (rule.methods or set()) - {"GET", "HEAD", "OPTIONS"}
        }
        assert changing - {"/actions/<name>"} == ALLOWED
    assert dump(night.redis_url) == before
