"""`python -m scheduler`: run the night on schedule."""

from __future__ import annotations

import logging
import sys
from datetime import UTC, datetime, timedelta

import click

from batch.postgres import open_engine, readable_errors
from batch.runs.freshness import latest_live
from batch.runs.ledger import latest_start
from contract.errors import EXIT_FAILED, OvernightError, SettingsError
from contract.logs import configure_logging
from contract.settings import Settings
from scheduler.alerts import Alarm
from scheduler.job import COMMAND, Night, quiet_refresh
from scheduler.schedule import CronSchedule, LatestLive, LateWatch, late_night, missed
from scheduler.service import LastStart, Refreshes, serve

OVERDUE_AFTER = timedelta(minutes=15)


@click.command()
@click.option("--now", "at_once", is_flag=True, help="Run a night at once, then go on with the schedule.")
@click.option(
    "--check",
    is_flag=True,
    help="Exit 1 if a night is overdue or Postgres cannot be asked, 0 otherwise.",
)
@click.argument("command", nargs=-1)
def cli(at_once: bool, check: bool, command: tuple[str, ...]) -> None:
    """Run the night whenever OVERNIGHT_NIGHTLY_CRON is due in OVERNIGHT_TIMEZONE.

    Every OVERNIGHT_REFRESH_MINUTES users who acted since get new lists.

    A night that fell due while nothing was up is run at once at the start,
    unless there has never been a run. SIGTERM and Ctrl-C stop a running night
    first.

    COMMAND, after --, is run in place of `python -m batch run --variant all`.
    """
    if command and "--" not in sys.argv:
        raise click.UsageError(
            f"there is no argument {command[0]!r}; a command to run in place of the night goes after --"
        )
    try:
        settings = Settings.from_environment()
        schedule = read_schedule(settings)
        last_start, newest_live = ledger_readers(settings)
        after = timedelta(minutes=settings.schedule.late_after_minutes)
        if check:
            check_overdue(schedule, last_start, newest_live, after, datetime.now(UTC))
            return
        configure_logging(settings)
        logging.getLogger("apscheduler").setLevel(logging.WARNING)
        alarm = Alarm(settings)
        night = Night(command or COMMAND, alarm.night_ended)
        watch = LateWatch(schedule, after, newest_live, alarm.late, alarm.mended)
        refreshes = Refreshes(quiet_refresh(alarm.refresh_ended), settings.schedule.refresh_minutes)
        serve(schedule, night, refreshes, last_start, watch, at_once=at_once)
    except OvernightError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)


def read_schedule(settings: Settings) -> CronSchedule:
    """Build the schedule of the settings.

    Raises
    ------
    SettingsError
        If the cron expression cannot be read or never fires.
    """
    try:
        return CronSchedule(settings.schedule.nightly_cron, settings.schedule.timezone)
    except ValueError as error:
        raise SettingsError(f"OVERNIGHT_NIGHTLY_CRON={settings.schedule.nightly_cron!r}: {error}") from None


def ledger_readers(settings: Settings) -> tuple[LastStart, LatestLive]:
    """Return functions that ask the ledger when the newest run started, and when one last went live."""
    engine = open_engine(settings, "overnight scheduler")

    def last_start() -> datetime | None:
        with readable_errors(settings):
            return latest_start(engine)

    def newest_live() -> datetime | None:
        with readable_errors(settings):
            return latest_live(engine, settings.stores.key_prefix)

    return last_start, newest_live


def check_overdue(
    schedule: CronSchedule, last_start: LastStart, newest_live: LatestLive, after: timedelta, now: datetime
) -> None:
    """Say when the newest run started; exit 1 if a night that was due has not, or is late (see `late_night`).

    Raises
    ------
    SourceError
        If Postgres cannot be asked.
    """
    last_started_at, live_at = last_start(), newest_live()
    if last_started_at is None:
        click.echo("no run yet")
        return
    due = missed(schedule, last_started_at, now - OVERDUE_AFTER)
    late = None if live_at is None else late_night(schedule, live_at, now, after)
    if due is not None:
        click.echo(f"error: the night of {due.isoformat()} has not been started", err=True)
        sys.exit(EXIT_FAILED)
    if late is not None:
        click.echo(f"error: the night of {late.isoformat()} is late: no run has gone live since", err=True)
        sys.exit(EXIT_FAILED)
    click.echo(f"the newest run started at {last_started_at.astimezone(schedule.zone).isoformat()}")


if __name__ == "__main__":
    cli()
