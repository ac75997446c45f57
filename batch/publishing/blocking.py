"""Block and unblock posts in Postgres and in Redis: both, or neither.

Postgres is the source of truth, and keeps who blocked a post, when and why. Serving
reads the set in Redis. Every night and every refresh compares the two, records posts
that are in Redis only, and writes back what Redis has lost.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import redis
import sqlalchemy as sa
from redis.exceptions import ResponseError

from batch.context import Stores
from batch.loading.schema import check_views
from batch.runs import ledger
from batch.runs.lock import locked_transaction
from batch.runs.tables import blocked_posts
from contract.ids import Id, IdKind, parse_id, quote_id

log = logging.getLogger("batch")

FOUND_IN_REDIS = "found in Redis: blocked by hand, or by an earlier release"
MAX_NAMED, MAX_CHARACTERS = 3, 40
"""Posts that a message names, and characters of each."""


@dataclass(frozen=True)
class Block:
    """One row of the blocklist: the post is blocked while `unblocked_at` is None.

    `post_id` is text, whatever the kind of the network's ids. Reasons may be None.
    """

    post_id: str
    blocked_at: datetime
    blocked_by: str
    reason: str | None
    unblocked_at: datetime | None = None
    unblocked_by: str | None = None
    unblock_reason: str | None = None


def decode_member(member: str, kind: IdKind) -> Id | None:
    """Return the post that a member of the set in Redis blocks, as serving reads it; None if it is no id."""
    with suppress(ValueError):
        return int(member) if kind is IdKind.NUMBER else parse_id(member, kind)
    return None


def block(stores: Stores, post_id: Id, reason: str) -> tuple[Block, bool]:
    """Block a post; return its block, and whether it is new. A block in force stays as it is.

    After an error both stores are as before. The exception: if Postgres is lost after Redis was
    written, the next night or refresh records the block.
    """
    with _lock_blocklist(stores) as connection:
        before = read_blocked(connection, stores.keys.prefix, [post_id]).get(str(post_id))
        found = before or _insert(connection, stores, post_id, reason)
        stores.redis.sadd(stores.keys.blocked, post_id)
    return found, before is None


def unblock(stores: Stores, post_id: Id, kind: IdKind, reason: str) -> Block | None:
    """Unblock a post; return the block that ended, None if there was none.

    Redis may have its id in several forms, such as a uuid in braces. A post that is blocked in
    Redis only is recorded first, so that its story is whole. Errors are as in `block`.
    """
    with _lock_blocklist(stores) as connection:
        members = map(str, stores.redis.smembers(stores.keys.blocked))
        forms = [member for member in members if decode_member(member, kind) == post_id]
        found = read_blocked(connection, stores.keys.prefix, [post_id]).get(str(post_id))
        if found is None and not forms:
            return None
        found = found or _insert(connection, stores, post_id, FOUND_IN_REDIS)
        ended = sa.update(blocked_posts).where(*_in_force(stores.keys.prefix, [post_id]))
        at = max(datetime.now(UTC), found.blocked_at)
        values = {"unblocked_at": at, "unblocked_by": stores.actor, "unblock_reason": reason}
        connection.execute(ended.values(values))
        stores.redis.srem(stores.keys.blocked, post_id, *forms)
    return Block(**vars(found) | values)


def read_blocked(
    connection: sa.Connection, key_prefix: str, post_ids: Collection[Id] | None = None
) -> dict[str, Block]:
    """Return the blocks in force by post id as text: all, or those of some posts."""
    query = sa.select(blocked_posts).where(*_in_force(key_prefix, post_ids))
    return {block.post_id: block for block in _blocks(connection, query)}


def list_blocked(
    connection: sa.Connection, key_prefix: str, count: int, after: tuple[datetime, str] | None = None
) -> list[Block]:
    """Return blocks in force, newest first.

    Parameters
    ----------
    after
        (time, post id as text) of a block: only those that come after it.
    """
    order = sa.tuple_(blocked_posts.c.blocked_at, blocked_posts.c.post_id)
    query = sa.select(blocked_posts).where(*_in_force(key_prefix, None))
    if after is not None:
        query = query.where(order < after)
    newest = blocked_posts.c.blocked_at.desc(), blocked_posts.c.post_id.desc()
    return _blocks(connection, query.order_by(*newest).limit(count))


def read_story(connection: sa.Connection, key_prefix: str, post_id: Id, max_blocks: int = 50) -> list[Block]:
    """Return the blocks of a post, newest first, those that ended among them."""
    query = sa.select(blocked_posts).where(
        blocked_posts.c.key_prefix == key_prefix, blocked_posts.c.post_id == str(post_id)
    )
    return _blocks(connection, query.order_by(blocked_posts.c.blocked_at.desc()).limit(max_blocks))


def write_back(stores: Stores) -> None:
    """Record posts that Redis alone blocks, and write to Redis the recorded ones that it lacks.

    Members that are not ids of posts stay: they block nothing, and `doctor` names them.
    """
    client, key = stores.redis, stores.keys.blocked
    with _lock_blocklist(stores) as connection:
        kind = check_views(connection).kinds.posts
        members = _read_or_delete(client, key)
        decoded = {member: decode_member(member, kind) for member in members}
        stored = {str(post_id): post_id for post_id in decoded.values() if post_id is not None}
        blocked = read_blocked(connection, stores.keys.prefix)
        recorded = {name for name in blocked if decode_member(name, kind) is not None}
        if unrecorded := sorted(stored.keys() - recorded):
            for name in unrecorded:
                _insert(connection, stores, stored[name], FOUND_IN_REDIS)
            named = name_some(unrecorded)
            log.warning("%s held posts that `block` did not write, now recorded: %s", key, named)
        if lost := recorded - stored.keys():
            log.warning("%s lacked blocked posts, written back: %s", key, name_some(lost))
        if missing := (recorded | stored.keys()) - members:
            client.sadd(key, *sorted(missing))
        # A uuid in another form, such as one in braces, would stay blocked when its post is unblocked.
        ids = {member for member, post_id in decoded.items() if post_id is not None}
        if other_forms := ids - stored.keys():
            client.srem(key, *other_forms)


def name_some(names: Collection[str]) -> str:
    """Return how many there are, and the first of them."""
    named = ", ".join(quote_id(name[:MAX_CHARACTERS]) for name in sorted(names)[:MAX_NAMED])
    return named if len(names) <= MAX_NAMED else f"{named} and {len(names) - MAX_NAMED} more"


def _lock_blocklist(stores: Stores) -> AbstractContextManager[sa.Connection]:
    ledger.create(stores.engine)
    return locked_transaction(stores.engine, f"blocklist:{stores.keys.prefix}")


def _read_or_delete(client: redis.Redis, key: str) -> set[str]:
    """Return the members of the set; a key of another type is deleted."""
    try:
        return set(map(str, client.smembers(key)))
    except ResponseError as error:
        if not str(error).startswith("WRONGTYPE"):
            raise
        log.warning("%s was not a set, so serving kept the posts that it knew; written anew", key)
        client.delete(key)
        return set()


def _insert(connection: sa.Connection, stores: Stores, post_id: Id, reason: str) -> Block:
    found = Block(str(post_id), datetime.now(UTC), stores.actor, reason)
    row = {"key_prefix": stores.keys.prefix} | vars(found)
    connection.execute(sa.insert(blocked_posts).values(row))
    return found


def _in_force(key_prefix: str, post_ids: Collection[Id] | None) -> list[sa.ColumnElement[bool]]:
    chosen = [blocked_posts.c.key_prefix == key_prefix, blocked_posts.c.unblocked_at.is_(None)]
    if post_ids is not None:
        chosen.append(blocked_posts.c.post_id.in_([str(post_id) for post_id in post_ids]))
    return chosen


def _blocks(connection: sa.Connection, query: sa.Select[Any]) -> list[Block]:
    return [
        Block(**{name: value for name, value in row._mapping.items() if name != "key_prefix"})
        for row in connection.execute(query)
    ]
