"""Tables: drawn on pages, and as JSON and CSV at an address of their own.

A page makes a `Table` by the same function that answers `/tables/NAME.json` and `/tables/NAME.csv`: register
it with `table_source`. A template draws it with the macro `table`, or has its own markup and `table_files`.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from flask import Blueprint, Response, abort, request
from sqlalchemy.exc import DataError

from console.context import Console, current_console
from contract.text import escape_controls, escape_json

PAGE_ROWS = 50
"""Rows of a page of a table; the next page begins after its last row."""

Arguments = Mapping[str, str]

blueprint = Blueprint("tables", __name__)


@dataclass(frozen=True)
class Column:
    """A column: the key of its values in rows, its title, and its kind.

    Kinds are `text`, `words` (a text of several words, in a wider cell), `id`, `number`, `time` and `term` (a
    name in code, such as a state: pages show its underscores as spaces).
    `link` is the key of a cell's address in the row; an address that is None makes no link. A column with
    `only_in_files` is in JSON and CSV, not on the page.
    """

    name: str
    title: str
    kind: str = "text"
    link: str | None = None
    only_in_files: bool = False


@dataclass(frozen=True)
class Table:
    """Rows with what is needed to draw them, and to find them again.

    Attributes
    ----------
    name
        The name it is registered under.
    arguments
        Query arguments that give the same rows again.
    at
        When the rows were read.
    more
        Query arguments of the next page; None if there is none.
    """

    name: str
    caption: str
    columns: Sequence[Column]
    rows: Sequence[Mapping[str, Any]]
    at: datetime
    arguments: Arguments = field(default_factory=dict)
    more: Arguments | None = None


TableSource = Callable[[Console, Arguments], Table]
"""Makes a table from query arguments; raises OvernightError, or LookupError if there is no such table."""

_sources: dict[str, TableSource] = {}


def table_source(name: str) -> Callable[[TableSource], TableSource]:
    """Register the function of a table under its name."""

    def register(source: TableSource) -> TableSource:
        _sources[name] = source
        return source

    return register


@contextmanager
def absent_is_404() -> Iterator[None]:
    """Answer 404 to a LookupError. Its subclasses, such as KeyError, are bugs and are raised."""
    try:
        yield
    except LookupError as error:
        if type(error) is not LookupError:
            raise
        abort(404)


@contextmanager
def absent_after(start: object) -> Iterator[None]:
    """Raise LookupError if a page begins after what Postgres cannot compare with rows; None is the first."""
    try:
        yield
    except DataError:
        if start is None:
            raise
        raise LookupError(start) from None


@blueprint.get("/tables/<name>.<any(json, csv):form>")
def table_file(name: str, form: str) -> Response:
    """Answer a table as JSON or CSV."""
    if name not in _sources:
        abort(404)
    console = current_console()
    with console.stores.readable_errors(), absent_is_404():
        table = _sources[name](console, request.args.to_dict())
    text, content_type = (
        (_as_json(table), "application/json") if form == "json" else (_as_csv(table), "text/csv")
    )
    answer = Response(text, content_type=f"{content_type}; charset=utf-8")
    answer.headers["Content-Disposition"] = (
        f'{"inline" if form == "json" else "attachment"}; filename="{name}.{form}"'
    )
    return answer


def _as_json(table: Table) -> str:
    rows = [{column.name: row.get(column.name) for column in table.columns} for row in table.rows]
    document = {"table": table.name, "at": table.at, "rows": rows, "more": table.more}
    return escape_json(json.dumps(document, ensure_ascii=False, default=_format_value))


def _as_csv(table: Table) -> str:
    file = io.StringIO()
    writer = csv.writer(file)
    writer.writerow([column.name for column in table.columns])
    writer.writerows([_csv_cell(row.get(column.name)) for column in table.columns] for row in table.rows)
    return file.getvalue()


def _csv_cell(value: Any) -> Any:
    """Return a cell; a text that a spreadsheet would read as a formula gets an apostrophe before it.

    Numbers have 12 significant digits: 119.128, not the 119.12799999999999 of a product.
    """
    if isinstance(value, float):
        return f"{value:.12g}"
    if not isinstance(value, str):
        return "" if value is None else _format_value(value)
    text = escape_controls(value)
    return f"'{text}" if text[:1] in ("=", "+", "-", "@") else text


def _format_value(value: Any) -> Any:
    return value.isoformat(timespec="seconds") if isinstance(value, datetime) else value
