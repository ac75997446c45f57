"""The store of a night is damaged, gone, or its process is killed: one line, and what is live stays live."""

from __future__ import annotations

import importlib
import json
import os
import signal
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import duckdb
import pytest
import redis
import sqlalchemy as sa

import batch.evaluation.learner
from batch.loading.interaction_store import FILE, VERSION
from batch.publishing import prune
from batch.runs import lock
from contract.keys import Keys
from tests.support.batch import (
    execute,
    live_run,
    make_engine,
    query,
    run_forked,
    start_batch,
)
from tests.support.batch_live import (
    WAITING,
    LiveNetwork,
    check_error,
    copy_night,
    dump,
    make_live_network,
    restore,
    wait_for_exit,
)

KEYS = Keys()
CONTROL = ("run", "--variant", "control")

Kept = tuple[LiveNetwork, dict[bytes, bytes]]


@pytest.fixture(scope="module")
def night(
    postgres_server: sa.URL, valkey_server: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Kept]:
    """Both variants live on a small network, and every key of its Redis."""
    folder = tmp_path_factory.mktemp("models")
    restore(valkey_server, {})  # without what other tests have left
    with make_live_network(postgres_server, valkey_server, folder) as live:
        yield live, dump(live.redis_url)


@pytest.fixture
def live(night: Kept, postgres_server: sa.URL, tmp_path: Path) -> Iterator[LiveNetwork]:
    """That night over a copy of its database and of its models."""
    with copy_night(*night, postgres_server, tmp_path / "models") as copy:
        yield copy


@pytest.fixture
def client(live: LiveNetwork) -> Iterator[redis.Redis]:
    """Client of the Redis that holds the live runs; answers in text."""
    with redis.Redis.from_url(live.redis_url, decode_responses=True) as client:
        yield client


def check_next_night(live: LiveNetwork) -> None:
    """Check that a night succeeds, and a refresh after it, and that nothing is left of any that failed."""
    for command in (CONTROL, ("refresh", "--variant", "control")):
        done = live.run(*command)
        assert done.returncode == 0, done.stderr
        execute(live.database_url, "INSERT INTO recs.interactions VALUES (7, 102, 'like', now())")
    states = dict(query(live.database_url, "SELECT run_id, state FROM recs.runs"))
    kept = {run for run, state in states.items() if state != "failed"}
    assert set(states.values()) <= {"live", "retired", "failed"}
    assert {folder.name for folder in live.model_dir.iterdir()} == kept
    assert not list(live.model_dir.rglob("work-*"))


def change_about(path: Path, name: str, value: Any) -> None:
    with duckdb.connect(str(path)) as database:
        database.execute("UPDATE about SET value = ? WHERE name = ?", [json.dumps(value), name])


def cut_short(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def overwrite(path: Path) -> None:
    path.write_bytes(b"not a store" + bytes(path.stat().st_size - 11))


def lose_rows(path: Path) -> None:
    with duckdb.connect(str(path)) as database:
        database.execute("DELETE FROM interactions WHERE user_row = 3")


def amend_bytes(client: redis.Redis, run_id: str, path: Path) -> None:
    """Let the manifest know of the size that the file has now."""
    manifest = json.loads(str(client.get(KEYS.manifest(run_id))))
    manifest["store"]["bytes"] = path.stat().st_size
    client.set(KEYS.manifest(run_id), json.dumps(manifest))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (Path.unlink, "there is no interaction store "),
        (cut_short, " bytes, not "),
        (overwrite, "not a valid DuckDB database file"),
        (lose_rows, " interactions, not "),
        (
            partial(change_about, name="version", value=99),
            f"is of version 99, this program reads version {VERSION}",
        ),
        (partial(change_about, name="database", value="a/1/2"), "is another run's: database is 'a/1/2'"),
        (partial(change_about, name="pulled_as", value="other"), "is another run's: pulled_as is 'other'"),
    ],
    ids=["gone", "cut short", "overwritten", "rows lost", "version", "database", "run"],
)
def test_a_store_that_cannot_be_used_is_told_and_holds_up_its_own_variant_only(
    live: LiveNetwork, client: redis.Redis, damage: Callable[[Path], None], message: str
) -> None:
    control, test = (str(live_run(client, name)) for name in ("control", "test"))
    path = live.model_dir / control / FILE
    damage(path)
    if path.exists() and damage is not cut_short:
        amend_bytes(client, control, path)
    lists = {user: client.get(KEYS.user(control, user)) for user in range(1, 61)}
    other = client.get(KEYS.user(test, 7))
    execute(live.database_url, "INSERT INTO recs.interactions VALUES (7, 101, 'like', now())")
    for command in (("refresh",), ("explain", "7", "101", "--run", "control")):
        done = live.run(*command)
        check_error(done, 1, message)
        assert str(path) in done.stderr
        assert "run the night again" in done.stderr
        assert {user: client.get(KEYS.user(control, user)) for user in lists} == lists
    assert (live_run(client), live_run(client, "test")) == (control, test)
    assert client.get(KEYS.user(test, 7)) != other
    check_next_night(live)


