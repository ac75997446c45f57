"""The demo's servers: they outlive a command, are found again and stopped; passwords and pid files."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg2
import pytest
import redis

from demo.processes import ROOT, ChildProcess, DemoError, Stopped, free_port, raise_on_signal, run_module
from tests.support.demo import CommandResult, find_processes, run_demo

WRITE = """
import os, psycopg2, redis
redis.Redis.from_url(os.environ["REDIS_URL"]).set("noted", "in Valkey")
with psycopg2.connect(os.environ["DATABASE_URL"]) as connection:
    connection.cursor().execute("CREATE TABLE noted AS SELECT 'in Postgres' AS value")
"""
READ = """
import os, psycopg2, redis
print(redis.Redis.from_url(os.environ["REDIS_URL"], decode_responses=True).get("noted"))
with psycopg2.connect(os.environ["DATABASE_URL"]) as connection:
    cursor = connection.cursor()
    cursor.execute("SELECT value FROM noted")
    print(*cursor.fetchone())
"""
URLS = """import os; print(os.environ["REDIS_URL"], os.environ["DATABASE_URL"])"""
VALUES = "in Valkey\nin Postgres\n"


def test_no_two_processes_are_given_the_same_port(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as one, socket.socket() as other:
        for each in (one, other):
            each.bind(("127.0.0.1", 0))
        ports = [each.getsockname()[1] for each in (one, other)]
    monkeypatch.setattr("demo.processes.SERVER_PORTS", ports)
    command = (
        "from demo import processes; "
        f"processes.SERVER_PORTS = {ports}; print(processes.free_port(), flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as process:
        assert process.stdout is not None
        taken = int(process.stdout.readline())
        assert {taken, free_port()} == set(ports)
        with pytest.raises(DemoError, match="no port between"):
            free_port()
        process.communicate("\n")
    assert free_port() == taken


def test_a_child_is_stopped_in_the_instant_in_which_its_command_line_is_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    child = ChildProcess(tmp_path, "child")
    child.start(["-c", "import time; time.sleep(600)"], os.environ)
    monkeypatch.setattr("demo.processes.find_process", lambda *_: None)  # as it is in that instant
    child.request_stop()
    assert child.stop()
    assert not child.is_running()


def test_a_signal_while_a_child_starts_ends_the_child(monkeypatch: pytest.MonkeyPatch) -> None:
    started = []

    class Interrupted(subprocess.Popen[bytes]):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            started.append(self)
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(subprocess, "Popen", Interrupted)
    with raise_on_signal(), pytest.raises(Stopped):
        run_module("http.server", ["--bind", "127.0.0.1", "0"], {**os.environ})
    (child,) = started
    assert child.returncode == -signal.SIGTERM


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Data folder whose path has a space and is too long for a Unix socket."""
    path = tmp_path / "a checkout" / ("deep" * 30)
    yield path
    run_demo(path, "stop")
    assert find_processes(path) == []


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Data folder shared by tests that only start servers."""
    path = tmp_path_factory.mktemp("demo")
    yield path
    run_demo(path, "stop")
    assert find_processes(path) == []


def run_python(folder: Path, program: str) -> CommandResult:
    return run_demo(folder, "exec", "--", sys.executable, "-c", program)


def test_servers_outlive_the_command_and_data_outlives_the_servers(folder: Path) -> None:
    assert run_python(folder, WRITE).code == 0
    logs = list(folder.glob("*.log"))
    assert {(log.name, log.stat().st_mode & 0o777) for log in logs} == {
        ("postgres.log", 0o600),
        ("valkey.log", 0o600),
    }
    running = find_processes(folder)
    assert len(running) == 2
    assert run_python(folder, READ).stdout == VALUES
    assert find_processes(folder) == running
    assert run_demo(folder, "stop") == (0, "Stopped; the data stays.\n", "")
    assert find_processes(folder) == []
    assert run_python(folder, READ).stdout == VALUES


def test_exec_passes_input_output_and_exit_code_through(started: Path) -> None:
    result = run_demo(started, "exec", "--", "sh", "-c", "cat; exit 7", stdin="typed")
    assert (result.code, result.stdout) == (7, "typed")
    result = run_demo(started, "exec", "sh", "-c", 'echo "$0"', "--once")
    assert (result.code, result.stdout) == (0, "--once\n")


def test_exec_names_a_command_that_does_not_exist(started: Path) -> None:
    result = run_demo(started, "exec", "--", "no-such-command")
    assert (result.code, result.error) == (127, "error: there is no command 'no-such-command'")
    assert run_demo(started, "exec").code == 2


def test_killed_servers_are_started_again(folder: Path) -> None:
    run_python(folder, WRITE)
    run_demo(folder, "stop")
    urls = run_python(folder, URLS).stdout
    for process in find_processes(folder):
        process.kill()
    assert run_python(folder, READ).stdout == VALUES
    assert run_python(folder, URLS).stdout == urls  # what is connected finds them again


def test_a_pid_file_with_the_id_of_another_program_is_ignored(folder: Path) -> None:
    run_python(folder, WRITE)
    pid_files = [folder / "postgres" / "postmaster.pid", folder / "valkey" / "valkey.pid"]
    contents = [file.read_text() for file in pid_files]
    run_demo(folder, "stop")
    for file, text in zip(pid_files, contents, strict=True):
        file.write_text(text.replace(text.partition("\n")[0], str(os.getpid()), 1))
    assert run_demo(folder, "stop") == (0, "Nothing was running.\n", "")
    assert run_python(folder, READ).stdout == VALUES


def test_stop_without_a_data_folder_creates_none(tmp_path: Path) -> None:
    assert run_demo(tmp_path / "nowhere", "stop") == (0, "Nothing was running.\n", "")
    assert not (tmp_path / "nowhere").exists()


def test_servers_need_the_password_which_is_on_no_command_line(started: Path) -> None:
    urls = run_python(started, "import os; print(os.environ['DATABASE_URL'], os.environ['REDIS_URL'])").stdout
    password = (started / "password").read_text()
    assert urls.count(password) == 2
    for process in find_processes(started):
        assert not any(password in argument for argument in process.cmdline())
    database_url, redis_url = urls.split()
    with (
        pytest.raises(redis.AuthenticationError),
        redis.Redis.from_url(redis_url.replace(password, "x")) as client,
    ):
        client.ping()
    with pytest.raises(psycopg2.OperationalError, match="password authentication failed"):
        psycopg2.connect(database_url.replace(password, "x"))


def test_a_folder_that_cannot_be_created_is_an_error_with_exit_code_2(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    folder = tmp_path / "file" / "folder"
    result = run_demo(folder, "exec", "true")
    assert result == (2, "", f"error: {folder} cannot hold the demo's data: Not a directory\n")
