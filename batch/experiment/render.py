"""The report of an experiment as text for a terminal, and as an HTML page.

Both take the dict of `Report.as_dict`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from batch.experiment.period import format_more_days
from batch.formatting import table
from batch.reports.charts import Axis, Chart
from batch.reports.files import format_number, format_time, load_template
from contract.errors import OvernightError
from contract.experiment import VARIANTS

METRICS_HEAD = ("metric", "control", "test", "difference", "95 % interval", "relative", "p",
                "CUPED took", "detectable")  # fmt: skip
GUARDRAIL_TITLES = {
    "popular_share": "answers from the popular list",
    "other_share": "answers from the other variant's list",
    "posts_viewed_share": "posts viewed by any user",
    "posts_liked_share": "posts liked by any user",
}


def render_text(report: dict[str, Any]) -> str:
    """Lay out a report as text."""
    experiment, period, verdict = report["experiment"], report["period"], report["verdict"]
    planned_end = format_time(period["planned_end"])
    head = (
        f"{experiment['name']}: {experiment['percent_test']} % in test, salt {experiment['salt']!r}\n"
        f"{format_time(period['from'])} to {format_time(period['until'])}, planned to {planned_end}"
    )
    parts = [
        head,
        verdict["sentence"],
        *([report["plan"]["sentence"]] if report["plan"]["deviates"] else []),
        _render_variants(report),
        *([_render_metrics(report)] if report["metrics"] else []),
        "\n".join(list_notes(report)),
        _render_guardrails(report),
        *([table(*explored_table(report["explored_places"]))] if "explored_places" in report else []),
    ]
    return "\n\n".join(parts)


def list_notes(report: dict[str, Any]) -> list[str]:
    """Return what the figures are based on, one line each."""
    ratio, period, verdict = report["sample_ratio"], report["period"], report["verdict"]
    p_value = "" if ratio["p_value"] is None else f" (p = {ratio['p_value']:.3g})"
    passed = "as expected" if ratio["p_value"] is not None else "nothing to check"
    result = "BROKEN" if ratio["broken"] else passed
    lines = [
        f"Split: {result}. {ratio['expected_control']:,.1f} users were expected in control and "
        f"{ratio['expected_test']:,.1f} in test{p_value}.",
        _describe_population(report["population"] == "exposures", report["exposures_drained_at"]),
    ]
    if report["unknown_ids"]:
        lines.append(
            f"{report['unknown_ids']:,} more ids are not in recs.users and are left out: "
            "of users deleted since, or made up by callers."
        )
    if report["experiment"]["pinned_users"]:
        lines.append(f"{report['experiment']['pinned_users']} users were pinned by hand and are left out.")
    if not report["plan"]["deviates"]:
        lines.append(report["plan"]["sentence"])
    before = [format_time(each) for each in period["before"]]
    lines.append(f"CUPED uses the same metric from {before[0]} to {before[1]}.")
    if verdict["days_more"] is not None:
        lines.append(_describe_power(verdict["days_more"], report["worth_knowing"]))
    return lines


def _describe_population(by_exposure: bool, drained_at: str | None) -> str:
    drained = "never" if drained_at is None else "last"
    at = "" if drained_at is None else f" at {format_time(drained_at)}"
    users = (
        "those to whom serving returned a first page, from the first one on."
        if by_exposure
        else "those who viewed a post, from their first view on, since no exposures were recorded."
    )
    return f"Users: {users} Exposures were {drained} moved from Redis{at}."


def _describe_power(days_needed: int, min_effect: float) -> str:
    if days_needed == 0:
        return f"A relative difference of {100 * min_effect:.1f} % is detectable by now with 80 % power."
    return (
        f"{format_more_days(days_needed)} until a relative difference of {100 * min_effect:.1f} % is "
        "detectable with 80 % power, if each day brings as much data as those so far. This is a lower bound: "
        "returning users bring less."
    )


def format_relative(interval: dict[str, float] | None) -> str:
    """Format a relative difference with its interval."""
    if interval is None:
        return "-"
    value, low, high = (100 * interval[bound] for bound in ("value", "low", "high"))
    return f"{value:+.2f} % ({low:+.2f} to {high:+.2f})"


def _render_variants(report: dict[str, Any]) -> str:
    rows = [
        [variant, *(f"{report['variants'][variant][count]:,}" for count in ("users", "views", "likes"))]
        for variant in VARIANTS
    ]
    return table(("variant", "users", "views", "likes"), rows)


def _render_metrics(report: dict[str, Any]) -> str:
    rows = [
        [
            each["title"],
            format_number(each["control"]),
            format_number(each["test"]),
            f"{each['absolute']['value']:+.4f}",
            f"{each['absolute']['low']:+.4f} to {each['absolute']['high']:+.4f}",
            format_relative(each["relative"]),
            f"{each['p_value']:.4f}",
            f"{100 * each['variance_reduction']:.1f} %",
            format_number(each["detectable"]),
        ]
        for each in report["metrics"]
    ]
    return table(METRICS_HEAD, rows) + f"\nThe first metric decides; preliminary: {_preliminary(report)}."


def _preliminary(report: dict[str, Any]) -> str:
    return "no" if report["period"]["reached"] else "yes, before the planned end"


def _render_guardrails(report: dict[str, Any]) -> str:
    values = report["guard_rails"]
    rows = [
        [title, *("-" if values[v][name] is None else f"{100 * values[v][name]:.2f} %" for v in VARIANTS)]
        for name, title in GUARDRAIL_TITLES.items()
    ]
    users = [values[variant]["users_of_other"] for variant in VARIANTS]
    rows.append(["users who saw the other variant's list", *("-" if n is None else f"{n:,}" for n in users)])
    rows += latency_rows(values["latency"])
    return table(("guardrail", *VARIANTS), rows) + f"\nlatency: {values['latency']['sentence']}"


def latency_rows(latency: dict[str, Any]) -> list[list[str]]:
    """Return the rows of the latency table: a title and a cell per variant."""
    return [
        [
            f"{name} latency of an answer",
            *(_format_ms(latency[variant], f"{name}_ms") for variant in VARIANTS),
        ]
        for name in ("p50", "p99")
    ]


def _format_ms(latency: dict[str, Any] | None, name: str) -> str:
    return "-" if latency is None else f"{latency[name]:.1f} ms"


def explored_table(outcomes: dict[str, Any]) -> tuple[tuple[str, ...], list[list[str]]]:
    """Return head and rows of the table of explored places, a column per variant."""
    titles: dict[str, Callable[[dict[str, Any]], str]] = {
        "posts served to a user": lambda each: f"{each['served']:,}",
        "viewed within a day": lambda each: f"{each['explored']['viewed']:,}",
        "liked": lambda each: f"{each['explored']['liked']:,}",
        "likes per view": lambda each: _format_interval(each["explored"]["like_rate"]),
        "likes per view in other places": lambda each: _format_interval(each["other"]["like_rate"]),
        "difference": lambda each: _format_interval(each["difference"], "+"),
    }
    rows = [[title, *(cell(outcomes[variant]) for variant in VARIANTS)] for title, cell in titles.items()]
    return ("explored places", *VARIANTS), rows


def _format_interval(interval: dict[str, float] | None, sign: str = "") -> str:
    if interval is None:
        return "too few"
    value, low, high = (f"{interval[name]:{sign}.4f}" for name in ("value", "low", "high"))
    return f"{value} ({low} to {high})"


TEMPLATE = "experiment.html"
CHART_WIDTH = 900


def render_page(report: dict[str, Any]) -> str:
    """Lay out a report as an HTML page; the same report gives the same page."""
    return load_template(TEMPLATE).render(
        report=report,
        variants=VARIANTS,
        notes=list_notes(report),
        guardrail_titles=GUARDRAIL_TITLES,
        latency_rows=latency_rows(report["guard_rails"]["latency"]),
        explored=explored_table(report["explored_places"]) if "explored_places" in report else None,
        day_chart=draw_days(report["by_day"]),
    )


def check_writable(path: Path) -> None:
    """Check that a page can be written to `path`, before long work.

    Raises
    ------
    OvernightError
        The folder does not exist, or may not be written to.
    """
    if not path.parent.is_dir():
        raise OvernightError(
            f"the page cannot be written to {path}: there is no folder {path.parent}; create it"
        )
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise OvernightError(f"the page cannot be written to {path}: no permission; choose another path")


def write_page(path: Path, report: dict[str, Any]) -> None:
    """Write a report as a page.

    Raises
    ------
    OvernightError
        The file cannot be written.
    """
    try:
        path.write_text(render_page(report))
    except OSError as error:
        raise OvernightError(f"the page cannot be written to {path}: {error.strerror}") from None


def draw_days(days: list[dict[str, Any]]) -> str | None:
    """Draw the difference of each day as SVG; None without days."""
    if not days:
        return None
    bounds = ("value", "low", "high")
    points = [(day["day"][5:], *(day["difference"][name] for name in bounds)) for day in days]
    limit = max(max(abs(low), abs(high)) for _, _, low, high in points) or 1.0
    outside = sum(low > 0 or high < 0 for _, _, low, high in points)
    return Chart(
        "by-day", "Difference in likes per view day by day",
        f"{outside} of {len(points)} daily intervals do not contain 0.",
        Axis("day (UTC)", len(points)), Axis("test minus control", limit, -limit), CHART_WIDTH,
    ).intervals("model", points)  # fmt: skip
