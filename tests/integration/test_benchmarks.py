"""Benchmarks of scoring, publishing, exposures, loading and serving run and fill their rows."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import redis

from benchmarks import exposures, id_kinds, loading, publish
from benchmarks.case import Case
from benchmarks.load import find_wrk, gunicorn
from benchmarks.network import make_likes, make_tables, train
from benchmarks.scorers import SAMPLES, Measurement, error, measure
from benchmarks.serving import BARE_CONF, write_users
from contract.keys import Keys
from contract.settings import Settings
from demo.postgres import make_engine
from demo.servers import prepare_servers
from tests.support.serving import CONTROL_RUN
from tests.support.serving import publish as publish_lists

USERS, POSTS = 300, 90


@pytest.fixture(scope="module")
def case() -> Case:
    tables = make_tables(USERS, POSTS)
    return Case(train(tables, 20).model_to_string(), tables, None, make_likes(tables), n=10, budget_mib=64)


@pytest.mark.parametrize("factors", [0, 4])
def test_our_lists_have_the_scores_of_lightgbm(tmp_path: Path, case: Case, factors: int) -> None:
    if factors:
        random = np.random.default_rng(3)
        users, posts = (random.normal(size=(n, factors)).astype(np.float32) for n in (USERS, POSTS))
        case = replace(case, factors=(users, posts))
    case.save(tmp_path / "case")
    found: dict[str, Measurement] = {
        way: measure(way, tmp_path / "case", 2, tmp_path / SAMPLES[way]) for way in ("booster", "overnight")
    }
    assert all(measured.pairs == USERS * POSTS for measured in found.values())
    assert all(measured.peak_mib > 0 for measured in found.values())
    assert error(tmp_path / SAMPLES["overnight"], tmp_path / SAMPLES["booster"]) < 1e-5


def test_publishing_is_compared_with_redis_cli(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if shutil.which("redis-cli") is None and shutil.which("valkey-cli") is None:
        pytest.skip("no redis-cli here")
    monkeypatch.setattr(publish, "USERS", 1_000)
    monkeypatch.setattr(publish, "ROUNDS", 1)
    monkeypatch.setenv("JSON", str(tmp_path / "figures.json"))
    publish.main()
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert {"users_per_second", "pipe_users_per_second", "bytes_per_user"} <= set(figures)
    assert min(figures.values()) > 0
    assert "redis-cli --pipe" in capsys.readouterr().out


def test_the_cost_of_exposures_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if shutil.which("wrk") is None:
        pytest.skip("no wrk here")
    for name, value in (("USERS", 100), ("WARM_UP_ROUNDS", 0), ("ROUNDS", 1), ("SECONDS", 1)):
        monkeypatch.setattr(exposures, name, value)
    monkeypatch.setenv("JSON", str(tmp_path / "figures.json"))
    exposures.main()
    (figures,) = json.loads((tmp_path / "figures.json").read_text())
    assert figures["requests_per_second_on"] > 0
    printed = capsys.readouterr().out
    assert "cost to throughput" in printed
    assert "exposures dropped: 0" in printed


def test_publishing_and_serving_are_measured_with_ids_of_each_kind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if shutil.which("wrk") is None:
        pytest.skip("no wrk here")
    monkeypatch.setattr(publish, "USERS", 1_000)
    monkeypatch.setattr(publish, "ROUNDS", 1)
    for name in ("ROUNDS", "SECONDS", "WORKERS"):
        monkeypatch.setattr(id_kinds, name, 1)
    monkeypatch.setenv("JSON", str(tmp_path / "figures.json"))
    id_kinds.main()
    rows = {row["ids"]: row for row in json.loads((tmp_path / "figures.json").read_text())}
    assert rows.keys() == {*id_kinds.KINDS, *id_kinds.SERVED_KINDS, id_kinds.ENCODED}
    assert rows["uuid, number"]["bytes_per_user"] == rows["number, number"]["bytes_per_user"]
    assert rows["uuid, uuid"]["bytes_per_user"] > rows["uuid, text"]["bytes_per_user"]
    assert rows["uuid, number"]["memory_per_user"] > rows["number, number"]["memory_per_user"]
    assert min(row["rps"] for name, row in rows.items() if name not in id_kinds.KINDS) > 0
    assert "ids of users, posts" in capsys.readouterr().out


SMALL = loading.Network(interactions=5_000, users=100, posts=50)
REQUIRED_COLUMNS = {
    "interactions", "copy_seconds", "load_seconds", "ratio_to_copy", "night_seconds", "refresh_seconds",
    "peak_mib", "store_mib",
}  # fmt: skip


def test_loading_a_night_and_a_refresh_are_measured_on_a_network_that_stays_unchanged(tmp_path: Path) -> None:
    row = loading.measure(SMALL, tmp_path)
    assert row.keys() >= REQUIRED_COLUMNS
    assert row.keys() == loading.COLUMNS.keys()
    assert min(row.values()) > 0
    assert (row["interactions"], row["refreshed_users"]) == (5_000, 100)
    servers, seed = prepare_servers(tmp_path), Settings.from_environment().night.seed
    assert servers.postgres.find_process() is None
    servers.start()
    try:
        engine = make_engine(servers.postgres.url())
        assert loading.is_simulated(SMALL, engine, seed)
        assert not loading.is_simulated(SMALL, engine, seed + 1)
        assert not loading.is_simulated(replace(SMALL, users=101), engine, seed)
        with loading.add_actions(engine, 7) as users:
            assert users == 7
            assert not loading.is_simulated(SMALL, engine, seed)
        assert loading.is_simulated(SMALL, engine, seed)
        assert list((tmp_path / "models").iterdir())
        loading.clear(servers, engine)
        assert not (tmp_path / "models").exists()
        with engine.connect() as connection:
            assert connection.scalars(loading.OWN_TABLES, {"schema": "recs"}).all() == []
    finally:
        servers.stop()


def test_users_are_those_with_a_list(redis_client: redis.Redis, tmp_path: Path) -> None:
    publish_lists(redis_client, lists={7: [(1, 1.0)], 2**63 - 1: [(1, 1.0)]})
    assert write_users(redis_client, Keys(), CONTROL_RUN, tmp_path / "users") == 2
    assert set((tmp_path / "users").read_text().split()) == {"7", str(2**63 - 1)}


@pytest.mark.skipif(shutil.which("wrk") is None, reason="no wrk here")
def test_wrk_loads_a_bare_app_and_its_workers_are_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OVERNIGHT_WORKERS", "1")
    (tmp_path / "users").write_text("1\n2\n")
    with gunicorn(BARE_CONF, "benchmarks.bare_flask:bare()", "/") as server:
        measured = server.load(find_wrk(), "/", tmp_path / "users", connections=2, seconds=1)
        assert measured.rps > 0
        assert measured.worker_us > 0
        pss, rss = server.memory()
        assert 0 < pss <= rss
        with pytest.raises(SystemExit, match="requests failed"):
            server.load(find_wrk(), "/nothing/<id>", tmp_path / "users", connections=2, seconds=1)
