"""Jobs run as child processes, one at a time, and several missed nights give one run."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from apscheduler.events import EVENT_JOB_MAX_INSTANCES, JobSubmissionEvent

from contract.errors import SourceError
from scheduler.job import Job, refresh_job
from scheduler.schedule import CronSchedule, find_missed_night
from scheduler.service import NIGHT, REFRESH, Refreshes, add_refreshes, catch_up, make_scheduler
from tests.support.scheduler import DEADLINE_SECONDS, NOTE, SATURDAY_NOON, lines, python, until

MakeJob = Callable[[list[str]], Job]


@pytest.fixture
def make_job() -> Iterator[MakeJob]:
    """Make jobs that are stopped at the end of the test, whatever its outcome."""
    made: list[Job] = []

    def make(command: list[str]) -> Job:
        made.append(Job(command))
        return made[-1]

    yield make
    for job in made:
        job.stop(timeout_seconds=1)


AT_THREE = CronSchedule("0 3 * * *", "UTC")


def test_a_night_is_missed_if_it_was_due_and_no_run_has_started_since() -> None:
    last_started_at = datetime(2026, 11, 20, 3, 0, 1, tzinfo=UTC)
    saturday_three = datetime(2026, 11, 21, 3, tzinfo=UTC)
    assert find_missed_night(AT_THREE, last_started_at, saturday_three - timedelta(seconds=1)) is None
    assert find_missed_night(AT_THREE, last_started_at, saturday_three) == saturday_three
    assert find_missed_night(AT_THREE, last_started_at, saturday_three + timedelta(days=5)) == saturday_three
    assert find_missed_night(AT_THREE, datetime(2030, 1, 1, tzinfo=UTC), SATURDAY_NOON) is None


def test_a_missed_night_is_run_once_at_the_start() -> None:
    runs: list[str] = []
    long_ago = SATURDAY_NOON - timedelta(days=9)
    assert catch_up(AT_THREE, lambda: long_ago, SATURDAY_NOON, lambda: runs.append("run"))
    assert runs == ["run"]


def test_no_night_is_run_at_the_start_if_none_was_missed_or_no_run_exists() -> None:
    runs: list[str] = []
    for last_started_at in (SATURDAY_NOON - timedelta(hours=1), None):
        assert catch_up(AT_THREE, lambda: last_started_at, SATURDAY_NOON, lambda: runs.append("run"))  # noqa: B023
    assert runs == []


def test_catching_up_is_retried_while_the_ledger_cannot_be_read(caplog: pytest.LogCaptureFixture) -> None:
    def unreachable() -> datetime | None:
        raise SourceError("Postgres at localhost: connection refused")

    runs: list[str] = []
    assert not catch_up(AT_THREE, unreachable, SATURDAY_NOON, lambda: runs.append("run"))
    assert runs == []
    assert "connection refused" in caplog.text


@pytest.mark.parametrize(
    ("code", "level", "meaning"),
    [
        (0, logging.INFO, "done"),
        (1, logging.ERROR, "failed"),
        (2, logging.ERROR, "bad usage or settings"),
        (3, logging.ERROR, "refused by the gate"),
        (4, logging.WARNING, "another run holds the lock"),
        (77, logging.ERROR, "unknown"),
    ],
)
def test_the_end_of_a_night_is_logged_with_its_exit_code_and_meaning(
    code: int, level: int, meaning: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        assert Job(python(f"raise SystemExit({code})")).run() == code
    assert caplog.records[-1].levelno == level
    assert caplog.records[-1].getMessage() == f"the night ended: exit code {code}, {meaning}"


def test_a_night_killed_from_outside_is_logged_with_the_signal(caplog: pytest.LogCaptureFixture) -> None:
    assert Job(python("import os; os.kill(os.getpid(), 9)")).run() == -9
    assert "SIGKILL" in caplog.text


def test_a_night_that_cannot_be_started_is_logged_and_not_raised(caplog: pytest.LogCaptureFixture) -> None:
    assert Job(["/no/such/program"]).run() is None
    assert "could not be started" in caplog.text


STUBBORN = """
import signal, sys, pathlib
signal.signal(signal.SIGTERM, signal.SIG_IGN)
pathlib.Path(sys.argv[1]).touch()
signal.pause()
"""


def test_a_night_that_ignores_sigterm_is_killed_after_the_timeout(tmp_path: Path, make_job: MakeJob) -> None:
    night = make_job(python(STUBBORN, tmp_path / "ready"))
    codes: list[int | None] = []
    thread = threading.Thread(target=lambda: codes.append(night.run()))
    thread.start()
    until((tmp_path / "ready").exists)
    night.stop(timeout_seconds=0.1)
    thread.join()
    assert codes == [-signal.SIGKILL]


def test_no_night_starts_after_the_stop(tmp_path: Path) -> None:
    night = Job(python("import sys, pathlib; pathlib.Path(sys.argv[1]).touch()", tmp_path / "ran"))
    night.stop(timeout_seconds=1)
    assert night.run() is None
    assert not (tmp_path / "ran").exists()


NOTE_AND_WAIT = NOTE + "; import signal; signal.pause()"


def test_many_missed_due_times_give_one_night(tmp_path: Path, make_job: MakeJob) -> None:
    night = make_job(python(NOTE, tmp_path / "notes"))
    scheduler = make_scheduler(CronSchedule("0 * * * *", "UTC"), night, run_now=False)
    scheduler.start(paused=True)
    scheduler.modify_job(NIGHT, next_run_time=datetime.now(UTC) - timedelta(days=3))
    scheduler.resume()
    until(lambda: lines(tmp_path / "notes"))
    until(lambda: scheduler.get_job(NIGHT).next_run_time > datetime.now(UTC))
    scheduler.shutdown()
    assert lines(tmp_path / "notes") == ["ran"]


def test_a_night_does_not_start_while_another_is_running(tmp_path: Path, make_job: MakeJob) -> None:
    night = make_job(python(NOTE_AND_WAIT, tmp_path / "notes"))
    scheduler = make_scheduler(AT_THREE, night, run_now=True)
    skipped: list[JobSubmissionEvent] = []
    scheduler.add_listener(skipped.append, EVENT_JOB_MAX_INSTANCES)
    scheduler.start()
    until(lambda: lines(tmp_path / "notes"))
    scheduler.modify_job(NIGHT, next_run_time=datetime.now(UTC))
    until(lambda: skipped)
    night.stop(timeout_seconds=DEADLINE_SECONDS)
    scheduler.shutdown()
    assert lines(tmp_path / "notes") == ["ran"]


def test_a_refresh_runs_at_its_interval_beside_a_running_night(tmp_path: Path, make_job: MakeJob) -> None:
    night = make_job(python(NOTE_AND_WAIT, tmp_path / "nights"))
    refresh = make_job(python(NOTE, tmp_path / "refreshes"))
    scheduler = make_scheduler(AT_THREE, night, run_now=True)
    add_refreshes(scheduler, Refreshes(refresh, 5))
    scheduler.start()
    assert scheduler.get_job(REFRESH).trigger.interval == timedelta(minutes=5)
    until(lambda: lines(tmp_path / "nights"))
    scheduler.modify_job(REFRESH, next_run_time=datetime.now(UTC))
    until(lambda: lines(tmp_path / "refreshes"))
    night.stop(timeout_seconds=DEADLINE_SECONDS)
    scheduler.shutdown()


def test_an_interval_of_zero_schedules_no_refresh() -> None:
    scheduler = make_scheduler(AT_THREE, Job(python("")), run_now=False)
    add_refreshes(scheduler, Refreshes(refresh_job(), 0))
    assert scheduler.get_job(REFRESH) is None


def test_a_refresh_is_logged_only_if_it_fails(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        assert Job(python(""), name="refresh", log_level=logging.DEBUG).run() == 0
        assert caplog.records == []
        Job(python("raise SystemExit(1)"), name="refresh", log_level=logging.DEBUG).run()
    assert caplog.messages == ["the refresh ended: exit code 1, failed"]
