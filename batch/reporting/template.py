"""The templates of the pages, and how they write figures and times; loads nothing that learns."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined, Template


@cache
def template(name: str) -> Template:
    """Compile a page's template, once a process; it escapes whatever is put in."""
    environment = Environment(
        loader=PackageLoader("batch.reporting"), autoescape=True, undefined=StrictUndefined,
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
