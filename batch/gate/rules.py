"""The rules of the gate: each compares one value with bounds from the settings."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from batch.evaluation import POPULARITY, RANKER_LABELS, RECENCY
from batch.gate.inputs import GateInputs, LiveComparison
from batch.gate.outcomes import NOT_COMPARED, PASSED, REFUSED, outcome_of
from contract.codec import LIST_HEAD
from contract.settings import GateSettings

NOTHING_LIVE = "nothing of this variant is live to compare with"


class Measurement(NamedTuple):
    """A rule's value, None if there is nothing to compare, and what it is or why there is none."""

    value: float | None
    description: str


Bound = Callable[[GateSettings], float]


@dataclass(frozen=True)
class Rule:
    """One rule: the value must be from `low` to `high`; None is no bound. It needs a value to refuse."""

    name: str
    measure: Callable[[GateInputs], Measurement]
    low: Bound | None = None
    high: Bound | None = None


@dataclass(frozen=True)
class Verdict:
    """Result of one rule for one run.

    Attributes
    ----------
    value
        None if the rule was not compared.
    bound
        One number, or [low, high].
    outcome
        `passed`, `refused` or `not compared`.
    why
        The value in words, and by how much it is out of bounds.
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


def apply_rules(inputs: GateInputs, gate: GateSettings) -> list[Verdict]:
    """Apply every rule, in the order of `RULES`."""
    return [_apply(rule, inputs, gate) for rule in RULES]


def describe_refusal(verdicts: Sequence[dict[str, Any]]) -> str | None:
    """Describe in one line which rules of a manifest's `gate` refuse, and by how much; None if none does."""
    refused = [
        f"{verdict['rule']}: {verdict['why']}" for verdict in verdicts if outcome_of(verdict) == REFUSED
    ]
    return "; ".join(refused) or None


def _apply(rule: Rule, inputs: GateInputs, gate: GateSettings) -> Verdict:
    value, description = rule.measure(inputs)
    bounds = [bound(gate) for bound in (rule.low, rule.high) if bound is not None]
    bound = bounds[0] if len(bounds) == 1 else bounds
    if value is None or math.isnan(value):
        return Verdict(rule.name, None, bound, NOT_COMPARED, description)
    low = rule.low(gate) if rule.low else -math.inf
    high = rule.high(gate) if rule.high else math.inf
    if value < low:
        description += f"; {_short(value)} is less than the {_short(low)} allowed"
    elif value > high:
        description += f"; {_short(value)} is more than the {_short(high)} allowed"
    outcome = PASSED if low <= value <= high else REFUSED
    return Verdict(rule.name, float(f"{value:.6g}"), bound, outcome, description)


def _short(value: float) -> str:
    return f"{value:.4g}"


def _less_popular(ranker: str) -> Callable[[GateInputs], Measurement]:
    """Measure NDCG@10 of the model minus a ranker's: the upper end of the interval over users."""
    name = RANKER_LABELS.get(ranker, ranker)

    def value(inputs: GateInputs) -> Measurement:
        found = inputs.popularity_comparison
        if found.not_comparable_because:
            return Measurement(
                None, f"not compared with {name}: {found.not_comparable_because} in the holdout"
            )
        difference, low, high = found.differences[ranker]
        description = (
            f"NDCG@10 over the full catalogue minus that of {name}, {found.users} users: {difference:+.4f}"
        )
        return Measurement(
            high, f"{description} (95 % interval {low:+.4f} to {high:+.4f}, whose upper end counts)"
        )

    return value


def _auc(inputs: GateInputs) -> Measurement:
    """Measure the ROC AUC itself: the upper end of its interval."""
    auc = inputs.auc
    if auc.not_comparable_because:
        return Measurement(None, f"not measured: {auc.not_comparable_because}")
    description = f"ROC AUC of the held-out rows, {auc.users} users with a like: {auc.value:.4f}"
    return Measurement(
        auc.high, f"{description} (upper end of the 95 % interval {auc.high:.4f}, which counts)"
    )


def _users_covered(inputs: GateInputs) -> Measurement:
    return Measurement(
        _share(inputs.lists, inputs.users_requested),
        f"{inputs.lists} lists for {inputs.users_requested} users",
    )


