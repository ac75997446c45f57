"""Text output of an evaluation: the full catalogue first, then the rows, with intervals and baselines.

Renders records as a manifest keeps them. Records of earlier releases have fewer
rankers and no warm and cold users; what they have is printed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from batch.evaluation import POPULARITY, PRIMARY_METRIC, PRIMARY_METRICS, RANDOM, RANKER_LABELS, RANKERS
from batch.formatting import table

if TYPE_CHECKING:  # commands about runs must not import what evaluates models
    from batch.evaluation.evaluate import Evaluation, MetricDifference

NOTE = "in brackets: 95 % interval over users"

ORDER = ("hitrate", "precision", "recall", "map", "ndcg", "roc_auc", "log_loss", "calibration_error")
"""Print order of metrics with the same k; the ledger's jsonb does not keep the order of keys."""

GROUPS = {"warm": "had liked something before", "cold": "had not liked anything before"}


def render_run(metrics: dict[str, Any]) -> str:
    """Render the evaluation in a manifest."""
    holdout = metrics["holdout"]
    when = f"{holdout['from']} to {holdout['until']}"
    head = f"holdout ({metrics['protocol']}): {holdout['views']} rows of {holdout['users']} users, {when}"
    parts = render_catalogue(metrics.get("full_catalogue"))
    return "\n".join([*parts, *([""] if parts else []), head, *(_insufficient(metrics) or _metrics(metrics))])


def render_variant(name: str, evaluation: Evaluation, source: str) -> str:
    """Render the whole evaluation of one variant.

    Parameters
    ----------
    source
        Where the rows came from, as text.
    """
    record = evaluation.record()
    head = f"{name}, {evaluation.protocol}: {evaluation.rows} rows of {evaluation.users} users, {source}"
    parts = render_catalogue(record.get("full_catalogue"), f"{name}, ")
    parts += [*([""] if parts else []), head, *(_insufficient(record) or _metrics(record))]
    if record["calibration"]:
        keys = ("rows", "predicted", "liked")
        rows = [[row[key] for key in keys] for row in record["calibration"]]
        parts += ["", "calibration by deciles of the predicted probability", table(keys, rows)]
    if record["segments"]:
        parts += ["", f"segments ({evaluation.protocol})", render_segments(record["segments"])]
    return "\n".join(parts)


def render_catalogue(record: dict[str, Any] | None, prefix: str = "") -> list[str]:
    """Render the metrics over the full catalogue of all, warm and cold users; no lines for None."""
    if record is None:
        return []
    head = f"{prefix}{record['protocol']}: {record['users']} users who liked a post they had not liked before"
    if record.get("lists", record["users"]) != record["users"]:
        head += f", {record['lists']} pairs of a user and a cutoff"
    parts = [head, *_insufficient(record)]
    if record["users"] == 0:
        return parts
    parts += _metrics(record, PRIMARY_METRICS)
    parts += [_difference(name, differences) for name, differences in record.get("differences", {}).items()]
    parts += [_half_life(each) for each in record.get("recency", [])]
    for group, description in GROUPS.items():
        if group in record:
            of_group = record[group]
            parts += ["", f"{prefix}{group} users: {of_group['users']} who {description}"]
            parts += _metrics(of_group, PRIMARY_METRICS)[1:] if of_group["users"] else []
    return parts


def _difference(ranker: str, differences: dict[str, list[float | None]]) -> str:
    value, low, high = differences[PRIMARY_METRIC]
    label = f"{PRIMARY_METRIC} of the model minus that of {RANKER_LABELS.get(ranker, ranker)}"
    if value is None or low is None or high is None:
        return f"{label}: not known"
    return f"{label}, paired by user: {value:+.4f} [{low:+.4f}, {high:+.4f}]"


def _half_life(record: dict[str, Any]) -> str:
    half_life = f"recency popularity: half-life of {_days(record['half_life_days'])}"
    if not record["users"]:
        return f"{half_life}; no likes before the holdout to choose it by"
    after, until = record["chosen_after"], record["chosen_until"]
    return f"{half_life}, chosen on the likes of {record['users']} users from {after} to {until}"


def _days(days: float) -> str:
    number, unit = (days * 24, "hour") if days < 1 else (days, "day")
    return f"{number:.4g} {unit}{'' if number == 1 else 's'}"


def _insufficient(record: dict[str, Any]) -> list[str]:
    reason = record.get("why_not_judged")
    return [f"too little data to evaluate a model: {reason}"] if reason else []


