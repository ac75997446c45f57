"""Runs: are they getting better or worse, and one run: should it be live, and what did it cost?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from flask import Blueprint, Response, abort, render_template, request, url_for

from batch import formatting
from batch.evaluation import NAMED_RANKERS, PRIMARY_METRICS, VIEWED_RANKERS
from batch.gate.outcomes import count_outcomes
from batch.reports.describe_rules import describe_rules
from batch.reports.files import report_path
from batch.reports.run_charts import (
    draw_calibration,
    draw_gate,
    draw_redis_memory,
    draw_stage_memory,
    draw_stage_seconds,
)
from batch.runs import ledger
from batch.runs.ledger import State
from batch.runs.pages import read_events, read_page
from console.content import run_tables
from console.content.run_tables import RecordedRun
from console.content.runs_over_time import draw_figures
from console.context import Console, current_console, now
from console.tables import PAGE_ROWS, Arguments, Column, Table, table_source
from contract.experiment import VARIANTS
from contract.manifest import Manifest
from contract.run_id import is_run_id

blueprint = Blueprint("runs", __name__)

MAX_DRAWN = 120
"""Runs of a chart: 60 nights of two variants."""

REPORT_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'self'; sandbox"
    )
}
"""A report has styles of its own and needs nothing else; it is text of strangers among other things."""

FILTERS = {"variant": VARIANTS, "state": tuple(State)}

COLUMNS = (
    Column("run_id", "run", link="url"), Column("state", "state", "term"),
    Column("ndcg_at_10", "NDCG@10", "number"),
    Column("popularity_ndcg_at_10", "popularity", "number"),
    Column("hitrate_at_5", "HitRate@5", "number"),
    Column("popularity_hitrate_at_5", "popularity", "number"), Column("roc_auc", "ROC AUC", "number"),
    Column("users", "users", "number"), Column("coverage", "coverage", "number"),
    Column("seconds", "seconds", "number"), Column("reason", "reason"),
)  # fmt: skip


CAPTION = (
    "Runs, newest first: NDCG@10 over all posts, HitRate@5 and ROC AUC of viewed posts, and popularity; "
    "coverage is the share of posts in a first five"
)


@blueprint.get("/runs")
def runs() -> str:
    """Show the runs of this prefix, a page of 50, and charts of what the filter chooses."""
    console, arguments = current_console(), _read_filter(request.args)
    page = console.readings.read(
        ("runs", *sorted(arguments.items())), lambda: _read_runs_and_charts(console, arguments)
    )
    return render_template("runs.html", page=page, filters=FILTERS, arguments=arguments)


def _read_filter(arguments: Mapping[str, str]) -> dict[str, str]:
    """Return the filter of a query; an unknown value is refused."""
    found = {name: value for name in (*FILTERS, "before") if (value := arguments.get(name, ""))}
    if any(value not in FILTERS[name] for name, value in found.items() if name in FILTERS):
        abort(404, "There is no such variant or state.")
    if not is_run_id(found.get("before", "20261122T030000Z-control")):
        abort(404, "A page begins before a run, such as 20261122T030000Z-control.")
    return found


@dataclass(frozen=True)
class RunsPage:
    """A page of runs: its table, and (title, SVG) of its charts over `nights` runs."""

    table: Table
    charts: list[tuple[str, str]]
    drawn: int
    events: list[tuple[datetime, str]]


def _read_runs_and_charts(console: Console, arguments: Arguments) -> RunsPage:
    rows = _read_rows(console, arguments, MAX_DRAWN)
    events: list[tuple[datetime, str]] = []
    if rows:
        stores = console.stores
        events = read_events(stores.engine, stores.keys.prefix, rows[-1]["started_at"], rows[0]["started_at"])
    return RunsPage(_make_table(rows, arguments), draw_figures(rows, events), len(rows), events)


@table_source("runs")
def _runs_table(console: Console, arguments: Arguments) -> Table:
    arguments = _read_filter(arguments)
    return _make_table(_read_rows(console, arguments, PAGE_ROWS + 1), arguments)


def _read_rows(console: Console, arguments: Arguments, count: int) -> list[dict[str, Any]]:
    stores = console.stores
    if not ledger.schema_version(stores.engine):
        return []
    return read_page(stores.engine, stores.keys.prefix, count, **arguments)


def _make_table(rows: list[dict[str, Any]], arguments: Arguments) -> Table:
    shown = [row | {"url": url_for("runs.run", run_id=row["run_id"])} for row in rows[:PAGE_ROWS]]
    more = {**arguments, "before": shown[-1]["run_id"]} if len(rows) > PAGE_ROWS else None
    return Table("runs", CAPTION, COLUMNS, shown, now(), arguments, more)


@blueprint.get("/runs/<run_id>")
def run(run_id: str) -> str:
    """Show one run: its state and story, its gate, figures, stages and report."""
    console = current_console()
    if not is_run_id(run_id):
        abort(404, "There is no such run.")
    reading = console.readings.read(("run", run_id), lambda: run_tables.find_run(console, run_id))
    if reading.value is None:
        if reading.error is None:
            abort(404, "There is no such run.")
        return render_template("run.html", run_id=run_id, reading=reading, run=None)
    found = reading.value
    manifest = found.manifest
    return render_template(
        "run.html",
        run_id=run_id,
        reading=reading,
        run=found.row,
        can_roll_back=found.can_roll_back,
        sentence=run_tables.describe_state(found),
        manifest=manifest,
        metrics=manifest.metrics if manifest else {},
        tables={name: make(found, reading.at or now()) for name, make in run_tables.TABLES.items()},
        charts=_draw(manifest) if manifest else {},
        gate_counts=count_outcomes(manifest.gate) if manifest else "",
        rules=describe_rules(manifest) if manifest else [],
        rankers=NAMED_RANKERS,
        viewed_rankers=[(name, name) for name in VIEWED_RANKERS],
        first_figures=PRIMARY_METRICS,
        has_report=report_path(console.settings, run_id).is_file(),
        variants=VARIANTS,
    )


def _draw(manifest: Manifest) -> dict[str, str]:
    """Draw what the manifest has."""
    charts = {}
    if manifest.gate:
        charts["gate"] = draw_gate(manifest.gate)
    if manifest.stages:
        charts["seconds"] = draw_stage_seconds(manifest.stages)
        charts["memory"] = draw_stage_memory(manifest.stages)
    if manifest.publish:
        charts["redis"] = draw_redis_memory(manifest.publish)
    if chart := draw_calibration(manifest.metrics):
        charts["calibration"] = chart
    return charts


@blueprint.get("/runs/<run_id>/manifest.json")
def manifest_file(run_id: str) -> Response:
    """Answer what a run records about itself."""
    run = _find_or_404(run_id)
    return Response(formatting.as_json(run.row.manifest), content_type="application/json; charset=utf-8")


@blueprint.get("/runs/<run_id>/report")
def report(run_id: str) -> Response:
    """Answer the report that the run wrote, for a frame."""
    _find_or_404(run_id)
    try:
        page = report_path(current_console().settings, run_id).read_bytes()
    except OSError:
        abort(404, "This host does not have the run's report.")
    return Response(page, headers=REPORT_HEADERS, content_type="text/html; charset=utf-8")


def _find_or_404(run_id: str) -> RecordedRun:
    console = current_console()
    with console.stores.readable_errors():
        found = run_tables.find_run(console, run_id)
    if found is None:
        abort(404, "There is no such run.")
    return found
