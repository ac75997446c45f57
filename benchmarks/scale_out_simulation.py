"""Simulate how long a Dask cluster takes to score users and write their lists, from measured unit costs.

A task passes, in this order:

    driver      one thread cuts the task out of its tables, serialises it, and later adds up its result;
                it lets only a few more tasks be on their way than the workers have threads
    link        the task's bytes leave the driver's machine, one task after the other
    scheduler   one thread passes the task on
    worker      a thread unpacks it, scores its users, and encodes their lists
    redis       a node stores the lists; the worker's thread waits for it

Then the lists are read back by tasks that pass the same way. A machine's cores are shared evenly by the work
in progress on it, and one piece of work uses at most one core. Each worker has its own machine, driver and
scheduler share one, and Redis has a core a node; or all share one machine, as where costs are measured.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any

from batch.publishing.write import PARTS_PER_TASK
from batch.scoring.score import PART_USERS

COPIES_AT_ONCE = 50
"""Workers that one worker gives shared data to at a time: Dask's `worker.connections.outgoing`."""

WAITING_PER_THREAD = 0.25
"""Tasks that wait at a worker: one, and this many for each of its threads."""

USERS_PER_CHECK = PARTS_PER_TASK * PART_USERS
"""Users whose lists a task reads back."""


@dataclass(frozen=True)
class Costs:
    """Unit costs: seconds of one core, or bytes.

    Attributes
    ----------
    cut_seconds
        Of a user: the driver's to take the features out of its tables.
    chunk_seconds, user_seconds
        Scoring: of a chunk, whatever its number of users; and of each user with all posts.
    write_seconds, store_seconds
        Of a list: the worker's to encode and send it, and Redis's to store it.
    verify_seconds, read_seconds
        Of a list: the worker's to read it back and compare it, and Redis's to return it.
    map_seconds, map_core_seconds
        Of a stage without its tasks, to connect and to check the workers: time, and seconds of cores.
    driver_task_seconds, scheduler_task_seconds, worker_task_seconds
        Of a task without any data.
    driver_byte_seconds, scheduler_byte_seconds, worker_byte_seconds
        Of a byte of a task.
    user_bytes, id_bytes
        Of a user in a task that scores, and in one that reads back.
    shared_bytes
        What each worker gets once.
    """

    cut_seconds: float
    chunk_seconds: float
    user_seconds: float
    write_seconds: float
    store_seconds: float
    verify_seconds: float
    read_seconds: float
    map_seconds: float
    map_core_seconds: float
    driver_task_seconds: float
    scheduler_task_seconds: float
    worker_task_seconds: float
    driver_byte_seconds: float
    scheduler_byte_seconds: float
    worker_byte_seconds: float
    user_bytes: float
    id_bytes: float
    shared_bytes: float

    def without_cluster(self) -> Costs:
        """Return the costs where tasks run in threads of the driver: nothing is sent but lists."""
        sent = [
            name
            for name in self.__dataclass_fields__
            if name.endswith(("map_seconds", "_task_seconds", "_bytes"))
        ]
        return replace(self, **dict.fromkeys(sent, 0.0))


@dataclass(frozen=True)
class Cluster:
    """Processes and machines.

    Attributes
    ----------
    threads
        Of each worker; its machine has as many cores.
    nodes
        Of Redis.
    link_bytes_per_second
        Of each machine.
    cores
        Of the one machine that has all processes; 0 if each has its own.
    """

    workers: int
    threads: int = 1
    nodes: int = 1
    link_bytes_per_second: float = math.inf
    cores: int = 0

    @property
    def slots(self) -> int:
        """Tasks that run at a time."""
        return self.workers * self.threads

    @property
    def permits(self) -> int:
        """Tasks that run, wait at a worker, or are on their way."""
        return self.slots + self.workers * (1 + int(self.threads * WAITING_PER_THREAD))


@dataclass(frozen=True)
class StageCosts:
    """What one task of a stage costs on its way, in seconds of each resource, and its bytes."""

    driver: float
    scheduler: float
    worker: float
    redis: float
    sent_bytes: float


