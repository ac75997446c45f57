"""A network in which people act: what the three views show of it, and what the next network inherits."""

from __future__ import annotations

from pathlib import Path

import pytest
import sqlalchemy as sa

from contract.ids import IdKind
from demo.network import transaction
from demo.network_app import tables
from demo.simulate import simulate
from tests.support.batch import query
from tests.support.network_client import SAME_ORIGIN, open_network_app, register

SIZE = 40, 20, 600
BASE_TABLES = """
    SELECT DISTINCT c.relname FROM pg_depend d JOIN pg_rewrite r ON r.oid = d.objid
    JOIN pg_class view ON view.oid = r.ev_class JOIN pg_class c ON c.oid = d.refobjid
    WHERE view.relnamespace = 'recs'::regnamespace AND d.classid = 'pg_rewrite'::regclass
        AND c.relnamespace = 'public'::regnamespace
"""


@pytest.mark.parametrize("counted", [False, True])
def test_counters_count_what_is_done_in_the_app(database_url: str, tmp_path: Path, *, counted: bool) -> None:
    simulate(database_url, *SIZE, seed=1)
    with transaction(database_url) as connection:
        if not counted:  # a network without counters of its own
            connection.execute(sa.text("UPDATE post SET like_count = NULL, view_count = NULL"))
    counters = "SELECT view_count, like_count FROM recs.posts WHERE post_id = 3"
    ((views, likes),) = query(database_url, counters)
    with open_network_app(database_url, tmp_path, 1, 2, 3) as app:
        client = register(app, "Counted")
        for path, more in (("/like", 1), ("/like", 1), ("/unlike", 0), ("/like", 1)):
            assert client.post(path, data={"post": "3"}, headers=SAME_ORIGIN).status_code == 303
            expected = (views + 1, likes + more) if counted else (None, None)
            assert query(database_url, counters) == [expected]


def test_no_view_shows_names_hashes_or_messages(database_url: str, tmp_path: Path) -> None:
    simulate(database_url, *SIZE, seed=1)
    columns = "SELECT table_name, column_name FROM information_schema.columns WHERE table_schema = 'recs'"
    before = query(database_url, columns)
    with open_network_app(database_url, tmp_path, 1, 2, 3) as app:
        register(app, "Secretive", age="30")
    ((user_id, hashed),) = query(database_url, "SELECT user_id, password_hash FROM account")
    rows = query(database_url, f"SELECT u::text FROM recs.users u WHERE user_id = {user_id}")
    assert len(rows) == 1
    assert ",30," in rows[0][0]
    assert not any(text in rows[0][0] for text in ("Secretive", "secretive", hashed))
    assert query(database_url, columns) == before  # a run's model knows the columns of its night
    assert {name for (name,) in query(database_url, BASE_TABLES)} == {
        "user",
        "post",
        "feed_action",
        "activity",
    }


def test_another_network_inherits_nobody(database_url: str, tmp_path: Path) -> None:
    simulate(database_url, *SIZE, seed=1)
    with open_network_app(database_url, tmp_path, 1, 2, 3) as app:
        client = register(app, "Before")
        assert client.post("/like", data={"post": "3"}, headers=SAME_ORIGIN).status_code == 303
        assert client.get("/").status_code == 200
        ((user_id,),) = query(database_url, "SELECT user_id FROM account")
        simulate(database_url, *SIZE, seed=1)
        filled = [name for name in tables.NAMES if query(database_url, f"SELECT 1 FROM {name} LIMIT 1")]
        assert filled == ["community"]  # the topics of the new network
        assert client.get("/").location == "/register"
        register(app, "After")
        assert query(database_url, "SELECT user_id, name FROM account") == [(user_id, "After")]
        assert client.get("/").location == "/register"  # the id is another person's now
        simulate(database_url, *SIZE, seed=1, ids=IdKind.UUID)
    with open_network_app(database_url, tmp_path) as app:
        old = app.test_client()
        for cookie in client._cookies.values():
            old.set_cookie(cookie.key, cookie.value)
        assert old.get("/").location == "/register"
        register(app, "Later")
