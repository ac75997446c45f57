"""The pure parts of doctor: clock skew, memory and the worst status."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest

from batch.doctor import finding as doctor_finding
from batch.doctor import redis_checks
from batch.doctor.finding import Finding, Status, worst_status
from batch.redis_memory import Node


@pytest.mark.parametrize(
    ("seconds", "status"), [(0, "ok"), (-2, "ok"), (3, "warn"), (-59, "warn"), (61, "fail"), (-7200, "fail")]
)
def test_clocks_that_differ_are_told_by_how_much(seconds: int, status: str) -> None:
    ahead = doctor_finding.measure_skew(lambda: datetime.now(UTC) + timedelta(seconds=seconds))
    assert abs(ahead.total_seconds() - seconds) < 1
    assert doctor_finding.check_skew("clock", timedelta(seconds=seconds)).status == status


def node(*, used: int, limit: int) -> Node:
    return Node("Redis", 1.0, used, limit, bounded=True, policy="noeviction")


def test_memory_is_enough_for_all_variants_together_or_it_is_not() -> None:
    half_full, unlimited = node(used=50, limit=100), node(used=0, limit=0)
    assert redis_checks.check_memory([half_full, half_full], [40, 61]).status == Status.FAIL
    assert redis_checks.check_memory([half_full, half_full], [40, 40]).status == Status.WARN
    assert redis_checks.check_memory([node(used=0, limit=1000)], [40, None]).status == Status.OK
    for nodes, sizes in (([], [40]), ([half_full, unlimited], [40]), ([half_full], [None])):
        assert "unknown" in redis_checks.check_memory(nodes, sizes).found
    forecast = {"forecast_bytes": 12345}
    assert redis_checks.measure_run_bytes(None, None, forecast) == 12345  # type: ignore[arg-type]


def test_the_worst_finding_names_the_whole() -> None:
    findings = [Finding("a", status, "") for status in (Status.OK, Status.FAIL, Status.WARN)]
    assert worst_status(findings) is Status.FAIL
    assert worst_status(findings[::2]) is Status.WARN
    assert json.dumps(worst_status([])) == '"ok"'
