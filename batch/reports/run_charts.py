"""Charts of what a manifest records: for the run's report and the console; imports nothing heavy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from batch.feed_rules import TOPICS
from batch.gate.outcomes import bounds_of, outcome_of, sort_verdicts
from batch.reports.bars import Bar, Bullet, draw_bars, draw_bullets
from batch.reports.charts import Axis, Chart

HALF_WIDTH = 440
"""Width of a chart that has another one beside it, in pixels."""


def draw_calibration(metrics: dict[str, Any]) -> str | None:
    """Draw mean prediction against share liked, in deciles; None if a score is no probability of a like."""
    deciles: Sequence[dict[str, float]] = metrics.get("calibration", [])
    if not deciles:
        return None
    points = [(row["predicted"], row["liked"]) for row in deciles]
    top = _round_up(max(max(point) for point in points))
    return Chart(
        "calibration", "Calibration by deciles of the predicted probability",
        f"Predicted {points[0][0]} to {points[-1][0]}, liked {points[0][1]} to {points[-1][1]}.",
        Axis("predicted probability of a like", top), Axis("share that was liked", top), HALF_WIDTH,
    ).lines({"model": points, "perfect": [(0, 0), (top, top)]}, dotted="model")  # fmt: skip


def draw_topics(topics: dict[str, Any]) -> str:
    """Draw how many topics the first places of the lists have, before and after the rule on topics."""
    before, after = topics["lists_by_topics_before"], topics["lists_by_topics"]
    return Chart(
        TOPICS, "Lists by the number of topics in their first places",
        f"Mean {topics['topics_per_list_before']} before the rule, {topics['topics_per_list']} after.",
        Axis(f"topics in the first {topics['window']} places", len(before)),
        Axis("lists", max(before + after + [1])),
    ).columns({"before": before, "after": after})  # fmt: skip


def draw_gate(verdicts: list[dict[str, Any]]) -> str:
    """Draw the rules of the gate as bullet bars, refused ones first."""
    rows = [_make_bullet(verdict) for verdict in sort_verdicts(verdicts)]
    refused = [row.label for row in rows if row.state == "refused"]
    description = f"Refused: {', '.join(refused)}." if refused else "No rule refuses."
    return draw_bullets("gate", "Rules of the gate: value and what is allowed", description, rows)


def _make_bullet(verdict: dict[str, Any]) -> Bullet:
    low, high = bounds_of(verdict)
    outcome, value = outcome_of(verdict), verdict["value"]
    text = outcome if value is None else f"{outcome} {value:.4g}, {describe_bounds(low, high)}"
    return Bullet(verdict["rule"].replace("_", " "), value, text, outcome.replace(" ", "-"), low, high)


def describe_bounds(low: float | None, high: float | None) -> str:
    """Return what is allowed, such as `min 0.5`."""
    if low is not None and high is not None:
        return f"{low:.4g} to {high:.4g}"
    return f"min {low:.4g}" if low is not None else f"max {high:.4g}"


def draw_stage_seconds(stages: list[dict[str, Any]]) -> str:
    """Draw how long each stage of a run took, in its order."""
    rows = [Bar(_stage(row), row["seconds"], f"{row['seconds']:,.1f} s") for row in stages]
    total = sum(row.value for row in rows)
    return draw_bars("stage-seconds", "Seconds of each stage", f"{total:,.1f} seconds in total.", rows)


def draw_stage_memory(stages: list[dict[str, Any]]) -> str:
    """Draw the peak memory of the process up to the end of each stage."""
    known = [row for row in stages if "peak_mib" in row]
    rows = [Bar(_stage(row), row["peak_mib"], f"{row['peak_mib']:,} MiB", "memory") for row in known]
    top = max((row.value for row in rows), default=0)
    return draw_bars("stage-memory", "Peak memory by the end of each stage", f"At most {top:,} MiB.", rows)


def _stage(row: dict[str, Any]) -> str:
    return str(row["stage"]).replace("_", " ")


def draw_redis_memory(publish: dict[str, Any]) -> str:
    """Draw the memory that a run was expected to take in Redis, and that Redis reported."""
    sizes = {"forecast": publish["forecast_bytes"], "reported": publish["redis_bytes"]}
    rows = [
        Bar(name, size / 2**20, f"{size / 2**20:,.1f} MiB", "memory" if name == "forecast" else "model")
        for name, size in sizes.items()
        if size is not None
    ]
    return draw_bars("redis-memory", "Memory in Redis", "What the run was expected to take, and took.", rows)


def _round_up(value: float) -> float:
    """Return the next tenth, at least 0.1."""
    return max(math.ceil(value * 10), 1) / 10
