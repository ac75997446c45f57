"""Tasks on the workers of a Dask cluster: real processes that are killed, stopped and cut off."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import tracemalloc
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import pytest
import redis
from distributed import Client

from batch.executors import dask_executor
from batch.executors.dask_context import BLAS, PROCESSOR, REDIS, describe_process
from batch.executors.dask_executor import why_unfit
from batch.executors.threads import ThreadExecutor
from contract.errors import DaskError, ModelError
from demo.processes import free_port
from tests.support.batch import DEADLINE_SECONDS, ROOT, wait_until
from tests.support.dask_cluster import (
    BUDGET_MIB,
    SHARED,
    DaskCluster,
    Running,
    run_steps,
    running,
    wait_for_processes,
)
from tests.support.dask_tasks import BUG, COUNT, COUNTED, FAILS, GO, HELD, KILLS, Done, Step, add, measure

PLAIN = [Step(number) for number in range(20)]
HELD_FIRST = [Step(number, HELD if number < 8 else "") for number in range(20)]
"""More held tasks than the workers of a test take."""


@pytest.fixture(scope="module")
def module_cluster(valkey_server: str) -> Iterator[DaskCluster]:
    cluster = DaskCluster(f"{valkey_server}/0")
    yield cluster
    cluster.close()


@pytest.fixture
def cluster(module_cluster: DaskCluster, redis_client: redis.Redis) -> DaskCluster:
    """A scheduler and two workers."""
    module_cluster.have_workers(2)
    return module_cluster


def is_right(results: Iterable[Done], steps: list[Step]) -> bool:
    total = int(SHARED.sum())
    return sorted((each.number, each.sum) for each in results) == [
        (step.number, total + step.number) for step in steps
    ]


def test_workers_do_what_threads_do(cluster: DaskCluster, redis_client: redis.Redis) -> None:
    with running(cluster.executor(redis_client), HELD_FIRST, redis_client) as dask:
        processes = wait_for_processes(redis_client, 2)
    assert is_right(dask.results, HELD_FIRST)
    assert {each.process for each in dask.results} == set(processes) == {w.pid for w in cluster.workers}
    assert {each.budget_mib for each in dask.results} == {BUDGET_MIB}
    in_threads = ThreadExecutor(2, BUDGET_MIB, redis_client).map(add, SHARED, lambda slots: PLAIN)
    assert is_right(in_threads, PLAIN)
    assert not redis_client.keys("*:check")


def test_a_single_task_runs_here_and_needs_no_cluster(
    cluster: DaskCluster, redis_client: redis.Redis
) -> None:
    executor = cluster.executor(redis_client, scheduler=f"tcp://127.0.0.1:{free_port()}")
    (result,) = run_steps(executor, PLAIN[:1])
    assert result.process == os.getpid()
    assert list(run_steps(executor, [])) == []


def test_tasks_of_a_killed_worker_run_on_another(cluster: DaskCluster, redis_client: redis.Redis) -> None:
    with running(cluster.executor(redis_client), HELD_FIRST, redis_client) as dask:
        killed = wait_for_processes(redis_client, 2)[0]
        cluster.kill(killed)
    assert is_right(dask.results, HELD_FIRST)
    assert killed not in {each.process for each in dask.results}


def test_a_worker_that_comes_later_gets_tasks(cluster: DaskCluster, redis_client: redis.Redis) -> None:
    steps = [Step(number, HELD) for number in range(12)]
    with running(cluster.executor(redis_client), steps, redis_client) as dask:
        wait_for_processes(redis_client, 2)
        third = cluster.start_worker()
        assert third.pid in wait_for_processes(redis_client, 3)
    assert is_right(dask.results, steps)


def test_while_a_worker_hangs_results_arrive_and_its_tasks_run_on_another(
    cluster: DaskCluster, redis_client: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    with running(cluster.executor(redis_client), HELD_FIRST, redis_client) as dask:
        hung = wait_for_processes(redis_client, 2)[0]
        os.kill(hung, signal.SIGSTOP)
        redis_client.set(GO, "1")
        wait_until(lambda: len(dask.results) == len(HELD_FIRST) - 2)  # one ran there, and one waited
        assert "left" not in caplog.text
    cluster.kill(hung)
    assert "left; its tasks (2) run elsewhere" in caplog.text
    assert is_right(dask.results, HELD_FIRST)
    assert hung not in {each.process for each in dask.results}


def test_a_task_that_kills_its_workers_is_named_as_the_cause(
    cluster: DaskCluster, redis_client: redis.Redis
) -> None:
    cluster.have_workers(3)
    with pytest.raises(
        DaskError, match=r"^a task was lost with each .*tcp://.*tcp://.*tcp://.*see their logs"
    ):
        list(run_steps(cluster.executor(redis_client), [Step(0, KILLS), Step(1)]))


@pytest.mark.parametrize(
    ("action", "error", "message"),
    [
        (FAILS, ModelError, "^the model is wrong$"),
        (BUG, DaskError, "^a task failed on the Dask worker tcp://[^ ]*: KeyError: 'a bug'; "),
    ],
)
def test_an_error_of_a_task_is_raised_here(
    cluster: DaskCluster, redis_client: redis.Redis, action: str, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        list(run_steps(cluster.executor(redis_client), [*PLAIN, Step(20, action)]))
    assert is_right(run_steps(cluster.executor(redis_client), PLAIN), PLAIN)


def test_a_worker_that_loses_redis_gets_no_more_tasks(
    cluster: DaskCluster, redis_client: redis.Redis, redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    cluster.have_workers(1)
    redis_client.acl_setuser("worker", enabled=True, passwords=["+a-secret"], keys=["*"], commands=["+@all"])
    cut_off = cluster.start_worker(REDIS_URL=redis_url.replace("://", "://worker:a-secret@"))
    with running(cluster.executor(redis_client), HELD_FIRST, redis_client) as dask:
        wait_for_processes(redis_client, 2)
        redis_client.acl_deluser("worker")
        wait_until(lambda: "gets no tasks" in caplog.text)
    assert is_right(dask.results, HELD_FIRST)
    assert cut_off.pid not in {each.process for each in dask.results}
    assert "REDIS_URL" in caplog.text
    assert "a-secret" not in caplog.text
    cluster.have_workers(1)


def test_unfit_workers_get_no_tasks_and_the_log_says_why(
    cluster: DaskCluster,
    redis_client: redis.Redis,
    redis_url: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    cluster.have_workers(1)
    fit = cluster.workers[0].pid
    for package in ("batch", "contract"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "batch" / "another.py").write_text("")
    cluster.start_worker_of(tmp_path)
    cluster.start_worker(REDIS_URL=f"redis://127.0.0.1:{free_port()}/0")
    cluster.start_worker(REDIS_URL=redis_url.removesuffix("0") + "1")
    with running(cluster.executor(redis_client), HELD_FIRST, redis_client) as dask:
        wait_until(lambda: caplog.text.count("gets no tasks") == 3)
        assert wait_for_processes(redis_client, 1) == [fit]
    assert {each.process for each in dask.results} == {fit}
    assert is_right(dask.results, HELD_FIRST)
    for reason in ("its source code is ", "check that it is up, and REDIS_URL", "is not the batch's"):
        assert reason in caplog.text
    cluster.kill(fit)
    with pytest.raises(DaskError, match=r"^no Dask worker can run tasks; tcp://[^ ]*: .*; "):
        list(run_steps(cluster.executor(redis_client), PLAIN))
    cluster.have_workers(0)


def test_without_a_scheduler_one_line_says_so(cluster: DaskCluster, redis_client: redis.Redis) -> None:
    port = free_port()
    executor = cluster.executor(redis_client, scheduler=f"tcp://127.0.0.1:{port}", dask_timeout_seconds=1)
    with pytest.raises(
        DaskError, match=f"^the Dask scheduler tcp://127.0.0.1:{port} does not answer: .*refused"
    ):
        list(run_steps(executor, PLAIN))


def test_a_night_learns_before_its_long_work_that_no_scheduler_answers(
    cluster: DaskCluster, redis_client: redis.Redis
) -> None:
    cluster.executor(redis_client).check()
    lost = cluster.executor(redis_client, scheduler=f"tcp://127.0.0.1:{free_port()}", dask_timeout_seconds=1)
    with pytest.raises(
        DaskError, match=r"^the Dask scheduler \S+ does not answer: [^<>]*; check that it is up"
    ):
        lost.check()


def test_without_a_worker_one_line_says_so(cluster: DaskCluster, redis_client: redis.Redis) -> None:
    cluster.have_workers(0)
    executor = cluster.executor(redis_client, dask_timeout_seconds=1)
    with pytest.raises(DaskError, match="has had no worker for 1 s; start workers"):
        list(run_steps(executor, PLAIN))


def test_without_a_result_one_line_says_so(
    cluster: DaskCluster, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dask_executor, "GRACE_SECONDS", 0.1)
    assert is_right(run_steps(cluster.executor(redis_client), PLAIN), PLAIN)  # a worker is ready
    executor = cluster.executor(redis_client, dask_timeout_seconds=3)
    results = run_steps(executor, HELD_FIRST)
    with pytest.raises(DaskError, match=r"^no result of a Dask worker for 3 s \(tcp://"):
        next(results)
    redis_client.set(GO, "1")


def test_a_lost_scheduler_ends_the_tasks_with_one_line(redis_client: redis.Redis, redis_url: str) -> None:
    cluster = DaskCluster(redis_url)
    try:
        cluster.start_worker()
        dask = Running(run_steps(cluster.executor(redis_client), HELD_FIRST))
        wait_for_processes(redis_client, 1)
        cluster.scheduler.kill()
        with pytest.raises(
            DaskError, match=f"^the Dask scheduler {cluster.settings.dask.scheduler} was lost"
        ):
            dask.ended.result(DEADLINE_SECONDS)
    finally:
        cluster.close()


def test_few_tasks_are_made_ahead_and_none_starts_after_the_caller_stops(
    cluster: DaskCluster, redis_client: redis.Redis
) -> None:
    taken: list[int] = []

    def cut(slots: int) -> Iterator[Step]:
        taken.clear()
        for number in range(1_000):
            taken.append(number)
            yield Step(number, COUNTED)

    results = cluster.executor(redis_client).map(add, SHARED, cut)
    assert len(list(islice(results, 10))) == 10
    ahead = len(taken) - 10
    results.close()
    ran = int(redis_client.get(COUNT) or 0)
    assert 0 <= ahead <= 2 * 2 + 1
    assert 10 <= ran <= len(taken)
    with Client(cluster.settings.dask.scheduler, set_as_default=False) as client:
        wait_until(lambda: client.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.tasks)) == 0)
    assert int(redis_client.get(COUNT) or 0) == ran


def test_a_task_that_ended_leaves_the_memory_of_this_process_at_once(
    cluster: DaskCluster, redis_client: redis.Redis
) -> None:
    tasks, size = 40, 2**20
    gc.disable()  # it would free what refers to itself, some time
    tracemalloc.start()
    try:
        executor = cluster.executor(redis_client)
        sizes = list(executor.map(measure, SHARED, lambda slots: (bytes(size) for _ in range(tasks))))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        gc.enable()
    assert sizes == [size] * tasks
    assert peak < tasks * size / 2


def test_the_same_versions_are_demanded_and_processors_may_differ() -> None:
    here = describe_process()
    other_processor = {**here, PROCESSOR: "another", BLAS: "another", REDIS: ""}
    assert why_unfit(here, {**here, REDIS: ""}, needs_blas=True) == ""
    assert why_unfit(here, other_processor, needs_blas=False) == ""
    assert why_unfit(here, other_processor, needs_blas=True).startswith("its BLAS is another, here ")
    for name in ("source code", "Python", "numpy", "numba", "llvmlite", "distributed"):
        assert why_unfit(here, {**here, REDIS: "", name: "0"}, needs_blas=False).startswith(
            f"its {name} is 0, "
        )
