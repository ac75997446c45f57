"""A report as text for a terminal."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from batch.experiment.verdict import counted_days
from batch.formatting import table
from batch.reports.charts import Axis, Chart
from batch.reports.files import figure, moment, template
from contract.errors import OvernightError
from contract.experiment import VARIANTS

METRICS_HEAD = ("metric", "control", "test", "difference", "95 % interval", "relative", "p",
                "CUPED took", "detectable")  # fmt: skip
RAILS = {
    "popular_share": "answers from the popular list",
    "other_share": "answers from the other variant's list",
    "posts_viewed_share": "posts viewed by anybody",
    "posts_liked_share": "posts liked by anybody",
}


def told(found: dict[str, Any]) -> str:
    """Lay out what `record` returned."""
    experiment, period, verdict = found["experiment"], found["period"], found["verdict"]
    head = (
        f"{experiment['name']}: {experiment['percent_test']} % in test, salt {experiment['salt']!r}\n"
        f"{moment(period['from'])} to {moment(period['until'])}, planned to {moment(period['planned_end'])}"
    )
    parts = [
        head,
        verdict["sentence"],
        *([found["plan"]["sentence"]] if found["plan"]["deviates"] else []),
        _variants(found),
        *([_metrics(found)] if found["metrics"] else []),
        "\n".join(notes(found)),
        _rails(found),
    ]
    return "\n\n".join(parts)


def notes(found: dict[str, Any]) -> list[str]:
    """Say in a line each what the figures rest on."""
    ratio, period, verdict = found["sample_ratio"], found["period"], found["verdict"]
    p = "" if ratio["p_value"] is None else f" (p = {ratio['p_value']:.3g})"
    checked = "sound" if ratio["p_value"] is not None else "nothing to check"
    whole = "BROKEN" if ratio["broken"] else checked
    lines = [
        f"Split: {whole}. {ratio['expected_control']:,.1f} users were expected in control and "
        f"{ratio['expected_test']:,.1f} in test{p}.",
        _population(found["population"] == "exposures", found["exposures_drained_at"]),
    ]
    if found["experiment"]["pinned_users"]:
        lines.append(f"{found['experiment']['pinned_users']} users were pinned by hand and are left out.")
    if not found["plan"]["deviates"]:
        lines.append(found["plan"]["sentence"])
    before = [moment(each) for each in period["before"]]
    lines.append(f"CUPED looks at the same metric from {before[0]} to {before[1]}.")
    if verdict["days_more"] is not None:
        lines.append(_power(verdict["days_more"], found["worth_knowing"]))
    return lines


def _population(by_exposure: bool, drained_at: str | None) -> str:
    fetched = "never" if drained_at is None else "last"
    at = "" if drained_at is None else f" at {moment(drained_at)}"
    who = (
        "those with an answer from serving, from their first on."
        if by_exposure
        else "those who viewed anything, since no exposures were recorded; from their first view on."
    )
    return f"Users: {who} Exposures were {fetched} fetched from Redis{at}."


def _power(days_more: int, worth: float) -> str:
    if days_more == 0:
        return f"A relative difference of {100 * worth:.1f} % would be found by now with 80 % power."
    return (
        f"{counted_days(days_more)} until a relative difference of {100 * worth:.1f} % would be found with "
        "80 % power, if each brings as much as those so far: a least number, as users who return bring less."
    )


def _relative(interval: dict[str, float] | None) -> str:
    """Write a relative difference with its interval."""
    if interval is None:
        return "-"
    value, low, high = (100 * interval[bound] for bound in ("value", "low", "high"))
    return f"{value:+.2f} % ({low:+.2f} to {high:+.2f})"


def _variants(found: dict[str, Any]) -> str:
    rows = [
        [variant, *(f"{found['variants'][variant][count]:,}" for count in ("users", "views", "likes"))]
        for variant in VARIANTS
    ]
    return table(("variant", "users", "views", "likes"), rows)


def _metrics(found: dict[str, Any]) -> str:
    rows = [
        [
            each["title"], figure(each["control"]), figure(each["test"]), f"{each['absolute']['value']:+.4f}",
            f"{each['absolute']['low']:+.4f} to {each['absolute']['high']:+.4f}", _relative(each["relative"]),
            f"{each['p_value']:.4f}", f"{100 * each['variance_reduction']:.1f} %", figure(each["detectable"]),
        ]
        for each in found["metrics"]
    ]  # fmt: skip
    return table(METRICS_HEAD, rows) + f"\nThe first decides; preliminary: {_preliminary(found)}."


def _preliminary(found: dict[str, Any]) -> str:
    return "no" if found["period"]["reached"] else "yes, before the planned end"


def _rails(found: dict[str, Any]) -> str:
    rails = found["guard_rails"]
    rows = [
        [title, *("-" if rails[v][name] is None else f"{100 * rails[v][name]:.2f} %" for v in VARIANTS)]
        for name, title in RAILS.items()
    ]
    both = [rails[variant]["users_of_other"] for variant in VARIANTS]
    rows.append(["users who saw the other's list", *("-" if n is None else f"{n:,}" for n in both)])
    rows += latency_rows(rails["latency"])
    return table(("guard rail", *VARIANTS), rows) + f"\nlatency: {rails['latency']['sentence']}"


def latency_rows(latency: dict[str, Any]) -> list[list[str]]:
    """Lay out how long answers took: a title and a cell for each variant."""
    return [
        [f"{name} of how long an answer took", *(_ms(latency[variant], f"{name}_ms") for variant in VARIANTS)]
        for name in ("p50", "p99")
    ]


def _ms(found: dict[str, Any] | None, name: str) -> str:
    return "-" if found is None else f"{found[name]:.1f} ms"


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
