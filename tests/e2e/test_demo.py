"""`python -m demo up` on a small simulated network: from an empty folder to right answers."""

from __future__ import annotations

import os
import re
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.demo import PORTS, CommandResult, find_processes, free_ports, run_demo, start_demo

SMALL = ("--users", "200", "--posts", "50", "--interactions", "5000")
CHILDREN = ("network_app", "serving", "console", "scheduler")
RIGHT = "Every answer is right."
SERVES = "Ctrl-C stops everything"
REVERSE_POPULAR_LISTS = """
import json, os, redis
client = redis.Redis.from_url(os.environ["REDIS_URL"])
for key in client.keys("recs:run:*:popular"):
    client.set(key, json.dumps(json.loads(client.get(key))[::-1]))
"""


def up_once(folder: Path) -> CommandResult:
    return run_demo(folder, "up", "--once", *free_ports())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Data folder with a small network; `simulate` has started its servers."""
    path = tmp_path_factory.mktemp("demo") / "folder"
    simulated = run_demo(path, "simulate", *SMALL, "--seed", "7")
    assert simulated.code == 0, simulated.stderr
    yield path
    run_demo(path, "stop")
    assert find_processes(path) == []


@pytest.fixture(scope="module")
def first(folder: Path) -> CommandResult:
    """Result of the first `up --once`, which runs the night."""
    return up_once(folder)


def test_the_first_start_runs_the_night_and_gets_right_answers(folder: Path, first: CommandResult) -> None:
    assert (first.code, RIGHT in first.stdout) == (0, True), first
    assert "Running the night" in first.stdout
    assert re.search(
        r"Warning: the newest interaction of this network is [\d,]{5,} days old.*: "
        rf"python -m demo --dir {re.escape(str(folder))} simulate --until now\n",
        first.stdout,
    )
    for path in (
        "/recommendations?limit=5",
        "/posts/popular?limit=5",
        "/post/recommendations/?id=",
        "GET recs:run:",
    ):
        assert path in first.stdout
    assert re.search(r"> http://127.0.0.1:\d+/ shows \d{8}T\d{6}Z-control \d{8}T\d{6}Z-test\n", first.stdout)
    assert re.search(
        r"> http://127.0.0.1:\d+/ no longer shows post \d+, which 'Check \w+' likes\n", first.stdout
    )
    assert re.search(r'> http://127.0.0.1:\d+/users/\d+ shows (href="/posts/\d+" ?){5}\n', first.stdout)
    assert find_processes(folder) == []


def test_the_next_start_skips_what_is_done(folder: Path, first: CommandResult) -> None:
    again = run_demo(folder, "up", "--once", "--limit-users", "50", *free_ports())
    assert (again.code, RIGHT in again.stdout) == (0, True), again
    assert "Nights score the first 50 users: all others, and people who register, get popular" in again.stdout
    assert "--limit-users is for the next night" in again.stdout
    assert "Network already loaded (simulated): 200 users, 50 posts, 5,000 interactions" in again.stdout
    assert "Night already run" in again.stdout
    assert "Running the night" not in again.stdout


def test_the_error_names_a_wrong_answer(folder: Path, first: CommandResult) -> None:
    run_demo(folder, "exec", "--", sys.executable, "-c", REVERSE_POPULAR_LISTS)
    result = up_once(folder)
    run_demo(folder, "exec", "--", sys.executable, "-c", REVERSE_POPULAR_LISTS)
    run_demo(folder, "stop")
    assert result.code == 1
    assert RIGHT not in result.stdout
    assert result.error.startswith("error: /users/")
    assert "/posts/popular?limit=5: posts with " in result.error


def test_a_port_in_use_is_an_error_before_anything_starts(folder: Path, first: CommandResult) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = str(listener.getsockname()[1])
        for option in PORTS:
            result = run_demo(folder, "up", "--once", *free_ports(), option, port)  # the last one counts
            assert (result.code, result.stdout) == (2, "")
            in_use = f"error: cannot listen on 127.0.0.1 port {port} (Address already in use)"
            assert result.stderr.startswith(in_use)
            assert f"up {option} " in result.stderr
            assert result.stderr.count("\n") == 1
    same = run_demo(folder, "up", "--once", *free_ports(), "--app-port", port, "--console-port", port)
    assert (same.code, f"the network and the console cannot both listen on port {port}" in same.error) == (
        2,
        True,
    ), same
    assert find_processes(folder) == []


@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        (["up", "--network", "no-such-folder"], {}, "error: there is no folder no-such-folder"),
        (["up"], {"OVERNIGHT_PORT": "http"}, "error: OVERNIGHT_PORT='http': must be a number"),
        (["up"], {"NETWORK_APP_PORT": "http"}, "error: NETWORK_APP_PORT='http': must be a whole number"),
        (["up", "--limit-users", "0"], {}, "--limit-users"),
        (["simulate", "--users", "many"], {}, "--users"),
    ],
)
def test_the_error_names_an_invalid_option_or_setting(
    tmp_path: Path, arguments: list[str], environment: dict[str, str], message: str
) -> None:
    result = run_demo(tmp_path, *arguments, **environment)
    assert (result.code, message in result.error) == (2, True), result
    assert find_processes(tmp_path) == []


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_stops_everything_in_order(folder: Path, first: CommandResult, sign: signal.Signals) -> None:
    with start_demo(SERVES, folder, "up", *free_ports()) as process:
        assert len(find_processes(folder)) > 3
        os.killpg(process.pid, sign)  # a terminal signals the whole group
        assert process.wait() == 0
    assert find_processes(folder) == []


def test_a_second_up_is_refused_and_stop_ends_the_first(folder: Path, first: CommandResult) -> None:
    with start_demo(SERVES, folder, "up", *free_ports()) as process:
        second = up_once(folder)
        assert (second.code, second.stdout) == (4, "")
        assert f"(process {process.pid})" in second.error
        assert run_demo(folder, "exec", "true").code == 0
        assert process.poll() is None
        assert run_demo(folder, "stop") == (0, "Stopped; the data stays.\n", "")
        assert process.wait() == 0
    assert find_processes(folder) == []


def test_up_replaces_what_a_killed_up_left(folder: Path, first: CommandResult) -> None:
    same = free_ports()
    with start_demo(SERVES, folder, "up", *same) as process:
        process.kill()
        process.wait()
    left = {argument for each in find_processes(folder) for argument in each.cmdline()}
    assert left >= {f"pid_file={folder / name}.pid" for name in CHILDREN}
    result = run_demo(folder, "up", "--once", *same)
    assert (result.code, RIGHT in result.stdout) == (0, True), result
    assert find_processes(folder) == []


def test_a_new_network_with_other_ids_needs_a_new_night_and_an_interrupted_one_does_not_count(
    folder: Path, first: CommandResult
) -> None:
    assert run_demo(folder, "simulate", *SMALL, "--seed", "8", "--ids", "uuid").code == 0
    with start_demo("Running the night", folder, "up", *free_ports()) as process:
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 128 + signal.SIGTERM
    assert find_processes(folder) == []
    result = up_once(folder)
    assert "Network already loaded" in result.stdout
    assert "Running the night" in result.stdout
    assert (result.code, RIGHT in result.stdout) == (0, True), result
    assert re.search(r'"user_id": "[0-9a-f]{8}-', result.stdout)
    rated = run_demo(folder, "oracle")
    assert (rated.code, "First five posts of the live lists: 200 users" in rated.stdout) == (0, True), rated


def test_simulate_uses_the_database_of_the_environment(tmp_path: Path, database_url: str) -> None:
    result = run_demo(tmp_path / "unused", "simulate", *SMALL, DATABASE_URL=database_url)
    assert (result.code, result.stdout.startswith("200 users, 50 posts, 5,000 interactions")) == (0, True), (
        result
    )
    assert not (tmp_path / "unused").exists()
    assert run_demo(tmp_path / "unused", "oracle", DATABASE_URL=database_url).code == 0
