"""Columns of the views that change under a live model: one line names the column before anything is read."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa

from batch.files import COLUMNS
from batch.loading.model_columns import TYPES
from batch.training.model import load_model
from tests.support.batch import execute, make_network
from tests.support.batch_live import LiveNetwork, check_error, copy_network, make_live_network
from tests.support.evaluation import fit_model, load_database

RENAMED = (
    "ALTER TABLE recs.users RENAME TO all_users",
    "CREATE VIEW recs.users AS SELECT {columns} FROM recs.all_users",
)
CHANGES = {
    "gone": ("user_id, age, subscribed", "recs.users has no column city (text) any more", "restore"),
    "text to number": (
        "user_id, age, length(city) AS city, subscribed",
        "recs.users.city is of type integer now",
        "cast",
    ),
    "number to text": (
        "user_id, age::text AS age, city, subscribed",
        "recs.users.age is of type text now",
        "cast",
    ),
    "boolean to text": (
        "user_id, age, city, subscribed::text AS subscribed",
        "recs.users.subscribed is of type text now",
        "cast",
    ),
}


@pytest.fixture(scope="module")
def night(
    postgres_server: sa.URL, valkey_server: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LiveNetwork]:
    with make_live_network(postgres_server, valkey_server, tmp_path_factory.mktemp("models")) as live:
        yield live


@pytest.fixture
def live(night: LiveNetwork, postgres_server: sa.URL) -> Iterator[LiveNetwork]:
    """That night over a copy of its database."""
    with copy_network(night, postgres_server) as copy:
        yield copy


def change_users(live: LiveNetwork, columns: str) -> None:
    execute(live.database_url, *(statement.format(columns=columns) for statement in RENAMED))


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_column_is_named_by_refresh_explain_and_doctor(live: LiveNetwork, change: str) -> None:
    columns, reason, advice = CHANGES[change]
    change_users(live, columns)
    execute(live.database_url, "INSERT INTO recs.interactions VALUES (7, 101, 'view', now())")
    for command in (("refresh",), ("explain", "7", "101")):
        done = live.run(*command)
        check_error(done, 1, reason)
        assert re.search(rf"; {advice} the column in the view, or run a night now", done.stderr)
        assert "Traceback" not in done.stderr
    live.check_live()
    findings = json.loads(live.run("doctor", "--json").stdout)["findings"]
    models = {each["check"]: each for each in findings if each["check"].startswith("model ")}
    assert {each["status"] for each in models.values()} == {"fail"}
    assert all(reason in each["found"] and advice in each["mend"] for each in models.values())


def test_views_of_a_file_are_not_evaluated_with_a_changed_column(live: LiveNetwork, tmp_path: Path) -> None:
    views = tmp_path / "views.csv"
    views.write_text("timestamp,user_id,post_id,action,target\n2021-10-30,1,101,view,1\n")
    assert live.run("evaluate", "--views", str(views)).returncode == 0
    change_users(live, CHANGES["gone"][0])
    check_error(live.run("evaluate", "--views", str(views)), 1, CHANGES["gone"][1])


@pytest.mark.parametrize(
    "columns",
    [
        "user_id, age::numeric AS age, city::varchar(9) AS city, subscribed",
        "*, 1 AS more",
        "user_id::integer AS user_id, age, city, subscribed",
    ],
)
def test_columns_of_the_same_kind_and_new_ones_change_nothing(live: LiveNetwork, columns: str) -> None:
    change_users(live, columns)
    execute(live.database_url, "INSERT INTO recs.interactions VALUES (7, 101, 'view', now())")
    assert live.run("refresh").returncode == 0
    assert live.run("explain", "7", "101").returncode == 0


def test_of_a_model_without_types_the_names_are_checked(live: LiveNetwork, tmp_path: Path) -> None:
    shutil.copytree(live.model_dir, tmp_path / "models")
    old = replace(live, model_dir=tmp_path / "models")
    for path in old.model_dir.glob(f"*/{COLUMNS}"):
        saved = json.loads(path.read_text())
        assert saved.pop(TYPES)["users"] == {"age": "integer", "city": "text", "subscribed": "boolean"}
        path.write_text(json.dumps(saved))
    execute(live.database_url, "INSERT INTO recs.interactions VALUES (7, 101, 'view', now())")
    assert old.run("refresh").returncode == 0
    change_users(live, CHANGES["gone"][0])
    check_error(old.run("refresh"), 1, "recs.users has no column city any more")


def test_blanks_that_fill_char_columns_are_no_part_of_the_values(database_url: str, tmp_path: Path) -> None:
    make_network(database_url)
    plain = load_database(database_url)
    execute(
        database_url,
        "UPDATE recs.posts SET topic = NULL WHERE post_id = 103",
        "UPDATE recs.posts SET topic = '' WHERE post_id = 104",
        "ALTER TABLE recs.posts ALTER topic TYPE char(20)",
        "ALTER TABLE recs.users ALTER city TYPE char(20)",
        "ALTER TABLE recs.interactions ALTER action TYPE char(8)",
    )
    padded = load_database(database_url)
    assert padded.network.users.equals(plain.network.users)
    topics = padded.network.posts["topic"]
    assert topics.drop([103, 104]).tolist() == plain.network.posts["topic"].drop([103, 104]).tolist()
    assert topics[[103, 104]].isna().all()
    assert padded.now.likes.posts.tolist() == plain.now.likes.posts.tolist()
    model = fit_model(database_url, padded, "control")
    assert all(word == word.strip() for words in model.posts.categories.values() for word in words or ())
    model.save(tmp_path, padded.network)
    assert load_model(tmp_path, padded.network).digest == model.digest
