"""Forgotten users: no key, file or table of ours has them any more; everybody else keeps all they have."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest
import redis
import sqlalchemy as sa

import batch.forget
from batch.files import forget_ids, nobody
from batch.ids import rows_of_ids
from batch.postgres import open_engine
from batch.runs import lock
from contract.exposures import FIELD, Exposure, encode_exposures
from contract.keys import Keys
from contract.settings import Settings
from tests.support.batch import execute, live_lists, live_run, make_network, query, run_here
from tests.support.batch_live import LiveNetwork, copy_database, copy_night, dump
from tests.support.serving import recommend, serving, settings_for

KEYS = Keys()
FAR = 7_700_000_000_000_000
"""Added to every user's id, so that ids are recognised wherever they are."""

FIRST, LAST, NEW = FAR + 1, FAR + 60, FAR + 61
ROWS_OF_NOBODY = """
    SELECT count(*) FROM (SELECT user_row FROM actions)
    SEMI JOIN (FROM users WHERE user_id IS NULL) USING (user_row)
"""
SOURCE = ("users", "posts", "interactions")


@pytest.fixture(scope="module")
def nights(
    postgres_server: sa.URL, valkey_server: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[LiveNetwork, dict[bytes, bytes]]]:
    """Two nights of both variants, a user added since, pinned users, and exposures in Redis and Postgres."""
    models = tmp_path_factory.mktemp("models")
    with copy_database(postgres_server) as database_url:
        make_network(database_url, posts=30)
        execute(
            database_url,
            f"UPDATE recs.users SET user_id = user_id + {FAR}",
            f"UPDATE recs.interactions SET user_id = user_id + {FAR}",
            # Some likes are taken back, so that all tables of a store have rows.
            "INSERT INTO recs.interactions SELECT user_id, post_id, 'unlike', happened_at + '1h'::interval "
            "FROM recs.interactions WHERE action = 'like' AND post_id < 105",
        )
        servers: dict[str, Any] = {
            "database_url": database_url,
            "redis_url": valkey_server,
            "model_dir": models,
        }

        def batch(*arguments: str) -> None:
            done = run_here(*arguments, **servers)
            assert done.returncode == 0, done.stderr

        batch("run")
        batch("run")
        execute(database_url, f"INSERT INTO recs.users VALUES ({NEW}, 30, 'Omsk', false)")
        batch("refresh")
        batch("experiment", "pin", str(FIRST), "test")
        batch("experiment", "pin", str(LAST), "test")
        execute(
            database_url,
            "INSERT INTO recs.console_actions SELECT md5(id), 'recs', now(), 'anna', 'pin', "
            "jsonb_build_object('user', id, 'variant', 'test'), 'asked' "
            f"FROM unnest(ARRAY['{FIRST}', '5']) id",
        )
        with redis.Redis.from_url(valkey_server) as client:
            serve(client)
            batch("experiment", "drain")
            serve(client)
        try:
            yield LiveNetwork.of(**servers), dump(valkey_server)
        finally:
            with redis.Redis.from_url(valkey_server) as client:
                client.flushall()  # other modules share the server


def serve(client: redis.Redis) -> None:
    """Record an exposure of every user, in one entry of the stream."""
    at = datetime.now(UTC).timestamp()
    served = [Exposure(FAR + user, "control", "R", "personal", at) for user in range(1, 62)]
    client.xadd(KEYS.exposures, {FIELD: encode_exposures(served)})


@pytest.fixture
def live(
    nights: tuple[LiveNetwork, dict[bytes, bytes]], postgres_server: sa.URL, tmp_path: Path
) -> Iterator[LiveNetwork]:
    """Those nights over a copy of their database and files."""
    with copy_night(*nights, postgres_server, tmp_path / "models") as copy:
        yield copy


@pytest.fixture
def client(live: LiveNetwork) -> Iterator[redis.Redis]:
    """Client of their Redis; decodes responses."""
    with redis.Redis.from_url(live.redis_url, decode_responses=True) as client:
        yield client


@pytest.fixture
def examples(live: LiveNetwork) -> list[int]:
    """Example users of a report, besides the first and the last user."""
    pages = [path.read_text() for path in live.model_dir.rglob("report.html")]
    return [int(user) for page in pages for user in re.findall(r"<h3>User (\d+)<", page)][:2]


