"""The benchmark of serving against a real Redis."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import redis

from benchmarks.load import find_wrk, gunicorn
from benchmarks.serving import BARE_CONF, write_users
from contract.keys import Keys
from tests.support.serving import CONTROL_RUN, publish


def test_users_are_those_with_a_list(redis_client: redis.Redis, tmp_path: Path) -> None:
    publish(redis_client, lists={7: [(1, 1.0)], 2**63 - 1: [(1, 1.0)]})
    assert write_users(redis_client, Keys(), CONTROL_RUN, tmp_path / "users") == 2
    assert set((tmp_path / "users").read_text().split()) == {"7", str(2**63 - 1)}


@pytest.mark.skipif(shutil.which("wrk") is None, reason="no wrk here")
def test_wrk_asks_a_bare_app_and_its_workers_are_measured(
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
