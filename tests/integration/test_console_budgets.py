"""What a page of the console takes from the servers with 500 runs in the ledger."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from batch.postgres import connected
from benchmarks.console import MAX_BYTES, Cost, list_missed_targets, make_row, metered, read_commands
from contract.keys import Keys
from demo.console_pages import example_pages
from demo.made_up_runs import make_up_runs
from tests.support.console import find_table_files
from tests.support.operators import LiveNetwork

pytest_plugins = ("tests.support.operators_fixtures",)

WALKS = {"SCAN", "KEYS", "HSCAN", "SSCAN", "HGETALL", "INFO", "DBSIZE", "MONITOR"}
"""Commands of Redis that go through all keys or members, or that only an administrator has."""

MAX_COMMANDS, MAX_STATEMENTS = 40, 40
MAX_FROM_POSTGRES = 400_000
"""Bytes. The manifests of the 500 runs are over 14 million."""


def test_no_page_walks_through_redis_or_reads_the_manifests_of_many_runs(spoilt: LiveNetwork) -> None:
    with connected(spoilt.settings) as engine:
        manifests = make_up_runs(engine, Keys(), 500)
    assert len(set(manifests)) == 500
    pages = example_pages(spoilt.client, Keys())
    pages["runs-last"] = f"/runs?before={manifests[-20]}"
    with metered(spoilt.settings) as meter:
        costs = {name: meter.ask(path) for name, path in pages.items()}
        files = {path for cost in costs.values() for path in find_table_files(cost.body.decode())}
        files.remove("/tables/log.csv?rows=10000")  # all of it, for an audit
        costs |= {path: meter.ask(path) for path in files}
    assert len(files) > 10
    summary = {name: (cost.status, len(cost.body), cost.commands) for name, cost in costs.items()}
    assert {name for name, cost in costs.items() if cost.status != 200} == set(), summary
    assert {name for name, cost in costs.items() if len(cost.body) > MAX_BYTES} == set(), summary
    assert {name for name, cost in costs.items() if WALKS & set(cost.commands)} == set(), summary
    for name, cost in costs.items():
        assert cost.commands.total() <= MAX_COMMANDS, (name, cost.commands)
        assert len(cost.statements) <= MAX_STATEMENTS, (name, cost.statements)
        assert cost.postgres_bytes <= MAX_FROM_POSTGRES, (name, cost.postgres_bytes)
    # What is counted is not nothing.
    assert costs["user"].commands["GET"] + costs["user"].commands["MGET"] > 0
    assert costs["runs"].statements
    assert costs["runs"].postgres_bytes > 1000
    assert all(
        name in costs["home"].body.decode() for name in (spoilt.run_of("control"), spoilt.run_of("test"))
    )


def test_a_page_that_is_slow_or_big_or_broken_misses_the_target() -> None:
    cost = Cost(200, b"page", Counter(), ["SELECT 1"], 0, 10)
    good, slow = make_row("home", cost, [0.1, 0.2, 0.9]), make_row("runs", cost, [0.4, 0.4, 0.1])
    assert (good["ms"], good["worst_ms"], good["bytes"]) == (pytest.approx(200), pytest.approx(900), 4)
    big = make_row("run", replace(cost, body=b"x" * (MAX_BYTES + 1)), [0.1])
    broken = make_row("post", replace(cost, status=500), [0.1])
    missed = list_missed_targets([good, slow, big, broken])
    assert [line.partition(":")[0] for line in missed] == ["runs", "run", "post"]


@pytest.mark.parametrize(
    ("message", "names"),
    [
        (b"*2\r\n$3\r\nGET\r\n$6\r\n*1\r\n$3\r\n", ["GET"]),
        (b"*1\r\n$4\r\nping\r\n*3\r\n$4\r\nHGET\r\n$1\r\na\r\n$0\r\n\r\n", ["PING", "HGET"]),
        (b"", []),
    ],
)
def test_commands_are_read_from_what_a_client_sends(message: bytes, names: list[str]) -> None:
    assert list(read_commands(message)) == names
