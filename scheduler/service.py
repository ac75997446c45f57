"""The process that stays: waits for the hour, runs the night and refreshes, ends cleanly on a signal."""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from queue import Empty, SimpleQueue

from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.triggers.interval import IntervalTrigger

from contract.errors import OvernightError
from scheduler.job import Night
from scheduler.schedule import CronSchedule, LateWatch, missed

log = logging.getLogger(__name__)

NIGHT, REFRESH, LATE = "night", "refresh", "late"
LOOK_SECONDS = 60
STOP_SECONDS = 45
STOP_REFRESH_SECONDS = 5

LastStart = Callable[[], datetime | None]
"""When the newest run in the ledger started, None if there is none; raises OvernightError."""


@dataclass(frozen=True)
class Refreshes:
    """A refresh, and how often it runs; 0 minutes are never."""

    refresh: Night
    minutes: int


def serve(
    schedule: CronSchedule,
    night: Night,
    refreshes: Refreshes,
    last_start: LastStart,
    watch: LateWatch,
    *,
    at_once: bool,
) -> None:
    """Run every night when it is due until SIGTERM or SIGINT, then stop the running one and return.

    Parameters
    ----------
    refreshes
        What runs between the nights, and beside them.
    watch
        Looks once a minute whether a night is late.
    at_once
        Run a night now as well, without asking whether one was missed.
    """
    stop = _stop_signals()
    scheduler = make_scheduler(schedule, night, at_once=at_once)
    scheduler.add_job(
        lambda: watch.look(datetime.now(UTC)),
        "interval",
        seconds=LOOK_SECONDS,
        id=LATE,
        next_run_time=datetime.now(UTC),
    )
    add_refreshes(scheduler, refreshes)
    scheduler.start()
    _log_next(schedule)

    def run_now() -> None:
        scheduler.modify_job(NIGHT, next_run_time=datetime.now(UTC))

    settled = at_once
    while True:
        settled = settled or catch_up(schedule, last_start, datetime.now(UTC), run_now)
        try:
            number = stop.get(timeout=LOOK_SECONDS)
        except Empty:
            # The scheduler's timer stands still while a machine sleeps: have it look at the clock.
            scheduler.wakeup()
        else:
            break
    log.info("%s: stopping", signal.Signals(number).name)
    refreshes.refresh.stop(STOP_REFRESH_SECONDS)
    night.stop(STOP_SECONDS)
    scheduler.shutdown()


def make_scheduler(schedule: CronSchedule, night: Night, *, at_once: bool) -> BackgroundScheduler:
    """Build the scheduler with its one job; it is not started yet.

    However many times were slept through, they are made up for by one run; a
    time that comes while a night is still running is skipped, with a warning.
    """
    defaults = {"coalesce": True, "max_instances": 1, "misfire_grace_time": None}
    scheduler = BackgroundScheduler(timezone=schedule.zone, job_defaults=defaults)

    def run() -> None:
        night.run()
        if not night.stopping:
            _log_next(schedule)

    first = {"next_run_time": datetime.now(UTC)} if at_once else {}
    scheduler.add_job(run, schedule, id=NIGHT, **first)
    return scheduler


def add_refreshes(scheduler: BackgroundScheduler, refreshes: Refreshes) -> None:
    """Have a refresh every so many minutes; one that is due while another runs is left out."""
    if refreshes.minutes:
        scheduler.add_job(refreshes.refresh.run, IntervalTrigger(minutes=refreshes.minutes), id=REFRESH)


def catch_up(
    schedule: CronSchedule, last_start: LastStart, now: datetime, run_now: Callable[[], None]
) -> bool:
    """Run a night that fell due while no scheduler was up; True once that question is settled.

    An empty ledger settles it without a run: on a fresh installation the views
    are often not there yet, so the first night waits for its hour.
    """
    try:
        last_started_at = last_start()
    except OvernightError as error:
        log.warning("cannot tell whether a night was missed, asking again in a minute: %s", error)
        return False
    if last_started_at is None:
        log.info("no run yet: the first waits for its time (--now runs one at once)")
        return True
    due = missed(schedule, last_started_at, now)
    if due is not None:
        log.warning("the night of %s was missed: running it now", due.isoformat())
        run_now()
    return True


def _stop_signals() -> SimpleQueue[int]:
    """Return a queue that receives the number of every SIGTERM and SIGINT.

    A handler runs in the midst of other code, perhaps code that holds a lock of
    the scheduler's, so it must not shut anything down itself; SimpleQueue.put
    is safe there.
    """
    received: SimpleQueue[int] = SimpleQueue()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda caught, _frame: received.put(caught))
    return received


def _log_next(schedule: CronSchedule) -> None:
    log.info("next night: %s", schedule.next_after(datetime.now(UTC)).isoformat())
