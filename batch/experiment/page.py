"""A report as one HTML file that needs nothing beside it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from batch.experiment.told import RAILS, latency_rows, notes
from batch.reporting.charts import Axis, Chart
from batch.reporting.template import template
from contract.errors import OvernightError
from contract.experiment import VARIANTS

EXPERIMENT = "experiment.html"
WIDE = 900


def page(found: dict[str, Any]) -> str:
    """Lay out what `record` returned; the same record gives the same page."""
    return template(EXPERIMENT).render(
        found=found,
        variants=VARIANTS,
        notes=notes(found),
        rails=RAILS,
        latency_rows=latency_rows(found["guard_rails"]["latency"]),
        differences=_differences(found["by_day"]),
    )


def check_place(path: Path) -> None:
    """See before long work that a page can be written there.

    Raises
    ------
    OvernightError
        There is no such folder, or it may not be written to.
    """
    if not path.parent.is_dir():
        raise OvernightError(
            f"the page cannot be written to {path}: there is no folder {path.parent}; make it"
        )
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise OvernightError(f"the page cannot be written to {path}: writing is not allowed there")


def write_page(path: Path, found: dict[str, Any]) -> None:
    """Write the page to a file.

    Raises
    ------
    OvernightError
        The file cannot be written.
    """
    try:
        path.write_text(page(found))
    except OSError as error:
        raise OvernightError(f"the page cannot be written to {path}: {error.strerror}") from None


def _differences(days: list[dict[str, Any]]) -> str | None:
    if not days:
        return None
    bounds = ("value", "low", "high")
    points = [(day["day"][5:], *(day["difference"][name] for name in bounds)) for day in days]
    far = max(max(abs(low), abs(high)) for _, _, low, high in points) or 1.0
    outside = sum(low > 0 or high < 0 for _, _, low, high in points)
    return Chart(
        "by-day", "Difference in likes per view day by day",
        f"{outside} of {len(points)} daily intervals do not have 0 in them.",
        Axis("day (UTC)", len(points)), Axis("test less control", far, -far), WIDE,
    ).intervals("model", points)  # fmt: skip
