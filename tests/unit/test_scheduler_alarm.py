"""The scheduler tells of a night that is late, and of what a dead child cannot tell itself."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from contract.errors import SourceError
from contract.settings import Settings
from scheduler.__main__ import check_overdue
from scheduler.alerts import Alarm
from scheduler.job import Ended, Night
from scheduler.schedule import CronSchedule, LateWatch, late_night
from scheduler.service import make_scheduler
from tests.support.scheduler import SATURDAY_NOON, python, until
from tests.support.webhook import Webhook, listening

AT_THREE = CronSchedule("0 3 * * *", "UTC")
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
SATURDAY_THREE = SATURDAY_NOON - 9 * HOUR

NOWHERE = {
    "database_url": "postgresql://postgres:hush@127.0.0.1:1/none",
    "redis_url": "redis://127.0.0.1:1/0",
}


@pytest.fixture
def hook() -> Iterator[Webhook]:
    with listening() as found:
        yield found


@pytest.fixture
def alarm(hook: Webhook) -> Alarm:
    """Posts to the webhook; Postgres and Redis are away."""
    return Alarm(Settings.of(webhook_url=hook.url, **NOWHERE))


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
def test_a_night_is_late_when_no_run_is_live_so_long_after_it_was_due(
    live_at: datetime, now: datetime, late: datetime | None
) -> None:
    assert late_night(AT_THREE, live_at, now, 2 * HOUR) == late


def test_the_check_fails_when_a_night_was_started_and_is_late(capsys: pytest.CaptureFixture[str]) -> None:
    def check(live_at: datetime) -> None:
        started_at = SATURDAY_THREE + timedelta(seconds=1)
        check_overdue(AT_THREE, lambda: started_at, lambda: live_at, 2 * HOUR, SATURDAY_NOON)

    check(SATURDAY_THREE + HOUR)
    with pytest.raises(SystemExit) as ended:
        check(SATURDAY_THREE - 23 * HOUR)
    assert ended.value.code == 1
    assert "the night of 2026-11-21T03:00:00+00:00 is late" in capsys.readouterr().err


class Watched:
    """A watch over a ledger that a test writes, and what it said."""

    def __init__(self, live_at: datetime | None) -> None:
        self.live_at = live_at
        self.away = False
        self.asked = 0
        self.told: list[tuple[str, str]] = []
        self.watch = LateWatch(
            AT_THREE,
            2 * HOUR,
            self._latest_live,
            lambda reason: self.told.append(("late", reason)),
            lambda reason: self.told.append(("mended", reason)),
        )

    def _latest_live(self) -> datetime | None:
        self.asked += 1
        if self.away:
            raise SourceError("Postgres at localhost: connection refused")
        return self.live_at

    def look(self, first: datetime, hours: int) -> list[str]:
        """Look every quarter of an hour for some hours, and return what was said in that time."""
        before = len(self.told)
        for quarter in range(4 * hours):
            self.watch.look(first + quarter * HOUR / 4)
        return [kind for kind, _ in self.told[before:]]


def test_each_late_night_is_told_once_and_once_that_it_is_mended() -> None:
    watched = Watched(SATURDAY_THREE - DAY + HOUR)
    assert watched.look(SATURDAY_THREE - HOUR, 3) == []
    assert watched.look(SATURDAY_THREE + 2 * HOUR, 24) == ["late"]
    assert watched.look(SATURDAY_THREE + DAY + 2 * HOUR, 5) == ["late"]
    watched.live_at = SATURDAY_THREE + DAY + 7 * HOUR
    assert watched.look(watched.live_at, 12) == ["mended"]
    assert [reason for _, reason in watched.told] == [
        f"the night of 2026-11-{day}T03:00:00+00:00 is late: "
        "no run has gone live since 2026-11-20T04:00:00+00:00"
        for day in (21, 22)
    ] + ["a run went live at 2026-11-22T10:00:00+00:00"]


def test_nights_slept_through_are_told_by_the_newest_alone() -> None:
    assert len(Watched(SATURDAY_THREE - 30 * DAY).look(SATURDAY_NOON, 1)) == 1


def test_a_night_in_time_asks_the_ledger_once_a_day_and_says_nothing() -> None:
    watched = Watched(SATURDAY_THREE - DAY + HOUR)
    watched.look(SATURDAY_THREE, 1)
    watched.live_at = SATURDAY_THREE + HOUR
    watched.look(SATURDAY_THREE + HOUR, 23)
    assert watched.asked == 2
    assert watched.told == []


def test_nothing_is_late_before_the_first_run_of_all() -> None:
    assert Watched(None).look(SATURDAY_THREE, 5) == []


def test_a_night_is_late_by_what_was_known_while_postgres_is_away(caplog: pytest.LogCaptureFixture) -> None:
    watched = Watched(SATURDAY_THREE - DAY + HOUR)
    watched.look(SATURDAY_THREE, 1)
    watched.away = True
    assert watched.look(SATURDAY_THREE + HOUR, 3) == ["late"]
    assert "connection refused" in caplog.text


def test_a_night_that_is_killed_is_told_with_the_signal(alarm: Alarm, hook: Webhook) -> None:
    Night(python("import os; os.kill(os.getpid(), 9)"), alarm.night_ended).run()
    (post,) = hook.posts
    assert (post["event"], post["exit_code"]) == ("run_failed", -9)
    assert post["reason"] == "the night: killed by SIGKILL, perhaps for want of memory"


def test_a_night_that_cannot_be_started_is_told(alarm: Alarm, hook: Webhook) -> None:
    Night(["/no/such/program"], alarm.night_ended).run()
    (post,) = hook.posts
    assert (post["event"], post["exit_code"]) == ("run_failed", None)
    assert post["reason"].startswith("the night: could not be started: ")


def test_a_night_that_finds_the_lock_held_is_told_as_a_warning_of_its_own(
    alarm: Alarm, hook: Webhook
) -> None:
    Night(python("raise SystemExit(4)"), alarm.night_ended).run()
    assert hook.events == ["run_locked"]


@pytest.mark.parametrize("code", [0, 1, 2, 3])
def test_what_a_night_tells_itself_is_not_told_twice(code: int, alarm: Alarm, hook: Webhook) -> None:
    Night(python(f"raise SystemExit({code})"), alarm.night_ended).run()
    assert hook.posts == []


def test_a_night_that_is_stopped_with_the_scheduler_is_not_told(tmp_path: Path) -> None:
    told: list[Ended] = []
    code = "import pathlib, signal, sys; pathlib.Path(sys.argv[1]).touch(); signal.pause()"
    night = Night(python(code, tmp_path / "ready"), told.append)
    scheduler = make_scheduler(AT_THREE, night, at_once=True)
    scheduler.start()
    until((tmp_path / "ready").exists)
    night.stop(timeout_seconds=5)
    scheduler.shutdown()
    assert told == []


def refresh(code: int) -> Ended:
    return Ended(code, "failed", 1, SATURDAY_NOON)


def test_refreshes_that_keep_failing_are_told_once_and_once_that_they_work_again(
    alarm: Alarm, hook: Webhook
) -> None:
    for code in (1, 1, 0, 1, 4, 1):
        alarm.refresh_ended(refresh(code))
    assert hook.events == []
    for code in (1, 1, 1, 4, -9, 0, 0, 1):
        alarm.refresh_ended(refresh(code))
    assert hook.events == ["refresh_failed", "refresh_recovered"]
    assert "3 refreshes in a row; the last: failed" in hook.posts[0]["reason"]
    assert "after 6 that failed" in hook.posts[1]["reason"]


def test_lateness_is_told_and_so_is_its_end(alarm: Alarm, hook: Webhook) -> None:
    alarm.late("the night of yesterday is late")
    alarm.mended("a run went live")
    assert hook.events == ["run_late", "run_recovered"]
    assert "hush" not in str(hook.posts)
