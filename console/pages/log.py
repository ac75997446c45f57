"""Log: all changes, of whatever kind, in one table."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from flask import Blueprint, render_template, request, url_for

from console.content import changes
from console.content.subjects import subject_url
from console.context import Console, current_console
from console.keyset import format_position, parse_position
from console.links import post_url
from console.tables import PAGE_ROWS, Arguments, Column, Table, absent_is_404, table_source

blueprint = Blueprint("log", __name__)

MAX_ROWS = 10_000
"""Rows of a file of the log, for an audit."""

COLUMNS = (
    Column("at", "Time", "time"),
    Column("kind", "Kind"),
    Column("subject", "Of", "id", link="url"),
    Column("what", "What", "words"),
    Column("actor", "By"),
    Column("reason", "Reason"),
    Column("outcome", "Outcome"),
)


@blueprint.get("/log")
def log() -> str:
    """Show the changes, newest first, of all kinds or of one."""
    console = current_console()
    arguments = {name: request.args[name] for name in ("kind", "before") if request.args.get(name)}
    with absent_is_404():
        reading = console.readings.read(
            ("log", *sorted(arguments.items())), lambda: make_table(console, arguments)
        )
    return render_template(
        "log.html", reading=reading, kinds=changes.KINDS, chosen=arguments.get("kind"), max_rows=MAX_ROWS
    )


@table_source("log")
def make_table(console: Console, arguments: Arguments) -> Table:
    """Return a page of the changes; in files of `rows` rows, up to MAX_ROWS."""
    kind, before, count = arguments.get("kind"), arguments.get("before", ""), _parse_rows(arguments)
    if kind is not None and kind not in changes.KINDS:
        raise LookupError(kind)
    found = changes.list_changes(console.stores, kind, parse_position(before), count + 1)
    page = found[:count]
    chosen = ({"kind": kind} if kind else {}) | ({"rows": str(count)} if "rows" in arguments else {})
    more = chosen | {"before": format_position(page[-1]["at"], page[-1]["key"])} if found[count:] else None
    shown = chosen | ({"before": before} if before else {})
    rows = [row | {"url": _find_url(row)} for row in page]
    caption = f"Changes of the kind “{kind}”" if kind else "Changes"
    return Table("log", caption, COLUMNS, rows, datetime.now(UTC), shown, more)


def _parse_rows(arguments: Arguments) -> int:
    """Return how many rows a page has; raises LookupError."""
    text = arguments.get("rows", str(PAGE_ROWS))
    if not re.fullmatch(r"[0-9]{1,5}", text) or not 1 <= int(text) <= MAX_ROWS:
        raise LookupError(text)
    return int(text)


def _find_url(row: Mapping[str, Any]) -> str | None:
    """Return the address of what was changed; None if it has no page."""
    match row["kind"]:
        case changes.RUN:
            return url_for("runs.run", run_id=row["subject"])
        case changes.SPLIT:
            return url_for("experiment.experiment")
        case changes.BLOCK | changes.UNBLOCK:
            return post_url(row["subject"])
        case changes.JOB:
            return url_for("jobs.job", job_id=row["subject"])
        case changes.ACTION if row["subject"]:
            return subject_url(row["action"], row["arguments"])
    return None
