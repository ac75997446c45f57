"""Measure the console's pages on the network in `DATABASE_URL` and `REDIS_URL`, with 500 more runs.

The runs in the ledger are made up (demo/made_up_runs.py) and removed at the end. Each page is asked once
through proxies that count what the servers are asked and what they send, and then ROUNDS times without
them. Pages are asked in this process: gunicorn adds about a millisecond. `JSON` names a file for the rows.
"""

from __future__ import annotations

import socket
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Any

import sqlalchemy as sa
from flask.testing import FlaskClient

from batch import postgres, redis_client
from benchmarks.faults.tcp_proxy import TcpProxy, address_of, url_through
from benchmarks.report import Columns, check_json_file, machine, print_head, print_row, save_rows
from benchmarks.serving import live_run
from console.app import create_app
from console.stores import open_stores
from contract.experiment import VARIANTS
from contract.keys import Keys
from contract.settings import Settings
from demo.console_pages import example_pages
from demo.made_up_runs import make_up_runs, remove_made_up_runs

RUNS, ROUNDS = 500, 9
MAX_MS, MAX_BYTES = 300, 100_000
"""Targets: median time and size of a page."""

SET_UP = {"HELLO", "AUTH", "SELECT", "CLIENT"}
"""Commands of Redis that open a connection."""

COLUMNS: Columns = {
    "page": ("page", "<14"),
    "bytes": ("bytes", "8,"),
    "ms": ("ms", "7.0f"),
    "worst_ms": ("worst ms", "8.0f"),
    "redis_commands": ("Redis", "6"),
    "redis_bytes": ("bytes", "9,"),
    "statements": ("SQL", "5"),
    "postgres_bytes": ("bytes", "9,"),
}


@dataclass(frozen=True)
class Cost:
    """What a page took from the servers.

    Attributes
    ----------
    commands
        Command of Redis, in capitals -> how often it was sent.
    redis_bytes, postgres_bytes
        What the servers sent.
    """

    status: int
    body: bytes
    commands: Counter[str]
    statements: list[str]
    redis_bytes: int
    postgres_bytes: int


class Meter:
    """Asks pages and counts what each takes.

    Parameters
    ----------
    commands, statements
        What is sent to the servers is appended to these.
    """

    def __init__(
        self,
        client: FlaskClient,
        proxies: tuple[TcpProxy, TcpProxy],
        commands: list[str],
        statements: list[str],
    ) -> None:
        self._client, self._proxies = client, proxies
        self._commands, self._statements = commands, statements

    def ask(self, path: str) -> Cost:
        """Ask for a page, and return its cost."""
        self._commands.clear()
        self._statements.clear()
        before = [proxy.received_bytes for proxy in self._proxies]
        answer = self._client.get(path)
        sent = [proxy.received_bytes - start for proxy, start in zip(self._proxies, before, strict=True)]
        return Cost(
            answer.status_code,
            answer.data,
            Counter(self._commands),
            self._statements.copy(),
            sent[0],
            sent[1],
        )


@contextmanager
def metered(settings: Settings) -> Iterator[Meter]:
    """Lend a console whose servers are reached through proxies that count."""
    commands: list[str] = []
    statements: list[str] = []

    def note_commands(message: bytes, server: socket.socket) -> bool:
        commands.extend(name for name in read_commands(message) if name not in SET_UP)
        server.sendall(message)
        return True

    def note_statement(connection: sa.Connection, cursor: Any, statement: str, *_: Any) -> None:
        statements.append(statement)

    cache, database = sa.make_url(settings.stores.redis_url), sa.make_url(settings.stores.database_url)
    with (
        TcpProxy(address_of(cache, 6379), note_commands) as redis_proxy,
        TcpProxy(address_of(database, 5432)) as postgres_proxy,
        open_client(
            settings.replace(
                redis_url=url_through(redis_proxy, cache, {}),
                database_url=url_through(postgres_proxy, database, {"sslmode": "disable"}),
            )
        ) as client,
    ):
        sa.event.listen(sa.Engine, "before_cursor_execute", note_statement)
        try:
            meter = Meter(client, (redis_proxy, postgres_proxy), commands, statements)
            meter.ask("/")  # opens the connections
            yield meter
        finally:
            sa.event.remove(sa.Engine, "before_cursor_execute", note_statement)


