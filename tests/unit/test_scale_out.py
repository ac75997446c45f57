"""The simulation of a cluster against times that follow by hand from its unit costs."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.scale_out_simulation import (
    USERS_PER_CHECK,
    Clock,
    Cluster,
    Costs,
    Machine,
    Process,
    StageCosts,
    copy_seconds,
    run_stage,
    simulate,
)

FREE = Costs(**dict.fromkeys(Costs.__dataclass_fields__, 0.0))
COSTS = replace(
    FREE, chunk_seconds=2.0, user_seconds=0.01, write_seconds=0.001, store_seconds=0.002,
    verify_seconds=0.003, read_seconds=0.001,
)  # fmt: skip
OF_1000_USERS = 2 + 10 + 1 + 2 + 3 + 1
"""Seconds of COSTS for a task of 1,000 users: chunk, users, write, store, verify, read."""


def make_tasks(count: int, **seconds: float) -> list[StageCosts]:
    nothing = {"driver": 0.0, "scheduler": 0.0, "worker": 0.0, "redis": 0.0, "sent_bytes": 0.0}
    return [StageCosts(**nothing | seconds)] * count


def test_one_thread_takes_the_sum_of_all_costs() -> None:
    found = simulate(COSTS, Cluster(1), users=4_000, users_per_task=1_000)
    assert found.seconds == pytest.approx(4 * OF_1000_USERS)
    assert found.busy["workers"] == pytest.approx(16 / OF_1000_USERS)
    assert found.busy["redis"] == pytest.approx(3 / OF_1000_USERS)
    assert found.bottleneck == "workers"


def test_two_threads_take_half_as_long_whether_of_one_worker_or_of_two() -> None:
    free_redis = replace(COSTS, store_seconds=0.0, read_seconds=0.0)
    for cluster in (Cluster(1, threads=2), Cluster(2)):
        seconds = simulate(free_redis, cluster, 4 * USERS_PER_CHECK, USERS_PER_CHECK).seconds
        assert seconds == pytest.approx(2 * (2 + 0.014 * USERS_PER_CHECK))


def test_the_last_task_makes_the_others_wait() -> None:
    assert run_stage(make_tasks(5, worker=1.0), Cluster(4)).seconds == pytest.approx(2)
    assert run_stage(make_tasks(4, worker=1.0), Cluster(4)).seconds == pytest.approx(1)


@pytest.mark.parametrize(
    ("resource", "task", "cluster", "seconds"),
    [
        ("driver", {"driver": 1.0}, Cluster(20), 100.5),
        ("scheduler", {"scheduler": 1.0}, Cluster(20), 100.5),
        ("redis", {"redis": 1.0}, Cluster(20), 100.5),
        ("redis", {"redis": 1.0}, Cluster(20, nodes=4), 25.5),
        ("link", {"sent_bytes": 1e9}, Cluster(20, link_bytes_per_second=1e9), 100.5),
        ("workers", {}, Cluster(10), 5.0),
    ],
)
def test_what_cannot_be_shared_bounds_a_large_cluster(
    resource: str, task: dict[str, float], cluster: Cluster, seconds: float
) -> None:
    found = run_stage(make_tasks(100, worker=0.5, **task), cluster)
    assert found.bottleneck == resource
    assert found.seconds == pytest.approx(seconds, abs=0.6)
    assert found.busy[resource] == pytest.approx(1, abs=0.03)


def test_one_machine_shares_its_cores_and_no_work_is_lost() -> None:
    tasks = make_tasks(10, driver=0.1, scheduler=0.1, worker=1.0, redis=0.3)
    assert run_stage(tasks, Cluster(2, cores=1)).seconds == pytest.approx(15)
    assert 7.5 <= run_stage(tasks, Cluster(2, cores=2)).seconds < 8.5


def test_a_piece_of_work_uses_at_most_one_core() -> None:
    ends: list[float] = []

    def work(machine: Machine, seconds: float) -> Process:
        yield machine, seconds
        ends.append(clock._now)

    for cores, expected in ((1, [2.0, 3.0]), (2, [1.0, 2.0]), (8, [1.0, 2.0])):
        clock, machine = Clock(), Machine(cores)
        for seconds in (1.0, 2.0):
            clock.start(work(machine, seconds))
        assert clock.run() == pytest.approx(expected[-1])
        assert ends == pytest.approx(expected)
        ends.clear()


@pytest.mark.parametrize(("tasks", "seconds"), [(Cluster(1).permits, 11), (Cluster(1).permits + 1, 12)])
def test_the_driver_cuts_only_a_few_tasks_more_than_run(tasks: int, seconds: float) -> None:
    # The first task ends at 11 s. A task more than may be on their way is cut then, which takes a second.
    first, *others = make_tasks(tasks, driver=1.0)
    assert run_stage([replace(first, worker=10.0), *others], Cluster(1)).seconds == pytest.approx(seconds)


def test_shared_data_spreads_from_worker_to_worker() -> None:
    costs = replace(FREE, shared_bytes=1e9)
    seconds = [copy_seconds(costs, Cluster(n, link_bytes_per_second=1e9)) for n in (1, 2, 3, 51, 102, 103)]
    assert seconds == pytest.approx([1, 2, 3, 51, 52, 53])
    assert copy_seconds(FREE, Cluster(103, link_bytes_per_second=1e9)) == 0


def test_threads_of_the_driver_pay_for_no_cluster() -> None:
    full = Costs(**dict.fromkeys(Costs.__dataclass_fields__, 1.0))
    local = full.without_cluster()
    assert local.user_seconds == local.store_seconds == local.read_seconds == 1
    assert local.shared_bytes == local.user_bytes == local.id_bytes == 0
    assert (
        local.map_seconds
        == local.driver_task_seconds
        == local.scheduler_task_seconds
        == local.worker_task_seconds
        == 0
    )
    found = simulate(local, Cluster(1), users=2, users_per_task=1)
    assert found.seconds == pytest.approx(2 * 6)