def render_segments(records: Sequence[dict[str, Any]]) -> str:
    """Render the metrics of each segment, one line each."""
    head = ["by", "segment", "users", "rows", "like rate", "hitrate@5", "random", "popularity", "roc auc"]
    rows = [
        [
            row["by"], row["segment"], row["users"], row["views"], _value(row["like_rate"]),
            _segment_metric(row, "hitrate_at_5"), _value(row.get("random_hitrate_at_5")),
            _value(row.get("popularity_hitrate_at_5")), _segment_metric(row, "roc_auc"),
        ]
        for row in records
    ]  # fmt: skip
    return table(head, rows)


def render_differences(
    name: str, baseline: str, differences: Sequence[MetricDifference], protocol: str
) -> str:
    """Render one variant minus another, metric by metric.

    Parameters
    ----------
    protocol
        Of the rows that are not the full catalogue's.
    """
    titles = {"": protocol, "full_catalogue_": "full catalogue"}
    rows = [
        [titles[each.prefix], each.metric, *(round(number, 4) for number in each.difference)]
        for each in differences
        if not any(map(math.isnan, each.difference))
    ]
    head = f"{name} minus {baseline}, paired by user"
    return f"{head}\n{table(['protocol', 'metric', 'difference', 'low', 'high'], rows)}"


@dataclass(frozen=True)
class CutoffLine:
    """One line of `render_cutoffs`: the cutoff, the end of the likes after it, and a record.

    `record` is that of `Evaluation` with `users` added or, without viewed rows, of `CatalogueResult`.
    """

    cutoff: str
    until: str
    record: dict[str, Any]


def render_cutoffs(lines: Sequence[CutoffLine], *, viewed: bool = True) -> str:
    """Render one line per cutoff; `viewed` adds the viewed-only metrics."""
    head = ["after", "until", "users", "ndcg@10", *(RANKER_LABELS.get(name, name) for name in RANKERS[1:])]
    head += ["hitrate@5", "recall@20", "coverage@10"]
    if viewed:
        head += ["viewed-only: users", "hitrate@5", "random", "popularity", "roc auc"]
    rows = []
    for line in lines:
        record = line.record
        full = record["full_catalogue"] if viewed else record
        row = [line.cutoff, line.until, full["users"], _metric(full, "model", PRIMARY_METRIC)]
        row += [_value(full[name][PRIMARY_METRIC]) for name in RANKERS[1:]]
        row += [
            _value(full["model"][metric]) for metric in ("hitrate_at_5", "recall_at_20", "coverage_at_10")
        ]
        if viewed:
            row += [record["users"], _metric(record, "model", "hitrate_at_5")]
            row += [_value(record[name]["hitrate_at_5"]) for name in (RANDOM, POPULARITY)]
            row += [_metric(record, "model", "roc_auc")]
        rows.append(row)
    return table(head, rows)


def sort_metrics(metrics: Iterable[str]) -> list[str]:
    """Sort metrics by k, the number of posts of a list that they use; metrics without k come last."""

    def key(metric: str) -> tuple[float, int, str]:
        name, _, k = metric.partition("_at_")
        return int(k) if k.isdigit() else math.inf, ORDER.index(name) if name in ORDER else len(ORDER), metric

    return sorted(metrics, key=key)


def _metrics(record: dict[str, Any], metrics: Sequence[str] | None = None) -> list[str]:
    """Render metrics of the model, a line each, with a column per ranker; all for None."""
    note = [NOTE] if record.get("intervals") else []
    rankers = [name for name in RANKERS if name in record]
    shown = sort_metrics(record["model"]) if metrics is None else [m for m in metrics if m in record["model"]]
    rows = [[metric, *(_metric(record, ranker, metric) for ranker in rankers)] for metric in shown]
    return [*note, table(["metric", *(RANKER_LABELS.get(name, name) for name in rankers)], rows)]


def _metric(record: dict[str, Any], ranker: str, metric: str) -> str:
    value = record[ranker].get(metric)
    low, high = record.get("intervals", {}).get(ranker, {}).get(metric, (None, None))
    return _with_interval(value, low, high)


def _segment_metric(row: dict[str, Any], metric: str) -> str:
    return _with_interval(row.get(metric), row.get(f"{metric}_low"), row.get(f"{metric}_high"))


def _value(value: float | None) -> str:
    return _with_interval(value, None, None)


def _with_interval(value: float | None, low: float | None, high: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.4f}" if low is None else f"{value:.4f} [{low:.4f}, {high:.4f}]"