@dataclass(frozen=True)
class Prediction:
    """Seconds in all, the share of them that each resource was busy, and the seconds of all cores."""

    seconds: float
    busy: dict[str, float]
    core_seconds: float

    @property
    def bottleneck(self) -> str:
        """The resource that is busy for the largest share."""
        return max(self.busy, key=lambda name: self.busy[name])


def simulate(costs: Costs, cluster: Cluster, users: int, users_per_task: int) -> Prediction:
    """Predict scoring and writing the lists of all users, and reading them back."""
    stages = [
        run_stage((_writing(costs, size) for size in _cut(users, users_per_task)), cluster),
        run_stage((_verifying(costs, size) for size in _cut(users, USERS_PER_CHECK)), cluster),
    ]
    seconds = 2 * costs.map_seconds + copy_seconds(costs, cluster) + sum(stage.seconds for stage in stages)
    busy = {
        name: sum(stage.busy[name] * stage.seconds for stage in stages) / seconds for name in stages[0].busy
    }
    core_seconds = 2 * costs.map_core_seconds + sum(stage.core_seconds for stage in stages)
    return Prediction(seconds, busy, core_seconds)


def copy_seconds(costs: Costs, cluster: Cluster) -> float:
    """Return the time until each worker has the shared data, of which one gets it from the driver."""
    if not costs.shared_bytes:
        return 0.0
    copies, holders = 1, 1  # that one link sends, one after the other; the first is the driver's
    while holders < cluster.workers:
        each = min(COPIES_AT_ONCE, math.ceil((cluster.workers - holders) / holders))
        copies, holders = copies + each, holders * (1 + each)
    return costs.shared_bytes * (costs.driver_byte_seconds + copies / cluster.link_bytes_per_second)


def _cut(users: int, size: int) -> Iterator[int]:
    """Yield the users of each task."""
    return (min(size, users - first) for first in range(0, users, size))


def _writing(costs: Costs, users: int) -> StageCosts:
    scoring = costs.chunk_seconds + users * (costs.user_seconds + costs.write_seconds)
    task = _overhead(costs, users * costs.user_bytes)
    return replace(
        task,
        driver=task.driver + users * costs.cut_seconds,
        worker=task.worker + scoring,
        redis=users * costs.store_seconds,
    )


def _verifying(costs: Costs, users: int) -> StageCosts:
    task = _overhead(costs, users * costs.id_bytes)
    worker = task.worker + users * costs.verify_seconds
    return replace(task, worker=worker, redis=users * costs.read_seconds)


def _overhead(costs: Costs, sent_bytes: float) -> StageCosts:
    """Return what a task costs that does nothing."""
    return StageCosts(
        driver=costs.driver_task_seconds + sent_bytes * costs.driver_byte_seconds,
        scheduler=costs.scheduler_task_seconds + sent_bytes * costs.scheduler_byte_seconds,
        worker=costs.worker_task_seconds + sent_bytes * costs.worker_byte_seconds,
        redis=0.0,
        sent_bytes=sent_bytes,
    )


