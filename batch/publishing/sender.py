"""Send lists to Redis, for as long as their stage may write.

A worker that hung may wake up when its night has failed, or its run is live and has been refreshed. What it
sends then must change nothing. So a stage that writes lists has a *fence*: a key with a token of its own.
Each block of lists is a transaction that Redis refuses if the fence has changed since it was read:

    WATCH fence; GET fence                 # must be the stage's token
    for each block of lists:
        MULTI; MSET lists; EXEC            # refused if the fence has changed
        WATCH fence; GET fence             # for the next block, in the same round trip

The stage removes its fence when it ends. In a cluster a transaction has keys of one slot only, so there the
fence is read before each block, and a block that is sent in that instant may still be written.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import redis
from redis.exceptions import ConnectionError, ExecAbortError, OutOfMemoryError, RedisError, TimeoutError

from batch import redis_client
from batch.publishing.encode import Lines, pack
from contract.errors import StoreError
from contract.keys import Keys


class FenceError(StoreError):
    """Raised when a stage may not write any more, or never could in this Redis."""


@dataclass(frozen=True)
class Fence:
    """The key that has the token of a stage while it may write lists."""

    name: str
    token: str

    def check(self, found: str | None) -> None:
        """Check what the key has.

        Raises
        ------
        FenceError
            It is another stage's token, or none.
        """
        if found != self.token:
            raise FenceError(
                f"{self.name} has no token of this stage, which has ended or writes to another Redis; "
                "nothing more is written"
            )


@contextmanager
def fenced(client: redis.Redis, keys: Keys, run_id: str) -> Iterator[Fence]:
    """Let tasks write lists of a run, until the end of the block."""
    fence = Fence(keys.writing(run_id), secrets.token_hex(16))
    client.set(fence.name, fence.token)
    try:
        yield fence
    except BaseException:
        redis_client.disconnect(client)  # an interrupted command leaves its answer in the connection
        with suppress(RedisError):  # then the run's keys stay too, until the next run removes them
            client.delete(fence.name)
        raise
    client.delete(fence.name)


Send = Callable[[Lines], None]


@contextmanager
def sending(client: redis.Redis, key_start: str, fence: Fence) -> Iterator[Send]:
    """Yield a function that writes lists; it returns when they are written.

    Raises
    ------
    FenceError
        The stage may not write any more.
    """
    if redis_client.is_cluster(client):

        def send(lines: Lines) -> None:
            # redis-py groups the keys by slot, sends them to their nodes and follows slots that move.
            fence.check(str(client.get(fence.name)))
            redis_client.set_many(client, {key_start + owner: value for owner, value in lines.rows()})

        yield send
        return
    with Sender(client, fence) as sender:
        yield lambda lines: sender.send(pack(lines, key_start))


class Sender:
    """Send commands over one connection of the client, each in a transaction with the fence.

    It uses redis-py's own connection, so all options of the URL apply. If the connection breaks, it connects
    again and repeats the command, which Redis may then run twice; if that fails too, the caller gets the
    error.
    """

    def __init__(self, client: redis.Redis, fence: Fence) -> None:
        self._pool, self._fence = client.connection_pool, fence
        self._watch = [("WATCH", fence.name), ("GET", fence.name)]
        self._answered = True

    def __enter__(self) -> Sender:
        self._connection: Any = self._pool.get_connection()  # some of its methods have no types
        try:
            self._retry(self._look)
        except BaseException:
            self._release()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._answered:
                self._ask([("UNWATCH",)])
        except (ConnectionError, TimeoutError):
            self._answered = False
        finally:
            self._release()

    def send(self, command: memoryview) -> None:
        """Run one command that is packed, and wait for its answer."""

        def look_and_run() -> None:
            self._look()
            self._run(command)

        try:
            self._run(command)
        except (ConnectionError, TimeoutError):
            self._connection.disconnect()
            self._retry(look_and_run)

    def _look(self) -> None:
        """Watch the fence, which must be this stage's."""
        self._fence.check(self._ask(self._watch)[-1])

    def _run(self, command: memoryview) -> None:
        try:
            *_, done, _, token = self._ask([("MULTI",), command, ("EXEC",), *self._watch])
        except ExecAbortError as error:
            if "OOM" in str(error):  # memory ran out after the command was queued
                raise OutOfMemoryError(str(error)) from None
            raise
        self._fence.check(token if done is not None else None)
        for answer in done:
            if isinstance(answer, Exception):
                raise answer

    def _ask(self, commands: list[Any]) -> list[Any]:
        """Send commands at once and return their answers; the first one that is an error is raised."""
        self._answered = False
        for each in commands:
            packed = [each] if isinstance(each, memoryview) else self._connection.pack_command(*each)
            self._connection.send_packed_command(packed)
        answers = [self._connection.read_response() for _ in commands]
        self._answered = True
        return answers

    def _retry(self, work: Callable[[], None]) -> None:
        """Do it once more after an error of the connection, which connects again."""
        try:
            work()
        except (ConnectionError, TimeoutError):
            self._connection.disconnect()
            work()

    def _release(self) -> None:
        if not self._answered:  # the answers must not reach the next command
            self._connection.disconnect()
        self._pool.release(self._connection)
