from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest

from batch.doctor import finding as doctor_finding
from batch.doctor import redis_checks
from batch.doctor.finding import Finding, Status, worst


@pytest.mark.parametrize(
    ("seconds", "status"), [(0, "ok"), (-2, "ok"), (3, "warn"), (-59, "warn"), (61, "fail"), (-7200, "fail")]
)
def test_clocks_that_differ_are_told_by_how_much(seconds: int, status: str) -> None:
    ahead = doctor_finding.skew(lambda: datetime.now(UTC) + timedelta(seconds=seconds))
    assert abs(ahead.total_seconds() - seconds) < 1
    assert doctor_finding.judged("clock", timedelta(seconds=seconds)).status == status


def test_memory_is_enough_for_all_variants_together_or_it_is_not() -> None:
    assert redis_checks.enough((100, True), [40, 61]).status == Status.FAIL
    assert redis_checks.enough((100, True), [40, 40]).status == Status.WARN
    assert redis_checks.enough((1000, False), [40, None]).status == Status.OK
    assert redis_checks.enough(None, [40]).status == Status.OK
    forecast = {"forecast_bytes": 12345}
    assert redis_checks.bytes_of_run(None, None, forecast) == 12345  # type: ignore[arg-type]


def test_the_worst_finding_names_the_whole() -> None:
    told = [Finding("a", status, "") for status in (Status.OK, Status.FAIL, Status.WARN)]
    assert worst(told) is Status.FAIL
    assert worst(told[::2]) is Status.WARN
    assert json.dumps(worst([])) == '"ok"'
