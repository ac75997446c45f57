"""The demo's servers: found again, stopped, and never mistaken for something else."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import psycopg2
import pytest
import redis

from tests.support.demo import Done, demo, processes_of

REMEMBER = """
import os, psycopg2, redis
redis.Redis.from_url(os.environ["REDIS_URL"]).set("noted", "in Valkey")
with psycopg2.connect(os.environ["DATABASE_URL"]) as connection:
    connection.cursor().execute("CREATE TABLE noted AS SELECT 'in Postgres' AS place")
"""
RECALL = """
import os, psycopg2, redis
print(redis.Redis.from_url(os.environ["REDIS_URL"], decode_responses=True).get("noted"))
with psycopg2.connect(os.environ["DATABASE_URL"]) as connection:
    cursor = connection.cursor()
    cursor.execute("SELECT place FROM noted")
    print(*cursor.fetchone())
"""
BOTH = "in Valkey\nin Postgres\n"


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder whose path holds a space and is too long for a socket's name."""
    path = tmp_path / "a checkout" / ("deep" * 30)
    yield path
    demo(path, "stop")
    assert processes_of(path) == []


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder for tests that start servers only."""
    path = tmp_path_factory.mktemp("demo")
    yield path
    demo(path, "stop")
    assert processes_of(path) == []


def run_python(folder: Path, program: str) -> Done:
    return demo(folder, "exec", "--", sys.executable, "-c", program)


def test_servers_and_data_outlive_the_command_and_data_outlives_the_servers(folder: Path) -> None:
    assert run_python(folder, REMEMBER).code == 0
    running = processes_of(folder)
    assert len(running) == 2
    assert run_python(folder, RECALL).out == BOTH
    assert processes_of(folder) == running
    assert demo(folder, "stop") == (0, "Stopped; the data stays.\n", "")
    assert processes_of(folder) == []
    assert run_python(folder, RECALL).out == BOTH


def test_exec_passes_on_input_output_and_exit_code(started: Path) -> None:
    done = demo(started, "exec", "--", "sh", "-c", "cat; exit 7", entered="typed")
    assert (done.code, done.out) == (7, "typed")
    done = demo(started, "exec", "sh", "-c", 'echo "$0"', "--once")
    assert (done.code, done.out) == (0, "--once\n")


def test_exec_says_which_command_is_missing(started: Path) -> None:
    done = demo(started, "exec", "--", "no-such-command")
    assert (done.code, done.error) == (127, "error: there is no command 'no-such-command'")
    assert demo(started, "exec").code == 2


def test_killed_servers_are_started_again(folder: Path) -> None:
    run_python(folder, REMEMBER)
    demo(folder, "stop")
    run_python(folder, "")
    for process in processes_of(folder):
        process.kill()
    assert run_python(folder, RECALL).out == BOTH


def test_a_pid_file_that_names_another_program_is_no_server(folder: Path) -> None:
    run_python(folder, REMEMBER)
    pid_files = [folder / "postgres" / "postmaster.pid", folder / "valkey" / "valkey.pid"]
    left_by_a_crash = [file.read_text() for file in pid_files]
    demo(folder, "stop")
    for file, text in zip(pid_files, left_by_a_crash, strict=True):
        file.write_text(text.replace(text.partition("\n")[0], str(os.getpid()), 1))
    assert demo(folder, "stop") == (0, "Nothing was running.\n", "")
    assert run_python(folder, RECALL).out == BOTH


def test_stopping_where_nothing_ever_ran_is_fine(tmp_path: Path) -> None:
    assert demo(tmp_path / "nowhere", "stop") == (0, "Nothing was running.\n", "")
    assert not (tmp_path / "nowhere").exists()


def test_the_password_is_needed_and_not_on_any_command_line(started: Path) -> None:
    urls = run_python(started, "import os; print(os.environ['DATABASE_URL'], os.environ['REDIS_URL'])").out
    password = (started / "password").read_text()
    assert urls.count(password) == 2
    for process in processes_of(started):
        assert not any(password in argument for argument in process.cmdline())
    database_url, redis_url = urls.split()
    with (
        pytest.raises(redis.AuthenticationError),
        redis.Redis.from_url(redis_url.replace(password, "x")) as client,
    ):
        client.ping()
    with pytest.raises(psycopg2.OperationalError, match="password authentication failed"):
        psycopg2.connect(database_url.replace(password, "x"))


def test_a_folder_that_cannot_be_made_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    folder = tmp_path / "file" / "folder"
    done = demo(folder, "exec", "true")
    assert done == (2, "", f"error: {folder} cannot hold the demo's data: Not a directory\n")
