"""Sends lists to Redis: several commands on their way at a time, so that neither side waits."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import redis
from redis.exceptions import ConnectionError, TimeoutError

from batch.publishing import store
from batch.publishing.encode import Lines, pack

ON_THEIR_WAY = 16


@contextmanager
def sending(client: redis.Redis, key_start: str) -> Iterator[Callable[[Lines], None]]:
    """Yield what sends lists; at the end, wait until all of them are written.

    In a cluster, where a command holds only keys of one slot, redis-py sorts
    them, sends them to their nodes and follows them when slots move.
    """
    if store.is_cluster(client):
        yield lambda lines: store.set_many(
            client, {key_start + whose: value for whose, value in lines.rows()}
        )
        return
    with Sender(client) as sender:
        yield lambda lines: sender.send(pack(lines, key_start))
        sender.finish()


class Sender:
    """A connection of the client's, lent for commands that may be sent twice without harm.

    It is redis-py's own connection, so everything that a URL may say holds
    here. One that breaks is made again and sent what it left unanswered; when
    that fails too, the error goes to the caller. An error that the server
    answers with goes to the caller at once.
    """

    def __init__(self, client: redis.Redis) -> None:
        self._pool = client.connection_pool
        self._unanswered: deque[memoryview] = deque()

    def __enter__(self) -> Sender:
        self._connection: Any = self._pool.get_connection()  # of whose methods some have no types
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._unanswered:  # their answers must not reach the next command
            self._connection.disconnect()
        self._pool.release(self._connection)

    def send(self, command: memoryview) -> None:
        """Send one command; when many are unanswered, wait for the first of them."""
        self._unanswered.append(command)
        try:
            self._connection.send_packed_command([command])
            self._await(ON_THEIR_WAY)
        except (ConnectionError, TimeoutError):
            self._send_again()

    def finish(self) -> None:
        """Wait until every command is answered."""
        try:
            self._await(0)
        except (ConnectionError, TimeoutError):
            self._send_again()

    def _await(self, left: int) -> None:
        while len(self._unanswered) > left:
            self._connection.read_response()
            self._unanswered.popleft()

    def _send_again(self) -> None:
        """Connect anew, which redis-py tries as often as the client's `retry` says, and repeat."""
        self._connection.disconnect()
        for command in self._unanswered:
            self._connection.send_packed_command([command])
        self._await(0)
