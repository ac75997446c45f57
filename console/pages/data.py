"""Data: are the views healthy, and what do nights leave out of them?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from flask import Blueprint, abort, render_template, request, url_for

from batch.inspection.views import SAMPLE_ROWS, TOPIC_ROWS, count_topics, describe_columns
from batch.reports.bars import Bar, draw_bars
from batch.runs import ledger
from batch.runs.pages import read_left_out, read_live_runs
from console.content.post_tables import read_first_five_table
from console.context import Console, current_console
from console.tables import PAGE_ROWS, Arguments, Column, Table, table_source
from contract.run_id import is_run_id

blueprint = Blueprint("data", __name__)

REASONS = {
    "of_unknown_users": "unknown user",
    "of_unknown_posts": "unknown post",
    "with_unknown_actions": "unknown action",
    "in_the_future": "in the future",
    "without_a_time": "no time",
}
"""Reasons of `left_out` in manifests -> title; other releases may have others."""

MAX_BARS = 15
FIRST_ROWS = 10
"""Rows of a table of first fives on the page; its files have all."""

VIEW_COLUMNS = (
    Column("view", "View"), Column("column", "Column", "id"), Column("type", "Type in Postgres", "id"),
    Column("use", "Use"), Column("missing", "Missing", "number"), Column("share", "Share missing", "number"),
)  # fmt: skip
TOPIC_COLUMNS = (Column("topic", "Topic", link="url"), Column("posts", "Posts", "number"))
NO_TOPIC = "no topic"


@blueprint.get("/data")
def data() -> str:
    """Show the columns of the views, what nights left out, the topics, and the posts shown most."""
    console, arguments = current_console(), request.args.to_dict()
    if arguments.get("before") and not is_run_id(arguments["before"]):
        abort(404, "A page begins before a run, such as 20261122T030000Z-control.")
    read = console.readings.read
    left_out = read(("left-out", *sorted(arguments.items())), lambda: read_left_out_table(console, arguments))
    run_id = arguments.get("run", "")
    try:
        heads = read(("first-fives", run_id), lambda: _read_first_fives(console, run_id))
    except LookupError:
        abort(404, "There is no such run.")
    columns = read("view-columns", lambda: read_column_table(console, {}))
    topics = read("topics", lambda: read_topic_table(console, {}))
    return render_template(
        "data.html",
        columns=columns,
        left_out=left_out,
        topics=topics,
        chart=_draw_topics(topics.value) if topics.value else "",
        heads=heads,
        sample=SAMPLE_ROWS,
        topic_rows=TOPIC_ROWS,
        arguments=arguments,
    )


def _read_first_fives(console: Console, run_id: str) -> list[Table]:
    """Return the posts in most first fives of a run; without one, the first rows of each live run."""
    if run_id:
        return [read_first_five_table(console, {"run": run_id})]
    stores = console.stores
    if not ledger.schema_version(stores.engine):
        return []
    with stores.engine.connect() as connection:
        live = read_live_runs(connection, stores.keys.prefix)
    tables = [read_first_five_table(console, {"run": live[variant]}) for variant in sorted(live)]
    return [replace(each, rows=each.rows[:FIRST_ROWS]) for each in tables]


@table_source("view-columns")
def read_column_table(console: Console, _arguments: Arguments) -> Table:
    """Read the columns of the three views, and the share of missing values in their first rows."""
    rows = [
        vars(each) | {"share": each.missing / max(each.rows, 1)} for each in describe_columns(console.stores)
    ]
    caption = "Columns of the three views"
    return Table("view-columns", caption, VIEW_COLUMNS, rows, datetime.now(UTC))


@table_source("topics")
def read_topic_table(console: Console, _arguments: Arguments) -> Table:
    """Read the topics of the posts."""
    rows = [
        {
            "topic": each.topic or NO_TOPIC,
            "posts": each.posts,
            "url": url_for("posts.posts", topic=each.topic) if each.topic else None,
        }
        for each in count_topics(console.stores)
    ]
    return Table("topics", "Topics of posts", TOPIC_COLUMNS, rows, datetime.now(UTC))


@table_source("left-out")
def read_left_out_table(console: Console, arguments: Arguments) -> Table:
    """Read how many rows of the source each night left out, by reason: a page of runs `before` one."""
    stores, before = console.stores, arguments.get("before", "")
    if before and not is_run_id(before):
        raise LookupError("There is no such run.")
    found: list[dict[str, Any]] = []
    if ledger.schema_version(stores.engine):
        found = read_left_out(stores.engine, stores.keys.prefix, PAGE_ROWS + 1, before)
    shown = found[:PAGE_ROWS]
    found_reasons = {str(name): str(name).replace("_", " ") for row in shown for name in row["left_out"]}
    columns = (
        Column("run_id", "Run", "id", link="url"), Column("cutoff", "Data up to", "time"),
        Column("users", "Users", "number"), Column("posts", "Posts", "number"),
        *(Column(name, title, "number") for name, title in (found_reasons | REASONS).items()),
    )  # fmt: skip
    rows = [_left_out_row(row) for row in shown]
    more = {"before": shown[-1]["run_id"]} if len(found) > PAGE_ROWS else None
    given = {"before": before} if before else {}
    caption = "Interactions that nights left out, by reason"
    return Table("left-out", caption, columns, rows, datetime.now(UTC), given, more)


def _left_out_row(row: Mapping[str, Any]) -> dict[str, Any]:
    return {**row["left_out"], **row, "url": url_for("runs.run", run_id=row["run_id"])}


def _draw_topics(table: Table) -> str:
    """Draw the posts of the first topics as bars."""
    rows = table.rows[:MAX_BARS]
    bars = [Bar(row["topic"], row["posts"], f"{row['posts']:,}") for row in rows]
    words = ", ".join(f"{bar.label}: {bar.text}" for bar in bars)
    return draw_bars("topics", "Posts by topic", words, bars) if bars else ""
