"""The scheduler sends alerts for a late night and for a child process that could not send its own."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from contract.errors import SourceError
from contract.settings import Settings
from scheduler.__main__ import check_overdue
from scheduler.alerts import SchedulerAlerts
from scheduler.job import Job, JobResult
from scheduler.schedule import CronSchedule, LatenessMonitor, find_late_night
from scheduler.service import make_scheduler
from tests.support.scheduler import SATURDAY_NOON, python, until
from tests.support.webhook import Webhook, listening

AT_THREE = CronSchedule("0 3 * * *", "UTC")
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
SATURDAY_THREE = SATURDAY_NOON - 9 * HOUR

UNREACHABLE = {
    "database_url": "postgresql://postgres:hush@127.0.0.1:1/none",
    "redis_url": "redis://127.0.0.1:1/0",
}


@pytest.fixture
def hook() -> Iterator[Webhook]:
    with listening() as found:
        yield found


@pytest.fixture
def alerts(hook: Webhook) -> SchedulerAlerts:
    """Posts to the webhook; Postgres and Redis are unreachable."""
    return SchedulerAlerts(Settings.of(webhook_url=hook.url, **UNREACHABLE))


@pytest.mark.parametrize(
    ("live_at", "now", "late"),
    [
        (SATURDAY_THREE - 23 * HOUR, SATURDAY_THREE + 2 * HOUR - timedelta(seconds=1), None),
        (SATURDAY_THREE - 23 * HOUR, SATURDAY_THREE + 2 * HOUR, SATURDAY_THREE),
        (SATURDAY_THREE - timedelta(minutes=1), SATURDAY_THREE + 2 * HOUR, SATURDAY_THREE),
        (SATURDAY_THREE, SATURDAY_THREE + 9 * HOUR, None),
        (SATURDAY_THREE - 9 * DAY, SATURDAY_THREE + 9 * HOUR, SATURDAY_THREE),
        (SATURDAY_THREE - 9 * DAY, SATURDAY_THREE + HOUR, SATURDAY_THREE - DAY),
        (SATURDAY_THREE + 9 * DAY, SATURDAY_THREE + HOUR, None),
    ],
)
def test_a_night_is_late_if_no_run_went_live_long_after_it_was_due(
    live_at: datetime, now: datetime, late: datetime | None
) -> None:
    assert find_late_night(AT_THREE, live_at, now, 2 * HOUR) == late


def test_the_check_fails_when_a_night_was_started_and_is_late(capsys: pytest.CaptureFixture[str]) -> None:
    def check(live_at: datetime) -> None:
        started_at = SATURDAY_THREE + timedelta(seconds=1)
        check_overdue(AT_THREE, started_at, live_at, 2 * HOUR, SATURDAY_NOON)

    check(SATURDAY_THREE + HOUR)
    with pytest.raises(SystemExit) as ended:
        check(SATURDAY_THREE - 23 * HOUR)
    assert ended.value.code == 1
    assert "the night of 2026-11-21T03:00:00+00:00 is late" in capsys.readouterr().err


class MonitoredLedger:
    """A ledger that a test sets, and what a monitor of it reported."""

    def __init__(self, live_at: datetime | None) -> None:
        self.live_at = live_at
        self.unreachable = False
        self.queries = 0
        self.reports: list[tuple[str, str]] = []
        self.monitor = LatenessMonitor(
            AT_THREE,
            2 * HOUR,
            self._get_latest_live,
            on_late=lambda reason: self.reports.append(("late", reason)),
            on_recovered=lambda reason: self.reports.append(("recovered", reason)),
        )

    def _get_latest_live(self) -> datetime | None:
        self.queries += 1
        if self.unreachable:
            raise SourceError("Postgres at localhost: connection refused")
        return self.live_at

    def check(self, first: datetime, hours: int) -> list[str]:
        """Check every quarter of an hour for some hours, and return the kinds of reports in that time."""
        before = len(self.reports)
        for quarter in range(4 * hours):
            self.monitor.check(first + quarter * HOUR / 4)
        return [kind for kind, _ in self.reports[before:]]


def test_each_late_night_is_reported_once_and_so_is_the_recovery() -> None:
    ledger = MonitoredLedger(SATURDAY_THREE - DAY + HOUR)
    assert ledger.check(SATURDAY_THREE - HOUR, 3) == []
    assert ledger.check(SATURDAY_THREE + 2 * HOUR, 24) == ["late"]
    assert ledger.check(SATURDAY_THREE + DAY + 2 * HOUR, 5) == ["late"]
    ledger.live_at = SATURDAY_THREE + DAY + 7 * HOUR
    assert ledger.check(ledger.live_at, 12) == ["recovered"]
    assert [reason for _, reason in ledger.reports] == [
        f"the night of 2026-11-{day}T03:00:00+00:00 is late: "
        "no run has gone live since 2026-11-20T04:00:00+00:00"
        for day in (21, 22)
    ] + ["a run went live at 2026-11-22T10:00:00+00:00"]


def test_of_several_late_nights_only_the_newest_is_reported() -> None:
    assert len(MonitoredLedger(SATURDAY_THREE - 30 * DAY).check(SATURDAY_NOON, 1)) == 1


def test_a_night_in_time_needs_one_query_a_day_and_is_not_reported() -> None:
    ledger = MonitoredLedger(SATURDAY_THREE - DAY + HOUR)
    ledger.check(SATURDAY_THREE, 1)
    ledger.live_at = SATURDAY_THREE + HOUR
    ledger.check(SATURDAY_THREE + HOUR, 23)
    assert ledger.queries == 2
    assert ledger.reports == []


def test_nothing_is_late_before_the_first_run_of_all() -> None:
    assert MonitoredLedger(None).check(SATURDAY_THREE, 5) == []


def test_lateness_is_reported_from_the_last_known_state_while_postgres_is_unreachable(
    caplog: pytest.LogCaptureFixture,
) -> None:
    ledger = MonitoredLedger(SATURDAY_THREE - DAY + HOUR)
    ledger.check(SATURDAY_THREE, 1)
    ledger.unreachable = True
    assert ledger.check(SATURDAY_THREE + HOUR, 3) == ["late"]
    assert "connection refused" in caplog.text


def test_a_night_that_is_killed_is_reported_with_the_signal(alerts: SchedulerAlerts, hook: Webhook) -> None:
    Job(python("import os; os.kill(os.getpid(), 9)"), alerts.on_night_end).run()
    (post,) = hook.posts
    assert (post["event"], post["exit_code"]) == ("run_failed", -9)
    assert post["reason"] == "the night: killed by SIGKILL, perhaps because memory ran out"


def test_a_night_that_cannot_be_started_is_reported(alerts: SchedulerAlerts, hook: Webhook) -> None:
    Job(["/no/such/program"], alerts.on_night_end).run()
    (post,) = hook.posts
    assert (post["event"], post["exit_code"]) == ("run_failed", None)
    assert post["reason"].startswith("the night: could not be started: ")


def test_a_night_that_finds_the_lock_held_has_its_own_event(alerts: SchedulerAlerts, hook: Webhook) -> None:
    Job(python("raise SystemExit(4)"), alerts.on_night_end).run()
    assert hook.events == ["run_locked"]


@pytest.mark.parametrize("code", [0, 1, 2, 3])
def test_a_night_that_sends_its_own_alert_is_not_reported_again(
    code: int, alerts: SchedulerAlerts, hook: Webhook
) -> None:
    Job(python(f"raise SystemExit({code})"), alerts.on_night_end).run()
    assert hook.posts == []


def test_a_night_that_is_stopped_with_the_scheduler_is_not_reported(tmp_path: Path) -> None:
    results: list[JobResult] = []
    code = "import pathlib, signal, sys; pathlib.Path(sys.argv[1]).touch(); signal.pause()"
    night = Job(python(code, tmp_path / "ready"), results.append)
    scheduler = make_scheduler(AT_THREE, night, run_now=True)
    scheduler.start()
    until((tmp_path / "ready").exists)
    night.stop(timeout_seconds=5)
    scheduler.shutdown()
    assert results == []


def refresh_result(code: int) -> JobResult:
    return JobResult(code, "failed", 1, SATURDAY_NOON)


def test_refreshes_that_keep_failing_are_reported_once_and_so_is_the_recovery(
    alerts: SchedulerAlerts, hook: Webhook
) -> None:
    for code in (1, 1, 0, 1, 4, 1):
        alerts.on_refresh_end(refresh_result(code))
    assert hook.events == []
    for code in (1, 1, 1, 4, -9, 0, 0, 1):
        alerts.on_refresh_end(refresh_result(code))
    assert hook.events == ["refresh_failed", "refresh_recovered"]
    assert "3 refreshes in a row failed; the last: failed" in hook.posts[0]["reason"]
    assert "after 6 that failed" in hook.posts[1]["reason"]


def test_lateness_and_recovery_are_posted(alerts: SchedulerAlerts, hook: Webhook) -> None:
    alerts.on_late("the night of yesterday is late")
    alerts.on_recovered("a run went live")
    assert hook.events == ["run_late", "run_recovered"]
    assert "hush" not in str(hook.posts)
