"""How an evaluation is printed: the full catalogue first, figures with intervals, baselines beside them.

Works on records, as a manifest keeps them; those of earlier releases have
fewer rankers and no warm and cold users, and are printed as far as they go.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from batch.evaluation import FIRST_FIGURES, NAMES, POPULARITY, RANKERS
from batch.formatting import table

if TYPE_CHECKING:  # an operator who looks at a run need not wait for what made it
    from batch.evaluation.bootstrap import Difference
    from batch.evaluation.evaluate import Evaluation

NOTE = "in brackets: 95 % interval over users"

ORDER = ("hitrate", "precision", "recall", "map", "ndcg", "roc_auc", "log_loss", "calibration_error")
"""Of metrics that are alike in how many posts they look at; the ledger's jsonb keeps no order of its own."""

GROUPS = {"warm": "had liked something before", "cold": "had not liked anything before"}


def of_run(metrics: dict[str, Any]) -> str:
    """Render the evaluation that a manifest keeps."""
    holdout = metrics["holdout"]
    when = f"{holdout['from']} to {holdout['until']}"
    head = f"holdout ({metrics['protocol']}): {holdout['views']} rows of {holdout['users']} users, {when}"
    parts = full_catalogue(metrics.get("full_catalogue"))
    return "\n".join([*parts, *([""] if parts else []), head, *(_cannot_judge(metrics) or _figures(metrics))])


def of_variant(name: str, found: Evaluation, source: str) -> str:
    """Render all that was found out about one variant.

    Parameters
    ----------
    source
        Where the rows came from, in words.
    """
    record = found.record()
    head = f"{name}, {found.protocol}: {found.rows} rows of {found.users} users, {source}"
    parts = full_catalogue(record.get("full_catalogue"), f"{name}, ")
    parts += [*([""] if parts else []), head, *(_cannot_judge(record) or _figures(record))]
    if record["calibration"]:
        keys = ("rows", "predicted", "liked")
        rows = [[row[key] for key in keys] for row in record["calibration"]]
        parts += ["", "calibration by deciles of the predicted probability", table(keys, rows)]
    if record["segments"]:
        parts += ["", f"segments ({found.protocol})", segments(record["segments"])]
    return "\n".join(parts)


def full_catalogue(record: dict[str, Any] | None, start: str = "") -> list[str]:
    """Render the figures over the full catalogue of all, warm and cold users; nothing for None."""
    if record is None:
        return []
    head = f"{start}{record['protocol']}: {record['users']} users who liked a post they had not liked before"
    if record.get("lists", record["users"]) != record["users"]:
        head += f", {record['lists']} pairs of a user and a cutoff"
    parts = [head, *_cannot_judge(record)]
    if record["users"] == 0:
        return parts
    parts += _figures(record, FIRST_FIGURES)
    parts += [_less(name, found) for name, found in record.get("differences", {}).items()]
    parts += [_half_life(each) for each in record.get("recency", [])]
    for group, words in GROUPS.items():
        if group in record:
            of_group = record[group]
            parts += ["", f"{start}{group} users: {of_group['users']} who {words}"]
            parts += _figures(of_group, FIRST_FIGURES)[1:] if of_group["users"] else []
    return parts


def _less(name: str, found: dict[str, list[float | None]]) -> str:
    difference, low, high = found["ndcg_at_10"]
    if difference is None or low is None or high is None:
        return f"ndcg_at_10 of the model less that of {NAMES.get(name, name)}: not known"
    bounds = f"{difference:+.4f} [{low:+.4f}, {high:+.4f}]"
    return f"ndcg_at_10 of the model less that of {NAMES.get(name, name)}, paired by user: {bounds}"


def _half_life(record: dict[str, Any]) -> str:
    half_life = f"recency popularity: a like counts half after {_days(record['half_life_days'])}"
    if not record["users"]:
        return f"{half_life}; no likes before the holdout to choose that by"
    after, until = record["chosen_after"], record["chosen_until"]
    return f"{half_life}, chosen on the likes of {record['users']} users from {after} to {until}"


def _days(days: float) -> str:
    number, unit = (days * 24, "hour") if days < 1 else (days, "day")
    return f"{number:.4g} {unit}{'' if number == 1 else 's'}"


def _cannot_judge(record: dict[str, Any]) -> list[str]:
    why = record.get("why_not_judged")
    return [f"cannot judge a model: {why}"] if why else []