def traces(live: LiveNetwork, user_ids: list[int]) -> set[str]:
    """Name every kind of place in Redis, files and our tables that has one of the ids."""
    text = re.compile("|".join(map(str, user_ids)))
    raw = [np.int64(user).tobytes() for user in user_ids]
    found = set[str]()
    with redis.Redis.from_url(live.redis_url, decode_responses=True) as client:
        read = {"string": client.get, "hash": client.hgetall, "set": client.smembers, "stream": client.xrange}
        for name in client.scan_iter():
            if text.search(f"{name} {read[client.type(name)](name)}"):
                found.add("key " + name.split(":")[1 if name.count(":") == 1 else 3])
    for path in live.model_dir.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            if text.search(content.decode("latin-1")) or any(each in content for each in raw):
                found.add(f"file {path.name}")
        if path.suffix == ".duckdb":
            with duckdb.connect(str(path), read_only=True) as store:
                (names,) = zip(
                    *store.execute("FROM duckdb_tables() SELECT table_name").fetchall(), strict=True
                )
                rows = [store.execute(f"FROM {name}").fetchall() for name in names]
                left = store.execute(ROWS_OF_NOBODY).fetchall()
            if text.search(str(rows)) or left != [(0,)]:
                found.add(f"file {path.name}")
    tables = "SELECT table_name FROM information_schema.tables WHERE table_schema = 'recs'"
    for (table,) in query(live.database_url, tables):
        if table not in SOURCE and text.search(
            str(query(live.database_url, f"SELECT t::text FROM recs.{table} t"))
        ):
            found.add(f"table {table}")
    return found


EVERYWHERE = {
    "key user", "key manifest", "key experiment", "key exposures",
    "file users.npy", "file refresh.npz", "file report.html", "file store.duckdb",
    "table runs", "table refreshed_users", "table experiments", "table exposures", "table console_actions",
}  # fmt: skip


def digests(folder: Path) -> dict[Path, str]:
    """Return the SHA-256 of every file."""
    return {
        path: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*") if path.is_file()
    }


def delete(live: LiveNetwork, *user_ids: int) -> None:
    """Delete users in the source."""
    wanted = ", ".join(map(str, user_ids))
    execute(
        live.database_url,
        *(f"DELETE FROM recs.{t} WHERE user_id IN ({wanted})" for t in ("users", "interactions")),
    )


def test_rows_of_everybody_else_stay_where_they_are() -> None:
    random = np.random.default_rng(1)
    for size in (0, 1, 2, 7, 50):
        known = np.sort(random.choice(1_000, size, replace=False)) + FAR
        for share in (0.0, 0.2, 0.9, 1.0):
            gone = known[random.random(size) < share]
            left = np.setdiff1d(known, gone)
            kept = forget_ids(forget_ids(known, gone[::2]), gone[1::2])
            assert kept.size == size
            assert (np.diff(kept.astype(object)) >= 0).all()
            np.testing.assert_array_equal(rows_of_ids(kept, left), rows_of_ids(known, left))
            assert (rows_of_ids(kept, gone) == -1).all()
            assert set(kept.tolist()) <= {*left.tolist(), nobody(known)}


def test_nothing_of_forgotten_users_is_left_and_everybody_else_keeps_what_they_have(
    live: LiveNetwork, client: redis.Redis, examples: list[int]
) -> None:
    users = [FIRST, LAST, NEW, *examples]
    assert traces(live, users) == EVERYWHERE
    before = {variant: live_lists(client, variant) for variant in ("control", "test")}
    exposures = query(live.database_url, "SELECT user_id FROM recs.exposures")
    delete(live, *users)
    done = live.run("forget", "--json", *map(str, users))
    assert done.returncode == 0, done.stderr
    assert not re.search(str(FAR)[:4], done.stderr)
    assert traces(live, users) == set()
    found = json.loads(done.stdout)
    count = len(set(users))
    assert (found["users"], found["in_source"], found["pinned"]) == (count, 0, 2)
    assert (found["lists"], found["exposures"]) == (4 * (count - 1) + 2, 2 * count)
    recorded = query(live.database_url, "SELECT users, lists, exposures, files, actor FROM recs.erasures")
    assert [row[:4] for row in recorded] == [
        tuple(found[name] for name in ("users", "lists", "exposures", "files"))
    ]
    assert recorded[0][4].startswith("batch forget by ")
    actions = query(
        live.database_url, "SELECT arguments->>'user', arguments->>'variant' FROM recs.console_actions"
    )
    assert set(actions) == {(None, "test"), ("5", "test")}
    for variant, lists in before.items():
        left = {user: ranked for user, ranked in lists.items() if user not in users}
        assert live_lists(client, variant) == left
    left_exposures = query(live.database_url, "SELECT count(*) FROM recs.exposures")
    assert left_exposures == [(2 * len(exposures) - 2 * count,)]
    with serving(settings_for(live.redis_url)) as app:
        assert {recommend(app, user)["source"] for user in users} == {"popular"}
        assert recommend(app, FAR + 2)["source"] == "personal"
    checked = live.run("doctor")
    assert checked.returncode == 0, checked.stdout
    assert "forgotten" in checked.stdout
    execute(live.database_url, f"INSERT INTO recs.interactions VALUES ({FAR + 2}, 105, 'view', now())")
    refreshed = live.run("refresh", "--json")
    assert [record["users"] for record in json.loads(refreshed.stdout)] == [1, 1], refreshed.stderr
    assert traces(live, users) == set()
    again = live.run("forget", *map(str, users))
    assert again.stdout == f"nothing is kept of {count} users\n"
    for variant in before:
        assert live.run("rollback", variant).returncode == 0
    assert json.loads(live.run("refresh", "--json").stdout)


