"""Experiment: may a winner be named, who is in which variant, and who changed that."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

import click
import sqlalchemy as sa
from flask import Blueprint, Response, abort, redirect, render_template, request, url_for
from werkzeug.wrappers import Response as AnyResponse

from batch import formatting
from batch.context import Stores
from batch.experiment.history import (
    SplitChange,
    is_same_experiment,
    read_begin,
    read_current_change,
    read_history,
    variant_sql,
)
from batch.experiment.render import (
    GUARDRAIL_TITLES,
    draw_days,
    explored_table,
    latency_rows,
    list_notes,
    render_page,
)
from batch.experiment.split import StoredSplit, read_split
from batch.runs.tables import drained, experiments, has_table
from console.content.experiment_report import (
    OTHER_SHAPE,
    PARTS,
    ReportOptions,
    draw_metrics,
    read_report,
    report_table,
)
from console.context import Console, current_console, current_visitor, now
from console.jobs import REPORT, JobRecord
from console.links import user_url
from console.pages import split_actions  # noqa: F401 - registers the actions
from console.readings import Reading
from console.tables import PAGE_ROWS, Arguments, Column, Table, absent_is_404, table_source
from contract.errors import OvernightError
from contract.experiment import VARIANTS, Experiment, sort_pins

blueprint = Blueprint("experiment", __name__)
log = logging.getLogger(__name__)

MAX_SQL = 4_000
"""Characters of the variant's SQL that the page shows: every pinned user adds a line to it."""

MAX_DAYS = 60
"""Days that the page draws and lists, the last ones; the files have all."""

REPORT_CSP = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'self'; sandbox"

OTHER_RELEASE = "The report was made by another release of this project: make a new one."

CHANGES, PINS = "split-changes", "pins"


@dataclass(frozen=True)
class SplitInForce:
    """The recorded split (None before the first night), and since when.

    Attributes
    ----------
    began_at
        When the experiment began: its name and salt.
    set_at
        When its percentage was set; the planned days count from then.
    drained_at
        When exposures were last moved from Redis.
    """

    change: SplitChange | None
    began_at: datetime | None = None
    set_at: datetime | None = None
    drained_at: datetime | None = None

    @property
    def planned_end(self) -> datetime | None:
        """The end by the plan; None without a plan."""
        if self.change is None or self.change.planned_days is None or self.set_at is None:
            return None
        return self.set_at + timedelta(days=self.change.planned_days)


@dataclass(frozen=True)
class SplitInRedis:
    """What Redis has: the split, and how many batches of exposures wait to be moved to Postgres."""

    split: StoredSplit
    waiting: int


@dataclass(frozen=True)
class HealthLine:
    """A line on the experiment's health: `state` is `good`, `warning` or `bad`."""

    title: str
    state: str
    sentence: str


@blueprint.get("/experiment")
def experiment() -> str | tuple[str, int]:
    """Show the page."""
    try:
        return _show(ReportOptions.parse(request.args))
    except click.BadParameter as error:
        return _show(ReportOptions(), error.message), 400


@blueprint.post("/experiment")
def start_report() -> AnyResponse | tuple[str, int]:
    """Start the job that makes a report; it reads only, so every visitor may."""
    visitor = current_visitor()
    if visitor is None:
        abort(403)
    try:
        options = ReportOptions.parse(request.form)
    except click.BadParameter as error:
        return _show(ReportOptions(), error.message), 400
    try:
        current_console().jobs.start(REPORT, options.job, visitor.name)
    except OvernightError as error:
        return _show(options, str(error)), 503
    return redirect(url_for(".experiment", **_as_arguments(options)), 303)


@blueprint.get("/experiment/report")
def report() -> Response:
    """Show the report as a page of its own, as `experiment report --html` writes it."""
    found = _find_report()
    try:
        page = render_page(found)
    except OTHER_SHAPE:
        abort(404, OTHER_RELEASE)
    answer = Response(page, content_type="text/html; charset=utf-8")
    answer.headers["Content-Security-Policy"] = REPORT_CSP
    return answer


@blueprint.get("/experiment/report.json")
def report_json() -> Response:
    """Answer the report as `experiment report --json` prints it."""
    return Response(formatting.as_json(_find_report()), content_type="application/json; charset=utf-8")


@blueprint.get("/experiment/variant.sql")
def variant_as_sql() -> Response:
    """Answer the SQL that gives a user's variant."""
    console = current_console()
    with console.stores.readable_errors():
        found = read_split_in_force(console.stores)
    if found.change is None:
        abort(404)
    return Response(
        variant_sql("user_id", found.change.experiment) + "\n", content_type="text/plain; charset=utf-8"
    )


