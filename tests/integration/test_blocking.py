"""Blocked posts are in Postgres and in Redis, or in neither; an emptied Redis is rebuilt from Postgres."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import redis
import sqlalchemy as sa

from batch.context import Stores
from batch.postgres import open_engine
from batch.publishing import blocking
from batch.publishing.blocking import FOUND_IN_REDIS, Block, block, read_blocked, read_story, unblock
from batch.runs import ledger
from batch.runs.tables import VERSION
from contract.errors import SourceError, StoreError
from contract.ids import Id, IdKind, IdKinds
from contract.keys import Keys
from contract.settings import Settings
from demo.processes import free_port
from tests.support.batch import TABLES, change_ids, execute, query

KEYS = Keys()
UUID = "0d5ee3b5-9d7c-4d36-8a2c-6f0a3a3c8a11"


@pytest.fixture
def stores(database_url: str, redis_url: str, redis_client: redis.Redis, tmp_path: Path) -> Iterator[Stores]:
    execute(database_url, TABLES)
    settings = Settings.of(database_url=database_url, redis_url=redis_url, model_dir=str(tmp_path))
    engine = open_engine(settings)
    yield Stores(settings, engine, redis_client, "a moderator")
    engine.dispose()


def in_force(stores: Stores) -> dict[str, Block]:
    with stores.engine.connect() as connection:
        return read_blocked(connection, stores.keys.prefix)


def story(stores: Stores, post_id: Id) -> list[Block]:
    with stores.engine.connect() as connection:
        return read_story(connection, stores.keys.prefix, post_id)


def in_redis(stores: Stores) -> set[str]:
    return set(map(str, stores.redis.smembers(KEYS.blocked)))


def test_a_block_keeps_who_when_and_why_until_it_ends_and_its_story_after_it(stores: Stores) -> None:
    found, new = block(stores, 191, "spam")
    assert (found.post_id, found.blocked_by, found.reason, new) == ("191", "a moderator", "spam", True)
    assert block(replace(stores, actor="another"), 191, "again") == (found, False)
    assert (in_force(stores), in_redis(stores)) == ({"191": found}, {"191"})
    ended = unblock(replace(stores, actor="another"), 191, IdKind.NUMBER, "an error")
    assert ended is not None
    assert ended == replace(
        found, unblocked_at=ended.unblocked_at, unblocked_by="another", unblock_reason="an error"
    )
    assert (in_force(stores), in_redis(stores)) == ({}, set())
    assert unblock(stores, 191, IdKind.NUMBER, "again") is None
    second, _ = block(stores, 191, "spam again")
    assert story(stores, 191) == [second, ended]
    other = replace(stores, settings=stores.settings.replace(key_prefix="other"))
    assert in_force(other) == {}


def test_an_emptied_redis_is_rebuilt_and_what_it_alone_blocks_is_recorded(
    stores: Stores, caplog: pytest.LogCaptureFixture
) -> None:
    for post_id in (191, 192):
        block(stores, post_id, "spam")
    stores.redis.flushall()
    blocking.write_back(stores)
    assert in_redis(stores) == {"191", "192"}
    assert "recs:blocked lacked blocked posts, written back: 191, 192" in caplog.text
    stores.redis.sadd(KEYS.blocked, "193", "spam")
    blocking.write_back(replace(stores, actor="a night"))
    adopted = in_force(stores)["193"]
    assert (adopted.blocked_by, adopted.reason) == ("a night", FOUND_IN_REDIS)
    assert in_redis(stores) == {"191", "192", "193", "spam"}, "what is no id blocks nothing, and stays"
    stores.redis.delete(KEYS.blocked)
    stores.redis.set(KEYS.blocked, "191")
    blocking.write_back(stores)
    assert in_redis(stores) == {"191", "192", "193"}
    caplog.clear()
    before = in_force(stores)
    blocking.write_back(stores)
    assert (in_force(stores), caplog.records) == (before, [])
    stores.redis.sadd(KEYS.blocked, "194")
    ended = unblock(stores, 194, IdKind.NUMBER, "an error")
    assert ended is not None
    assert (ended.reason, ended.unblock_reason) == (FOUND_IN_REDIS, "an error")
    assert in_redis(stores) == {"191", "192", "193"}


def test_a_ledger_of_version_5_gains_the_table_and_takes_over_what_redis_blocks(stores: Stores) -> None:
    ledger.create(stores.engine)
    execute(
        stores.settings.stores.database_url,
        "DROP TABLE recs.blocked_posts, recs.console_actions, recs.console_jobs",
        "UPDATE recs.ledger_version SET version = 5",
    )
    stores.redis.sadd(KEYS.blocked, "191")
    blocking.write_back(stores)
    assert ledger.schema_version(stores.engine) == VERSION
    assert [found.reason for found in in_force(stores).values()] == [FOUND_IN_REDIS]


@pytest.mark.parametrize("kind", [IdKind.UUID, IdKind.TEXT])
def test_ids_of_each_kind_are_blocked_in_one_form(stores: Stores, kind: IdKind) -> None:
    change_ids(stores.settings.stores.database_url, IdKinds(posts=kind))
    post_id = UUID if kind is IdKind.UUID else "50% off/ü '\"<b>"
    odd_form = f"{{{UUID.upper()}}}" if kind is IdKind.UUID else post_id
    stores.redis.sadd(KEYS.blocked, odd_form)
    blocking.write_back(stores)
    assert in_redis(stores) == set(in_force(stores)) == {post_id}
    stores.redis.sadd(KEYS.blocked, odd_form)
    assert block(stores, post_id, "spam")[1] is False
    assert unblock(stores, post_id, kind, "an error") is not None
    assert in_redis(stores) == set(in_force(stores)) == set()
    block(stores, post_id, "spam")
    execute(
        stores.settings.stores.database_url,
        *(f"ALTER TABLE recs.{name} ALTER post_id TYPE bigint USING 1" for name in ("posts", "interactions")),
    )
    stores.redis.flushall()
    blocking.write_back(stores)
    assert (in_redis(stores), set(in_force(stores))) == (set(), {post_id}), "an id of another kind waits"


def test_without_redis_or_postgres_nothing_is_changed(stores: Stores) -> None:
    block(stores, 191, "spam")
    before = in_force(stores)
    nowhere = f"127.0.0.1:{free_port()}"
    lost = redis.Redis.from_url(f"redis://{nowhere}", decode_responses=True)
    for change in (
        lambda stores: block(stores, 192, "spam"),
        lambda stores: unblock(stores, 191, IdKind.NUMBER, "an error"),
        blocking.write_back,
    ):
        with pytest.raises(StoreError), stores.readable_errors():
            change(replace(stores, redis=lost))
        assert (in_force(stores), in_redis(stores)) == (before, {"191"})
    engine = sa.create_engine(f"postgresql+psycopg2://x@{nowhere}/x")
    for change in (
        lambda stores: block(stores, 192, "spam"),
        lambda stores: unblock(stores, 191, IdKind.NUMBER, "an error"),
    ):
        with pytest.raises(SourceError), stores.readable_errors():
            change(replace(stores, engine=engine))
        assert in_redis(stores) == {"191"}


def test_people_who_block_one_post_at_a_time_make_one_block(stores: Stores) -> None:
    ledger.create(stores.engine)

    def act(number: int) -> bool:
        mine = replace(stores, actor=f"moderator {number}")
        return block(mine, 191, "spam")[1] if number % 2 else block(mine, 192, "spam")[1]

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(act, range(16))) == 2
    assert set(in_force(stores)) == in_redis(stores) == {"191", "192"}
    rows = query(stores.settings.stores.database_url, "SELECT count(*) FROM recs.blocked_posts")
    assert rows == [(2,)]
