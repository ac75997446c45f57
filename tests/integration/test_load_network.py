"""Load networks from files in each format, several networks side by side, and reject invalid files."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import sqlalchemy as sa

from batch.loading.schema import check_views
from contract.errors import EXIT_USAGE, OvernightError
from contract.ids import WHOLE_NUMBERS
from demo import view_files
from demo.network import transaction
from demo.real_network import ENDINGS, load_network
from tests.support.batch import run_here
from tests.support.demo import find_processes, free_ports, run_demo
from tests.support.network_files import (
    ODD,
    UNREACHABLE,
    WHEN,
    Change,
    make_network_of_likes,
    make_tables,
    name_tables,
    with_column,
    write_network,
)


def query(database_url: str, sql: str) -> list[tuple[Any, ...]]:
    with transaction(database_url) as connection:
        return [tuple(row) for row in connection.execute(sa.text(sql))]


@pytest.mark.parametrize("ending", ENDINGS)
def test_each_format_gives_the_same_tables(database_url: str, tmp_path: Path, ending: str) -> None:
    load_network(database_url, write_network(tmp_path, ending, make_tables()))
    with transaction(database_url) as connection:
        found = check_views(connection)
    assert found.users == {
        "user_id": "bigint",
        "age": "bigint",
        ODD: "double precision",
        "paying": "boolean",
        "city": "text",
    }
    assert found.posts == {
        "post_id": "bigint",
        "topic": "text",
        "text": "text",
        "created_at": "timestamp with time zone",
        "like_count": "bigint",
        "year": "bigint",
        "author_id": "bigint",
    }
    assert query(database_url, "SELECT * FROM recs.users ORDER BY user_id") == [
        (1, None, None, False, None),
        (2, 7, -2.0, None, "a,\n\nb"),
        (3, 31, 1.5, True, 'The "City"'),
    ]
    created = datetime(2012, 12, 31, 22, tzinfo=UTC)
    assert query(database_url, "SELECT * FROM recs.posts ORDER BY post_id") == [
        (10, "1", "Ends; with\\.\n\\.\n", created, 5, 2001, None),
        (20, None, None, None, None, 1999, None),  # the app adds author_id
    ]
    assert query(database_url, "SELECT * FROM recs.interactions ORDER BY happened_at") == [
        (2, 77, "like", datetime(2013, 7, 31, tzinfo=UTC)),
        (1, 10, "view", datetime(2013, 7, 31, 0, 12, 44, tzinfo=UTC)),
        (1, 10, "like", datetime(2013, 7, 31, 0, 12, 45, 250_000, tzinfo=UTC)),
    ]


@pytest.mark.parametrize(
    ("until", "days"),
    [
        (datetime(2013, 7, 31, 23, tzinfo=UTC), 0),
        (datetime(2026, 1, 31, 0, 12, 45, tzinfo=UTC), 4566),  # a quarter of a second too early for one more
        (datetime(2013, 7, 30, tzinfo=UTC), -2),
    ],
)
def test_all_times_are_shifted_by_whole_days_to_end_less_than_a_day_before(
    database_url: str, tmp_path: Path, until: datetime, days: int
) -> None:
    assert load_network(database_url, write_network(tmp_path, ".csv", make_tables()), until) == days
    shift = timedelta(days=days)
    assert query(database_url, "SELECT created_at FROM recs.posts ORDER BY post_id") == [
        (datetime(2012, 12, 31, 22, tzinfo=UTC) + shift,),
        (None,),
    ]
    times = [time for (time,) in query(database_url, "SELECT happened_at FROM recs.interactions ORDER BY 1")]
    assert times[0] == datetime(2013, 7, 31, tzinfo=UTC) + shift
    assert times[-1] == datetime(2013, 7, 31, 0, 12, 45, 250_000, tzinfo=UTC) + shift
    assert until - timedelta(days=1) < times[-1] <= until


UUIDS = ("0d5ee3b5-9d7c-4d36-8a2c-6f0a3a3c8a11", "17c1b9f6-28f6-4a51-b8a2-1f8d9f0a7c22")
NUMBERS = ("10", "20")
TEXTS = ('a/"b\\ %', "007")


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize(
    ("users", "posts"), [(UUIDS, TEXTS), (TEXTS, UUIDS), (TEXTS, NUMBERS), (NUMBERS, TEXTS)]
)
def test_ids_are_whole_numbers_uuids_or_text(
    database_url: str, tmp_path: Path, ending: str, users: tuple[str, str], posts: tuple[str, str]
) -> None:
    content = make_tables()
    with_column("users", "user_id", *users)(content)
    with_column("posts", "post_id", *posts)(content)
    with_column("interactions", "user_id", *users)(content)
    with_column("interactions", "post_id", *[post.upper() for post in posts])(content)
    content["posts"] = content["posts"].append_column("author_id", pa.array([users[0], None]))
    load_network(database_url, write_network(tmp_path, ending, content))
    types = {UUIDS: "uuid", TEXTS: "text", NUMBERS: "bigint"}
    for relation, names, ids in (
        ("users", "user_id", (users,)),
        ("posts", "post_id, author_id", (posts, users)),
        ("interactions", "user_id, post_id", (users, posts)),
    ):
        columns = ", ".join(f"pg_typeof({name})::text" for name in names.split(", "))
        found = query(database_url, f"SELECT DISTINCT {columns} FROM recs.{relation}")
        assert found == [tuple(types[each] for each in ids)]
    rows = query(
        database_url, "SELECT user_id::text, post_id::text FROM recs.interactions ORDER BY happened_at"
    )
    expected = [post.upper() if posts == TEXTS else post for post in posts]
    assert sorted(rows) == sorted(zip(users, expected, strict=True))


def test_arrow_types_become_sql_types_and_others_are_skipped(
    database_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    users = {
        "user_id": pa.array([1.0, 2.0]),
        "level": pa.array([1, 2], pa.uint8()),
        "hash": pa.array([2**64 - 1, None], pa.uint64()),
        "share": pa.array([0.5, float("nan")], pa.float32()),
        "kind": pa.array(["a", None]).dictionary_encode(),
        "nothing": pa.nulls(2),
        "born": pa.array([datetime(2000, 1, 1), None]),
        "tags": pa.array([["x"], None]),
    }
    day = pa.array([datetime(2013, 7, 31, 1)], pa.timestamp("s"))
    interactions = {"user_id": [1], "post_id": [1], "action": ["like"], "happened_at": day}
    content = name_tables(pa.table(users), pa.table({"post_id": [1]}), pa.table(interactions))
    folder = tmp_path / "kinds"
    folder.mkdir()
    for name, rows in content.items():
        pq.write_table(rows, folder / f"{name}.parquet")
    load_network(database_url, folder)
    with transaction(database_url) as connection:
        found = check_views(connection).users
    assert found == {
        "user_id": "bigint",
        "level": "bigint",
        "hash": "numeric",
        "share": "double precision",
        "kind": "text",
        "nothing": "text",
    }
    assert query(database_url, "SELECT * FROM recs.users ORDER BY user_id") == [
        (1, 1, 2**64 - 1, 0.5, "a", None),
        (2, 2, None, None, None, None),
    ]
    hour = [(datetime(2013, 7, 31, 1, tzinfo=UTC),)]
    assert query(database_url, "SELECT happened_at FROM recs.interactions") == hour
    assert ["'born' is skipped" in caplog.text, "'tags' is skipped" in caplog.text] == [True, True]


@pytest.mark.parametrize("action", ["view", "like"])
def test_a_network_without_likes_is_loaded_with_a_warning(
    database_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, action: str
) -> None:
    day = pa.array([datetime(2013, 7, 31, 1)], pa.timestamp("s"))
    interactions = pa.table({"user_id": [1], "post_id": [1], "action": [action], "happened_at": day})
    for name, rows in name_tables(
        pa.table({"user_id": [1]}), pa.table({"post_id": [1]}), interactions
    ).items():
        pq.write_table(rows, tmp_path / f"{name}.parquet")
    load_network(database_url, tmp_path)
    warning = "no night can learn from this network: interactions.parquet has no likes"
    assert (warning in caplog.text) == (action == "view")


def test_interactions_are_read_in_batches(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Check that the rows of every batch are loaded in the order of the file."""
    monkeypatch.setattr(view_files, "BATCH_ROWS", 100)
    monkeypatch.setattr(view_files, "BATCH_BYTES", 2_000)
    rows = 1_000
    interactions = {
        "user_id": list(range(rows)),
        "post_id": [10] * rows,
        "action": ["view", "like"] * (rows // 2),
        "happened_at": [WHEN] * rows,
    }
    content = make_tables() | {"interactions": pa.table(interactions)}
    for ending in ENDINGS:
        folder = write_network(tmp_path / ending, ending, content)
        batches = list(view_files.read_interactions(folder / f"interactions{ending}", WHOLE_NUMBERS))
        assert len(batches) >= 10
        load_network(database_url, folder)
        found = query(database_url, "SELECT user_id FROM feed_action ORDER BY ctid")
        assert found == [(user,) for user in range(rows)]


def without(table: str, column: str) -> Change:
    return lambda content: content.update({table: content[table].drop_columns([column])})


def without_rows(table: str) -> Change:
    return lambda content: content.update({table: content[table].slice(0, 0)})


@pytest.mark.parametrize(
    ("change", "file", "message"),
    [
        (without("users", "user_id"), "users", "lacks the column 'user_id'; it has age, "),
        (without("posts", "post_id"), "posts", "lacks the column 'post_id'"),
        (without("interactions", "happened_at"), "interactions", "lacks the column 'happened_at'"),
        (with_column("users", "user_id", 1, 2, 1), "users", "has 1 ids more than once, first 1"),
        (with_column("users", "user_id", 1, 2, None), "users", "'user_id' is missing in 1 rows"),
        (with_column("users", "user_id", 1, 2.5, 3), "users", "'user_id' must be a whole number: "),
        (with_column("users", "user_id", "1", "2", "2.5"), "users", "'user_id' must be a whole number: "),
        (with_column("users", "user_id", "a", "", "c"), "users", "'user_id' "),
        (
            with_column("users", "user_id", "a", "b" * 129, "c"),
            "users",
            "'user_id' must be text of 1 ",
        ),
        (
            with_column("users", "user_id", UUIDS[0], UUIDS[0].upper(), UUIDS[1]),
            "users",
            "has 1 ids more than once",
        ),
        (with_column("posts", "post_id", *UUIDS), "interactions", "'post_id' must be a uuid"),
        (
            with_column("interactions", "post_id", *UUIDS),
            "interactions",
            "'post_id' must be a whole number: ",
        ),
        (with_column("posts", "like_count", 1.5, 2), "posts", "'like_count' must be a whole number: "),
        (
            with_column("interactions", "user_id", 1, 2.5),
            "interactions",
            "'user_id' must be a whole number: ",
        ),
        (with_column("interactions", "post_id", 1, None), "interactions", "'post_id' is missing in 1 rows"),
        (with_column("interactions", "action", "like", "share"), "interactions", "not 'share'"),
        (
            with_column("interactions", "action", "like", None),
            "interactions",
            "'action' is missing in 1 rows",
        ),
        (without_rows("users"), "users", "has no rows"),
        (without_rows("interactions"), "interactions", "has no rows"),
    ],
)
@pytest.mark.parametrize("ending", [".parquet", ".csv"])
def test_the_error_names_invalid_input_and_the_previous_network_stays(
    database_url: str, tmp_path: Path, *, ending: str, change: Change, file: str, message: str
) -> None:
    load_network(database_url, write_network(tmp_path / "good", ".parquet", make_tables()))
    content = make_tables()
    change(content)
    with pytest.raises(OvernightError) as raised:
        load_network(
            UNREACHABLE, write_network(tmp_path / "bad", ending, content)
        )  # fails before it connects
    assert raised.value.exit_code == EXIT_USAGE
    text = str(raised.value)
    assert (f"{file}{ending}" in text, message in text, "\n" in text) == (True, True, False), text
    with pytest.raises(OvernightError):
        load_network(database_url, tmp_path / "bad")
    assert len(query(database_url, "SELECT * FROM recs.interactions")) == 3


@pytest.mark.parametrize(
    ("name", "counts"),
    [("mtweet", (16_554, 10_506, 49_458, 50_542, 31)), ("grocery", (14_681, 8_687, 0, 121_892, 5))],
)
def test_real_networks_of_other_shapes_are_loaded_completely(
    database_url: str, real_network: Path, name: str, counts: tuple[int, ...]
) -> None:
    folder = real_network.parent / name
    if not folder.is_dir():
        pytest.skip(f"the rows of {name} are not here")
    load_network(database_url, folder)
    (found,) = query(
        database_url,
        """SELECT (SELECT count(*) FROM recs.users), (SELECT count(*) FROM recs.posts),
        count(*) FILTER (WHERE action = 'view'), count(*) FILTER (WHERE action = 'like')
        FROM recs.interactions""",
    )
    with transaction(database_url) as connection:
        columns = len(check_views(connection).posts)
    assert (*found, columns) == counts


@pytest.fixture
def base(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "demo"
    yield path
    run_demo(path, "stop")
    assert find_processes(path) == []


FETCH = "import os, psycopg2, sys; c = psycopg2.connect(os.environ['DATABASE_URL']).cursor(); " + (
    "c.execute(sys.argv[1]); print(c.fetchone()[0])"
)
COUNT = "SELECT count(*) FROM recs.users WHERE user_id NOT IN (SELECT user_id FROM account)"
IS_OF_TODAY = "SELECT now() - max(time) BETWEEN interval '0' AND interval '1 day' FROM feed_action"


def fetch(base: Path, statement: str, *option: str) -> str:
    """Return the first value of a query on a network."""
    result = run_demo(base, "exec", *option, "--", sys.executable, "-c", FETCH, statement)
    assert result.code == 0, result.stderr
    return result.stdout.strip()


def test_two_networks_exist_side_by_side_each_with_its_own_night(base: Path, tmp_path: Path) -> None:
    films = write_network(tmp_path / "films", ".csv", make_network_of_likes(60, 40, seed=7))
    shop = write_network(tmp_path / "shop", ".parquet", make_network_of_likes(50, 30, seed=3))
    for files, *options in ((films,), (shop, "--keep-dates")):
        result = run_demo(base, "up", "--network", str(files), "--once", *options, *free_ports())
        assert (result.code, "Every answer is right." in result.stdout) == (0, True), result
        assert "Running the night (python -m batch run --variant all)\n" in result.stdout  # of all users
    again = run_demo(base, "up", "--name", "films", "--once", *free_ports())
    assert (again.code, "Night already run" in again.stdout) == (0, True), again
    assert find_processes(base) == []
    names = (("--name", "films"), ("--name", "shop"))
    assert [fetch(base, COUNT, *name) for name in names] == ["60", "50"]
    assert [fetch(base, IS_OF_TODAY, *name) for name in names] == ["True", "False"]
    assert fetch(base, COUNT) == "60"  # of the network brought up last
    runs = [run_demo(base, "exec", "--name", name, "--", sys.executable, "-m", "batch", "runs").stdout
            for name in ("films", "shop")]  # fmt: skip
    assert [len(text.splitlines()) for text in runs] == [3, 3]
    assert runs[0] != runs[1]
    assert len({path.parent for path in base.glob("networks/*/models")}) == 2
    assert run_demo(base, "stop", "--name", "films").code == 0
    listed = {line.split()[0]: line for line in run_demo(base, "networks").stdout.splitlines()[1:]}
    assert "60 users, 40 posts, 360 interactions" in listed["films"]
    assert ("stopped" in listed["films"], "running" in listed["shop"]) == (True, True)
    assert str(films) in listed["films"]
    fetch(base, "DROP TABLE activity CASCADE; COMMIT; SELECT 1", "--name", "films")  # an earlier release
    old = run_demo(base, "up", "--name", "films", "--once", *free_ports())
    assert (old.code, f"Load it again: make demo NETWORK={films} NAME=films" in old.error) == (2, True), old


def test_a_name_in_use_or_unknown_is_an_error(base: Path, tmp_path: Path) -> None:
    for parent in ("a", "b"):
        (tmp_path / parent).mkdir()
        write_network(tmp_path / parent / "data", ".csv", make_tables())
    assert run_demo(base, "load", str(tmp_path / "a" / "data")).code == 0
    other = str(tmp_path / "b" / "data")
    refused = run_demo(base, "load", other)
    assert refused.code == EXIT_USAGE
    assert f"'data' is there already, from {tmp_path / 'a' / 'data'}; nothing was changed" in refused.error
    assert run_demo(base, "load", other, "--name", "data").code == 0
    assert other in run_demo(base, "networks").stdout
    unknown = run_demo(base, "exec", "--name", "typo", "--", "true")
    assert unknown == (2, "", "error: there is no network 'typo'; there are data, simulated\n")
    assert not (base / "networks" / "typo").exists()


def test_a_night_runs_with_unusual_column_names_and_empty_columns(
    database_url: str, redis_url: str, tmp_path: Path
) -> None:
    content = make_network_of_likes(60, 40, seed=7)
    for table in ("users", "posts"):
        rows = content[table]
        content[table] = rows.append_column(ODD, pa.array(range(len(rows)))).append_column(
            "nothing", pa.nulls(len(rows))
        )
    load_network(database_url, write_network(tmp_path / "files", ".parquet", content))
    done = run_here(
        "run", "--variant", "all", database_url=database_url, redis_url=redis_url, model_dir=tmp_path
    )
    assert done.returncode == 0, done.stderr