def _find_report() -> dict[str, Any]:
    try:
        options = ReportOptions.parse(request.args)
    except click.BadParameter:
        abort(400)
    reading = read_report(current_console(), options)
    if reading.value is None:
        if reading.error:
            raise OvernightError(reading.error)
        abort(404)
    output: dict[str, Any] = reading.value.output
    return output


def _as_arguments(options: ReportOptions) -> dict[str, Any]:
    return dict(options.query)


def _show(options: ReportOptions, problem: str = "") -> str:
    console = current_console()
    key, stores = "split", console.stores
    split = console.readings.read((key, "in force"), lambda: read_split_in_force(stores))
    stored = console.readings.read((key, "redis"), lambda: read_split_in_redis(stores))
    with absent_is_404():
        changes = console.readings.read(
            (key, "changes", request.args.get("before", "")), lambda: split_changes(console, request.args)
        )
    pins = console.readings.read(
        (key, "pins", request.args.get("after", "")), lambda: pinned_users(console, request.args)
    )
    made = read_report(console, options)
    latest = console.readings.read(
        ("experiment report job", *options.job["options"]), lambda: console.jobs.latest(REPORT, options.job)
    )
    in_force = split.value.change if split.value else None
    sql = variant_sql("user_id", in_force.experiment) if in_force else ""

    def draw(made: Reading[JobRecord | None], unreadable: JobRecord | None = None) -> str:
        return render_template(
            "experiment.html",
            options=options,
            problem=problem,
            split=split,
            stored=stored,
            changes=changes,
            pins=pins,
            job=latest.value,
            made=made,
            unreadable=unreadable,
            health=describe_health(split.value, stored.value, made.value),
            sql=sql if len(sql) <= MAX_SQL else "",
            variants=VARIANTS,
            **_report_parts(made.value, options, in_force),
        )

    try:
        return draw(made)
    except OTHER_SHAPE as error:
        if made.value is None:
            raise
        log.warning("the report of job %s cannot be shown: %r", made.value.job_id, error)
        return draw(replace(made, value=None), made.value)


def _report_parts(
    job: JobRecord | None, options: ReportOptions, in_force: SplitChange | None
) -> dict[str, Any]:
    """Return what the template draws of a report."""
    if job is None:
        return {"report": None}
    found, days = job.output, job.output["by_day"]
    explored = found.get("explored_places")
    return {
        "report": found | {"by_day": days[-MAX_DAYS:]},
        "days": len(days),
        "changed_since": in_force is not None and in_force.set_at > job.started_at,
        "other_experiment": in_force is not None and not _is_of(found, in_force.experiment),
        "notes": list_notes(found),
        "metrics_drawn": draw_metrics(found),
        "days_drawn": draw_days(days[-MAX_DAYS:]),
        "guardrail_titles": GUARDRAIL_TITLES,
        "latency": latency_rows(found["guard_rails"]["latency"]),
        "explored": explored_table(explored) if explored else None,
        "parts": {part: report_table(part, job, options) for part in PARTS},
    }


def _is_of(found: Mapping[str, Any], split: Experiment) -> bool:
    fields = found["experiment"]
    return is_same_experiment(Experiment(fields["name"], fields["salt"], fields["percent_test"]), split)


def read_split_in_force(stores: Stores) -> SplitInForce:
    """Read the split in force, and since when, from Postgres."""
    prefix = stores.keys.prefix
    with stores.engine.connect() as connection:
        if not has_table(connection, experiments):
            return SplitInForce(None)
        change = read_current_change(connection, prefix)
        if change is None:
            return SplitInForce(None)
        return SplitInForce(
            change,
            read_begin(connection, change),
            read_begin(connection, change, same_percent=True),
            connection.scalar(sa.select(drained.c.at).where(drained.c.key_prefix == prefix)),
        )


def read_split_in_redis(stores: Stores) -> SplitInRedis:
    """Read the split that serving uses, and the length of the stream of exposures, from Redis."""
    return SplitInRedis(read_split(stores.redis, stores.keys), int(stores.redis.xlen(stores.keys.exposures)))


def describe_health(
    split: SplitInForce | None, stored: SplitInRedis | None, job: JobRecord | None
) -> list[HealthLine]:
    """Describe whether the figures can be trusted; what could not be read has no line."""
    lines = []
    if job is not None:
        lines.append(_ratio_line(job.output["sample_ratio"]))
    if split is not None and split.change is not None:
        lines.append(_plan_line(split, None if job is None else job.output))
        if stored is not None:
            lines.append(_redis_line(split.change, stored.split))
    if split is not None:
        lines.append(_exposures_line(split, stored))
    return lines


