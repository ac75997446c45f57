"""The simulation of a cluster against times that follow by hand from its unit costs."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import pytest

from benchmarks import scale_out_report as report
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
    assert found.seconds == pytest.approx(1 + 2 * 6)  # the second is cut while the first is scored


CLUSTER_COSTS = ("write_seconds", "store_seconds", "verify_seconds", "read_seconds")


def make_figures() -> dict[str, Any]:
    way = dict.fromkeys(
        ("seconds", "fastest", "slowest", "users_per_second", "predicted_seconds", "core_seconds",
         "predicted_core_seconds", "driver_mib", "driver_mib_more", "worker_mib", "redis_buffer_mib"), 1.0,
    )  # fmt: skip
    scorer = {"user_seconds": 1e-4, "chunk_seconds": 0.2, "compile_seconds": 1.0, "forest_bytes": 5e6}
    return {
        "machine": "2 cores", "posts": 999, "n": 100,
        "users": 2_000, "less_users": 4_000, "more_users": 8_000,
        "value_bytes": 1_202.0,
        "ways": [way | {"way": "1 thread", "checksum": "a" * 64}],
        "tasks": {"tasks_per_second": 100.0},
        "costs": asdict(COSTS),
        "redis_cluster_costs": dict.fromkeys(CLUSTER_COSTS, 0.004),
        "scorer": [scorer | {"posts": 9_999}],
        "driver_bytes_per_user": {"features": 300.0, "likes": 100.0},
        "candidates": [
            {"share": 0.1, "kept": 0.9, "kept_of_first_ten": 0.99, "lists_unchanged": 0.5},
        ],
    }  # fmt: skip


def test_every_table_has_its_marks_in_the_document(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, sizes in (("USERS", (100_000,)), ("CORES", (2, 4)), ("CURVE", (1, 4))):
        monkeypatch.setattr(report, name, sizes)
    document = report.DOCUMENT.read_text()
    changed = report.replace_tables(document, report.make_tables(make_figures()))
    assert "| 1 thread | 1.00 (1.00 to 1.00) |" in changed
    assert "| 9,999 | 10.0 | 0.20 | 11.2 | 19.8 | 1.0 | 5 |" in changed
    assert document.count("bench-scale-out: end of") == len(report.make_tables(make_figures()))


@pytest.mark.parametrize(("count", "mean"), [(9, 1.0), (99, (9 + 180) / 99), (1_000, 2_893 / 1_000)])
def test_ids_have_the_digits_of_whole_numbers_from_1(count: int, mean: float) -> None:
    assert report.digits(count) == pytest.approx(mean)


def test_lists_of_more_posts_have_longer_ids() -> None:
    figures = make_figures()
    assert report.list_bytes(figures, 999, 100) == pytest.approx(1_204)
    longer = report.digits(99_999) - report.digits(999)
    assert report.list_bytes(figures, 99_999, 50) == pytest.approx(2 + 50 * (12.02 + longer))
    assert report.redis_bytes(figures, 1_000, 999, 100) == 1_000 * (1_280 + 56 + 48)


def test_lists_that_need_several_nodes_cost_what_a_cluster_costs() -> None:
    figures = make_figures()
    row = figures["scorer"][0]
    assert report.costs_for(figures, row, 1_000).write_seconds == COSTS.write_seconds
    assert report.nodes_for(figures, 100_000_000, 9_999) == 3
    assert report.costs_for(figures, row, 100_000_000).write_seconds == 0.004
