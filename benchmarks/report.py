"""How measurements are shown: the machine in two words, a table line by line, rows as JSON."""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path
from typing import Any

Columns = dict[str, tuple[str, str]]
"""For each key of a row its heading and how it is formatted, the width first: `{"trees": ("trees", "6")}`."""


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


def save_rows(rows: list[dict[str, Any]]) -> None:
    """Write the rows to the file that the variable `JSON` names, if it names one."""
    if path := os.environ.get("JSON"):
        Path(path).write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
