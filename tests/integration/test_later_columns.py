"""Counters of now among the columns of the views: named in the run, and left out on request."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from batch.training.dataset import Dataset
from batch.training.later_columns import find_later_columns
from batch.training.model import feature_names
from contract.errors import SettingsError
from contract.settings import Settings
from demo.simulate import simulate
from tests.support.batch import execute, make_network, query, run_here
from tests.support.evaluation import fit_model, load_database

COUNTERS = """
    ALTER TABLE recs.users ADD COLUMN actions bigint, ADD COLUMN joined double precision,
        ADD COLUMN lucky integer;
    UPDATE recs.users u SET lucky = hashint8(u.user_id), actions = found.actions, joined = found.joined
    FROM (
        SELECT user_id, count(*) AS actions, min(extract(epoch FROM happened_at)) AS joined
        FROM recs.interactions GROUP BY 1
    ) found WHERE found.user_id = u.user_id;
    ALTER TABLE recs.posts ADD COLUMN shares bigint, ADD COLUMN length integer;
    UPDATE recs.posts p SET length = length(text), shares = (
        SELECT count(*) / 3 FROM recs.interactions i WHERE i.post_id = p.post_id AND action = 'like'
    )
"""


def later_columns(dataset: Dataset) -> dict[str, float]:
    return find_later_columns(dataset.network, dataset.at_holdout, dataset.now)


def test_counters_of_now_are_named_and_constant_attributes_are_not(database_url: str) -> None:
    make_network(database_url, users=400, posts=200, interactions=30_000)
    execute(database_url, COUNTERS)
    assert set(later_columns(load_database(database_url))) == {"users.actions", "posts.shares"}


def test_no_column_of_the_simulated_network_is_named(database_url: str) -> None:
    simulate(database_url, users=1_000, posts=200, interactions=50_000, seed=42)
    dataset = load_database(database_url, clock=datetime.now(UTC), embeddings="off")
    assert len(dataset.network.users.columns) > 3
    assert later_columns(dataset) == {}


def test_the_run_and_doctor_name_the_column_and_the_setting_leaves_it_out(
    database_url: str, redis_url: str, tmp_path: Path
) -> None:
    servers: dict[str, Any] = {"database_url": database_url, "redis_url": redis_url, "model_dir": tmp_path}
    make_network(database_url, users=400, posts=200, interactions=30_000)
    execute(database_url, COUNTERS)
    named = ("recs.users.actions", "recs.posts.shares")
    done = run_here("run", "--variant", "control", **servers)
    assert done.returncode == 0, done.stderr
    ((run_id,),) = query(database_url, "SELECT run_id FROM recs.runs")
    page = next(tmp_path.glob(f"{run_id}/*.html")).read_text()
    shown = run_here("show", run_id, **servers).stdout
    found = run_here("doctor", **servers).stdout
    for column in named:
        assert f"{column} knows what happened after" in done.stderr
        assert all(column in text for text in (page, shown, found))
    ignored = {"OVERNIGHT_IGNORE_COLUMNS": "users.actions, posts.shares"}
    assert run_here("run", "--variant", "control", "--force", **servers, **ignored).returncode == 0
    ((model,),) = query(database_url, "SELECT run_id FROM recs.runs WHERE state = 'live'")
    columns = json.loads((tmp_path / model / "model.json").read_text())
    assert sorted(columns["users"]) == ["age", "city", "joined", "lucky", "subscribed"]
    assert "shares" not in columns["posts"]
    execute(database_url, "INSERT INTO recs.interactions VALUES (7, 101, 'view', now())")
    for settings in (ignored, {}):  # a refresh goes by the model
        assert run_here("refresh", **servers, **settings).returncode == 0
        assert run_here("explain", "7", "101", **servers, **settings).returncode == 0
    assert "knows what happened" not in run_here("doctor", **servers, **ignored).stdout
    unknown = {"OVERNIGHT_IGNORE_COLUMNS": "users.logins"}
    assert "names recs.users.logins, which does not exist" in run_here("doctor", **servers, **unknown).stdout
    done = run_here("run", "--variant", "control", "--force", **servers, **unknown)
    assert "OVERNIGHT_IGNORE_COLUMNS names recs.users.logins, which does not exist" in done.stderr


def test_ignored_columns_give_the_model_of_views_without_them(database_url: str) -> None:
    make_network(database_url)
    ignored = load_database(database_url, ignore_columns="users.age,users.subscribed")
    found = fit_model(database_url, ignored, "control")
    execute(database_url, "ALTER TABLE recs.users DROP COLUMN age, DROP COLUMN subscribed")
    expected = fit_model(database_url, load_database(database_url), "control")
    assert found.digest == expected.digest
    tables = found.tables(ignored.network, ignored.now)
    assert not [name for name in feature_names(tables.columns) if "user_age" in name]


@pytest.mark.parametrize(
    "value", ["logins", "interactions.action", "users.", "users.user_id", "posts.topic", "users.a,,users.b"]
)
def test_a_table_or_column_that_cannot_be_ignored_is_an_error_at_start(value: str) -> None:
    with pytest.raises(SettingsError, match="OVERNIGHT_IGNORE_COLUMNS"):
        Settings.from_environment({"OVERNIGHT_IGNORE_COLUMNS": value})
