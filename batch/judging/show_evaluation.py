"""How an evaluation is printed: every figure with its 95 % interval, beside random order and popularity."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from batch.judging import JUDGES
from batch.layout import table

if TYPE_CHECKING:  # an operator who looks at a run need not wait for what made it
    from batch.judging.evaluation import Evaluation

NOTE = "in brackets: 95 % interval over users"

ORDER = ("hitrate", "precision", "recall", "map", "ndcg", "roc_auc", "log_loss", "calibration_error")
"""Of metrics that are alike in how many posts they look at; the ledger's jsonb keeps no order of its own."""


def of_run(metrics: dict[str, Any]) -> str:
    """Tell the evaluation that a manifest keeps."""
    holdout = metrics["holdout"]
    when = f"{holdout['from']} to {holdout['until']}"
    head = f"holdout ({metrics['protocol']}): {holdout['views']} rows of {holdout['users']} users, {when}"
    return "\n".join([head, *_figures(metrics), *_full_catalogue(metrics.get("full_catalogue"))])


def of_variant(name: str, found: Evaluation, source: str) -> str:
    """Tell all that was found out about one variant.

    Parameters
    ----------
    source
        Where the rows came from, in words.
    """
    record = found.record()
    head = f"{name}, {found.protocol}: {found.rows} rows of {found.users} users, {source}"
    parts = [head, *_figures(record), *_full_catalogue(record.get("full_catalogue"))]
    if record["calibration"]:
        keys = ("rows", "predicted", "liked")
        rows = [[row[key] for key in keys] for row in record["calibration"]]
        parts += ["", "calibration by deciles of the predicted probability", table(keys, rows)]
    if record["segments"]:
        parts += ["", f"segments ({found.protocol})", segments(record["segments"])]
    return "\n".join(parts)


def segments(records: Sequence[dict[str, Any]]) -> str:
    """Tell each segment's figures, a line each."""
    head = ["by", "segment", "users", "rows", "like rate", "hitrate@5", "random", "popularity", "roc auc"]
    rows = [
        [
            row["by"], row["segment"], row["users"], row["views"], row["like_rate"],
            _of_segment(row, "hitrate_at_5"), row.get("random_hitrate_at_5"),
            row.get("popularity_hitrate_at_5"), _of_segment(row, "roc_auc"),
        ]
        for row in records
    ]  # fmt: skip
    return table(head, rows)


def difference(name: str, other: str, found: Evaluation, beside: Evaluation) -> str:
    """Tell the paired differences of two variants, metric by metric."""
    titles = {"": found.protocol, "full_catalogue_": "full catalogue"}
    rows = [
        [titles[start], metric, *(round(number, 4) for number in numbers)]
        for start, metric, numbers in found.differences(beside)
        if all(number == number for number in numbers)  # NaN where a metric has no value
    ]
    head = f"{name} minus {other}, paired by user"
    return f"{head}\n{table(['protocol', 'metric', 'difference', 'low', 'high'], rows)}"


def windows(found: Sequence[tuple[str, str, Evaluation]]) -> str:
    """Tell one line per window: (from, until, evaluation)."""
    rows = []
    for since, until, each in found:
        record = each.record()
        full = record.get("full_catalogue", {})
        rows.append(
            [
                since, until, each.users, each.rows,
                _figure(record, "model", "hitrate_at_5"),
                *(record[judge]["hitrate_at_5"] for judge in JUDGES[1:]),
                _figure(record, "model", "roc_auc"),
                *(full[judge]["hitrate_at_5"] if full else None for judge in JUDGES),
            ]
        )  # fmt: skip
    head = ["after", "until", "users", "rows", "hitrate@5", "random", "popularity", "roc auc"]
    return table([*head, "full catalogue: hitrate@5", "random", "popularity"], rows)


def in_order(metrics: Iterable[str]) -> list[str]:
    """Sort metrics: by how many posts of a list they look at, those that look at all posts last."""

    def place(metric: str) -> tuple[float, int, str]:
        name, _, k = metric.partition("_at_")
        return int(k) if k.isdigit() else math.inf, ORDER.index(name) if name in ORDER else len(ORDER), metric

    return sorted(metrics, key=place)


def _figures(record: dict[str, Any]) -> list[str]:
    note = [NOTE] if record.get("intervals") else []
    rows = [
        [metric, *(_figure(record, judge, metric) for judge in JUDGES)]
        for metric in in_order(record["model"])
    ]
    return [*note, table(["metric", *JUDGES], rows)]


def _full_catalogue(record: dict[str, Any] | None) -> list[str]:
    if record is None:
        return []
    head = f"{record['protocol']}: {record['users']} users who liked a post they had not liked before"
    return ["", head, *_figures(record)]


def _figure(record: dict[str, Any], judge: str, metric: str) -> str:
    value = record[judge].get(metric)
    low, high = record.get("intervals", {}).get(judge, {}).get(metric, (None, None))
    return _with_interval(value, low, high)


def _of_segment(row: dict[str, Any], metric: str) -> str:
    return _with_interval(row.get(metric), row.get(f"{metric}_low"), row.get(f"{metric}_high"))


def _with_interval(value: float | None, low: float | None, high: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.4f}" if low is None else f"{value:.4f} [{low:.4f}, {high:.4f}]"
