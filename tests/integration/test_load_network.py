"""Loading a network from users, posts and interactions in any of three formats, and several side by side."""

from __future__ import annotations

import gzip
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
import sqlalchemy as sa

from batch.loading.schema import check_views
from contract.errors import EXIT_USAGE, OvernightError
from demo import course_files, view_files
from demo.network import transaction
from demo.processes import free_port
from demo.real_network import ENDINGS, Format, load, recognise
from tests.support.batch import run_here
from tests.support.demo import demo, processes_of

Tables = dict[str, pa.Table]
ODD = 'height in "cm" (100 %), größe'
NOWHERE = "postgresql://nobody@localhost:1/none"
WHEN = "2013-07-31 00:12:44"


def tables() -> Tables:
    """A network with a feature of every kind, missing values, and names and texts that need quoting."""
    users = {
        "age": [31, None, 7],
        "user_id": [3, 1, 2],
        ODD: [1.5, float("nan"), -2.0],
        "paying": [True, False, None],
        "city": ['The "City"', None, "a,\n\nb"],
    }
    posts = {
        "post_id": [10, 20],
        "topic": ["1", None],
        "text": ["Ends; with\\.\n\\.\n", None],
        "created_at": ["2013-01-01T00:00:00+02:00", None],
        "like_count": [5, None],
        "year": [2001, 1999],
    }
    interactions = {
        "happened_at": [WHEN, "2013-07-31T02:12:45.25+02:00", "2013-07-31"],
        "action": ["view", "like", "like"],
        "post_id": [10, 10, 77],
        "user_id": [1, 1, 2],
        "note": ["left", "out", None],
    }
    return {name: pa.table(rows) for name, rows in network(users, posts, interactions).items()}


def network(users: Any, posts: Any, interactions: Any) -> dict[str, Any]:
    return {"users": users, "posts": posts, "interactions": interactions}


def write(folder: Path, ending: str, content: Tables) -> Path:
    """Write each table into a file with the ending; Parquet keeps times as times."""
    folder.mkdir(exist_ok=True)
    for name, rows in content.items():
        path = folder / f"{name}{ending}"
        if ending == ".parquet":
            pq.write_table(with_times(rows), path)
        else:
            opened = gzip.open if ending.endswith("gz") else open
            with opened(path, "wb") as file:
                pa.csv.write_csv(rows, file)
    return folder


def with_times(rows: pa.Table) -> pa.Table:
    for index, name in enumerate(rows.column_names):
        if name in ("created_at", "happened_at"):
            times = pd.to_datetime(rows[name].to_pandas(), utc=True, format="ISO8601")
            rows = rows.set_column(index, name, pa.array(times.astype("datetime64[ns, UTC]")))
    return rows


def query(database_url: str, sql: str) -> list[tuple[Any, ...]]:
    with transaction(database_url) as connection:
        return [tuple(row) for row in connection.execute(sa.text(sql))]


@pytest.mark.parametrize("ending", ENDINGS)
def test_each_format_gives_the_same_tables(database_url: str, tmp_path: Path, ending: str) -> None:
    load(database_url, write(tmp_path, ending, tables()))
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
    }
    assert query(database_url, "SELECT * FROM recs.users ORDER BY user_id") == [
        (1, None, None, False, None),
        (2, 7, -2.0, None, "a,\n\nb"),
        (3, 31, 1.5, True, 'The "City"'),
    ]
    created = datetime(2012, 12, 31, 22, tzinfo=UTC)
    assert query(database_url, "SELECT * FROM recs.posts ORDER BY post_id") == [
        (10, "1", "Ends; with\\.\n\\.\n", created, 5, 2001),
        (20, None, None, None, None, 1999),
    ]
    assert query(database_url, "SELECT * FROM recs.interactions ORDER BY happened_at") == [
        (2, 77, "like", datetime(2013, 7, 31, tzinfo=UTC)),
        (1, 10, "view", datetime(2013, 7, 31, 0, 12, 44, tzinfo=UTC)),
        (1, 10, "like", datetime(2013, 7, 31, 0, 12, 45, 250_000, tzinfo=UTC)),
    ]