def _users_kept(inputs: GateInputs) -> Measurement:
    if inputs.live is None:
        return Measurement(None, NOTHING_LIVE)
    before = inputs.live.users_of_network
    return Measurement(
        _share(inputs.users_of_network, before),
        f"{inputs.users_of_network} users now, {before} for {inputs.live.run_id}",
    )


def _full_lists(inputs: GateInputs) -> Measurement:
    return Measurement(_share(inputs.full, inputs.lists), f"{inputs.full} of {inputs.lists} lists are full")


def _lists_of_five(inputs: GateInputs) -> Measurement:
    lists = f"{inputs.lists_with_five} of {inputs.lists} lists"
    description = f"{lists} have {LIST_HEAD} posts, or as many as a list can have"
    return Measurement(_share(inputs.lists_with_five, inputs.lists), description)


def _coverage(inputs: GateInputs) -> Measurement:
    reachable = min(inputs.posts, LIST_HEAD * inputs.lists)
    description = (
        f"{inputs.posts_in_first} of {reachable} reachable posts are in the first {LIST_HEAD} of some list"
    )
    return Measurement(_share(inputs.posts_in_first, reachable), description)


def _coverage_of_live(inputs: GateInputs) -> Measurement:
    live = inputs.live
    if live is None or live.users == 0:
        return Measurement(None, _no_users(live))
    description = (
        f"{live.head_posts} posts in the first {LIST_HEAD} of {live.users} users, {live.live_head_posts}"
    )
    return Measurement(_share(live.head_posts, live.live_head_posts), f"{description} in {live.run_id}")


def _overlap(inputs: GateInputs) -> Measurement:
    live = inputs.live
    if live is None or live.users == 0:
        return Measurement(None, _no_users(live))
    return Measurement(
        live.overlap,
        f"mean over {live.users} users of the share of their first {LIST_HEAD} that is also in {live.run_id}",
    )


def _not_finite(inputs: GateInputs) -> Measurement:
    return Measurement(float(inputs.not_finite), f"{inputs.not_finite} scores are NaN or infinite")


def _liked_served(inputs: GateInputs) -> Measurement:
    done = " or ".join(filter(None, (", ".join(inputs.left_out_because[:-1]), inputs.left_out_because[-1])))
    description = (
        f"{inputs.liked_in_lists} posts that their user has {done}, in {inputs.lists_read} lists read back"
    )
    return Measurement(float(inputs.liked_in_lists), description)


def _difference(metric: str, name: str) -> Callable[[GateInputs], Measurement]:
    """Measure the upper end of the difference's interval: a drop that chance explains refuses no run."""

    def value(inputs: GateInputs) -> Measurement:
        if inputs.live is None:
            return Measurement(None, NOTHING_LIVE)
        if inputs.live.differences is None:
            return Measurement(
                None, f"not compared with {inputs.live.run_id}: {inputs.live.not_comparable_because}"
            )
        difference, low, high = inputs.live.differences[metric]
        if math.isnan(high):
            return Measurement(None, f"the held-out rows give no {name}")
        description = f"{name} minus that of {inputs.live.run_id} on the same rows: {difference:+.4f}"
        return Measurement(
            high, f"{description} (95 % interval {low:+.4f} to {high:+.4f}, whose upper end counts)"
        )

    return value


def _ndcg(inputs: GateInputs) -> Measurement:
    """Measure NDCG@10 over the full catalogue minus the live run's: the upper end of the interval."""
    if inputs.live is None:
        return Measurement(None, NOTHING_LIVE)
    if inputs.live.ndcg_at_10 is None:
        return Measurement(
            None, f"not compared with {inputs.live.run_id}: {inputs.live.ndcg_not_comparable_because}"
        )
    difference, low, high = inputs.live.ndcg_at_10
    description = f"NDCG@10 over the full catalogue minus that of {inputs.live.run_id}: {difference:+.4f}"
    return Measurement(
        high, f"{description} (95 % interval {low:+.4f} to {high:+.4f}, whose upper end counts)"
    )


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _no_users(live: LiveComparison | None) -> str:
    if live is None:
        return NOTHING_LIVE
    if live.lists_not_comparable_because:
        return f"not compared with {live.run_id}: {live.lists_not_comparable_because}"
    return f"no user drawn has a list in {live.run_id} too"


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
    Rule("min_roc_auc", _auc, low=lambda gate: gate.min_auc),
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
