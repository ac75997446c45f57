"""Doctor: the last examination, worst first. Reading it examines nothing: the action `doctor` does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flask import Blueprint, render_template

from console.context import Console, current_console
from console.jobs import DOCTOR, JobRecord
from console.tables import Arguments, Column, Table, table_source

blueprint = Blueprint("doctor", __name__)

WORST_FIRST = ("fail", "warn", "ok")

COLUMNS = (
    Column("status", "Status"),
    Column("check", "Check"),
    Column("found", "Found"),
    Column("fix", "What to do"),
    Column("section", "In the runbook"),
)

RUNBOOK = "docs/operations.md"

SECTIONS = {
    "age": "A night is late",
    "experiment": "The experiment",
    "lists": "Redis is lost",
    "live": "Redis is lost",
    "lock": "The lock was held",
    "locks": "A run failed",
    "memory": "Memory",
    "orphan": "Prune",
    "postgres": "Postgres is lost",
    "redis": "Redis is lost",
    "tables": "Upgrade",
    "texts": "Redis is lost",
    "views": "A run failed",
}
"""First word of a check -> the section of the runbook that says more."""


@blueprint.get("/doctor")
def doctor() -> str:
    """Show the findings of the last examination."""
    console = current_console()
    result = console.readings.read("doctor", lambda: console.jobs.latest_result(DOCTOR, {}))
    newest = console.readings.read("newest doctor", lambda: console.jobs.latest(DOCTOR, {}))
    table = None if result.value is None else make_findings(result.value)
    return render_template(
        "doctor.html", result=result, newest=newest.value, table=table, runbook=RUNBOOK,
        counts=count_statuses(table),
    )  # fmt: skip


@table_source("doctor")
def make_table(console: Console, arguments: Arguments) -> Table:
    """Return the findings of the last examination."""
    job = console.jobs.latest_result(DOCTOR, {})
    if job is None:
        raise LookupError(DOCTOR)
    return make_findings(job)


def make_findings(job: JobRecord) -> Table:
    """Return the findings of an examination, worst first, as of its end."""
    findings = sorted(job.output["findings"], key=lambda finding: WORST_FIRST.index(finding["status"]))
    rows = [
        {
            "status": finding["status"],
            "check": finding["check"],
            "found": finding["found"],
            "fix": finding["mend"],
            "section": find_section(finding),
        }
        for finding in findings
    ]
    return Table("doctor", "Findings, worst first", COLUMNS, rows, job.ended_at or job.started_at)


def find_section(finding: Mapping[str, Any]) -> str | None:
    """Return the section of the runbook for a finding; None if all is well, or no section is about it."""
    if finding["status"] == "ok":
        return None
    return SECTIONS.get(finding["check"].split()[0])


def count_statuses(table: Table | None) -> dict[str, int]:
    """Return status -> number of findings, worst first."""
    rows = [] if table is None else table.rows
    return {status: sum(row["status"] == status for row in rows) for status in WORST_FIRST}
