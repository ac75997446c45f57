"""`python -m scheduler` as a process: signals, a failing night, unreachable Postgres."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa

from batch.postgres import open_engine
from batch.runs import ledger
from contract.columns import SCHEMA
from contract.experiment import CONTROL
from contract.settings import Settings
from tests.support.batch import ledger_stores
from tests.support.scheduler import DEADLINE_SECONDS, NOTE, lines, python, until
from tests.support.webhook import listening

ROOT = Path(__file__).parents[2]


class Process:
    """A running `python -m scheduler` with its log in a file."""

    def __init__(self, folder: Path, environment: dict[str, str], *arguments: str) -> None:
        self.log = folder / "log"
        with self.log.open("w") as log:
            self.child = subprocess.Popen(
                [sys.executable, "-m", "scheduler", *arguments],
                cwd=ROOT,
                env=os.environ
                | {"OVERNIGHT_NIGHTLY_CRON": "0 3 1 1 *", "OVERNIGHT_LOG_LEVEL": "INFO"}
                | environment,
                stderr=log,
            )

    def wait_for(self, text: str, times: int = 1) -> None:
        until(lambda: self.log.read_text().count(text) >= times or self.child.poll() is not None)
        assert self.log.read_text().count(text) >= times, self.log.read_text()

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        self.child.send_signal(number)
        return self.child.wait(DEADLINE_SECONDS)


Start = Callable[..., Process]
UNREACHABLE = {"DATABASE_URL": "postgresql://postgres:hush@127.0.0.1:1/none"}


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    started: list[Process] = []

    def start_process(environment: dict[str, str], *arguments: str) -> Process:
        started.append(Process(tmp_path, environment, *arguments))
        return started[-1]

    yield start_process
    for process in started:
        if process.child.poll() is None:
            process.end()


POLITE = """
import os, pathlib, signal, sys
def stop(*_):
    pathlib.Path(sys.argv[1], "stopped").touch()
    raise SystemExit(1)
signal.signal(signal.SIGTERM, stop)
pathlib.Path(sys.argv[1], "pid").write_text(str(os.getpid()) + "\\n")
while True:
    signal.pause()
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_the_running_night_and_then_the_scheduler(
    start: Start, tmp_path: Path, number: signal.Signals
) -> None:
    process = start(UNREACHABLE, "--now", "--", *python(POLITE, tmp_path))
    until(lambda: lines(tmp_path / "pid"))
    assert process.end(number) == 0
    assert (tmp_path / "stopped").exists()
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_the_scheduler_survives_a_failed_night_and_logs_the_next(start: Start) -> None:
    process = start(UNREACHABLE, "--now", "--", *python("raise SystemExit(3)"))
    process.wait_for("exit code 3, refused by the gate")
    process.wait_for("next night: ", times=2)
    assert process.child.poll() is None
    assert process.end() == 0


def test_the_scheduler_starts_while_postgres_is_unreachable_and_shows_no_password(start: Start) -> None:
    process = start(UNREACHABLE)
    process.wait_for("Postgres at 127.0.0.1:1, database none")
    process.wait_for("next night: ")
    process.wait_for("cannot tell whether a night was missed")
    assert process.child.poll() is None
    assert process.end() == 0
    assert "hush" not in process.log.read_text()


def test_a_bad_cron_expression_ends_the_scheduler_with_one_line(start: Start) -> None:
    process = start({"OVERNIGHT_NIGHTLY_CRON": "0 25 * * *"})
    assert process.child.wait(DEADLINE_SECONDS) == 2
    (line,) = lines(process.log)
    assert line.startswith("error: OVERNIGHT_NIGHTLY_CRON='0 25 * * *': ")


@pytest.fixture
def engine(database_url: str) -> Iterator[sa.Engine]:
    """A database with an empty ledger."""
    engine = open_engine(Settings.of(database_url=database_url))
    with engine.begin() as connection:
        connection.execute(sa.schema.CreateSchema(SCHEMA))
    ledger.create(engine)
    yield engine
    engine.dispose()


def days_ago(days: float) -> datetime:
    return datetime.now(UTC) - timedelta(days=days)


def test_a_night_missed_while_no_scheduler_was_running_is_run_and_reported_at_its_start(
    start: Start, tmp_path: Path, engine: sa.Engine, database_url: str
) -> None:
    for days in (800, 400):
        ledger.start(ledger_stores(engine), CONTROL, days_ago(days))
    with listening() as hook:
        environment = {"DATABASE_URL": database_url, "OVERNIGHT_WEBHOOK_URL": hook.url}
        process = start(environment, "--", *python(NOTE + "; import os; os.abort()", tmp_path / "notes"))
        process.wait_for("the night ended: exit code -6")
        process.wait_for("was delivered to 127.0.0.1", times=2)
        assert process.end() == 0
    assert lines(tmp_path / "notes") == ["ran"]
    assert sorted(hook.events) == ["run_failed", "run_late"]


@pytest.mark.parametrize("ledger_exists", [True, False])
def test_the_first_night_waits_for_its_due_time(
    start: Start, tmp_path: Path, request: pytest.FixtureRequest, database_url: str, ledger_exists: bool
) -> None:
    if ledger_exists:
        request.getfixturevalue("engine")
    process = start({"DATABASE_URL": database_url}, "--", *python(NOTE, tmp_path / "notes"))
    process.wait_for("no run yet")
    assert process.end() == 0
    assert not (tmp_path / "notes").exists()


def run_check(environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "scheduler", "--check"],
        cwd=ROOT,
        env=os.environ | {"OVERNIGHT_NIGHTLY_CRON": "0 3 * * *"} | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_check_fails_on_an_overdue_night(engine: sa.Engine, database_url: str) -> None:
    environment = {"DATABASE_URL": database_url}
    assert run_check(environment).returncode == 0
    ledger.start(ledger_stores(engine), CONTROL, days_ago(3))
    overdue = run_check(environment)
    assert overdue.returncode == 1
    assert "has not been started" in overdue.stderr
    run = ledger.start(ledger_stores(engine), CONTROL, days_ago(0))
    with engine.begin() as connection:
        ledger.make_live(connection, run, ledger.Change(days_ago(0), "test"))
    assert run_check(environment).returncode == 0
    assert run_check(UNREACHABLE).returncode == 1


def test_an_unknown_argument_is_refused_before_anything_runs() -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "scheduler", "stop"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 2
    assert "there is no argument 'stop'" in ran.stderr
