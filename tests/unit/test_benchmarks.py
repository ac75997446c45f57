"""The benchmark's ways of scoring agree with each other, and fill its rows."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks import exposures, loading, publish
from benchmarks.case import Case
from benchmarks.network import make_likes, make_tables, train
from benchmarks.scorers import SAMPLES, Measurement, error, measure
from contract.errors import OvernightError
from contract.settings import Settings
from demo.postgres import make_engine
from demo.servers import prepare_servers

USERS, POSTS = 300, 90


@pytest.fixture(scope="module")
def case() -> Case:
    tables = make_tables(USERS, POSTS)
    return Case(train(tables, 20).model_to_string(), tables, None, make_likes(tables), n=10, budget_mib=64)


@pytest.mark.parametrize("factors", [0, 4])
def test_our_lists_hold_the_scores_that_lightgbm_gives(tmp_path: Path, case: Case, factors: int) -> None:
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


def test_publishing_is_measured_beside_redis_cli(
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


def test_publishing_is_not_measured_without_redis_cli(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(SystemExit, match="apt-get install redis-tools"):
        publish.main()


def test_the_cost_of_exposures_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if shutil.which("wrk") is None:
        pytest.skip("no wrk here")
    for name, value in (("USERS", 100), ("WARM_UP", 0), ("ROUNDS", 1), ("SECONDS", 1)):
        monkeypatch.setattr(exposures, name, value)
    monkeypatch.setenv("JSON", str(tmp_path / "figures.json"))
    exposures.main()
    (figures,) = json.loads((tmp_path / "figures.json").read_text())
    assert figures["requests_per_second_on"] > 0
    told = capsys.readouterr().out
    assert "cost to throughput" in told
    assert "exposures dropped: 0" in told


LOADED = loading.Network(interactions=5_000, users=100, posts=50)
ASKED_FOR = {
    "interactions", "copy_seconds", "load_seconds", "ratio_to_copy", "night_seconds", "refresh_seconds",
    "peak_mib", "store_mib",
}  # fmt: skip


def test_loading_a_night_and_a_refresh_are_measured_on_a_network_that_stays_as_it_was(tmp_path: Path) -> None:
    row = loading.measure(LOADED, tmp_path)
    assert row.keys() >= ASKED_FOR
    assert row.keys() == loading.COLUMNS.keys()
    assert min(row.values()) > 0
    assert (row["interactions"], row["refreshed_users"]) == (5_000, 100)
    servers, seed = prepare_servers(tmp_path), Settings.from_environment().night.seed
    assert servers.postgres.process() is None
    servers.start()
    try:
        engine = make_engine(servers.postgres.url())
        assert loading.is_there(LOADED, engine, seed)
        assert not loading.is_there(LOADED, engine, seed + 1)
        assert not loading.is_there(replace(LOADED, users=101), engine, seed)
        with loading.acted(engine, 7) as users:
            assert users == 7
            assert not loading.is_there(LOADED, engine, seed)
        assert loading.is_there(LOADED, engine, seed)
        assert list((tmp_path / "models").iterdir())
        loading.clear(servers, engine)
        assert not (tmp_path / "models").exists()
        with engine.connect() as connection:
            assert connection.scalars(loading.OWN_TABLES, {"schema": "recs"}).all() == []
    finally:
        servers.stop()


def test_networks_are_as_large_in_proportion_as_the_real_one() -> None:
    assert loading.Network.of(76_892_800) == loading.Network(76_892_800, 163_205, 7_023)
    assert loading.Network.of(10_000_000) == loading.Network(10_000_000, 21_226, 914)
    assert loading.Network.of(1_000_000) == loading.Network(1_000_000, 2_123, 500)


@pytest.mark.parametrize("keep", [True, False])
def test_rows_are_written_one_after_the_other_and_networks_removed_unless_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], keep: bool
) -> None:
    def measured(network: loading.Network, folder: Path) -> dict[str, float]:
        if network.interactions == 3_000:
            raise OvernightError("the disk is full")
        folder.mkdir()
        return dict.fromkeys(loading.COLUMNS, 1) | {"interactions": network.interactions}

    monkeypatch.setattr(loading, "measure", measured)
    monkeypatch.setattr(loading, "FOLDER", tmp_path)
    monkeypatch.setenv("JSON", str(tmp_path / "rows.json"))
    networks = [loading.Network.of(number) for number in (1_000, 2_000, 3_000)]
    with pytest.raises(OvernightError, match="the disk is full"):
        loading.compare(networks, keep=keep)
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert [row["interactions"] for row in rows] == [1_000, 2_000]
    assert len(capsys.readouterr().out.splitlines()) == 4
    kept = {path.name for path in tmp_path.glob("load-*")}
    assert kept == ({"load-1000", "load-2000"} if keep else set())


def test_a_process_that_fails_is_told_with_its_last_lines(tmp_path: Path) -> None:
    with pytest.raises(OvernightError, match=r"python -m batch nights failed: .*No such command 'nights'"):
        loading.run("batch", ["nights"], dict(os.environ), tmp_path / "log")
