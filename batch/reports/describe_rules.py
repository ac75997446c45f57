"""What the rules of the feed did to a run's lists, in sentences for the console and the run's page."""

from __future__ import annotations

from typing import Any

from batch.evaluation import PRIMARY_METRIC
from batch.feed_rules import LIKES_FOUND
from contract.manifest import Manifest

LEFT_OUT = ("liked", "own", "viewed")
"""Reasons in the order in which they apply; JSONB, which keeps the record, has an order of its own."""


def describe_rules(manifest: Manifest) -> list[str]:
    """Return a sentence per rule; none for a run of an earlier release."""
    lines = []
    found = manifest.left_out_of_lists
    if left_out := [f"{found[reason]} {reason}" for reason in LEFT_OUT if found.get(reason)]:
        lines.append(f"left out of lists: {', '.join(left_out)} posts")
    if (topics := manifest.topics) is not None:
        lines.append(
            f"at most {topics['most']} posts of one topic in the first {topics['window']}: "
            f"{topics['topics_per_list_before']} topics a list before, {topics['topics_per_list']} after; "
            f"{topics['changed_lists']} of {topics['lists']} lists changed{_describe_above(topics)}"
        )
    if (explored := manifest.explored) is not None:
        every = manifest.feed.get("explore_places")
        lines.append(
            f"explored places, one of {every}: {explored['places']} places of the lists have one of the "
            f"{explored['posts']} posts that nobody knows yet"
        )
    if manifest.weighted_views is not None:
        lines.append(f"learnt from {manifest.weighted_views} views of explored places with a weight")
    if manifest.segments is not None:
        lines.append(f"popular posts by {manifest.popular_by}: {manifest.segments} values have their own")
    costs = manifest.metrics.get("rule_costs", {})
    return lines + [f"cost of the rule {name}: {_describe_cost(cost)}" for name, cost in costs.items()]


def _describe_above(topics: dict[str, Any]) -> str:
    if not (above := topics.get("lists_above_limit")):
        return ""
    return f", {above} {'is' if above == 1 else 'are'} above the limit for lack of other topics"


def _describe_cost(cost: dict[str, Any]) -> str:
    found = f"likes found in the first {cost['window']}"
    parts = [_describe_metric(found, cost[LIKES_FOUND]), _describe_metric("NDCG@10", cost[PRIMARY_METRIC])]
    return f"{', '.join(parts)}; {cost['users']} users of the holdout, 95 % intervals"


def _describe_metric(name: str, metric: dict[str, Any]) -> str:
    if None in (metric["before"], metric["after"], *metric["difference"]):
        return f"{name} unknown"
    difference, low, high = metric["difference"]
    values = f"{metric['before']:.4f} before, {metric['after']:.4f} after"
    return f"{name} {values}: {difference:+.4f} ({low:+.4f} to {high:+.4f})"
