"""Where the page of a run is; apart from what lays it out, so that finding it loads nothing that learns."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import cache
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from batch.files import write_atomically
from contract.settings import Settings

REPORT = "report.html"


def report_path(settings: Settings, run_id: str) -> Path:
    """Say where a run's report is, beside its model."""
    return Path(settings.night.model_dir).absolute() / run_id / REPORT


def write_report(path: Path, page: str) -> int:
    """Write the page, whole or not at all; return its size in bytes.

    Raises
    ------
    OSError
        The disk is full or the folder cannot be written.
    """
    content = page.encode()
    write_atomically(path, content)
    return len(content)


@cache
def template(name: str) -> Template:
    """Compile a page's template, once a process; it escapes whatever is put in."""
    environment = Environment(
        loader=PackageLoader("batch.reports"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {"figure": figure, "moment": moment}
    return environment.get_template(name)


def figure(value: float | None) -> str:
    """Write a figure with four places, a dash for none."""
    return "-" if value is None else f"{value:.4f}"


def moment(time: str) -> str:
    """Write an ISO 8601 time in UTC, to the second."""
    return f"{datetime.fromisoformat(time).astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
