"""Lays out what commands print: rows as a table of text, records as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any


def as_json(record: Any) -> str:
    """Return one JSON document; times are in ISO 8601."""
    return json.dumps(record, indent=2, ensure_ascii=False, default=_text)


def one_line(text: str, longest: int) -> str:
    """Bring a text on one line of at most so many characters."""
    words = " ".join(text.split())
    return words if len(words) <= longest else f"{words[: longest - 3].rstrip()}..."


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Lay out rows under a head, columns as wide as their widest cell, numbers to the right."""
    cells = [list(head), *([_cell(value) for value in row] for row in rows)]
    widths = [max(len(row[place]) for row in cells) for place in range(len(head))]
    columns = [[row[place] for row in rows if row[place] is not None] for place in range(len(head))]
    numeric = [bool(column) and all(isinstance(value, int | float) for value in column) for column in columns]
    lines = (
        "  ".join(
            cell.rjust(w) if right else cell.ljust(w)
            for cell, w, right in zip(row, widths, numeric, strict=True)
        )
        for row in cells
    )
    return "\n".join(line.rstrip() for line in lines)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return _text(value)


def _text(value: Any) -> str:
    return value.isoformat(timespec="seconds") if hasattr(value, "isoformat") else str(value)