def run_stage(tasks: Iterable[StageCosts], cluster: Cluster) -> Prediction:
    """Simulate tasks until the last one has ended."""
    clock = Clock()
    shared = Machine(cluster.cores) if cluster.cores else None
    head, redis = shared or Machine(2), shared or Machine(cluster.nodes)
    workers = [shared or Machine(cluster.threads) for _ in range(cluster.workers)]
    wire = Machine(1)
    driver, scheduler, link = Station([0]), Station([0]), Station([0])
    nodes, on_their_way = Station(range(cluster.nodes)), Station(range(cluster.permits))
    slots = Station(worker for _ in range(cluster.threads) for worker in range(cluster.workers))
    used = {"driver": 0.0, "link": 0.0, "scheduler": 0.0, "workers": 0.0, "redis": 0.0}
    link_seconds = 1 / cluster.link_bytes_per_second

    def occupy(name: str, station: Station, machine: Machine, seconds: float) -> Process:
        item = yield station
        used[name] += seconds
        yield machine, seconds
        clock.release(station, item)

    def send_all() -> Process:
        for task in tasks:
            permit = yield on_their_way
            yield from occupy("driver", driver, head, task.driver)
            clock.start(pass_on(task, permit))

    def pass_on(task: StageCosts, permit: Any) -> Process:
        yield from occupy("link", link, wire, task.sent_bytes * link_seconds)
        yield from occupy("scheduler", scheduler, head, task.scheduler)
        worker = yield slots
        used["workers"] += task.worker
        yield workers[worker], task.worker
        yield from occupy("redis", nodes, redis, task.redis)
        clock.release(slots, worker)
        clock.release(on_their_way, permit)

    clock.start(send_all())
    seconds = clock.run()
    counts = {"workers": cluster.slots, "redis": cluster.nodes}
    busy = {name: each / (seconds * counts.get(name, 1) or 1) for name, each in used.items()}
    return Prediction(seconds, busy, sum(used.values()) - used["link"])


class Station:
    """Interchangeable items, such as the threads of workers; processes wait for one in order."""

    def __init__(self, items: Iterable[Any]) -> None:
        self.free = deque(items)
        self.waiting: deque[Process] = deque()


@dataclass
class Machine:
    """Cores that the work in progress shares evenly.

    Attributes
    ----------
    left
        Process -> seconds of work left on a core of its own.
    since
        Time at which `left` was right.
    version
        Number of the last change; earlier forecasts of the next end are wrong.
    """

    cores: int
    left: dict[Process, float] = field(default_factory=dict)
    since: float = 0.0
    version: int = 0

    @property
    def speed(self) -> float:
        """Share of a core for each piece of work."""
        return min(1.0, self.cores / len(self.left))

    def advance(self, now: float) -> None:
        """Work until `now`."""
        if self.left:
            done = (now - self.since) * self.speed
            self.left = {process: left - done for process, left in self.left.items()}
        self.since = now


Process = Generator["Station | tuple[Machine, float]", Any, None]
"""Yields a station to wait for one of its items, or a machine and the seconds of work to do on it."""


class Clock:
    """Runs processes from event to event."""

    def __init__(self) -> None:
        self._now = 0.0
        self._numbers = count()
        self._ends: list[tuple[float, int, Machine, int]] = []

    def start(self, process: Process) -> None:
        """Start a process now."""
        self._resume(process, None)

    def release(self, station: Station, item: Any) -> None:
        """Give an item back; the first process that waits for one gets it."""
        if station.waiting:
            self._resume(station.waiting.popleft(), item)
        else:
            station.free.append(item)

    def run(self) -> float:
        """Run until nothing is left to do, and return the time."""
        while self._ends:
            time, _, machine, version = heapq.heappop(self._ends)
            if version != machine.version:
                continue
            self._now = time
            machine.advance(time)
            first = min(machine.left.values())
            ended = [process for process, left in machine.left.items() if left <= first]
            for process in ended:
                del machine.left[process]
            self._forecast(machine)
            for process in ended:
                self._resume(process, None)
        return self._now

    def _resume(self, process: Process, value: Any) -> None:
        """Run a process until it has to wait."""
        while True:
            try:
                wanted = next(process) if value is None else process.send(value)
            except StopIteration:
                return
            if isinstance(wanted, Station):
                if not wanted.free:
                    wanted.waiting.append(process)
                    return
                value = wanted.free.popleft()
                continue
            machine, seconds = wanted
            if seconds > 0:
                machine.advance(self._now)
                machine.left[process] = seconds
                self._forecast(machine)
                return
            value = None

    def _forecast(self, machine: Machine) -> None:
        """Note when the next work on a machine will end."""
        machine.version += 1
        if machine.left:
            end = self._now + max(0.0, min(machine.left.values())) / machine.speed
            heapq.heappush(self._ends, (end, next(self._numbers), machine, machine.version))
