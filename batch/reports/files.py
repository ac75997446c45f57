"""Where the page of a run is stored, and how pages are made; imports neither pandas nor LightGBM."""

from __future__ import annotations

import re
from collections.abc import Collection
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup, escape

from batch.files import write_atomically
from batch.formatting import format_count
from contract.ids import Id
from contract.settings import Settings
from contract.text import escape_controls

REPORT = "report.html"

EXAMPLE = re.compile(r"<h3>User ([^<]+)</h3>.*?(?=<h[23]>)", re.DOTALL)
"""An example user of a report. Other people's text cannot look like it: it is escaped."""


def report_path(settings: Settings, run_id: str) -> Path:
    """Return the path of a run's report, in the folder of its model."""
    return Path(settings.night.model_dir).absolute() / run_id / REPORT


def write_report(path: Path, page: str) -> int:
    """Write the page atomically; return its size in bytes.

    Raises
    ------
    OSError
        The disk is full or the folder cannot be written.
    """
    content = page.encode()
    write_atomically(path, content)
    return len(content)


def forget_examples(path: Path, user_ids: Collection[Id], *, dry_run: bool) -> bool:
    """Cut the examples of users out of a run's report; return whether it had any.

    Raises
    ------
    OSError
        The report cannot be read or written.
    """
    page = path.read_text(encoding="utf-8")
    written = {str(escape(escape_controls(str(user_id)))) for user_id in user_ids}  # as the page has them
    without = EXAMPLE.sub(lambda found: "" if found[1] in written else found[0], page)
    if without != page and not dry_run:
        write_report(path, without)
    return without != page


@cache
def load_template(name: str) -> Template:
    """Compile the template of a page, once per process; it escapes every value."""
    environment = Environment(
        loader=PackageLoader("batch.reports"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, finalize=show_controls,
    )  # fmt: skip
    environment.filters |= FILTERS
    return environment.get_template(name)


def show_controls(value: Any) -> Any:
    """Show the control characters of other people's text; markup, which is ours, stays as it is."""
    return escape_controls(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def format_number(value: float | None) -> str:
    """Format a number with four decimals; None as a dash."""
    return "-" if value is None else f"{value:.4f}"


def format_time(time: str) -> str:
    """Format an ISO 8601 time in UTC, to the second."""
    return f"{datetime.fromisoformat(time).astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


FILTERS = {"format_count": format_count, "format_number": format_number, "format_time": format_time}
"""Filters of all pages."""
