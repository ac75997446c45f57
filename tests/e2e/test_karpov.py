"""Loading a real network: every row once, in its place, and clear words about a file that is not right."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import sqlalchemy as sa

from contract.errors import EXIT_USAGE
from demo import course_files
from demo.network import NetworkError, transaction

EVENT = ["timestamp", "user_id", "post_id"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A few made-up rows in files like those of the real network."""
    users = {"user_id": [7, 8, 9], "gender": [1, 0, 1], "age": [20, None, 31], "country": "Here"}
    more = {"city": [None, "There", None], "exp_group": [0, 1, 2], "os": "iOS", "source": "ads"}
    pd.DataFrame(users | more).to_csv(tmp_path / course_files.USERS, index=False)
    posts = {"post_id": [1, 2], "text": ['One, "two"\n\nthree', None], "topic": ["tech", "movie"]}
    counters = {"text_length": [16, 40], "views_total": [100, 90], "likes_total": [10, 9]}
    pd.DataFrame(posts | counters).to_csv(tmp_path / course_files.POSTS, index=False)
    pd.DataFrame({"post_id": [1], "pc0": [0.1], "tfidf_max": [2.5]}).to_parquet(
        tmp_path / course_files.POST_FEATURES
    )
    history = [
        ("2021-12-29 21:20:00", 7, 1, "view", 1),
        ("2021-12-29 21:20:40", 7, 1, "like", 0),
        ("2021-12-29 21:21:00", 7, 2, "view", 0),
    ]
    pd.DataFrame(history, columns=[*EVENT, "action", "target"]).to_csv(
        tmp_path / course_files.HISTORY, index=False
    )
    evening = [
        ("2021-12-29 21:20:00", 7, 1, "view", 1),  # history has it
        ("2021-12-29 21:30:00", 8, 2, "view", 1),
        ("2021-12-29 21:31:00", 8, 1, "view", 0),
    ]
    pd.DataFrame(evening, columns=[*EVENT, "action", "target"]).to_csv(
        tmp_path / course_files.EVENING, index=False
    )
    liked = [
        ("2021-12-29 21:30:00", 8, 2, "view", 1),  # the evening has it
        ("2021-11-02 10:00:00", 8, 2, "view", 1),
        ("2021-11-01 09:00:00", 9, 1, "view", 1),
    ]
    rows = pd.DataFrame(liked, columns=[*EVENT, "action", "target"])
    rows.assign(timestamp=pd.to_datetime(rows.timestamp)).to_parquet(tmp_path / course_files.LIKED)
    return tmp_path


def query(database_url: str, sql: str) -> pd.DataFrame:
    with transaction(database_url) as connection:
        return pd.read_sql(sa.text(sql), connection)


def test_a_view_told_by_two_files_enters_once_and_lone_likes_have_no_view(
    database_url: str, folder: Path
) -> None:
    course_files.load(database_url, folder)
    rows = query(
        database_url,
        """SELECT user_id, post_id, action,
        to_char(happened_at AT TIME ZONE 'UTC', 'MM-DD HH24:MI:SS') AS time
        FROM recs.interactions ORDER BY happened_at, user_id, action DESC""",
    )
    assert list(rows.itertuples(index=False, name=None)) == [
        (9, 1, "like", "11-01 09:00:00"),
        (8, 2, "like", "11-02 10:00:00"),
        (7, 1, "view", "12-29 21:20:00"),
        (7, 1, "like", "12-29 21:20:40"),
        (7, 2, "view", "12-29 21:21:00"),
        (8, 2, "view", "12-29 21:30:00"),
        (8, 2, "like", "12-29 21:30:00"),
        (8, 1, "view", "12-29 21:31:00"),
    ]


def test_texts_and_missing_values_survive_the_load(database_url: str, folder: Path) -> None:
    course_files.load(database_url, folder)
    posts = query(database_url, "SELECT * FROM recs.posts ORDER BY post_id")
    assert posts.text.iloc[0] == 'One, "two"\n\nthree'
    assert posts.text.isna().tolist() == [False, True]
    assert posts.pc0.isna().tolist() == [False, True]
    assert posts[["view_count", "like_count", "text_length"]].to_numpy().tolist() == [
        [100, 10, 16],
        [90, 9, 40],
    ]
    users = query(database_url, "SELECT * FROM recs.users ORDER BY user_id")
    assert users.age.isna().tolist() == [False, True, False]
    assert users.city.dropna().tolist() == ["There"]


