"""The report of the experiment that the console keeps: its options, its job and its tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import click
from jinja2 import UndefinedError

from batch.commands.options import MIN_EFFECT_RANGE, PastTime
from batch.experiment.period import MIN_EFFECT
from batch.experiment.render import GUARDRAIL_TITLES, explored_table, format_relative
from batch.reports.bars import Interval, draw_intervals
from console.context import Console
from console.jobs import REPORT, JobRecord
from console.readings import Reading
from console.tables import Arguments, Column, Table, table_source
from contract.experiment import VARIANTS

Row = dict[str, Any]

OTHER_SHAPE = (LookupError, TypeError, ValueError, AttributeError, UndefinedError)
"""What drawing a report raises that another release has made, with other fields."""


@dataclass(frozen=True)
class ReportOptions:
    """What a report is asked for; None takes the command's default.

    Attributes
    ----------
    since, until
        Times in UTC.
    """

    since: datetime | None = None
    until: datetime | None = None
    min_effect: float = MIN_EFFECT

    @classmethod
    def parse(cls, arguments: Mapping[str, str]) -> ReportOptions:
        """Read the options of a query string or a form.

        Raises
        ------
        click.BadParameter
            A value is not what the command takes.
        """

        def time(name: str) -> datetime | None:
            text = arguments.get(name, "").strip()
            return PastTime().convert(text, None, None) if text else None

        min_effect = arguments.get("min-effect", "").strip()
        return cls(
            time("from"),
            time("until"),
            MIN_EFFECT_RANGE.convert(min_effect, None, None) if min_effect else MIN_EFFECT,
        )

    @property
    def query(self) -> dict[str, str]:
        """Query arguments that give these options again; defaults are left out."""
        times = {"from": self.since, "until": self.until}
        query = {
            name: f"{at.replace(tzinfo=None).isoformat()}" for name, at in times.items() if at is not None
        }
        return query if self.min_effect == MIN_EFFECT else query | {"min-effect": f"{self.min_effect:g}"}

    @property
    def job(self) -> dict[str, list[str]]:
        """Arguments of the job."""
        return {"options": [word for name, value in self.query.items() for word in (f"--{name}", value)]}


def read_report(console: Console, options: ReportOptions) -> Reading[JobRecord | None]:
    """Return the newest job of these options that made a report; it has begun at the time of the figures."""
    key = ("experiment report", *options.job["options"])
    return console.readings.read(key, lambda: console.jobs.latest_result(REPORT, options.job))


def draw_metrics(report: Mapping[str, Any]) -> str | None:
    """Draw the relative difference of each metric with its interval; None without any."""
    bars = [
        Interval(each["title"], value, low, high, format_relative(each["relative"]))
        for each in report["metrics"]
        if each["relative"] is not None
        for value, low, high in [(each["relative"][bound] for bound in ("value", "low", "high"))]
    ]
    if not bars:
        return None
    decided = sum(bar.kind != "undecided" for bar in bars)
    return draw_intervals(
        "metrics", "Relative difference, test minus control, with its 95 % interval",
        f"{decided} of {len(bars)} intervals do not contain 0.", bars,
    )  # fmt: skip


def _metric_rows(report: Mapping[str, Any]) -> list[Row]:
    return [
        {"metric": each["metric"], "control": each["control"], "test": each["test"]}
        | _flatten(each["absolute"], "difference")
        | _flatten(each["relative"], "relative")
        | {"p_value": each["p_value"], "variance_reduction": each["variance_reduction"]}
        | {"detectable": each["detectable"], "detectable_relative": each["detectable_relative"]}
        for each in report["metrics"]
    ]


def _day_rows(report: Mapping[str, Any]) -> list[Row]:
    return [
        {name: day[name] for name in ("day", *VARIANTS)} | _flatten(day["difference"], "difference")
        for day in report["by_day"]
    ]


def _guardrail_rows(report: Mapping[str, Any]) -> list[Row]:
    values = report["guard_rails"]
    rows: list[Row] = [
        {"guardrail": name} | {variant: values[variant][name] for variant in VARIANTS}
        for name in (*GUARDRAIL_TITLES, "users_of_other")
    ]
    latency = values["latency"]
    for name in ("p50_ms", "p99_ms"):
        shown = {
            variant: None if latency[variant] is None else latency[variant][name] for variant in VARIANTS
        }
        rows.append({"guardrail": f"latency_{name}", **shown})
    return rows


def _explored_rows(report: Mapping[str, Any]) -> list[Row]:
    if "explored_places" not in report:
        return []
    _, rows = explored_table(report["explored_places"])
    return [dict(zip(("figure", *VARIANTS), row, strict=True)) for row in rows]


def _flatten(interval: Mapping[str, float] | None, name: str) -> Row:
    found: Mapping[str, Any] = interval or {}
    return {name: found.get("value"), f"{name}_low": found.get("low"), f"{name}_high": found.get("high")}


PARTS: Mapping[str, tuple[str, str, Callable[[Mapping[str, Any]], Sequence[Row]]]] = {
    "metrics": ("experiment-metrics", "Metrics of the experiment", _metric_rows),
    "days": ("experiment-days", "The experiment day by day", _day_rows),
    "guardrails": ("experiment-guardrails", "Guardrails of the experiment", _guardrail_rows),
    "explored": ("experiment-explored", "Explored places in the experiment", _explored_rows),
}
"""Part of the report -> name and caption of its table, and the function that makes its rows."""


def report_table(part: str, job: JobRecord, options: ReportOptions) -> Table:
    """Return a part of a report as a table; the page draws its own, with links to this one's files."""
    name, caption, make_rows = PARTS[part]
    rows = make_rows(job.output)
    columns = [Column(column, column) for column in (rows[0] if rows else ())]
    return Table(name, caption, columns, rows, job.started_at, options.query)


def _source_of(part: str) -> Callable[[Console, Arguments], Table]:
    def source(console: Console, arguments: Arguments) -> Table:
        try:
            options = ReportOptions.parse(arguments)
        except click.BadParameter as error:
            raise LookupError(error.message) from None
        job = console.jobs.latest_result(REPORT, options.job)
        if job is None:
            raise LookupError("no report of these options was made")
        try:
            return report_table(part, job, options)
        except OTHER_SHAPE:
            raise LookupError("another release made the report") from None

    return source


for _part, (_name, *_) in PARTS.items():
    table_source(_name)(_source_of(_part))