def _ratio_line(ratio: Mapping[str, Any]) -> HealthLine:
    counted = (
        f"{ratio['control']:,} users in control and {ratio['test']:,} in test; "
        f"{ratio['expected_control']:,.1f} and {ratio['expected_test']:,.1f} were expected"
    )
    if ratio["p_value"] is None:
        return HealthLine("Sample ratio", "good", f"There is nothing to check: {counted}.")
    state = "bad" if ratio["broken"] else "good"
    said = "Broken, so no figure can be trusted" if ratio["broken"] else "As expected"
    return HealthLine("Sample ratio", state, f"{said}: {counted} (p = {ratio['p_value']:.3g}).")


def _plan_line(split: SplitInForce, report: Mapping[str, Any] | None) -> HealthLine:
    if report is not None and report["plan"]["deviates"]:
        return HealthLine("Plan", "warning", report["plan"]["sentence"])
    days = split.change.planned_days if split.change else None
    if days is None or split.planned_end is None:
        return HealthLine("Plan", "warning", "No end is planned: a report assumes 14 days.")
    over = now() >= split.planned_end
    return HealthLine(
        "Plan", "good",
        f"Planned: {formatting.format_count(days, 'day')}, until {split.planned_end:%Y-%m-%d %H:%M} UTC; "
        + ("they have passed." if over else "no winner is named before."),
    )  # fmt: skip


def _redis_line(change: SplitChange, stored: StoredSplit) -> HealthLine:
    if stored.experiment == change.experiment:
        return HealthLine("Split in Redis", "good", "Redis has the recorded split, which serving uses.")
    effect = "serving uses that" if stored.experiment else "serving keeps the split it had"
    return HealthLine(
        "Split in Redis", "bad",
        f"Redis has {stored.describe()}, and {effect}. The next night or refresh writes the recorded split "
        "back; at once: change the split to what it is.",
    )  # fmt: skip


def _exposures_line(split: SplitInForce, stored: SplitInRedis | None) -> HealthLine:
    waiting = ""
    if stored is not None:
        batches = "1 batch waits" if stored.waiting == 1 else f"{stored.waiting:,} batches wait"
        waiting = f" {batches} in Redis for the next night or refresh."
    if split.drained_at is None:
        return HealthLine("Exposures", "warning", f"None were moved from Redis to Postgres yet.{waiting}")
    moved = f"Last moved from Redis to Postgres at {split.drained_at:%Y-%m-%d %H:%M:%S} UTC."
    return HealthLine("Exposures", "good", moved + waiting)


@table_source(CHANGES)
def split_changes(console: Console, arguments: Arguments) -> Table:
    """Return the changes of the split, newest first; `before` is the time of the last one of a page."""
    before = arguments.get("before") or None
    try:
        earlier = datetime.fromisoformat(before) if before else None
    except ValueError:
        raise LookupError(before) from None
    with console.stores.engine.connect() as connection:
        rows = []
        if has_table(connection, experiments):
            rows = read_history(connection, console.stores.keys.prefix, earlier, PAGE_ROWS + 1)
    more = {"before": rows[PAGE_ROWS - 1]["set_at"].isoformat()} if len(rows) > PAGE_ROWS else None
    columns = [
        Column("set_at", "since", "time"), Column("name", "name"), Column("salt", "salt"),
        Column("percent_test", "% in test", "number"), Column("planned_days", "planned days", "number"),
        Column("pinned", "pinned", "number"), Column("actor", "by, and why"),
    ]  # fmt: skip
    given = {"before": before} if before else {}
    return Table(CHANGES, "Every change of the split", columns, rows[:PAGE_ROWS], now(), given, more)


@table_source(PINS)
def pinned_users(console: Console, arguments: Arguments) -> Table:
    """Return the pinned users, and the variant that the split alone would give them."""
    with console.stores.engine.connect() as connection:
        change = (
            read_current_change(connection, console.stores.keys.prefix)
            if has_table(connection, experiments)
            else None
        )
    pins = change.experiment.pins if change else {}
    users, after = sort_pins(pins), arguments.get("after", "")
    if after:
        users = [user for user in users if (len(user), user) > (len(after), after)]
    rows = []
    for user in users[:PAGE_ROWS]:
        by_rule = replace(change.experiment, pins={}).variant_of(user) if change else ""
        rows.append({"user_id": user, "variant": pins[user], "by_rule": by_rule, "url": user_url(user)})
    more = {"after": users[PAGE_ROWS - 1]} if len(users) > PAGE_ROWS else None
    columns = [
        Column("user_id", "user", link="url"), Column("variant", "pinned to"),
        Column("by_rule", "by the split alone"),
    ]  # fmt: skip
    return Table(PINS, "Pinned users", columns, rows, now(), {"after": after} if after else {}, more)
