"""Text that commands print: tables of aligned columns, JSON, and other people's text made safe."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import click

from contract.text import escape_controls, escape_json, escape_line


def echo(text: str, *, err: bool = False) -> None:
    """Print to stdout, or to stderr; control characters are shown as escapes.

    Commands print with nothing else: posts, names and error messages hold other people's text.
    """
    click.echo(escape_controls(text), err=err)


def as_json(record: Any) -> str:
    """Return an indented JSON document; times are in ISO 8601."""
    return escape_json(json.dumps(record, indent=2, ensure_ascii=False, default=_format_value))


def one_line(text: str, max_length: int) -> str:
    """Join all lines into one of at most `max_length` characters; a longer one ends in `...`."""
    words = escape_line(" ".join(text.split()))
    return words if len(words) <= max_length else f"{words[: max_length - 3].rstrip()}..."


def format_count(count: int, noun: str) -> str:
    """Return a number with what it counts: `1 user`, `2,000 users`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Format rows under a head: columns as wide as their widest cell, numbers right-aligned, None as `-`."""
    cells = [list(head), *([_format_cell(value) for value in row] for row in rows)]
    widths = [max(len(row[index]) for row in cells) for index in range(len(head))]
    columns = [[row[index] for row in rows if row[index] is not None] for index in range(len(head))]
    numeric = [bool(column) and all(isinstance(value, int | float) for value in column) for column in columns]
    lines = (
        "  ".join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, numeric, strict=True)
        )
        for row in cells
    )
    return "\n".join(line.rstrip() for line in lines)


def _format_cell(value: Any) -> str:
    return "-" if value is None else escape_line(_format_value(value))


def _format_value(value: Any) -> str:
    return value.isoformat(timespec="seconds") if hasattr(value, "isoformat") else str(value)