def test_the_real_network_is_loaded_whole(database_url: str, real_network: Path) -> None:
    course_files.load(database_url, real_network)
    counts = query(
        database_url,
        """SELECT (SELECT count(*) FROM recs.users) AS users,
        (SELECT count(*) FROM recs.posts) AS posts,
        (SELECT count(text) FROM recs.posts) AS texts,
        (SELECT count(city) FROM recs.users) AS cities,
        (SELECT sum(like_count) FROM recs.posts) AS likes_total,
        (SELECT count(DISTINCT user_id) FROM recs.interactions) AS active""",
    ).iloc[0]
    evening = pd.read_csv(real_network / course_files.EVENING)
    posts = pd.read_csv(real_network / course_files.POSTS)
    assert counts[["users", "posts", "texts", "cities"]].tolist() == [163_205, 7_023, 2_212, 1_015]
    assert counts.likes_total == posts.likes_total.sum()
    assert counts.active == 12_857
    actions = query(database_url, "SELECT action, count(*) AS n FROM recs.interactions GROUP BY 1")
    actions_of = dict(zip(actions.action, actions.n, strict=True))
    # 29 rows of the evening repeat the history of its one shared user; 5 of them were liked.
    shared = evening[evening.user_id == 122_907]
    assert (len(shared), shared.target.sum()) == (29, 5)
    assert actions_of["view"] == 27_739 + 69_927 - 29
    # 753 liked views are rows of the evening.
    assert actions_of["like"] == 3_314 + (11_060 - 5) + (499_702 - 753)
    twice = query(
        database_url, "SELECT 1 FROM feed_action GROUP BY user_id, post_id, action, time HAVING count(*) > 1"
    )
    assert twice.empty
    columns = query(database_url, "SELECT * FROM recs.posts LIMIT 1").columns
    assert {"pc0", "pc19", "d2v_1", "d2v_20", "tfidf_sum", "tfidf_mean", "tfidf_max"} <= set(columns)


@pytest.mark.parametrize(
    "name",
    [
        course_files.USERS,
        course_files.POSTS,
        course_files.POST_FEATURES,
        course_files.HISTORY,
        course_files.EVENING,
        course_files.LIKED,
    ],
)
def test_a_missing_or_damaged_file_is_named_and_nothing_is_lost(
    database_url: str, folder: Path, name: str
) -> None:
    course_files.load(database_url, folder)
    path = folder / name
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(NetworkError, match=f"{name} cannot be read: ") as damaged:
        course_files.load(database_url, folder)
    path.unlink()
    with pytest.raises(NetworkError, match=f"{name} is missing") as missing:
        course_files.load(database_url, folder)
    for raised in (damaged, missing):
        assert raised.value.exit_code == EXIT_USAGE
        assert "\n" not in str(raised.value)
    assert query(database_url, "SELECT count(*) AS n FROM recs.interactions").n.item() == 8


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(NetworkError, match=r"nowhere/users\.csv\.gz is missing"):
        course_files.load("postgresql://nobody@localhost:1/none", tmp_path / "nowhere")


def rewrite(path: Path, **changed: str) -> None:
    rows = pd.read_csv(path, dtype=str)
    for column, value in changed.items():
        rows[column] = value
    rows.to_csv(path, index=False)


def test_a_missing_column_and_a_wrong_value_are_named(folder: Path) -> None:
    def message() -> str:
        with pytest.raises(NetworkError) as raised:
            course_files.load("postgresql://nobody@localhost:1/none", folder)
        assert "\n" not in str(raised.value)
        return str(raised.value).removeprefix(f"{folder}/")

    rewrite(folder / course_files.EVENING, target="2")
    assert message() == "views_evening.csv.gz: 'target' must be 0 or 1, not 2"
    rewrite(folder / course_files.HISTORY, timestamp="yesterday\nor so")
    assert message().startswith("history_users.csv.gz: 'timestamp' must be a time, UTC: ")
    pd.read_csv(folder / course_files.POSTS).drop(columns="topic").to_csv(
        folder / course_files.POSTS, index=False
    )
    assert message() == "posts.csv.gz lacks the column 'topic'"
    rewrite(folder / course_files.USERS, age="young")
    assert message().startswith("users.csv.gz: 'age' must be a whole number or nothing: ")
    rewrite(folder / course_files.USERS, age="20", user_id="7")
    assert message() == "users.csv.gz has 1 ids more than once, first 7"
