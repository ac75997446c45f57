"""The benchmark of serving against a real Redis."""

from __future__ import annotations

from pathlib import Path

import redis

from benchmarks.serving import write_users
from contract.keys import Keys
from tests.support.serving import CONTROL_RUN, publish


def test_users_are_those_with_a_list(redis_client: redis.Redis, tmp_path: Path) -> None:
    publish(redis_client, lists={7: [(1, 1.0)], 2**63 - 1: [(1, 1.0)]})
    assert write_users(redis_client, Keys(), CONTROL_RUN, tmp_path / "users") == 2
    assert set((tmp_path / "users").read_text().split()) == {"7", str(2**63 - 1)}