def segments(records: Sequence[dict[str, Any]]) -> str:
    """Render each segment's figures, a line each."""
    head = ["by", "segment", "users", "rows", "like rate", "hitrate@5", "random", "popularity", "roc auc"]
    rows = [
        [
            row["by"], row["segment"], row["users"], row["views"], _plain(row["like_rate"]),
            _of_segment(row, "hitrate_at_5"), _plain(row.get("random_hitrate_at_5")),
            _plain(row.get("popularity_hitrate_at_5")), _of_segment(row, "roc_auc"),
        ]
        for row in records
    ]  # fmt: skip
    return table(head, rows)


def difference(name: str, other: str, found: Sequence[tuple[str, str, Difference]], protocol: str) -> str:
    """Render the paired differences of two variants, metric by metric.

    Parameters
    ----------
    found
        As `Evaluation.differences` returns them.
    protocol
        Of the rows that are not the full catalogue's.
    """
    titles = {"": protocol, "full_catalogue_": "full catalogue"}
    rows = [
        [titles[start], metric, *(round(number, 4) for number in numbers)]
        for start, metric, numbers in found
        if all(number == number for number in numbers)  # NaN where a metric has no value
    ]
    head = f"{name} minus {other}, paired by user"
    return f"{head}\n{table(['protocol', 'metric', 'difference', 'low', 'high'], rows)}"


def cutoffs(found: Sequence[tuple[str, str, dict[str, Any]]], *, viewed: bool = True) -> str:
    """Render one line per cutoff.

    Parameters
    ----------
    found
        (cutoff, until, record): of `Evaluation.record` or, without `viewed`, of `CatalogueFigures.record`.
    viewed
        Whether to render viewed-only figures too.
    """
    head = ["after", "until", "users", "ndcg@10", *(NAMES.get(name, name) for name in RANKERS[1:])]
    head += ["hitrate@5", "recall@20", "coverage@10"]
    if viewed:
        head += ["viewed-only: users", "hitrate@5", "random", "popularity", "roc auc"]
    rows = []
    for since, until, record in found:
        full = record["full_catalogue"] if viewed else record
        row = [since, until, full["users"], _figure(full, "model", "ndcg_at_10")]
        row += [_plain(full[name]["ndcg_at_10"]) for name in RANKERS[1:]]
        row += [
            _plain(full["model"][metric]) for metric in ("hitrate_at_5", "recall_at_20", "coverage_at_10")
        ]
        if viewed:
            row += [record["users"], _figure(record, "model", "hitrate_at_5")]
            row += [_plain(record[name]["hitrate_at_5"]) for name in ("random", POPULARITY)]
            row += [_figure(record, "model", "roc_auc")]
        rows.append(row)
    return table(head, rows)


def in_order(metrics: Iterable[str]) -> list[str]:
    """Sort metrics: by how many posts of a list they look at, those that look at all posts last."""

    def place(metric: str) -> tuple[float, int, str]:
        name, _, k = metric.partition("_at_")
        return int(k) if k.isdigit() else math.inf, ORDER.index(name) if name in ORDER else len(ORDER), metric

    return sorted(metrics, key=place)


def _figures(record: dict[str, Any], metrics: Sequence[str] | None = None) -> list[str]:
    """Render every metric of the model, or those named that it has, a line each, with a column per ranker."""
    note = [NOTE] if record.get("intervals") else []
    rankers = [name for name in RANKERS if name in record]
    shown = in_order(record["model"]) if metrics is None else [m for m in metrics if m in record["model"]]
    rows = [[metric, *(_figure(record, ranker, metric) for ranker in rankers)] for metric in shown]
    return [*note, table(["metric", *(NAMES.get(name, name) for name in rankers)], rows)]


def _figure(record: dict[str, Any], ranker: str, metric: str) -> str:
    value = record[ranker].get(metric)
    low, high = record.get("intervals", {}).get(ranker, {}).get(metric, (None, None))
    return _with_interval(value, low, high)


def _of_segment(row: dict[str, Any], metric: str) -> str:
    return _with_interval(row.get(metric), row.get(f"{metric}_low"), row.get(f"{metric}_high"))


def _plain(value: float | None) -> str:
    return _with_interval(value, None, None)


def _with_interval(value: float | None, low: float | None, high: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.4f}" if low is None else f"{value:.4f} [{low:.4f}, {high:.4f}]"