def test_a_dry_run_counts_and_changes_nothing(live: LiveNetwork, examples: list[int]) -> None:
    users = [str(user) for user in (FIRST, NEW, *examples)]
    keys, files, pins = (
        dump(live.redis_url),
        digests(live.model_dir),
        "SELECT t::text FROM recs.experiments t",
    )
    recorded = query(live.database_url, pins)
    dry = json.loads(live.run("forget", "--dry-run", "--json", *users).stdout)
    assert (dump(live.redis_url), digests(live.model_dir)) == (keys, files)
    assert query(live.database_url, pins) == recorded
    assert query(live.database_url, "SELECT count(*) FROM recs.erasures") == [(0,)]
    done = json.loads(live.run("forget", "--json", *users).stdout)
    assert done == dry | {"dry_run": False}
    assert done["in_source"] == len(set(users))


def test_the_variants_of_a_night_share_the_new_copy_of_their_store(live: LiveNetwork) -> None:
    def inodes() -> dict[int, set[str]]:
        found: dict[int, set[str]] = {}
        for path in live.model_dir.rglob("store.duckdb"):
            found.setdefault(path.stat().st_ino, set()).add(path.parent.name)
        return found

    for runs in inodes().values():  # copytree does not keep links
        assert len(runs) == 1
    runs_of_nights: dict[str, list[Path]] = {}
    for path in sorted(live.model_dir.rglob("store.duckdb")):
        key = hashlib.sha256(path.read_bytes()).hexdigest()
        runs_of_nights.setdefault(key, []).append(path)
    for first, *others in runs_of_nights.values():
        for other in others:
            other.unlink()
            other.hardlink_to(first)
    before = sorted(map(sorted, inodes().values()))
    assert [len(runs) for runs in before] == [2, 2]
    delete(live, FIRST)
    done = live.run("forget", str(FIRST))
    assert done.returncode == 0, done.stderr
    assert sorted(map(sorted, inodes().values())) == before
    assert traces(live, [FIRST]) == set()
    assert live.run("explain", str(FAR + 2), "105").returncode == 0


def test_a_user_whom_the_source_still_has_gets_lists_again_and_the_command_says_so(
    live: LiveNetwork, client: redis.Redis
) -> None:
    done = live.run("forget", str(FAR + 5))
    assert done.returncode == 0
    assert "warning: recs.users has 1 of them: the next refresh or night makes lists for them" in done.stderr
    assert FAR + 5 not in live_lists(client)
    records = json.loads(live.run("refresh", "--json").stdout)
    assert [(record["users"], record["new_users"]) for record in records] == [(1, 1)] * 2
    assert FAR + 5 in live_lists(client)
    assert live.run("doctor").returncode == 0


def test_a_refresh_forgets_the_users_that_the_view_no_longer_has(
    live: LiveNetwork, client: redis.Redis
) -> None:
    users = [FIRST, FAR + 30]
    assert traces(live, users) >= EVERYWHERE - {"file report.html", "table refreshed_users"}
    building = live_run(client, "test")
    execute(live.database_url, f"UPDATE recs.runs SET state = 'building' WHERE run_id = '{building}'")
    known = (live.model_dir / str(building) / "users.npy").read_bytes()
    delete(live, *users)
    done = live.run("refresh", "--variant", "control")
    assert done.returncode == 0, done.stderr
    assert "forgot 2 users: removed 6 lists and 4 exposures" in done.stderr
    assert (
        live.model_dir / str(building) / "users.npy"
    ).read_bytes() == known  # a night at work keeps its files
    execute(live.database_url, f"UPDATE recs.runs SET state = 'live' WHERE run_id = '{building}'")
    assert "forgot 2 users: removed 2 lists and 0 exposures" in live.run("refresh").stderr
    assert traces(live, users) == set()
    late = "INSERT INTO recs.exposures VALUES ({}, 'test', 'a-run', '{}', now(), 1, 'recs')"
    execute(live.database_url, late.format(FIRST, "personal"), late.format(FAR * 2, "popular"))
    assert "forgot" not in live.run("refresh").stderr
    assert traces(live, users) == set()  # what workers sent late is gone, too
    assert traces(live, [FAR * 2]) == {"table exposures"}  # an id that was never a user's
    recorded = query(live.database_url, "SELECT users, lists, actor FROM recs.erasures ORDER BY at")
    assert [row[:2] for row in recorded] == [(2, 6), (2, 2)]
    assert recorded[0][2].startswith("batch refresh by ")


