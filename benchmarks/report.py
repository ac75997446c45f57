"""How measurements are shown: the machine in two words, tables, rows as JSON, a part of a document."""

from __future__ import annotations

import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

Columns = dict[str, tuple[str, str]]
"""For each key of a row its heading and how it is formatted, the width first: `{"trees": ("trees", "6")}`."""


ALL_CUTOFFS = "all"
"""In place of a time in rows of several cutoffs together."""


def machine() -> str:
    """Name the machine by its cores and widest vector instructions."""
    cpuinfo = Path("/proc/cpuinfo")
    flags = cpuinfo.read_text(encoding="utf-8").split() if cpuinfo.exists() else []
    widest = next((name for flag, name in (("avx512f", "AVX-512"), ("avx2", "AVX2")) if flag in flags), None)
    return f"{os.cpu_count()} cores, {widest or platform.machine()}"


def print_head(columns: Columns) -> None:
    """Print the headings."""
    print(" ".join(f"{heading:>{len(format(0, form))}}" for heading, form in columns.values()), flush=True)


def print_row(columns: Columns, row: dict[str, Any]) -> None:
    """Print one row, as soon as it is known."""
    print(" ".join(format(row[key], form) for key, (_, form) in columns.items()), flush=True)


def check_json_file() -> None:
    """End the program with one line where the file that `JSON` names cannot be written, before measuring."""
    if path := os.environ.get("JSON"):
        try:
            Path(path).touch()
        except OSError as error:
            sys.exit(f"error: JSON={path} cannot be written: {error.strerror}")


def read_rows(names: list[str]) -> list[list[dict[str, Any]]]:
    """Return the rows of files that `save_rows` wrote; one that cannot be read ends the program."""
    found = []
    for name in names:
        try:
            found.append(json.loads(Path(name).read_text(encoding="utf-8")))
        except (OSError, ValueError) as error:
            sys.exit(f"error: {name} cannot be read: {error}; nothing was written")
    return found


def save_rows(rows: list[dict[str, Any]]) -> None:
    """Write the rows to the file that the variable `JSON` names, if it names one."""
    if path := os.environ.get("JSON"):
        Path(path).write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def choose_rows(rows: list[dict[str, Any]], *names: str) -> list[dict[str, Any]]:
    """Return the rows of all cutoffs together where there are several, else those of the one.

    Parameters
    ----------
    names
        Keys that name what a row is of; what was left out at any cutoff has one row more.
    """
    together = [row for row in rows if row["cutoff"] == ALL_CUTOFFS]
    left_out = {tuple(row[name] for name in names): row for row in rows if "left_out" in row}
    return [*together, *left_out.values()] if together else rows


def replace_between(document: str, start: str, end: str, lines: list[str]) -> str:
    """Return the document with these lines in place of what stands between two marks.

    Raises
    ------
    ValueError
        The document lacks a mark.
    """
    before, rest = document.split(start)
    _, after = rest.split(end)
    return "\n".join([f"{before}{start}", *lines, f"{end}{after}"])
