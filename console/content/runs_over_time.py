"""Charts over nights: are the runs getting better, longer, smaller?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from batch.reports.charts import Axis, Chart, TimeAxis
from batch.runs.ledger import State

Row = Mapping[str, Any]
Points = list[tuple[float, float]]

WIDTH = 400
"""Width of a chart, in pixels: two of them side by side, and one can be read at 320 px."""

HOUR = 3600.0
POPULARITY = "popularity"


@dataclass(frozen=True)
class Figure:
    """A figure of runs that is drawn over nights.

    Attributes
    ----------
    column
        Of the rows; `popularity_X`, `X_low` and `X_high` are drawn too if they are there.
    unit
        What one unit of the axis is, as many of the rows' units.
    from_zero
        Whether the axis begins at 0.
    """

    column: str
    title: str
    unit: float = 1.0
    from_zero: bool = False


FIGURES = (
    Figure("hitrate_at_5", "HitRate@5 (viewed posts)"),
    Figure("roc_auc", "ROC AUC (viewed posts)"),
    Figure("coverage", "share of posts in a first five", from_zero=True),
    Figure("users", "users with a list", from_zero=True),
    Figure("seconds", "minutes of a night", unit=60.0, from_zero=True),
)


def draw_figures(rows: Sequence[Row], events: Sequence[tuple[datetime, str]]) -> list[tuple[str, str]]:
    """Return (title, SVG) of each figure that at least two runs have.

    Parameters
    ----------
    rows
        Runs as `batch.runs.pages.read_page` returns them.
    events
        (time, what happened): upright lines on each chart.
    """
    charts = [(figure.title, _draw_figure(figure, rows, events)) for figure in FIGURES]
    return [(title, chart) for title, chart in charts if chart]


def _draw_figure(figure: Figure, rows: Sequence[Row], events: Sequence[tuple[datetime, str]]) -> str:
    built = [row for row in reversed(rows) if row["state"] != State.FAILED]
    found = [row for row in built if row[figure.column] is not None]
    if len(found) < 2:
        return ""
    variants = sorted({row["variant"] for row in found})
    of_variant = {variant: [row for row in found if row["variant"] == variant] for variant in variants}
    series = {variant: _points(of_variant[variant], figure.column, figure.unit) for variant in variants}
    description = " ".join(
        f"{variant}: {points[0][1]:.4g} in the first of {len(points)} runs, {points[-1][1]:.4g} in the last."
        for variant, points in series.items()
    )
    if popularity := _points(of_variant[variants[0]], f"popularity_{figure.column}", figure.unit):
        series[POPULARITY] = popularity
    bands = {variant: _band(of_variant[variant], figure.column) for variant in variants}
    times = [row["started_at"].timestamp() for row in found]
    margin = min(max((times[-1] - times[0]) * 0.03, HOUR), 12 * HOUR)
    x = TimeAxis("start of the run", times[0] - margin, times[-1] + margin)
    values = [y for points in series.values() for _, y in points]
    values += [edge for band in bands.values() for _, *edges in band for edge in edges]
    ticks = [(time.timestamp(), f"{time:%Y-%m-%d %H:%M}: {text}") for time, text in events]
    chart = Chart(
        f"over-time-{figure.column.replace('_', '-')}", figure.title, description, x,
        _fit_axis(figure, values), WIDTH,
    )  # fmt: skip
    return chart.lines(
        series,
        bands={variant: band for variant, band in bands.items() if band},
        events=[tick for tick in ticks if x.bottom <= tick[0] <= x.top],
    )


def _points(rows: Sequence[Row], column: str, unit: float) -> Points:
    return [
        (row["started_at"].timestamp(), row[column] / unit) for row in rows if row.get(column) is not None
    ]


def _band(rows: Sequence[Row], column: str) -> list[tuple[float, float, float]]:
    low, high = f"{column}_low", f"{column}_high"
    known = [row for row in rows if row.get(low) is not None and row.get(high) is not None]
    return [(row["started_at"].timestamp(), row[low], row[high]) for row in known]


def _fit_axis(figure: Figure, values: Sequence[float]) -> Axis:
    """Return an axis from 0, or from the step below the least value, to the step above the greatest."""
    low, high = 0.0 if figure.from_zero else min(values), max(values)
    width = high - low or abs(high) or 1.0
    step = 10.0 ** math.floor(math.log10(width))
    bottom = math.floor(low / step) * step
    return Axis("", max(math.ceil(high / step) * step, bottom + step), bottom)