def test_a_store_folder_that_cannot_be_used_is_told_before_anything_is_done(
    live: LiveNetwork, tmp_path: Path
) -> None:
    file = tmp_path / "file"
    file.write_text("in the way")
    before = query(live.database_url, "SELECT count(*) FROM recs.runs")
    for folder in (file, file / "stores", Path("/proc/overnight")):
        for command in (CONTROL, ("refresh",), ("evaluate", "--variant", "control")):
            done = live.run(*command, OVERNIGHT_STORE_DIR=str(folder))
            check_error(done, 1, f" in {folder}: ")
            assert "OVERNIGHT_STORE_DIR" in done.stderr
            live.check_unchanged()
    assert file.read_text() == "in the way"
    assert query(live.database_url, "SELECT count(*) FROM recs.runs") == before
    check_next_night(live)


def kill_when_called(module: str, name: str) -> None:
    """Let this process end as `kill -9` ends it when a function is called."""
    setattr(importlib.import_module(module), name, lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL))


@pytest.mark.parametrize(
    ("variant", "moments"),
    [
        (
            "control",
            (
                "batch.loading.pull._insert",
                "batch.loading.pull._rename_synced",
                "batch.training.dataset.collect_labelled_views",
            ),
        ),
        ("control", ("batch.refresh.stale_users.record_night",)),
        ("all", ("batch.training.dataset.share_store", "batch.refresh.refresh.read_recent")),
    ],
    ids=["while it pulls and counts", "while it goes live", "when one variant is live"],
)
def test_a_killed_night_leaves_nothing_to_the_next(
    live: LiveNetwork, client: redis.Redis, variant: str, moments: tuple[str, ...]
) -> None:
    for moment in moments:
        before = live_run(client)
        prepare = partial(kill_when_called, *moment.rsplit(".", 1))
        with start_batch("run", "--variant", variant, **live.servers, prepare=prepare) as process:
            assert wait_for_exit(process).returncode == -signal.SIGKILL, moment
        assert (live_run(client) == before) == (variant == "control"), moment
    check_next_night(live)


def test_a_process_killed_while_postgres_lets_it_wait_leaves_nothing(live: LiveNetwork) -> None:
    with live.hold_while_loading() as process:
        (work,) = live.model_dir.glob("*/work-*")
        process.kill()
        assert wait_for_exit(process).returncode == -signal.SIGKILL
        assert work.is_dir()
        # What a killed process waited for is given up when Postgres notices; a night needs no help for it.
        execute(live.database_url, f"SELECT pg_terminate_backend(pid) FROM ({WAITING}) waiting")
    live.check_unchanged()
    check_next_night(live)


def test_a_refresh_and_an_evaluation_while_a_night_runs_are_in_nobodys_way(
    live: LiveNetwork, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit, others = batch.evaluation.learner.fit, []

    def fit_beside_others(*arguments: Any, **options: Any) -> Any:
        if not others:
            execute(live.database_url, "INSERT INTO recs.interactions VALUES (7, 101, 'like', now())")
            explain = ("explain", "7", "102", "--run", "control")
            for command in (("refresh",), ("evaluate", "--variant", "control"), explain, CONTROL):
                others.append(run_forked(*command, **live.servers))  # noqa: PERF401 - in this order
        return fit(*arguments, **options)

    before = live_run(client)
    monkeypatch.setattr(batch.evaluation.learner, "fit", fit_beside_others)
    done = live.run(*CONTROL)
    assert done.returncode == 0, done.stderr
    assert [other.returncode for other in others] == [0, 0, 0, 4], [other.stderr for other in others]
    assert live_run(client) != before
    check_next_night(live)


def test_a_night_while_a_refresh_is_at_work_goes_live_and_leaves_who_acted_to_the_next(
    live: LiveNetwork, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prune, "LOCK_TIMEOUT_SECONDS", 0)
    before = live_run(client)
    with lock.hold(make_engine(live.database_url), KEYS.prefix, lock.REFRESH):
        done = live.run(*CONTROL)
    assert done.returncode == 0, done.stderr
    assert "users who acted during the night are left to the next refresh: another refresh" in done.stderr
    assert live_run(client) != before
    check_next_night(live)
