"""Output of benchmarks: the machine's name, tables, rows as JSON, a section of a document."""

from __future__ import annotations

import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

from batch.files import write_atomically

Columns = dict[str, tuple[str, str]]
"""Key of a row -> heading and format, the width first: `{"trees": ("trees", "6")}`."""

ALL_CUTOFFS = "all"
"""Value of `cutoff` in rows that pool several cutoffs."""


def machine() -> str:
    """Return the number of cores and the widest vector instructions, or the architecture."""
    cpuinfo = Path("/proc/cpuinfo")
    flags = cpuinfo.read_text(encoding="utf-8").split() if cpuinfo.exists() else []
    widest = next((name for flag, name in (("avx512f", "AVX-512"), ("avx2", "AVX2")) if flag in flags), None)
    return f"{os.cpu_count()} cores, {widest or platform.machine()}"


def print_head(columns: Columns) -> None:
    """Print the headings."""
    print(" ".join(f"{heading:>{len(format(0, form))}}" for heading, form in columns.values()), flush=True)


def print_row(columns: Columns, row: dict[str, Any]) -> None:
    """Print one row at once."""
    print(" ".join(format(row[key], form) for key, (_, form) in columns.items()), flush=True)


def check_json_file() -> None:
    """Exit with one line if the file that `JSON` names cannot be written, before anything is measured."""
    if path := os.environ.get("JSON"):
        try:
            Path(path).touch()
        except OSError as error:
            sys.exit(f"error: JSON={path} cannot be written: {error.strerror}")


def read_rows(names: list[str]) -> list[list[dict[str, Any]]]:
    """Return the rows of each file that `save_rows` wrote; exit with one line if one cannot be read."""
    found = []
    for name in names:
        try:
            found.append(json.loads(Path(name).read_text(encoding="utf-8")))
        except (OSError, ValueError) as error:
            sys.exit(f"error: {name} cannot be read: {error}; nothing was written")
    return found


def save_rows(rows: list[dict[str, Any]]) -> None:
    """Write the rows to the file that the variable `JSON` names, if it is set."""
    if path := os.environ.get("JSON"):
        write_atomically(Path(path), (json.dumps(rows, indent=1) + "\n").encode())


def choose_rows(rows: list[dict[str, Any]], *names: str) -> list[dict[str, Any]]:
    """Return the pooled rows if there are several cutoffs, else all rows.

    Parameters
    ----------
    names
        Keys that identify a row's subject. What was left out at any cutoff is added, one row each.
    """
    pooled = [row for row in rows if row["cutoff"] == ALL_CUTOFFS]
    left_out = {tuple(row[name] for name in names): row for row in rows if "left_out" in row}
    return [*pooled, *left_out.values()] if pooled else rows


def replace_between(document: str, start: str, end: str, lines: list[str]) -> str:
    """Return the document with the text between two marks replaced by these lines.

    Raises
    ------
    ValueError
        The document lacks a mark.
    """
    before, rest = document.split(start)
    _, after = rest.split(end)
    return "\n".join([f"{before}{start}", *lines, f"{end}{after}"])
