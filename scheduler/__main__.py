"""`python -m scheduler`: run the night on schedule."""

from __future__ import annotations

import logging
import sys
from datetime import UTC, datetime, timedelta

import click

from batch.formatting import echo
from batch.postgres import describe, open_engine, readable_errors
from batch.runs.freshness import latest_live
from batch.runs.ledger import latest_start
from contract.errors import EXIT_FAILED, OvernightError
from contract.logs import configure_logging
from contract.settings import Settings
from scheduler.alerts import SchedulerAlerts
from scheduler.job import NIGHT_COMMAND, Job, refresh_job
from scheduler.schedule import (
    CronSchedule,
    GetLatestLive,
    LatenessMonitor,
    find_late_night,
    find_missed_night,
)
from scheduler.service import GetLastStart, Refreshes, serve

OVERDUE_AFTER = timedelta(minutes=15)


@click.command()
@click.option("--now", "run_now", is_flag=True, help="Run a night at once, then follow the schedule.")
@click.option(
    "--check",
    is_flag=True,
    help="Exit 1 if a night is overdue or late, or Postgres cannot be queried; else exit 0.",
)
@click.argument("command", nargs=-1)
def cli(run_now: bool, check: bool, command: tuple[str, ...]) -> None:
    """Run the night whenever OVERNIGHT_NIGHTLY_CRON is due in OVERNIGHT_TIMEZONE.

    Every OVERNIGHT_REFRESH_MINUTES, users who acted since the night get new
    lists.

    A night that was due while no scheduler was running is run at the start,
    unless there has never been a run. SIGTERM and Ctrl-C first stop a running
    night.

    COMMAND, after --, replaces `python -m batch run --variant all`.
    """
    if command and "--" not in sys.argv:
        raise click.UsageError(
            f"there is no argument {command[0]!r}; put a command that replaces the night after --"
        )
    try:
        settings = Settings.from_environment()
        schedule = CronSchedule(settings.schedule.nightly_cron, settings.schedule.timezone)
        get_last_start, get_latest_live = ledger_readers(settings)
        late_after = timedelta(minutes=settings.schedule.late_after_minutes)
        if check:
            last_start, latest_live = get_last_start(), get_latest_live()
            check_overdue(schedule, last_start, latest_live, late_after, datetime.now(UTC))
            return
        configure_logging(settings)
        logging.getLogger("scheduler").info("%s", describe(settings))
        logging.getLogger("apscheduler").setLevel(logging.WARNING)
        alerts = SchedulerAlerts(settings)
        night = Job(command or NIGHT_COMMAND, alerts.on_night_end)
        refreshes = Refreshes(refresh_job(alerts.on_refresh_end), settings.schedule.refresh_minutes)
        lateness = LatenessMonitor(
            schedule,
            late_after,
            get_latest_live,
            on_late=alerts.on_late,
            on_recovered=alerts.on_recovered,
        )
        serve(schedule, night, refreshes, get_last_start, lateness, run_now=run_now)
    except OvernightError as error:
        echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)


def ledger_readers(settings: Settings) -> tuple[GetLastStart, GetLatestLive]:
    """Return functions that read from the ledger when the newest run started and when one last went live."""
    engine = open_engine(settings, "overnight scheduler")

    def get_last_start() -> datetime | None:
        with readable_errors(settings):
            return latest_start(engine)

    def get_latest_live() -> datetime | None:
        with readable_errors(settings):
            return latest_live(engine, settings.stores.key_prefix)

    return get_last_start, get_latest_live


def check_overdue(
    schedule: CronSchedule,
    last_started_at: datetime | None,
    live_at: datetime | None,
    late_after: timedelta,
    now: datetime,
) -> None:
    """Print when the newest run started; exit 1 if a due night has not started or is late.

    Parameters
    ----------
    last_started_at
        Start of the newest run; None without a run.
    live_at
        When a run last went live; None without a run. See `find_late_night`.
    """
    if last_started_at is None:
        echo("no run yet")
        return
    due = find_missed_night(schedule, last_started_at, now - OVERDUE_AFTER)
    late = None if live_at is None else find_late_night(schedule, live_at, now, late_after)
    if due is not None:
        echo(f"error: the night of {due.isoformat()} has not been started", err=True)
        sys.exit(EXIT_FAILED)
    if late is not None:
        echo(f"error: the night of {late.isoformat()} is late: no run has gone live since", err=True)
        sys.exit(EXIT_FAILED)
    echo(f"the newest run started at {last_started_at.astimezone(schedule.zone).isoformat()}")


if __name__ == "__main__":
    cli()