def test_arrows_own_types_become_sql_types_and_others_are_left_out(
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
    content = network(pa.table(users), pa.table({"post_id": [1]}), pa.table(interactions))
    folder = tmp_path / "kinds"
    folder.mkdir()
    for name, rows in content.items():
        pq.write_table(rows, folder / f"{name}.parquet")
    load(database_url, folder)
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
    assert ["'born' is left out" in caplog.text, "'tags' is left out" in caplog.text] == [True, True]


@pytest.mark.parametrize("action", ["view", "like"])
def test_a_network_without_likes_is_loaded_with_a_warning(
    database_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, action: str
) -> None:
    day = pa.array([datetime(2013, 7, 31, 1)], pa.timestamp("s"))
    interactions = pa.table({"user_id": [1], "post_id": [1], "action": [action], "happened_at": day})
    for name, rows in network(pa.table({"user_id": [1]}), pa.table({"post_id": [1]}), interactions).items():
        pq.write_table(rows, tmp_path / f"{name}.parquet")
    load(database_url, tmp_path)
    warning = "no night can learn from this network: interactions.parquet has no likes"
    assert (warning in caplog.text) == (action == "view")


def test_interactions_are_read_in_batches(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of every batch arrive, in the file's order."""
    monkeypatch.setattr(view_files, "BATCH_ROWS", 100)
    monkeypatch.setattr(view_files, "BATCH_BYTES", 2_000)
    rows = 1_000
    interactions = {
        "user_id": list(range(rows)),
        "post_id": [10] * rows,
        "action": ["view", "like"] * (rows // 2),
        "happened_at": [WHEN] * rows,
    }
    content = tables() | {"interactions": pa.table(interactions)}
    for ending in ENDINGS:
        folder = write(tmp_path / ending, ending, content)
        batches = list(view_files.read_interactions(folder / f"interactions{ending}"))
        assert len(batches) >= 10
        load(database_url, folder)
        found = query(database_url, "SELECT user_id FROM feed_action ORDER BY ctid")
        assert found == [(user,) for user in range(rows)]


Change = Callable[[Tables], None]


def without(table: str, column: str) -> Change:
    return lambda content: content.update({table: content[table].drop_columns([column])})


def with_column(table: str, column: str, *values: Any) -> Change:
    def change(content: Tables) -> None:
        rows = content[table].slice(0, len(values))
        index = rows.column_names.index(column)
        content[table] = rows.set_column(index, column, pa.array(values))

    return change


def emptied(table: str) -> Change:
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
        (with_column("posts", "post_id", "a", "b"), "posts", "'post_id' must be a whole number: "),
        (with_column("posts", "post_id", True, False), "posts", "'post_id' must be a whole number: "),
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
        (emptied("users"), "users", "has no rows"),
        (emptied("interactions"), "interactions", "has no rows"),
    ],
)
@pytest.mark.parametrize("ending", [".parquet", ".csv"])
def test_bad_input_is_named_and_nothing_is_lost(
    database_url: str, tmp_path: Path, ending: str, change: Change, file: str, message: str
) -> None:
    load(database_url, write(tmp_path / "good", ".parquet", tables()))
    content = tables()
    change(content)
    with pytest.raises(OvernightError) as raised:
        load(NOWHERE, write(tmp_path / "bad", ending, content))  # told before the database is asked
    assert raised.value.exit_code == EXIT_USAGE
    text = str(raised.value)
    assert (f"{file}{ending}" in text, message in text, "\n" in text) == (True, True, False), text
    with pytest.raises(OvernightError):
        load(database_url, tmp_path / "bad")
    assert len(query(database_url, "SELECT * FROM recs.interactions")) == 3


@pytest.mark.parametrize(
    ("time", "message"),
    [("31/07/2013", "'31/07/2013' is not in ISO 8601"), ("1375229564", "'1375229564' is not in ISO 8601")],
)
@pytest.mark.parametrize(("table", "column"), [("interactions", "happened_at"), ("posts", "created_at")])
def test_an_unreadable_time_is_named(
    tmp_path: Path, table: str, column: str, time: str, message: str
) -> None:
    content = tables()
    with_column(table, column, WHEN, time)(content)
    with pytest.raises(OvernightError) as raised:
        load(NOWHERE, write(tmp_path, ".csv", content))
    assert str(raised.value).endswith(f"{table}.csv: '{column}' must be a time such as {WHEN}: {message}")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("users.csv", b"", "users.csv cannot be read: "),
        ("interactions.csv", b"", "interactions.csv cannot be read: "),
        ("posts.csv", b"post_id,a\n1,2\n3,4,5\n", "posts.csv cannot be read: "),
        (
            "interactions.csv",
            b"user_id,post_id,action,happened_at\n1,2\n",
            "interactions.csv cannot be read: ",
        ),
        ("users.csv", "user_id,city\n1,K\xf6ln\n".encode("latin-1"), "'city' is not text in UTF-8"),
        ("users.csv", b"user_id,a,a\n1,2,3\n", "has the column 'a' more than once"),
        ("users.csv", b"user_id," + b"x" * 64 + b"\n1,2\n", "must have 1 to 63 bytes"),
        ("users.csv", b"user_id,\n1,2\n", "the column name '' must have"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    write(tmp_path, ".csv", tables())
    (tmp_path / name).write_bytes(content)
    with pytest.raises(OvernightError) as raised:
        load(NOWHERE, tmp_path)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("ending", [".parquet", ".csv.gz"])
@pytest.mark.parametrize("name", ["users", "posts", "interactions"])
def test_half_a_file_is_named(tmp_path: Path, name: str, ending: str) -> None:
    path = write(tmp_path, ending, tables()) / f"{name}{ending}"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(OvernightError, match=f"{name}{ending} cannot be read: "):
        load(NOWHERE, tmp_path)


def test_a_folder_in_no_known_format_is_told_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(OvernightError, match="there is no folder"):
        recognise(tmp_path / "nowhere")
    with pytest.raises(OvernightError) as raised:
        recognise(tmp_path)
    for looked_for in ("users", "posts", "interactions", ".parquet", ".csv.gz", "liked_views.parquet"):
        assert looked_for in str(raised.value)
    write(tmp_path, ".csv", tables())
    assert recognise(tmp_path) is Format.VIEWS
    write(tmp_path, ".parquet", {"posts": tables()["posts"]})
    with pytest.raises(OvernightError, match=r"has posts\.parquet and posts\.csv; keep one"):
        recognise(tmp_path)
    (tmp_path / "posts.parquet").unlink()
    (tmp_path / "posts.csv").unlink()
    with pytest.raises(OvernightError, match=r"no file posts\.parquet or posts\.csv or posts\.csv\.gz"):
        recognise(tmp_path)
    (tmp_path / "interactions.csv").unlink()
    (tmp_path / course_files.LIKED).touch()
    assert recognise(tmp_path) is Format.FIRST_NETWORK


@pytest.mark.parametrize(
    ("name", "counts"),
    [("mtweet", (16_554, 10_506, 49_458, 50_542, 29)), ("grocery", (14_681, 8_687, 0, 121_892, 2))],
)
def test_the_networks_of_other_shapes_are_loaded_whole(
    database_url: str, real_network: Path, name: str, counts: tuple[int, ...]
) -> None:
    folder = real_network.parent / name
    if not folder.is_dir():
        pytest.skip(f"the rows of {name} are not here")
    load(database_url, folder)
    (found,) = query(
        database_url,
        """SELECT (SELECT count(*) FROM recs.users), (SELECT count(*) FROM recs.posts),
        count(*) FILTER (WHERE action = 'view'), count(*) FILTER (WHERE action = 'like')
        FROM recs.interactions""",
    )
    with transaction(database_url) as connection:
        columns = len(check_views(connection).posts)
    assert (*found, columns) == counts


def busy(users: int, posts: int, seed: int) -> Tables:
    """A network without any optional column, in which everybody likes posts next to their own number."""
    likes = [(user, (user * seed + step * step) % posts) for user in range(users) for step in range(6)]
    interactions = {
        "user_id": [user for user, _ in likes],
        "post_id": [post for _, post in likes],
        "action": ["like"] * len(likes),
        "happened_at": [f"2013-07-{1 + row % 28:02} 10:00:00" for row in range(len(likes))],
    }
    only_ids = {"user_id": list(range(users))}, {"post_id": list(range(posts))}
    return {name: pa.table(rows) for name, rows in network(*only_ids, interactions).items()}


@pytest.fixture
def base(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "demo"
    yield path
    demo(path, "stop")
    assert processes_of(path) == []


COUNT = "import os, psycopg2; c = psycopg2.connect(os.environ['DATABASE_URL']).cursor(); " + (
    "c.execute('SELECT count(*) FROM recs.users'); print(c.fetchone()[0])"
)


def count_users(base: Path, *option: str) -> str:
    done = demo(base, "exec", *option, "--", sys.executable, "-c", COUNT)
    assert done.code == 0, done.errors
    return done.out.strip()


def test_two_networks_stay_side_by_side_each_with_its_own_night(base: Path, tmp_path: Path) -> None:
    films = write(tmp_path / "films", ".csv", busy(60, 40, seed=7))
    shop = write(tmp_path / "shop", ".parquet", busy(50, 30, seed=3))
    for files in (films, shop):
        done = demo(base, "up", "--network", str(files), "--once", "--port", str(free_port()))
        assert (done.code, "Every answer is right." in done.out) == (0, True), done
    again = demo(base, "up", "--name", "films", "--once", "--port", str(free_port()))
    assert (again.code, "Night already run" in again.out) == (0, True), again
    assert processes_of(base) == []
    assert (count_users(base, "--name", "films"), count_users(base, "--name", "shop")) == ("60", "50")
    assert count_users(base) == "60"  # the one brought up last
    runs = [demo(base, "exec", "--name", name, "--", sys.executable, "-m", "batch", "runs").out
            for name in ("films", "shop")]  # fmt: skip
    assert [len(text.splitlines()) for text in runs] == [3, 3]
    assert runs[0] != runs[1]
    assert len({path.parent for path in base.glob("networks/*/models")}) == 2
    assert demo(base, "stop", "--name", "films").code == 0
    listed = {line.split()[0]: line for line in demo(base, "networks").out.splitlines()[1:]}
    assert "60 users, 40 posts, 360 interactions" in listed["films"]
    assert ("stopped" in listed["films"], "running" in listed["shop"]) == (True, True)
    assert str(films) in listed["films"]


def test_a_name_that_is_taken_or_unknown_is_told(base: Path, tmp_path: Path) -> None:
    for parent in ("a", "b"):
        (tmp_path / parent).mkdir()
        write(tmp_path / parent / "data", ".csv", tables())
    assert demo(base, "load", str(tmp_path / "a" / "data")).code == 0
    other = str(tmp_path / "b" / "data")
    refused = demo(base, "load", other)
    assert refused.code == EXIT_USAGE
    assert f"'data' is there already, from {tmp_path / 'a' / 'data'}; nothing was changed" in refused.error
    assert demo(base, "load", other, "--name", "data").code == 0
    assert other in demo(base, "networks").out
    unknown = demo(base, "exec", "--name", "typo", "--", "true")
    assert unknown == (2, "", "error: there is no network 'typo'; there are data, simulated\n")
    assert not (base / "networks" / "typo").exists()


def test_a_night_copes_with_odd_names_and_empty_columns(
    database_url: str, redis_url: str, tmp_path: Path
) -> None:
    content = busy(60, 40, seed=7)
    for table in ("users", "posts"):
        rows = content[table]
        content[table] = rows.append_column(ODD, pa.array(range(len(rows)))).append_column(
            "nothing", pa.nulls(len(rows))
        )
    load(database_url, write(tmp_path / "files", ".parquet", content))
    done = run_here(
        "run", "--variant", "all", database_url=database_url, redis_url=redis_url, model_dir=tmp_path
    )
    assert done.returncode == 0, done.stderr
