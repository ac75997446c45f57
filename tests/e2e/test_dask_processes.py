"""`dask-scheduler` and `dask-worker` as processes: who is let in, signals, a lost scheduler."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import distributed
import pytest
import trustme

from batch.executors import packages
from batch.executors.handshake import use_token
from batch.executors.security import configure
from contract.settings import Settings
from tests.support.batch import run_forked, run_here
from tests.support.dask_certificates import write_certificates
from tests.support.dask_processes import PASSWORD, SERVERS, line_of, running_scheduler, start
from tests.support.forked_batch import Forked

TOKEN = "right-token-0123456789"


@pytest.fixture(scope="module")
def closed_to_strangers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return the variables of a cluster with TLS and a token."""
    written = write_certificates(tmp_path_factory.mktemp("certificates"))
    files = {f"OVERNIGHT_DASK_TLS_{name.upper()}": path for name, path in written.items()}
    return {**files, "OVERNIGHT_DASK_TOKEN": TOKEN}


def stop(process: Forked, sign: signal.Signals = signal.SIGTERM) -> tuple[int, str]:
    """Send a signal; return the exit code and the rest of its log."""
    process.send_signal(sign)
    _, errors = process.communicate(60)
    return process.wait(), errors


def tasks_in_progress(dask_worker: Any) -> int:
    """Return how many tasks run in a worker."""
    return len(dask_worker.active_threads)


def ask(address: str, environment: dict[str, str], question: Callable[[Any], Awaitable[Any]]) -> Any:
    """Return what a client of the cluster finds."""

    async def connected() -> Any:
        security = configure(Settings.from_environment(environment))
        async with distributed.Client(address, security=security, asynchronous=True) as client:
            return await question(client)

    try:
        with ThreadPoolExecutor(1) as pool:  # this thread may have a loop, of a browser
            return pool.submit(lambda: asyncio.run(connected())).result()
    finally:
        use_token("")


def test_a_worker_runs_tasks_of_who_has_certificate_and_token_and_leaves_one_at_sigterm(
    closed_to_strangers: dict[str, str],
) -> None:
    async def look(client: Any) -> tuple[int, dict[str, Any]]:
        pid = await client.submit(os.getpid, pure=False)
        sleeping = client.submit(time.sleep, 600, pure=False)
        distributed.fire_and_forget(sleeping)
        while not any((await client.run(tasks_in_progress)).values()):
            await asyncio.sleep(0.01)
        return pid, await client.scheduler.identity()

    with running_scheduler(**closed_to_strangers) as (scheduler, address):
        assert address.startswith("tls://127.0.0.1:")
        worker_settings = {**closed_to_strangers, "OVERNIGHT_DASK": address, "OVERNIGHT_THREADS": "2"}
        with start("dask-worker", **worker_settings) as worker:
            found = line_of(
                worker, r"worker (\S+) has 2 threads and writes to Redis at 127.0.0.1; TLS, a token"
            )
            pid, identity = ask(address, closed_to_strangers, look)
            assert pid == worker.pid
            (seen,) = identity["workers"].values()
            assert (seen["nthreads"], seen["memory_limit"], seen["services"]) == (2, 0, {})
            assert identity["services"] == {}
            folder = Path(seen["local_directory"])
            assert folder.is_dir()
            code, log = stop(worker)
            assert code == 0, log
            assert "left a task in progress" in log
            assert not folder.parent.exists()
        code, rest = stop(scheduler, signal.SIGINT)
        assert code == 0, rest
        assert "SIGINT: the Dask scheduler stopped" in rest
    for text in (found.string, log, rest):
        assert TOKEN not in text
        assert PASSWORD not in text
        assert "Traceback" not in text


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"OVERNIGHT_DASK_TOKEN": "other-token-0123456789"}, "has another OVERNIGHT_DASK_TOKEN"),
        ({"OVERNIGHT_DASK_TOKEN": ""}, "check OVERNIGHT_DASK_TOKEN, and whether it wants tls://"),
        ({"OVERNIGHT_DASK_TLS_CA": "other"}, "certificate verify failed"),
    ],
)
def test_a_worker_that_is_refused_says_why_in_one_line(
    closed_to_strangers: dict[str, str], change: dict[str, str], reason: str, tmp_path: Path
) -> None:
    if "OVERNIGHT_DASK_TLS_CA" in change:
        trustme.CA().cert_pem.write_to_path(str(tmp_path / "other.pem"))
        change = {"OVERNIGHT_DASK_TLS_CA": str(tmp_path / "other.pem")}
    with running_scheduler(**closed_to_strangers) as (_, address):
        done = run_forked(
            "dask-worker", **SERVERS, **{**closed_to_strangers, **change, "OVERNIGHT_DASK": address}
        )
    assert done.returncode == 1
    error = done.stderr.splitlines()[-1]
    assert error.startswith(f"error: the Dask scheduler {address} ")
    assert reason in error
    assert TOKEN not in done.stderr


def test_a_worker_comes_back_to_a_scheduler_that_was_killed_and_exits_if_it_stays_away() -> None:
    with (
        running_scheduler() as (first, address),
        start("dask-worker", OVERNIGHT_DASK=address, OVERNIGHT_DASK_TIMEOUT_SECONDS="4") as worker,
    ):
        line_of(worker, "has 1 threads")
        first.kill()
        first.wait()
        with running_scheduler(int(address.rpartition(":")[2])) as (second, _):
            line_of(worker, "let go of this worker")
            line_of(worker, "has 1 threads")
            second.kill()
        _, log = worker.communicate(60)
        assert worker.wait() == 1
    error = log.splitlines()[-1]
    assert error.startswith(f"error: the Dask scheduler {address} did not answer in 4 s: ")
    assert "Traceback" not in log


def test_listening_beyond_this_machine_without_token_and_tls_is_warned_of() -> None:
    with start("dask-scheduler", "--host", "0.0.0.0", "--port", "0") as process:
        line_of(process, "WARNING .* whoever reaches it can run code here")
        line_of(process, "listens on")
        assert stop(process)[0] == 0


def test_an_address_that_cannot_be_listened_on_is_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run_forked("dask-scheduler", "--port", str(port), **SERVERS)
    assert done.returncode == 1
    reason = "Address already in use"
    assert done.stderr == f"error: the Dask scheduler cannot listen on 127.0.0.1:{port}: {reason}\n"


def test_a_worker_needs_the_address_of_a_scheduler_and_both_need_their_packages(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    done = run_here("dask-worker", **SERVERS)
    assert done.returncode == 2
    assert done.stderr.startswith("error: OVERNIGHT_DASK is empty")
    monkeypatch.setattr(packages, "find_spec", lambda name: None)
    for command in ("dask-worker", "dask-scheduler"):
        done = run_here(command, **SERVERS)
        assert done.returncode == 1
        assert f"{command} needs the packages of requirements-dask.txt" in done.stderr