def test_a_view_that_lost_many_users_makes_a_refresh_warn_and_forget_nobody(
    live: LiveNetwork, client: redis.Redis
) -> None:
    before = {variant: live_lists(client, variant) for variant in ("control", "test")}
    execute(live.database_url, f"DELETE FROM recs.users WHERE user_id > {FAR + 40}")
    done = live.run("refresh")
    assert done.returncode == 0
    assert re.search(r"WARNING .* \d\d of 6\d users of", done.stderr), done.stderr
    assert "python -m batch forget --gone" in done.stderr
    assert {variant: live_lists(client, variant) for variant in before} == before
    dry = live.run("forget", "--gone", "--dry-run")
    assert dry.stdout.startswith("21 users: 82 lists, 42 exposures, pins of 1 users would be removed")
    assert live.run("forget", "--gone").returncode == 0
    assert max(live_lists(client)) == FAR + 40
    assert live.run("forget", "--gone").stdout == "nothing is kept of 0 users\n"


def test_a_run_forced_over_a_view_that_lost_users_leaves_their_lists_to_a_rollback(
    live: LiveNetwork, client: redis.Redis
) -> None:
    before = live_lists(client)
    execute(live.database_url, f"DELETE FROM recs.users WHERE user_id > {FAR + 40}")
    forced = live.run("run", "--variant", "control", "--force")
    assert forced.returncode == 0, forced.stderr
    assert max(live_lists(client)) == FAR + 40
    assert "nothing of them is removed" in forced.stderr
    assert "warn  users test" in live.run("doctor").stdout
    assert live.run("rollback", "control", "--reason", "a view was wrong").returncode == 0
    assert live_lists(client) == before


@pytest.mark.parametrize(("purpose", "holder"), [(lock.NIGHT, "run"), (lock.REFRESH, "refresh")])
def test_nobody_is_forgotten_while_a_night_or_a_refresh_is_at_work(
    live: LiveNetwork, monkeypatch: pytest.MonkeyPatch, purpose: str, holder: str
) -> None:
    monkeypatch.setattr("batch.commands.forget.LOCK_TIMEOUT_SECONDS", 0)
    keys, files = dump(live.redis_url), digests(live.model_dir)
    engine = open_engine(Settings.of(database_url=live.database_url), "overnight of a test")
    with lock.hold(engine, "recs", purpose):
        done = live.run("forget", str(FIRST))
    engine.dispose()
    assert done.returncode == 4
    assert f"another {holder} holds the lock: overnight of a test" in done.stderr
    assert (dump(live.redis_url), digests(live.model_dir)) == (keys, files)


def test_a_call_that_died_is_completed_by_the_next_one(
    live: LiveNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    delete(live, FIRST, LAST)
    steps = ("move_into_place", "write_atomically", "forget_in_user_ids")
    for step in steps:
        with monkeypatch.context() as patch:
            patch.setattr(batch.forget, step, _fail)
            done = live.run("forget", str(FIRST), str(LAST))
            assert (done.returncode, "disk full" in done.stderr.lower()) == (1, True), done.stderr
        assert "file users.npy" in traces(live, [FIRST])
    assert "forgot 2 users" in live.run("refresh").stderr  # it finds them by the files that come last
    assert traces(live, [FIRST, LAST]) == set()
    assert live.run("explain", str(FAR + 2), "105").returncode == 0
    assert live.run("doctor").returncode == 0


def _fail(*_: Any) -> None:
    raise OSError(28, "Disk full", "store")


def test_ids_or_gone_must_be_given(live: LiveNetwork) -> None:
    for arguments in ((), ("--gone", "42")):
        done = live.run("forget", *arguments)
        assert (done.returncode, "Give the ids of users, or --gone." in done.stderr) == (2, True)


def test_whole_numbers_below_0_are_ids_of_users_here_and_others_are_refused(live: LiveNetwork) -> None:
    done = live.run("forget", "--", str(-(2**63)), "-7", "-7")
    assert (done.returncode, done.stdout) == (0, "nothing is kept of 2 users\n")
    for wrong in ("ann", "1.5", str(2**63)):
        done = live.run("forget", "42", wrong)
        assert (done.returncode, f"'{wrong}' must be a whole number" in done.stderr) == (2, True)
