"""The rules of the gate: each one value, compared with bounds that are settings; without it, none refuses."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from batch.evaluation import POPULARITY, RANKER_LABELS, RECENCY
from batch.gate.inputs import BesideLive, GateInputs
from batch.gate.list_stats import FIRST
from batch.gate.outcomes import NOT_COMPARED, PASSED, REFUSED, outcome_of
from contract.settings import GateSettings

NOTHING_LIVE = "nothing of this variant is live to compare with"

Found = tuple[float | None, str]
"""A rule's value, None where there is nothing to compare, and what it is or why there is none, in words."""

Bound = Callable[[GateSettings], float]


@dataclass(frozen=True)
class Rule:
    """One rule: a value, which must lie from `low` to `high` where these are given."""

    name: str
    value: Callable[[GateInputs], Found]
    low: Bound | None = None
    high: Bound | None = None


@dataclass(frozen=True)
class Verdict:
    """What one rule says of one run.

    Attributes
    ----------
    value
        None where the rule was not compared.
    bound
        One number, or both ends where there are two.
    outcome
        `passed`, `refused` or `not compared`.
    """

    rule: str
    value: float | None
    bound: float | list[float]
    outcome: str
    why: str

    def record(self) -> dict[str, Any]:
        """Return what the manifest keeps; `passed` is None for a rule that was not compared."""
        return {
            "rule": self.rule,
            "value": self.value,
            "bound": self.bound,
            "outcome": self.outcome,
            "passed": None if self.outcome == NOT_COMPARED else self.outcome == PASSED,
            "why": self.why,
        }


def judge(inputs: GateInputs, gate: GateSettings) -> list[Verdict]:
    """Hold the facts against every rule, in the order of `RULES`."""
    return [_verdict(rule, inputs, gate) for rule in RULES]


def refusal(verdicts: Sequence[dict[str, Any]]) -> str | None:
    """Say in one line which rules of a manifest's `gate` refuse, and by how much; None if none does."""
    refused = [
        f"{verdict['rule']}: {verdict['why']}" for verdict in verdicts if outcome_of(verdict) == REFUSED
    ]
    return "; ".join(refused) or None


def _verdict(rule: Rule, inputs: GateInputs, gate: GateSettings) -> Verdict:
    value, says = rule.value(inputs)
    bounds = [bound(gate) for bound in (rule.low, rule.high) if bound is not None]
    bound = bounds[0] if len(bounds) == 1 else bounds
    if value is None or math.isnan(value):
        return Verdict(rule.name, None, bound, NOT_COMPARED, says)
    low = rule.low(gate) if rule.low else -math.inf
    high = rule.high(gate) if rule.high else math.inf
    if value < low:
        says += f"; {_short(value)} is less than the {_short(low)} allowed"
    elif value > high:
        says += f"; {_short(value)} is more than the {_short(high)} allowed"
    outcome = PASSED if low <= value <= high else REFUSED
    return Verdict(rule.name, float(f"{value:.6g}"), bound, outcome, says)


def _short(value: float) -> str:
    return f"{value:.4g}"


def _less_popular(ranker: str) -> Callable[[GateInputs], Found]:
    """Judge the upper end of the interval of NDCG@10 of the model less that of a ranker."""
    name = RANKER_LABELS.get(ranker, ranker)

    def value(inputs: GateInputs) -> Found:
        found = inputs.popularity_comparison
        if found.cannot_judge:
            return None, f"not compared with {name}: {found.cannot_judge} in the holdout"
        difference, low, high = found.differences[ranker]
        says = f"NDCG@10 over the full catalogue less that of {name}, {found.users} users: {difference:+.4f}"
        return high, f"{says} (95 % interval {low:+.4f} to {high:+.4f}, whose upper end counts)"

    return value


def _users_covered(inputs: GateInputs) -> Found:
    return _share(inputs.lists, inputs.users_asked), f"{inputs.lists} lists for {inputs.users_asked} users"


def _users_kept(inputs: GateInputs) -> Found:
    if inputs.live is None:
        return None, NOTHING_LIVE
    before = inputs.live.users_of_network
    return _share(inputs.users_of_network, before), (
        f"{inputs.users_of_network} users now, {before} for {inputs.live.run_id}"
    )


def _full_lists(inputs: GateInputs) -> Found:
    return _share(inputs.full, inputs.lists), f"{inputs.full} of {inputs.lists} lists are as long as can be"