@contextmanager
def open_client(settings: Settings) -> Iterator[FlaskClient]:
    """Lend a client of the console's app."""
    stores = open_stores(settings)
    try:
        yield create_app(settings, stores).test_client()
    finally:
        stores.redis.close()
        stores.engine.dispose()


def read_commands(message: bytes) -> Iterator[str]:
    """Yield the names of the commands in what a client of Redis sends at once, in capitals."""
    position = 0
    while position < len(message):
        parts, position = _read_number(message, position, b"*")
        for part in range(parts):
            size, position = _read_number(message, position, b"$")
            if part == 0:
                yield message[position : position + size].decode().upper()
            position += size + 2


def _read_number(message: bytes, position: int, mark: bytes) -> tuple[int, int]:
    """Return the number of a line like `*3` at a position, and the position after the line."""
    end = message.index(b"\r\n", position)
    assert message[position : position + 1] == mark
    return int(message[position + 1 : end]), end + 2


def main() -> None:
    """Measure, print a table, write JSON."""
    check_json_file()
    settings = Settings.from_environment()
    keys = Keys(settings.stores.key_prefix)
    with (
        postgres.connected(settings, "benchmarks.console") as engine,
        redis_client.connected(settings) as client,
    ):
        for variant in VARIANTS:
            live_run(client, keys, variant=variant)
        pages = example_pages(client, keys)
        remove_made_up_runs(engine)  # of a benchmark that was killed
        try:
            make_up_runs(engine, keys, RUNS)
            print(f"{machine()}; {RUNS} runs in the ledger; median and worst of {ROUNDS} rounds", flush=True)
            with metered(settings) as meter:
                costs = {name: meter.ask(path) for name, path in pages.items()}
            times = measure(settings, pages)
        finally:
            remove_made_up_runs(engine)
    rows = [make_row(name, costs[name], times[name]) for name in pages]
    print_head(COLUMNS)
    for row in rows:
        print_row(COLUMNS, row)
    print("\n".join(list_missed_targets(rows)) or "all targets are met")
    save_rows(rows)


def measure(settings: Settings, pages: dict[str, str]) -> dict[str, list[float]]:
    """Return name of a page -> its seconds in each round; all pages take turns."""
    seconds: dict[str, list[float]] = {name: [] for name in pages}
    with open_client(settings) as client:
        client.get("/")
        for _ in range(ROUNDS):
            for name, path in pages.items():
                started = time.perf_counter()
                client.get(path)
                seconds[name].append(time.perf_counter() - started)
    return seconds


def make_row(name: str, cost: Cost, seconds: list[float]) -> dict[str, Any]:
    """Return the row of a page."""
    return {
        "page": name,
        "status": cost.status,
        "bytes": len(cost.body),
        "ms": median(seconds) * 1000,
        "worst_ms": max(seconds) * 1000,
        "redis_commands": cost.commands.total(),
        "commands": dict(cost.commands),
        "redis_bytes": cost.redis_bytes,
        "statements": len(cost.statements),
        "postgres_bytes": cost.postgres_bytes,
    }


def list_missed_targets(rows: list[dict[str, Any]]) -> list[str]:
    """Return one line for each page that is too big, too slow, or no page."""
    return [
        f"{row['page']}: status {row['status']}, {row['ms']:.0f} ms, {row['bytes']:,} bytes; "
        f"targets {MAX_MS} ms, {MAX_BYTES:,} bytes"
        for row in rows
        if row["status"] != 200 or row["ms"] > MAX_MS or row["bytes"] > MAX_BYTES
    ]


if __name__ == "__main__":
    main()
