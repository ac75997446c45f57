"""The locks of runs and of refreshes: one holder each, free as soon as it lets go or dies."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa

from batch.postgres import open_engine
from batch.runs import lock
from contract.errors import LockedError
from contract.settings import Settings
from tests.support.batch import ROOT, wait_until

HOLD = """
import sys, time
from batch.postgres import open_engine
from batch.runs import lock
from contract.settings import Settings
with lock.hold(open_engine(Settings.of(database_url=sys.argv[1]), "overnight batch run elsewhere"), "recs"):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def engine(database_url: str) -> Iterator[sa.Engine]:
    engine = open_engine(Settings.of(database_url=database_url), "overnight test")
    yield engine
    engine.dispose()


def is_free(engine: sa.Engine) -> bool:
    try:
        with lock.hold(engine, "recs"):
            return True
    except LockedError:
        return False


def test_a_lock_is_free_at_once_when_its_holder_lets_go(engine: sa.Engine) -> None:
    for _ in range(20):
        with lock.hold(engine, "recs"), pytest.raises(LockedError), lock.hold(engine, "recs"):
            pass


def test_a_holder_that_is_killed_frees_the_lock(engine: sa.Engine, database_url: str) -> None:
    command = [sys.executable, "-c", HOLD, database_url]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "held\n"
            with pytest.raises(LockedError) as error, lock.hold(engine, "recs"):
                pass
        finally:
            process.kill()
    assert "another run holds the lock: overnight batch run elsewhere (Postgres pid " in str(error.value)
    since = datetime.fromisoformat(str(error.value).rpartition("since ")[2].partition(";")[0])
    assert datetime.now(UTC) - since < timedelta(hours=1)
    wait_until(lambda: is_free(engine))


def test_a_run_a_refresh_and_another_prefix_do_not_keep_each_other_waiting(engine: sa.Engine) -> None:
    with (
        lock.hold(engine, "recs"),
        lock.hold(engine, "recs", lock.REFRESH),
        lock.hold(engine, "other"),
        pytest.raises(LockedError, match="another refresh holds the lock: overnight test"),
        lock.hold(engine, "recs", lock.REFRESH),
    ):
        pass


def test_whoever_has_patience_gets_the_lock_when_it_is_free(engine: sa.Engine) -> None:
    holder = lock.Lock(engine, "recs", lock.REFRESH, 0)

    def let_go(_: float) -> None:
        holder.release()

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(lock.time, "sleep", let_go)
        with lock.hold(engine, "recs", lock.REFRESH, timeout_seconds=60) as held:
            held.check()


def test_a_lock_whose_connection_was_lost_is_taken_again(engine: sa.Engine) -> None:
    with lock.hold(engine, "recs") as held:
        with engine.connect() as connection:
            mine = "SELECT pid FROM pg_locks WHERE locktype = 'advisory'"
            connection.execute(sa.text(f"SELECT pg_terminate_backend(pid, 10000) FROM ({mine}) holder"))
        held.check()
        with pytest.raises(LockedError), lock.hold(engine, "recs"):
            pass
