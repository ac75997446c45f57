"""Load the first real network: every row once, and an error that names an invalid file."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import sqlalchemy as sa

from contract.errors import EXIT_USAGE
from demo import course_files
from demo.network import NetworkError, transaction
from tests.support.network_files import write_course_files


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_course_files(tmp_path)


def query(database_url: str, sql: str) -> pd.DataFrame:
    with transaction(database_url) as connection:
        return pd.read_sql(sa.text(sql), connection)


def test_a_view_in_two_files_is_loaded_once_and_lone_likes_have_no_view(
    database_url: str, folder: Path
) -> None:
    course_files.load_network(database_url, folder)
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


def test_texts_and_null_values_are_loaded_unchanged(database_url: str, folder: Path) -> None:
    course_files.load_network(database_url, folder)
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


def test_the_real_network_is_loaded_completely(database_url: str, real_network: Path) -> None:
    course_files.load_network(database_url, real_network)
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
    action_counts = dict(zip(actions.action, actions.n, strict=True))
    # 29 rows of the evening repeat the history of its one shared user; 5 of them were liked.
    shared = evening[evening.user_id == 122_907]
    assert (len(shared), shared.target.sum()) == (29, 5)
    assert action_counts["view"] == 27_739 + 69_927 - 29
    # 753 liked views are rows of the evening.
    assert action_counts["like"] == 3_314 + (11_060 - 5) + (499_702 - 753)
    duplicates = query(
        database_url, "SELECT 1 FROM feed_action GROUP BY user_id, post_id, action, time HAVING count(*) > 1"
    )
    assert duplicates.empty
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
def test_the_error_names_a_missing_or_damaged_file_and_the_previous_network_stays(
    database_url: str, folder: Path, name: str
) -> None:
    course_files.load_network(database_url, folder)
    path = folder / name
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(NetworkError, match=f"{name} cannot be read: ") as damaged:
        course_files.load_network(database_url, folder)
    path.unlink()
    with pytest.raises(NetworkError, match=f"{name} is missing") as missing:
        course_files.load_network(database_url, folder)
    for raised in (damaged, missing):
        assert raised.value.exit_code == EXIT_USAGE
        assert "\n" not in str(raised.value)
    assert query(database_url, "SELECT count(*) AS n FROM recs.interactions").n.item() == 8
