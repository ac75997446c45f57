"""Who is due for a refresh: however late, early or equal the times of actions are, none is missed."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa

from batch.loading.combined_store import fingerprints, read_recent
from batch.postgres import snapshot
from batch.refresh import stale_users
from batch.refresh.stale_users import StaleUsers
from batch.runs import ledger
from batch.runs.ledger import runs
from contract.settings import Settings
from tests.support.batch import TABLES, execute, make_engine

RUN, OTHER = "20261122T030000Z-control", "20261121T030000Z-control"
CUTOFF = datetime(2026, 11, 22, 3, tzinfo=UTC)
CLOCK = CUTOFF + timedelta(hours=6)
KNOWN = np.arange(1, 11, dtype=np.int64)
NO_RUNS = sa.select(runs.c.run_id).where(sa.false())


@pytest.fixture
def network(database_url: str) -> Iterator[sa.Engine]:
    """Ten users without actions, all of them known to the night, and a post."""
    users = "INSERT INTO recs.users SELECT user_id FROM generate_series(1, 10) user_id"
    execute(database_url, TABLES, users, "INSERT INTO recs.posts VALUES (101)")
    engine = make_engine(database_url)
    ledger.create(engine)
    stale_users.create(engine)
    yield engine
    engine.dispose()


def acts(engine: sa.Engine, user: int, at: datetime, post: int = 101) -> None:
    row = {"user": user, "post": post, "at": at}
    with engine.begin() as connection:
        connection.execute(sa.text("INSERT INTO recs.interactions VALUES (:user, :post, 'like', :at)"), row)


def find_stale(engine: sa.Engine, clock: datetime = CLOCK, scored: int = 10) -> StaleUsers:
    settings, since = Settings.of(database_url=str(engine.url)), CUTOFF - stale_users.LATE
    with (
        TemporaryDirectory(prefix="overnight-tests-") as folder,
        snapshot(engine) as connection,
        read_recent(connection, settings, since, clock, Path(folder)) as recent,
    ):
        now = fingerprints(recent.store, since, clock)
        known = {"user_ids": recent.user_ids, "known": KNOWN, "scored": scored}
        return stale_users.find(connection, RUN, now, **known)


def record(
    connection: sa.Connection,
    stale: StaleUsers,
    written: set[int],
    now: datetime = CLOCK,
    others: sa.Select[Any] = NO_RUNS,
) -> None:
    stale_users.record(connection, RUN, stale, written=written, now=now, other_runs=others)


def refresh(engine: sa.Engine, clock: datetime = CLOCK) -> list[int]:
    """Find the stale users, record their lists as written, and return them."""
    stale = find_stale(engine, clock)
    with engine.begin() as connection:
        record(connection, stale, set(stale.users), clock)
    return stale.users


def test_an_action_is_found_once_whenever_it_happened_and_however_late_it_was_entered(
    network: sa.Engine,
) -> None:
    for at in (CUTOFF, CUTOFF - timedelta(minutes=59), CLOCK, CUTOFF + timedelta(seconds=1), CLOCK):
        acts(network, 3, at)
        assert refresh(network) == [3]
        assert refresh(network) == []


def test_an_action_that_the_night_must_have_seen_makes_nobody_due(network: sa.Engine) -> None:
    acts(network, 3, CUTOFF - timedelta(hours=2))
    assert refresh(network) == []


def test_an_action_from_the_future_is_due_at_once_and_when_its_time_has_come_and_holds_nobody_up(
    network: sa.Engine,
) -> None:
    acts(network, 3, CLOCK + timedelta(days=3))
    assert refresh(network) == [3]
    acts(network, 4, CLOCK)
    assert refresh(network) == [4]
    assert refresh(network, CLOCK + timedelta(days=4)) == [3]
    assert refresh(network, CLOCK + timedelta(days=4)) == []


def test_a_user_whose_actions_were_removed_is_due(network: sa.Engine) -> None:
    acts(network, 3, CLOCK)
    assert refresh(network) == [3]
    with network.begin() as connection:
        connection.execute(sa.text("DELETE FROM recs.interactions"))
    assert refresh(network) == [3]
    assert refresh(network) == []


def test_a_user_whose_list_was_not_written_is_stale_again(network: sa.Engine) -> None:
    acts(network, 3, CLOCK)
    assert find_stale(network).users == find_stale(network).users == [3]


def test_users_that_the_night_did_not_know_are_new_until_they_are_written(network: sa.Engine) -> None:
    with network.begin() as connection:
        connection.execute(sa.text("INSERT INTO recs.users VALUES (11), (12)"))
    stale = find_stale(network)
    assert (stale.users, stale.new) == ([11, 12], 2)
    with network.begin() as connection:
        record(connection, stale, {11})
        assert stale_users.count_refreshed(connection, RUN) == 1
    assert refresh(network) == [12]
    assert refresh(network) == []


def test_users_that_the_network_has_no_more_are_not_due(network: sa.Engine) -> None:
    acts(network, 3, CLOCK)
    acts(network, 99, CLOCK)
    with network.begin() as connection:
        connection.execute(sa.text("DELETE FROM recs.users WHERE user_id = 3"))
    assert refresh(network) == []


def test_of_a_run_that_scored_only_so_many_nobody_else_is_due(network: sa.Engine) -> None:
    with network.begin() as connection:
        connection.execute(sa.text("INSERT INTO recs.users VALUES (11)"))
    for user in (2, 7, 11):
        acts(network, user, CLOCK)
    stale = find_stale(network, scored=5)
    assert (stale.users, stale.new) == ([2], 0)


def test_what_was_kept_for_runs_before_is_removed(network: sa.Engine) -> None:
    with network.begin() as connection:
        connection.execute(
            sa.insert(stale_users.refreshed_users),
            [{"run_id": OTHER, "user_id": 1}, {"run_id": "foreign", "user_id": 1}],
        )
        row = {
            "run_id": OTHER,
            "variant": "control",
            "key_prefix": "recs",
            "state": "retired",
            "actor": "test",
        }
        connection.execute(sa.insert(runs).values(row | {"started_at": CUTOFF}))
        record(connection, StaleUsers({}, [], 0, []), set(), others=ledger.other_runs("control", "recs", RUN))
        assert connection.scalars(sa.select(stale_users.refreshed_users.c.run_id)).all() == ["foreign"]


@pytest.mark.parametrize("numbers_before", [False, True])
def test_users_with_text_as_ids_are_found_once_and_rows_of_earlier_runs_stay(
    database_url: str, numbers_before: bool
) -> None:
    tables = TABLES.replace("user_id bigint", "user_id text")
    execute(database_url, tables, "INSERT INTO recs.posts VALUES (101)")
    engine = make_engine(database_url)
    ledger.create(engine)
    stale_users.create(engine)
    known, earlier = np.array(["B", "a/b", "ü"], object), {1: "x", 2: "y"}
    with engine.begin() as connection:
        if numbers_before:
            stale_users.record_night(connection, OTHER, earlier)

    def find(run_id: str, known: Any, fingerprints: dict[Any, str]) -> StaleUsers:
        some = {"user_ids": known, "known": known, "scored": known.size}
        with snapshot(engine) as connection:
            return stale_users.find(connection, run_id, fingerprints, **some)

    now = {"ü": "1", "B": "2"}
    stale = find(RUN, known, now)
    assert stale.users == ["B", "ü"]
    with engine.begin() as connection:
        record(connection, stale, set(stale.users))
    assert find(RUN, known, now) == StaleUsers({}, [], 0, [])
    assert find(RUN, known, now | {"a/b": "3"}).users == ["a/b"]
    with engine.begin() as connection:
        assert stale_users.read_recorded(connection, RUN, known).tolist() == ["B", "ü"]
        numbers = np.array([1, 2])
        found = stale_users.read_recorded(connection, OTHER, numbers)
        assert (found.dtype, found.tolist()) == (np.int64, [1, 2] if numbers_before else [])
    assert find(OTHER, np.array([1, 2]), earlier).users == ([] if numbers_before else [1, 2])
    with engine.begin() as connection:
        stale_users.record_night(connection, OTHER, {3: "z"})  # whole numbers again
        stale_users.forget(connection, ["ü", 3])
        assert stale_users.read_recorded(connection, RUN, known).tolist() == ["B"]
    assert find(OTHER, np.array([1, 2]), earlier).users == ([] if numbers_before else [1, 2])
    engine.dispose()
