"""Jobs: what runs now, what ran, and each job with its log."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from flask import Blueprint, abort, render_template, request, url_for

from batch.runs.lock import COMMAND, Holder, find_holders
from console import job_records
from console.context import Console, current_console, now
from console.job_kinds import describe_arguments
from console.jobs import JobRecord
from console.keyset import format_position, parse_position
from console.pages import operations
from console.tables import PAGE_ROWS, Arguments, Column, Table, absent_is_404, table_source

blueprint = Blueprint("jobs", __name__)

COLUMNS = (
    Column("started_at", "Started", "time"),
    Column("title", "Job", link="url"),
    Column("what", "Of"),
    Column("actor", "By"),
    Column("reason", "Reason"),
    Column("seconds", "Seconds", "number"),
    Column("meaning", "End"),
    Column("job_id", "Id", only_in_files=True),
    Column("url", "Address", only_in_files=True),
)


@blueprint.get("/jobs")
def jobs() -> str:
    """Show running jobs, ended ones that are recorded, and those that only this process knows."""
    console, arguments = current_console(), {"before": request.args.get("before", "")}
    with absent_is_404():
        recorded = console.readings.read(
            ("jobs", arguments["before"]), lambda: make_table(console, arguments)
        )
    others = console.readings.read("running jobs", lambda: job_records.list_running(console.stores))
    return render_template(
        "jobs.html",
        running=make_running(console, others.value or ()),
        others=others,
        holders=console.readings.read("locks", lambda: _read_holders(console)),
        recorded=recorded,
        held=make_held(console),
        commands=COMMAND,
        first_page=not arguments["before"],
        actions=operations.list_buttons(console.settings),
    )


def _read_holders(console: Console) -> dict[str, Holder]:
    stores = console.stores
    with stores.engine.connect() as connection:
        return find_holders(connection, stores.keys.prefix)


@blueprint.get("/jobs/<job_id>")
def job(job_id: str) -> str:
    """Show a job with its log."""
    console = current_console()
    reading = console.readings.read(("job", job_id), lambda: console.jobs.find(job_id))
    if reading.value is None and reading.error is None:
        abort(404)
    found = reading.value
    can_stop = found is not None and found.running and console.jobs.holds(job_id)
    return render_template("job.html", reading=reading, job=found, can_stop=can_stop, seconds=seconds_of)


def seconds_of(job: JobRecord) -> float:
    """Return how long a job ran, or has run until now."""
    return round(((job.ended_at or now()) - job.started_at).total_seconds(), 1)


def _to_row(job: JobRecord) -> dict[str, Any]:
    return {
        "started_at": job.started_at,
        "title": job.title,
        "what": describe_arguments(job.arguments)[:200] or None,
        "actor": job.actor,
        "reason": job.reason,
        "seconds": seconds_of(job),
        "meaning": job.meaning or job.stopped or "running",
        "job_id": job.job_id,
        "url": url_for("jobs.job", job_id=job.job_id),
    }


@table_source("jobs")
def make_table(console: Console, arguments: Arguments) -> Table:
    """Return a page of the recorded jobs that have ended, newest first."""
    before = arguments.get("before", "")
    found = job_records.list_page(console.stores, parse_position(before), PAGE_ROWS + 1)
    page = found[:PAGE_ROWS]
    more = {"before": format_position(page[-1].started_at, page[-1].job_id)} if found[PAGE_ROWS:] else None
    return Table(
        "jobs", "Jobs that change something, and reports", COLUMNS, [_to_row(each) for each in page],
        datetime.now(UTC), {"before": before} if before else {}, more,
    )  # fmt: skip


@table_source("running-jobs")
def make_running_table(console: Console, arguments: Arguments) -> Table:
    """Return the jobs that run now, of every console."""
    return make_running(console, job_records.list_running(console.stores))


def make_running(console: Console, others: Iterable[JobRecord]) -> Table:
    """Return the jobs of this process that run, and those of other consoles."""
    held = console.jobs.held()
    ours = {each.job_id for each in held}
    running = [each for each in held if each.running] + [each for each in others if each.job_id not in ours]
    columns = [
        *(replace(column, title="State") if column.name == "meaning" else column for column in COLUMNS),
        Column("host", "Host"),
    ]
    rows = [_to_row(each) | {"host": each.host} for each in running]
    return Table("running-jobs", "Running", columns, rows, datetime.now(UTC))


@table_source("held-jobs")
def make_held_table(console: Console, arguments: Arguments) -> Table:
    """Return the ended jobs that this process remembers and Postgres does not keep."""
    return make_held(console)


def make_held(console: Console) -> Table:
    """Return the ended jobs that this process remembers and Postgres does not keep."""
    ended = console.jobs.unrecorded()
    caption = "Jobs that only read, until the console ends"
    return Table("held-jobs", caption, COLUMNS, [_to_row(each) for each in ended], datetime.now(UTC))
