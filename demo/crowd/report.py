"""The report of a crowd: what it did, what was to be expected, and what the A/B report makes of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

import numpy as np

from batch.experiment.render import format_relative
from batch.experiment.report import Report
from batch.experiment.statistics import LIKE_RATE
from batch.formatting import table
from batch.reports.files import format_time
from contract.experiment import VARIANTS
from demo.crowd.browser import Meter
from demo.crowd.visits import Done, View

OTHER_SOURCE = "not said"
EXPECTED = "expected: likes per view by what these people like, for exactly these views"
COUNTED, RATES = ("persons", "views", "likes"), ("likes_per_view", "expected")


@dataclass(frozen=True)
class Group:
    """Views and likes of a part of the crowd.

    Attributes
    ----------
    likes_per_view, expected
        Their ratio, and what the hidden preferences expect of it for exactly these views; None without views.
    """

    persons: int
    views: int
    likes: int
    likes_per_view: float | None
    expected: float | None

    @classmethod
    def sum(cls, views: Sequence[View]) -> Group:
        """Sum up views."""
        likes, count = sum(view.liked for view in views), len(views)
        return cls(
            persons=len({view.user_id for view in views}),
            views=count,
            likes=likes,
            likes_per_view=likes / count if count else None,
            expected=sum(view.chance for view in views) / count if count else None,
        )


@dataclass(frozen=True)
class Estimate:
    """What the A/B report says of likes per view, test relative to control.

    Attributes
    ----------
    relative
        `value`, and the bounds `low` and `high` of its 95 % interval; None if there is too little.
    has_truth
        Whether the interval has the true effect; None without either.
    sentence
        The report's conclusion, or why there is none.
    """

    relative: dict[str, float] | None
    has_truth: bool | None
    population: str | None
    sentence: str


@dataclass(frozen=True)
class CrowdReport:
    """Everything that is printed; `as_dict` has the fields of --json.

    Attributes
    ----------
    effect, shift
        How much more people in test like what they see, and what is added to the logits for that.
    true_effect
        The relative difference that both together make, the models' lists and `effect`; None without visits.
    """

    url: str
    seed: int
    started_at: datetime
    ended_at: datetime
    ended_early: bool
    planned_visits: int
    size: int
    effect: float
    shift: float
    true_effect: float | None
    lists_made_anew: int
    done: Done
    meter: Meter
    estimate: Estimate

    def as_dict(self) -> dict[str, Any]:
        """Return the fields; times in ISO 8601, shares as numbers."""
        done, views = self.done, self.done.views
        seconds = (self.ended_at - self.started_at).total_seconds()
        answered = sum(map(len, self.meter.seconds.values()))
        return {
            "app": self.url,
            "seed": self.seed,
            "from": self.started_at.isoformat(),
            "until": self.ended_at.isoformat(),
            "ended_early": self.ended_early,
            "people": self.size,
            "visits": done.visits,
            "planned_visits": self.planned_visits,
            "views": len(views),
            "likes": sum(view.liked for view in views),
            "unlikes": done.unlikes,
            "posts_opened": done.opened,
            "communities_joined": done.joined,
            "variants": {
                variant: asdict(Group.sum([view for view in views if view.variant == variant]))
                for variant in VARIANTS
            },
            "sources": {
                source: asdict(Group.sum([view for view in views if (view.source or OTHER_SOURCE) == source]))
                for source in sorted({view.source or OTHER_SOURCE for view in views})
            },
            "lists_made_anew": self.lists_made_anew,
            "effect_on_likes": self.effect,
            "odds_factor_in_test": math.exp(self.shift),
            "true_effect": self.true_effect,
            "ab_report": asdict(self.estimate),
            "requests": {
                "answered": answered,
                "not_answered": sum(self.meter.failures.values()),
                "reasons": dict(self.meter.failures),
                "per_second": answered / seconds if seconds else None,
                "milliseconds": {
                    kind: {"count": len(each), **_quantiles(each)}
                    for kind, each in sorted(self.meter.seconds.items())
                },
            },
        }


def make_estimate(report: Report, truth: float | None) -> Estimate:
    """Return what a report of the experiment says, to be compared with the truth."""
    found = report.as_dict()
    primary = next((each for each in found["metrics"] if each["metric"] == LIKE_RATE.name), None)
    relative = primary["relative"] if primary else None
    has_truth = None if relative is None or truth is None else relative["low"] <= truth <= relative["high"]
    return Estimate(relative, has_truth, found["population"], found["verdict"]["sentence"])


def render_text(report: dict[str, Any]) -> str:
    """Lay out what `CrowdReport.as_dict` returned."""
    early = " (ended early)" if report["ended_early"] else ""
    parts = [
        f"A crowd on {report['app']}, seed {report['seed']}\n"
        f"{format_time(report['from'])} to {format_time(report['until'])}{early}",
        f"{report['people']:,} people, {report['visits']:,} of {report['planned_visits']:,} planned visits, "
        f"{report['views']:,} views, {report['likes']:,} likes, {report['unlikes']:,} taken back\n"
        f"posts opened: {report['posts_opened']:,}, communities joined: {report['communities_joined']:,}, "
        f"lists made anew meanwhile: {report['lists_made_anew']:,}",
        _render_groups("variant", report["variants"]),
        _render_groups("list", report["sources"]) + f"\n{EXPECTED}",
        _render_effect(report),
        _render_requests(report["requests"]),
    ]
    return "\n\n".join(parts)


def _render_groups(title: str, groups: dict[str, dict[str, Any]]) -> str:
    head = (title, "people", "views", "likes", "likes per view", "expected")
    rows = [
        [name, *(f"{group[key]:,}" for key in COUNTED), *(_format_rate(group[key]) for key in RATES)]
        for name, group in groups.items()
    ]
    return table(head, rows)


def _render_effect(report: dict[str, Any]) -> str:
    estimate, truth = report["ab_report"], report["true_effect"]
    lines = []
    if report["effect_on_likes"]:
        lines.append(f"Likes per view of people in test were raised by {report['effect_on_likes']:+.1%}.")
    lines.append(
        "True effect of test on likes per view, with the two models' lists: "
        + ("unknown" if truth is None else f"{truth:+.2%}")
    )
    inside = {True: ", which has the truth", False: ", which does not have the truth", None: ""}
    relative = format_relative(estimate["relative"])
    lines.append(f"A/B report over the same time: {relative}{inside[estimate['has_truth']]}")
    lines.append(estimate["sentence"])
    return "\n".join(lines)


def _render_requests(requests: dict[str, Any]) -> str:
    rate = "" if requests["per_second"] is None else f", {requests['per_second']:.1f} a second"
    lines = [f"{requests['answered']:,} requests answered{rate}, {requests['not_answered']:,} not"]
    lines += [f"not answered: {reason}: {count:,}" for reason, count in sorted(requests["reasons"].items())]
    head = ("request", "count", "p50 ms", "p95 ms")
    rows = [
        [kind, each["count"], round(each["p50"]), round(each["p95"])]
        for kind, each in requests["milliseconds"].items()
    ]
    return "\n".join(lines) + "\n" + table(head, rows)


def _format_rate(rate: float | None) -> str:
    return "-" if rate is None else f"{rate:.4f}"


def _quantiles(seconds: list[float]) -> dict[str, float]:
    p50, p95 = np.quantile(seconds, [0.5, 0.95]) * 1000
    return {"p50": float(p50), "p95": float(p95)}