def _lists_of_five(inputs: GateInputs) -> Found:
    says = f"{inputs.of_five} of {inputs.lists} lists have {FIRST} posts, or as many as a list can have"
    return _share(inputs.of_five, inputs.lists), says


def _coverage(inputs: GateInputs) -> Found:
    reachable = min(inputs.posts, FIRST * inputs.lists)
    says = f"{inputs.posts_in_first} of {reachable} posts that could be stand in some list's first {FIRST}"
    return _share(inputs.posts_in_first, reachable), says


def _coverage_of_live(inputs: GateInputs) -> Found:
    live = inputs.live
    if live is None or live.users == 0:
        return None, _no_users(live)
    says = (
        f"{live.posts_in_first} posts in the first {FIRST} of {live.users} users, {live.posts_in_its_first}"
    )
    return _share(live.posts_in_first, live.posts_in_its_first), f"{says} in {live.run_id}"


def _overlap(inputs: GateInputs) -> Found:
    live = inputs.live
    if live is None or live.users == 0:
        return None, _no_users(live)
    return live.overlap, f"mean over {live.users} users of what their first {FIRST} share with {live.run_id}"


def _not_finite(inputs: GateInputs) -> Found:
    return float(inputs.not_finite), f"{inputs.not_finite} scores are infinite or no number"


def _liked_served(inputs: GateInputs) -> Found:
    says = f"{inputs.liked_served} posts that their user likes, in {inputs.lists_joined} lists read back"
    return float(inputs.liked_served), says


def _difference(metric: str, name: str) -> Callable[[GateInputs], Found]:
    """Judge the upper end of the difference's interval: what chance explains refuses no run."""

    def value(inputs: GateInputs) -> Found:
        if inputs.live is None:
            return None, NOTHING_LIVE
        if inputs.live.differences is None:
            return None, f"not compared with {inputs.live.run_id}: {inputs.live.why_not}"
        difference, low, high = inputs.live.differences[metric]
        if math.isnan(high):
            return None, f"the held-out rows give no {name}"
        says = f"{name} less that of {inputs.live.run_id} on the same rows: {difference:+.4f}"
        return high, f"{says} (95 % interval {low:+.4f} to {high:+.4f}, whose upper end counts)"

    return value


def _ndcg(inputs: GateInputs) -> Found:
    """Judge the upper end of the interval of NDCG@10 over the full catalogue, less that of the live run."""
    if inputs.live is None:
        return None, NOTHING_LIVE
    if inputs.live.ndcg_at_10 is None:
        return None, f"not compared with {inputs.live.run_id}: {inputs.live.why_no_ndcg}"
    difference, low, high = inputs.live.ndcg_at_10
    says = f"NDCG@10 over the full catalogue less that of {inputs.live.run_id}: {difference:+.4f}"
    return high, f"{says} (95 % interval {low:+.4f} to {high:+.4f}, whose upper end counts)"


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _no_users(live: BesideLive | None) -> str:
    return NOTHING_LIVE if live is None else f"no user drawn has a list in {live.run_id} too"


RULES = (
    Rule(
        "popularity",
        _less_popular(POPULARITY),
        low=lambda gate: 0 - gate.below_popularity,
    ),
    Rule(
        "recency_popularity",
        _less_popular(RECENCY),
        low=lambda gate: 0 - gate.below_recency_popularity,
    ),
    Rule("ndcg_at_10", _ndcg, low=lambda gate: -gate.ndcg_drop),
    Rule("roc_auc", _difference("roc_auc", "ROC AUC"), low=lambda gate: -gate.auc_drop),
    Rule(
        "hitrate_at_5",
        _difference("hitrate_at_5", "HitRate@5"),
        low=lambda gate: -gate.hitrate_drop,
    ),
    Rule("users_covered", _users_covered, low=lambda gate: gate.users_covered),
    Rule("users_kept", _users_kept, low=lambda gate: gate.users_kept),
    Rule("full_lists", _full_lists, low=lambda gate: gate.full_lists),
    Rule("lists_of_five", _lists_of_five, low=lambda gate: gate.lists_of_five),
    Rule("coverage", _coverage, low=lambda gate: gate.coverage),
    Rule("coverage_of_live", _coverage_of_live, low=lambda gate: gate.coverage_of_live),
    Rule(
        "overlap",
        _overlap,
        low=lambda gate: gate.overlap_low,
        high=lambda gate: gate.overlap_high,
    ),
    Rule("not_finite", _not_finite, high=lambda gate: gate.not_finite),
    Rule("liked_served", _liked_served, high=lambda gate: gate.liked_served),
)
