"""The rules of the gate on figures written down by hand, and the counting of lists against a slower truth."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from batch.evaluation.evaluate import evaluate_rows
from batch.evaluation.scored_rows import ScoredRows
from batch.gate.check import compare_with_popularity, measure_auc
from batch.gate.inputs import GateInputs, HoldoutAuc, LiveComparison, PopularityComparison
from batch.gate.outcomes import NOT_COMPARED, PASSED, REFUSED, bounds_of, count_outcomes, outcome_of
from batch.gate.rules import NOTHING_LIVE, RULES, apply_rules, describe_refusal
from batch.loading.examples import Examples
from batch.loading.likes import Likes
from batch.publishing.list_stats import ListCounter, ListStats
from batch.scoring.chunk import Lists
from contract.settings import GateSettings

HONEST_LIVE = LiveComparison(
    run_id="20261121T030000Z-control",
    users_of_network=1000,
    users=900,
    overlap=0.4,
    head_posts=80,
    live_head_posts=90,
    differences={"roc_auc": (-0.005, -0.02, 0.01), "hitrate_at_5": (0.01, -0.02, 0.04)},
    ndcg_at_10=(-0.002, -0.01, 0.006),
)
HONEST = GateInputs(
    users_of_network=1010,
    users_requested=1010,
    lists=1010,
    full=1010,
    lists_with_five=1000,
    posts=500,
    posts_in_first=90,
    not_finite=0,
    liked_in_lists=0,
    lists_read=700,
    left_out_because=("liked",),
    popularity_comparison=PopularityComparison(
        users=800,
        differences={"popularity": (0.02, 0.01, 0.03), "recency_popularity": (-0.001, -0.004, 0.002)},
    ),
    auc=HoldoutAuc(0.65, 0.68, 800),
    live=HONEST_LIVE,
)


def broken(inputs: GateInputs, **settings: Any) -> list[str]:
    """Return the rules that refuse."""
    return [
        verdict.rule
        for verdict in apply_rules(inputs, GateSettings(**settings))
        if verdict.outcome == REFUSED
    ]


def below(ranker: str, high: float) -> GateInputs:
    """Return an honest run whose NDCG@10 is below a ranker's; `high` is the interval's upper end."""
    comparison = HONEST.popularity_comparison
    differences = comparison.differences | {ranker: (high - 0.01, high - 0.02, high)}
    return replace(HONEST, popularity_comparison=replace(comparison, differences=differences), live=None)


def test_an_honest_run_passes_every_rule_beside_a_live_one_and_on_the_first_night() -> None:
    assert broken(HONEST) == []
    assert broken(replace(HONEST, live=None)) == []


@pytest.mark.parametrize(
    ("rule", "changed"),
    [
        ("users_covered", {"users_requested": 1011}),
        ("users_kept", {"users_of_network": 699}),
        ("full_lists", {"full": 1009}),
        ("lists_of_five", {"lists_with_five": 504}),
        ("coverage", {"posts_in_first": 0}),
        ("not_finite", {"not_finite": 1}),
        ("liked_served", {"liked_in_lists": 1}),
    ],
)
def test_each_rule_about_the_run_itself_refuses_alone(rule: str, changed: dict[str, Any]) -> None:
    assert broken(replace(HONEST, **changed)) == [rule]


@pytest.mark.parametrize(
    ("rule", "changed"),
    [
        ("roc_auc", {"differences": {"roc_auc": (-0.1, -0.2, -0.0101), "hitrate_at_5": (0, 0, 0)}}),
        ("hitrate_at_5", {"differences": {"roc_auc": (0, 0, 0), "hitrate_at_5": (-0.1, -0.2, -0.0201)}}),
        ("coverage_of_live", {"head_posts": 26}),
        ("overlap", {"overlap": 0.019}),
    ],
)
def test_each_rule_beside_the_live_run_refuses_alone(rule: str, changed: dict[str, Any]) -> None:
    assert broken(replace(HONEST, live=replace(HONEST_LIVE, **changed))) == [rule]


@pytest.mark.parametrize(
    ("rule", "ranker", "setting"),
    [
        ("popularity", "popularity", "below_popularity"),
        ("recency_popularity", "recency_popularity", "below_recency_popularity"),
    ],
)
def test_a_run_surely_below_popularity_is_refused_on_a_first_night_too(
    rule: str, ranker: str, setting: str
) -> None:
    assert broken(below(ranker, -0.0001)) == [rule]
    assert broken(below(ranker, 0.0001)) == []  # chance may explain it
    assert broken(below(ranker, -0.0049), **{setting: 0.005}) == []
    assert broken(below(ranker, -0.0051), **{setting: 0.005}) == [rule]
    (verdict,) = [each for each in apply_rules(below(ranker, -0.02), GateSettings()) if each.rule == rule]
    name = ranker.replace("_", " ")
    assert verdict.why == (
        f"NDCG@10 over the full catalogue minus that of {name}, 800 users: -0.0300 "
        "(95 % interval -0.0400 to -0.0200, whose upper end counts); -0.02 is less than the 0 allowed"
    )


def test_a_holdout_that_cannot_judge_is_not_compared_with_popularity() -> None:
    record = {
        "users": 3,
        "why_not_judged": "only 3 users liked a post",
        "differences": {
            "popularity": {"ndcg_at_10": [None, None, None]},
            "recency_popularity": {"ndcg_at_10": [-0.2, -0.3, -0.1]},
        },
    }
    inputs = replace(HONEST, popularity_comparison=compare_with_popularity(record))
    verdicts = apply_rules(inputs, GateSettings())[:2]
    assert [verdict.outcome for verdict in verdicts] == [NOT_COMPARED, NOT_COMPARED]
    assert verdicts[0].why == "not compared with popularity: only 3 users liked a post in the holdout"


def test_outcomes_are_counted_and_those_of_earlier_releases_are_read() -> None:
    earlier = [
        {"rule": "roc_auc", "value": None, "bound": -0.01, "passed": True, "why": NOTHING_LIVE},
        {"rule": "users_covered", "value": 1.0, "bound": 1.0, "passed": True, "why": "all"},
        {"rule": "coverage", "value": 0.0, "bound": 0.1, "passed": False, "why": "none"},
    ]
    assert [outcome_of(verdict) for verdict in earlier] == [NOT_COMPARED, PASSED, REFUSED]
    assert describe_refusal(earlier) == "coverage: none"
    assert count_outcomes(earlier) == "1 of 3 rules passed, 1 refused, 1 not compared"
    assert count_outcomes(earlier[1:2]) == "1 of 1 rules passed"
    now = [verdict.record() for verdict in apply_rules(replace(HONEST, live=None, full=0), GateSettings())]
    assert {outcome_of(verdict): verdict["passed"] for verdict in now} == {
        PASSED: True, REFUSED: False, NOT_COMPARED: None,
    }  # fmt: skip


def test_a_metric_that_chance_may_have_lowered_refuses_no_run() -> None:
    shaky = {"roc_auc": (-0.15, -0.4, -0.0099), "hitrate_at_5": (-0.2, -0.5, 0.1)}
    assert broken(replace(HONEST, live=replace(HONEST_LIVE, differences=shaky))) == []


def test_a_run_that_changes_nothing_is_refused_only_where_a_setting_asks_for_change() -> None:
    same = replace(HONEST, live=replace(HONEST_LIVE, overlap=1.0))
    assert broken(same) == []
    assert broken(same, overlap_high=0.95) == ["overlap"]


def test_every_bound_is_a_setting_of_its_own() -> None:
    read: list[str] = []

    class Watched:
        def __getattr__(self, name: str) -> float:
            read.append(name)
            return 0.0

    for rule in RULES:
        for bound in filter(None, (rule.low, rule.high)):
            bound(Watched())  # type: ignore[arg-type]
    declared = set(GateSettings.__dataclass_fields__)
    assert len(read) == len(set(read))
    assert set(read) == declared


def test_a_verdict_tells_value_bound_and_by_how_much_it_is_missed() -> None:
    verdicts = {verdict.rule: verdict for verdict in apply_rules(replace(HONEST, full=505), GateSettings())}
    record = verdicts["full_lists"].record()
    assert (record["value"], record["bound"], record["passed"]) == (0.5, 1.0, False)
    assert record["why"] == "505 of 1010 lists are full; 0.5 is less than the 1 allowed"
    assert (
        describe_refusal([verdict.record() for verdict in verdicts.values()])
        == f"full_lists: {record['why']}"
    )
    assert verdicts["overlap"].bound == [0.02, 1.0]
    above = apply_rules(replace(HONEST, liked_in_lists=3), GateSettings())[-1]
    assert above.why.endswith("; 3 is more than the 0 allowed")


@pytest.mark.parametrize(
    ("because", "said"),
    [
        (("liked",), "has liked, in"),
        (("liked", "viewed"), "has liked or viewed, in"),
        (("liked", "written", "viewed"), "has liked, written or viewed, in"),
    ],
)
def test_the_rule_on_posts_to_leave_out_names_what_it_looked_for(because: tuple[str, ...], said: str) -> None:
    verdict = apply_rules(replace(HONEST, left_out_because=because), GateSettings())[-1]
    assert verdict.why == f"0 posts that their user {said} 700 lists read back"


def test_a_run_surely_below_the_live_one_over_the_full_catalogue_is_refused() -> None:
    below_live = replace(HONEST, live=replace(HONEST_LIVE, ndcg_at_10=(-0.02, -0.03, -0.006)))
    assert broken(below_live) == ["ndcg_at_10"]
    assert broken(below_live, ndcg_drop=0.01) == []
    assert broken(replace(HONEST, live=replace(HONEST_LIVE, ndcg_at_10=(-0.02, -0.05, 0.001)))) == []


def test_what_cannot_be_compared_has_not_passed_and_says_why() -> None:
    first = {verdict.rule: verdict for verdict in apply_rules(replace(HONEST, live=None), GateSettings())}
    assert first["roc_auc"].record() == {
        "rule": "roc_auc", "value": None, "bound": -0.01, "outcome": "not compared", "passed": None,
        "why": NOTHING_LIVE,
    }  # fmt: skip
    alone = replace(
        HONEST_LIVE,
        differences=None,
        not_comparable_because="it kept no model",
        ndcg_at_10=None,
        ndcg_not_comparable_because="it kept none at all",
        users=0,
    )
    verdicts = {verdict.rule: verdict for verdict in apply_rules(replace(HONEST, live=alone), GateSettings())}
    assert verdicts["roc_auc"].why.endswith("it kept no model")
    assert verdicts["ndcg_at_10"].why.endswith("it kept none at all")
    assert verdicts["overlap"].value is None
    none = {"roc_auc": (math.nan,) * 3, "hitrate_at_5": (math.nan,) * 3}
    blank = apply_rules(replace(HONEST, live=replace(HONEST_LIVE, differences=none)), GateSettings())
    uncompared = [verdict.rule for verdict in blank if verdict.outcome == NOT_COMPARED]
    assert uncompared == ["roc_auc", "hitrate_at_5"]


def count_in_parts(counter: ListCounter, lists: Lists, bounds: list[int]) -> ListStats:
    """Count the lists between each two neighbours of 0 and some bounds, in the order given, and add up."""
    stats, ends = ListStats(counter.allowed.size), sorted({0, *bounds})
    for stop in bounds:
        start = max([end for end in ends if end < stop], default=0)
        part = Lists(lists.posts[start:stop], lists.scores[start:stop], lists.left_out.of_users(start, stop))
        stats.add(counter.count(part))
    return stats


def test_lists_are_counted_as_a_slow_count_finds_them() -> None:
    random = np.random.default_rng(3)
    users, posts, n = 40, 9, 6
    liked = random.random((users, posts)) < np.linspace(0, 1, users)[:, None]
    blocked = np.array([2, 7])
    likes = Likes.from_pairs(*(each.astype(np.int32) for each in np.nonzero(liked)), users)
    free = [
        [post for post in range(posts) if not liked[user, post] and post not in blocked]
        for user in range(users)
    ]
    listed = [left[:n] if user % 7 else left[: max(len(left) - 1, 0)][:n] for user, left in enumerate(free)]
    rows = np.array([own + [-1] * (n - len(own)) for own in listed], dtype=np.int32)
    scores = np.where(rows >= 0, 1.5, np.nan).astype(np.float32)
    scores[5, 0] = np.inf
    whole = Lists(rows, scores, likes)
    list_stats = count_in_parts(ListCounter.of(posts, blocked, n, whole), whole, [17, users, 1])
    assert list_stats.lists == users
    assert list_stats.left_out == likes.posts.size
    assert (
        list_stats.full
        == sum(len(own) == min(n, len(left)) for own, left in zip(listed, free, strict=True))
        < users
    )
    assert list_stats.lists_with_five == sum(len(own) >= 5 for own in listed)
    heads = Counter(post for own in listed for post in own[:5])
    assert list_stats.posts_in_first == len(heads)
    most = sorted(heads.items(), key=lambda item: (-item[1], item[0]))
    assert list_stats.first_fives == most[:100]
    assert list_stats.not_finite == 1


@pytest.mark.parametrize("changed", [False, True], ids=["one order", "one list differs"])
def test_lists_in_one_order_are_found_whatever_is_left_out_of_them(changed: bool) -> None:
    random = np.random.default_rng(4)
    users, posts, n = 50, 30, 10
    liked = random.random((users, posts)) < random.random(users)[:, None] / 2
    liked[0] = True
    order = random.permutation(posts)
    rows = np.full((users, n), -1, dtype=np.int32)
    for user in range(users):
        left = [post for post in order if not liked[user, post]][:n]
        rows[user, : len(left)] = left
    if changed:
        rows[40, [2, 5]] = rows[40, [5, 2]]
    likes = Likes.from_pairs(*(each.astype(np.int32) for each in np.nonzero(liked)), users)
    whole = Lists(rows, np.zeros((users, n), np.float32), likes)
    sample = Lists(rows[:30], whole.scores[:30], likes.of_users(0, 30))
    counter = ListCounter.of(posts, np.empty(0, np.int64), n, sample)
    assert count_in_parts(counter, whole, [20, users, 1]).same_order is not changed


def scored_rows(liked_users: int, auc: float, *, viewed: bool = True, log_odds: bool = True) -> ScoredRows:
    """Return rows of 40 users, ten each; some users like one row, whose score gives about this AUC."""
    users, of_user = 40, 10
    rows = np.arange(users * of_user)
    liked = (rows % of_user == 0) & (rows // of_user < liked_users)
    scores = np.where(liked, auc, np.linspace(0, 1, rows.size))
    examples = Examples(
        rows // of_user, rows % of_user, liked, np.full(rows.size, viewed), np.ones(rows.size, np.float32)
    )
    popular, rate = np.zeros(rows.size), np.full(rows.size, 0.1)
    return ScoredRows(examples, scores, popular, None, rate, examples.users, {}, log_odds)


@pytest.mark.parametrize(
    ("liked_users", "auc", "outcome"),
    [
        (0, 0.0, NOT_COMPARED),
        (1, 0.04, REFUSED),
        (1, 0.06, PASSED),
        (2, 0.14, REFUSED),
        (2, 0.18, PASSED),
        (30, 0.25, REFUSED),
        (30, 0.45, PASSED),
        (30, 0.9, PASSED),
    ],
)
def test_a_model_surely_worse_than_random_order_is_refused_on_a_first_night(
    liked_users: int, auc: float, outcome: str
) -> None:
    rows = scored_rows(liked_users, auc)
    found = measure_auc(rows, evaluate_rows(rows, 1, None))
    first_night = replace(HONEST, auc=found, live=None)
    (verdict,) = [each for each in apply_rules(first_night, GateSettings()) if each.rule == "min_roc_auc"]
    assert verdict.outcome == outcome
    assert broken(first_night, min_auc=0.0) == []
    if outcome != NOT_COMPARED:
        assert found.value == pytest.approx(auc, abs=0.02)
        assert found.value < found.high <= 1
        assert f"{liked_users} users with a like: {found.value:.4f} (upper end of the" in verdict.why


def test_viewed_rows_do_not_measure_a_model_of_likes_among_all_posts() -> None:
    for viewed, outcome in ((True, NOT_COMPARED), (False, REFUSED)):
        rows = scored_rows(30, 0.0, viewed=viewed, log_odds=False)
        auc = measure_auc(rows, evaluate_rows(rows, 1, None))
        verdicts = {each.rule: each for each in apply_rules(replace(HONEST, auc=auc), GateSettings())}
        assert verdicts["min_roc_auc"].outcome == outcome


def test_a_verdict_tells_which_bound_its_rule_has() -> None:
    bounds = {verdict.rule: bounds_of(verdict.record()) for verdict in apply_rules(HONEST, GateSettings())}
    for rule in RULES:
        low, high = bounds[rule.name]
        assert (low is None, high is None) == (rule.low is None, rule.high is None), rule.name
