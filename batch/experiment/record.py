"""A report as one record of plain values: what `--json` prints, and the text and the page lay out."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from batch.experiment.compare import Difference
from batch.experiment.report import Report


def record(report: Report) -> dict[str, Any]:
    """Return the report's fields; times in ISO 8601."""
    period, judgement = report.period, report.judgement
    experiment, ratio = period.split.experiment, judgement.ratio
    return {
        "experiment": {
            "name": experiment.name,
            "salt": experiment.salt,
            "percent_test": experiment.percent_test,
            "pinned_users": len(period.split.pinned),
        },
        "period": {
            "from": period.since.isoformat(),
            "until": period.until.isoformat(),
            "planned_end": period.planned_end.isoformat(),
            "days": period.days,
            "reached": period.reached,
            "before": [period.before_since.isoformat(), period.before_until.isoformat()],
        },
        "plan": {
            "days": period.planned_days,
            "at_begin": period.split.plan.at_begin,
            "changes": [{"at": at.isoformat(), "days": days} for at, days in period.split.plan.changes],
            "deviates": period.split.plan.deviates(period.planned_days),
            "sentence": period.split.plan.told(period.planned_days),
        },
        "population": "exposures" if report.by_exposure else "views",
        "exposures_drained_at": None if report.drained_at is None else report.drained_at.isoformat(),
        "verdict": asdict(judgement.verdict),
        "sample_ratio": asdict(ratio) | {"broken": ratio.broken},
        "variants": {
            variant: counts | {each.metric.name: _of(each, variant) for each in judgement.differences}
            for variant, counts in judgement.counts.items()
        },
        "metrics": [_metric(each, place == 0) for place, each in enumerate(judgement.differences)],
        "worth_knowing": report.worth,
        "guard_rails": {variant: asdict(rails) for variant, rails in report.guard_rails.items()}
        | {"latency": asdict(report.latencies)},
        "by_day": [asdict(day) for day in report.by_day],
    }


def _of(difference: Difference, variant: str) -> float:
    value: float = getattr(difference, variant)
    return value


def _metric(difference: Difference, primary: bool) -> dict[str, Any]:
    fields = asdict(difference)
    metric = fields.pop("metric")
    return {"metric": metric["name"], "title": metric["title"], "primary": primary, **fields}
