"""The doctor's page: findings, worst first, with the sections of the runbook."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from batch.doctor.finding import Status, fail, ok, warn
from console.jobs import DOCTOR, JobRecord
from console.pages.doctor import RUNBOOK, SECTIONS, WORST_FIRST, count_statuses, make_findings

ROOT = Path(__file__).parents[2]


def test_findings_come_worst_first_and_name_sections_that_the_runbook_has() -> None:
    findings = [ok("redis", "up"), warn("age test", "old", "run it"), fail("age control", "older", "run it")]
    ended = datetime(2026, 11, 27, 6, tzinfo=UTC)
    output = {"findings": [finding.as_dict() for finding in findings]}
    job = JobRecord("id", DOCTOR, "anna", ended, ended_at=ended, output=output)
    table = make_findings(job)
    shown = [(row["status"], row["check"], row["fix"], row["section"]) for row in table.rows]
    assert shown == [
        ("fail", "age control", "run it", "A night is late"),
        ("warn", "age test", "run it", "A night is late"),
        ("ok", "redis", None, None),
    ]
    assert table.at == ended
    assert count_statuses(table) == {"fail": 1, "warn": 1, "ok": 1}
    assert count_statuses(None) == {"fail": 0, "warn": 0, "ok": 0}
    assert set(WORST_FIRST) == set(Status)
    headings = {line.lstrip("# ") for line in (ROOT / RUNBOOK).read_text().splitlines() if line[:1] == "#"}
    assert set(SECTIONS.values()) <= headings
