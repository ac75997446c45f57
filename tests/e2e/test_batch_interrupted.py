"""Runs that are stopped, killed, or meet another: the ledger tells, nothing is left, the next one works."""

from __future__ import annotations

import re
import signal
from datetime import UTC, datetime

import pytest
import redis
import sqlalchemy as sa

from batch.runs import ledger
from contract.errors import OvernightError
from tests.support.batch import (
    execute,
    ledger_stores,
    live_lists,
    live_run,
    make_engine,
    query,
    runs_with_keys,
    start_process,
)
from tests.support.batch_live import MANY_USERS, LiveNetwork, check_error, wait_for_exit

pytest_plugins = ["tests.support.batch_fixtures"]

CONTROL = ("run", "--variant", "control")
HOLDS_THE_LOCK = "JOIN pg_locks USING (pid) WHERE locktype = 'advisory'"
LOSE_ALL = """
    SELECT pg_terminate_backend(pid) FROM pg_stat_activity
    WHERE datname = current_database() AND application_name LIKE 'overnight%'
"""


def _check_stopped(live: LiveNetwork, by: signal.Signals) -> None:
    """Check that nothing is left of the newest run but a line in the ledger, and that the lock is free."""
    live.check_unchanged()
    assert live.last_failure() == f"stopped by {by.name}; the live run is unchanged"
    assert list(live.model_dir.iterdir()) == []
    assert query(live.database_url, "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'") == [(0,)]


def _check_next_run(live: LiveNetwork, client: redis.Redis) -> None:
    """Check that the next run succeeds and leaves keys of kept runs alone."""
    done = live.run(*CONTROL)
    assert done.returncode == 0, done.stderr
    now_live = live_run(client)
    assert now_live not in live.runs
    assert runs_with_keys(client) == live.runs | {now_live}
    assert len(live_lists(client)) == MANY_USERS


@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGINT])
def test_a_run_stopped_while_a_lock_keeps_it_from_loading_ends_at_once(
    live: LiveNetwork, by: signal.Signals
) -> None:
    with live.hold_while_loading() as process:
        process.send_signal(by)
        check_error(wait_for_exit(process), 1, f"stopped by {by.name}; the live run is unchanged")
        _check_stopped(live, by)


def test_a_run_stopped_while_it_learns_leaves_what_is_live(live: LiveNetwork) -> None:
    by = signal.SIGINT
    with start_process(*CONTROL, **live.servers) as process:
        assert process.stderr is not None
        while "batch: count: " not in process.stderr.readline():
            assert process.poll() is None
        process.send_signal(by)
        check_error(wait_for_exit(process), 1, f"stopped by {by.name}; the live run is unchanged")
    _check_stopped(live, by)


def test_a_run_stopped_mid_publish_removes_its_keys(live: LiveNetwork, client: redis.Redis) -> None:
    by = signal.SIGTERM
    with live.stop_mid_publish(client) as (process, _):
        process.send_signal(by)
        process.send_signal(by)
        process.send_signal(signal.SIGCONT)
        check_error(wait_for_exit(process), 1, f"stopped by {by.name}; the live run is unchanged")
    _check_stopped(live, by)
    _check_next_run(live, client)


def test_a_run_killed_mid_publish_is_noted_and_cleared_away_by_the_next(
    live: LiveNetwork, client: redis.Redis
) -> None:
    with live.stop_mid_publish(client) as (process, half):
        process.kill()
        process.wait()
    live.check_live()
    assert half in runs_with_keys(client)
    state = f"SELECT state, reason FROM recs.runs WHERE run_id = '{half}'"
    assert query(live.database_url, state) == [("building", None)]
    _check_next_run(live, client)
    assert query(live.database_url, state) == [("failed", "died before it was live")]
    assert half not in {folder.name for folder in live.model_dir.iterdir()}


def test_a_second_run_is_refused_and_told_who_runs_and_since_when(live: LiveNetwork) -> None:
    execute(live.database_url, "CREATE ROLE other LOGIN")
    with live.hold_while_loading() as process:
        done = live.run("run")
        check_error(done, 4, f" pid {process.pid} (Postgres pid ")
        since = re.search(r", since (\S+); wait for it or stop it$", done.stderr.strip())
        assert since is not None
        began = query(live.database_url, f"SELECT backend_start FROM pg_stat_activity {HOLDS_THE_LOCK}")
        assert began[0][0].replace(microsecond=0) == datetime.fromisoformat(since[1])
        live.check_live()
        # Postgres tells another role who holds the lock, not since when.
        role = sa.make_url(live.database_url).set(username="other").render_as_string(hide_password=False)
        check_error(live.in_database(role).run("run"), 4, f" pid {process.pid} (Postgres pid ")
    execute(live.database_url, "DROP ROLE other")


def test_a_run_that_lost_postgres_while_it_learnt_goes_live_all_the_same(
    live: LiveNetwork, client: redis.Redis
) -> None:
    with live.stop_mid_publish(client) as (process, mine):
        execute(live.database_url, LOSE_ALL)
        process.send_signal(signal.SIGCONT)
        done = wait_for_exit(process)
    assert done.returncode == 0, done.stderr
    assert live_run(client) == mine
    state = f"SELECT state FROM recs.runs WHERE run_id = '{mine}'"
    assert query(live.database_url, state) == [("live",)]
    assert len(live_lists(client)) == MANY_USERS


def test_a_run_that_lost_the_lock_to_another_does_not_go_live(live: LiveNetwork, client: redis.Redis) -> None:
    """Its keys are gone by then, so its stage may not write; the next test does without Redis."""
    with live.stop_mid_publish(client) as (process, mine):
        execute(live.database_url, LOSE_ALL)
        done = live.run(*CONTROL)
        assert done.returncode == 0, done.stderr
        process.send_signal(signal.SIGCONT)
        check_error(wait_for_exit(process), 1, f"recs:run:{mine}:writing has no token of this stage")
    other = live_run(client)
    assert other not in live.runs | {mine}
    assert runs_with_keys(client) == live.runs | {other}
    assert len(live_lists(client)) == MANY_USERS


def test_the_ledger_takes_no_run_live_that_another_has_closed(live: LiveNetwork) -> None:
    engine = make_engine(live.database_url)
    now = datetime.now(UTC)
    run = ledger.start(ledger_stores(engine), "control", now)
    with engine.begin() as connection:
        died = ledger.Change(now, "another", "died before it was live")
        ledger.set_state(connection, run.run_id, ledger.State.FAILED, died)
    with (
        pytest.raises(OvernightError, match=f"{run.run_id} is failed, closed by another run"),
        engine.begin() as connection,
    ):
        ledger.make_live(connection, run, ledger.Change(now, "a test"))


def test_a_run_that_lost_its_lock_to_another_neither_goes_live_nor_touches_it(
    live: LiveNetwork, client: redis.Redis
) -> None:
    with live.stop_mid_publish(client) as (robbed, mine):
        execute(live.database_url, LOSE_ALL)
        other = live.run("run", "--variant", "control")
        assert other.returncode == 0, other.stderr
        taken = live_run(client)
        robbed.send_signal(signal.SIGCONT)
        done = wait_for_exit(robbed)
        check_error(done, 1, "")
    assert live_run(client) == taken != mine
    states = dict(query(live.database_url, "SELECT run_id, state FROM recs.runs"))
    assert states[mine] == "failed"
    assert states[taken] == "live"
    assert len(live_lists(client)) > 100
