"""A report as text for a terminal."""

from __future__ import annotations

from typing import Any

from batch.experiment.verdict import counted_days
from batch.layout import table
from batch.reporting.template import figure, moment
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
