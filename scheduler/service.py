"""The scheduler process: start the night and the refreshes on time, and stop cleanly on a signal."""

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
from scheduler.job import Job
from scheduler.schedule import CronSchedule, LatenessMonitor, find_missed_night

log = logging.getLogger(__name__)

NIGHT, REFRESH, LATENESS = "night", "refresh", "lateness"
"""Ids of APScheduler's jobs."""

POLL_SECONDS = 60
STOP_SECONDS = 45
STOP_REFRESH_SECONDS = 5

GetLastStart = Callable[[], datetime | None]
"""Returns when the newest run in the ledger started, None without a run; raises OvernightError."""


@dataclass(frozen=True)
class Refreshes:
    """The refresh job and its interval in minutes; 0 switches refreshes off."""

    job: Job
    minutes: int


def serve(
    schedule: CronSchedule,
    night: Job,
    refreshes: Refreshes,
    get_last_start: GetLastStart,
    lateness: LatenessMonitor,
    *,
    run_now: bool,
) -> None:
    """Run every night when it is due until SIGTERM or SIGINT; then stop the running one and return.

    Parameters
    ----------
    refreshes
        Run between the nights, and beside a running one.
    lateness
        Checked once a minute.
    run_now
        Also run a night at once, whether or not one was missed.
    """
    stop = _catch_stop_signals()
    scheduler = make_scheduler(schedule, night, run_now=run_now)
    scheduler.add_job(
        lambda: lateness.check(datetime.now(UTC)),
        "interval",
        seconds=POLL_SECONDS,
        id=LATENESS,
        next_run_time=datetime.now(UTC),
    )
    add_refreshes(scheduler, refreshes)
    scheduler.start()
    _log_next(schedule)

    def start_night() -> None:
        scheduler.modify_job(NIGHT, next_run_time=datetime.now(UTC))

    caught_up = run_now
    while True:
        caught_up = caught_up or catch_up(schedule, get_last_start, datetime.now(UTC), start_night)
        try:
            number = stop.get(timeout=POLL_SECONDS)
        except Empty:
            # The scheduler's timer stops while a machine sleeps: make it read the clock.
            scheduler.wakeup()
        else:
            break
    log.info("%s: stopping", signal.Signals(number).name)
    refreshes.job.stop(STOP_REFRESH_SECONDS)
    night.stop(STOP_SECONDS)
    scheduler.shutdown()


def make_scheduler(schedule: CronSchedule, night: Job, *, run_now: bool) -> BackgroundScheduler:
    """Build the scheduler with the night as its one job; it is not started yet.

    Several due times that passed while the machine slept give one run. A due
    time that comes while a night is running is skipped with a warning.
    """
    defaults = {"coalesce": True, "max_instances": 1, "misfire_grace_time": None}
    scheduler = BackgroundScheduler(timezone=schedule.zone, job_defaults=defaults)

    def run_night() -> None:
        night.run()
        if not night.stopping:
            _log_next(schedule)

    first = {"next_run_time": datetime.now(UTC)} if run_now else {}
    scheduler.add_job(run_night, schedule, id=NIGHT, **first)
    return scheduler


def add_refreshes(scheduler: BackgroundScheduler, refreshes: Refreshes) -> None:
    """Run a refresh at each interval; one that is due while another runs is skipped."""
    if refreshes.minutes:
        scheduler.add_job(refreshes.job.run, IntervalTrigger(minutes=refreshes.minutes), id=REFRESH)


def catch_up(
    schedule: CronSchedule, get_last_start: GetLastStart, now: datetime, start_night: Callable[[], None]
) -> bool:
    """Start a night that was due while no scheduler was running; return False if this must be asked again.

    An empty ledger starts no night: on a fresh installation the views often do
    not exist yet, so the first night waits for its due time.
    """
    try:
        last_started_at = get_last_start()
    except OvernightError as error:
        log.warning("cannot tell whether a night was missed; asking again in a minute: %s", error)
        return False
    if last_started_at is None:
        log.info("no run yet: the first waits for its due time (--now runs one at once)")
        return True
    due = find_missed_night(schedule, last_started_at, now)
    if due is not None:
        log.warning("the night of %s was missed: running it now", due.isoformat())
        start_night()
    return True


def _catch_stop_signals() -> SimpleQueue[int]:
    """Return a queue that receives the number of every SIGTERM and SIGINT.

    A handler interrupts other code, which may hold a lock of the scheduler, so
    it must not shut anything down itself. SimpleQueue.put is safe in a handler.
    """
    received: SimpleQueue[int] = SimpleQueue()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda caught, _frame: received.put(caught))
    return received


def _log_next(schedule: CronSchedule) -> None:
    log.info("next night: %s", schedule.next_after(datetime.now(UTC)).isoformat())
