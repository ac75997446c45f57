"""The latency of the variants: p99 with bounds over users, and what is said of a difference."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from batch.experiment.guardrails import P99, Latency, compare_latencies, measure_latency, time_quantile
from tests.support.experiment import within_binomial_bounds

TRIALS = 200


def drawn(random: np.random.Generator, users: int, slower: float = 1.0) -> Latency:
    """Measure answers to users some of whom are slow to answer always, so that one's answers are alike."""
    answers = random.poisson(20, users) + 1
    of_user = slower * random.lognormal(1, 0.5, users)
    took = pd.Series(np.round(np.repeat(of_user, answers) * random.gamma(10, 0.1, answers.sum()), 1))
    times = took.value_counts().sort_index().rename_axis("took_ms").reset_index(name="answers")
    slow = (took >= time_quantile(times, P99)).groupby(np.repeat(np.arange(users), answers)).sum().to_numpy()
    spread = {
        "users": users, "answers": answers.sum(), "slow": slow.sum(), "answers_answers": answers @ answers,
        "slow_slow": slow @ slow, "answers_slow": answers @ slow,
    }  # fmt: skip
    return measure_latency(times, pd.Series(spread))


def test_two_variants_that_are_alike_are_told_apart_as_seldom_as_the_interval_says() -> None:
    random = np.random.default_rng(1)
    found = [compare_latencies(drawn(random, 400), drawn(random, 400)).difference for _ in range(TRIALS)]
    assert None not in found
    outside = sum(not each.low <= 0 <= each.high for each in found)
    assert within_binomial_bounds(outside, TRIALS, 0.05)
    assert outside > 0


def test_a_variant_that_is_slower_is_told_whichever_it_is() -> None:
    random = np.random.default_rng(2)
    plain, slower = drawn(random, 400), drawn(random, 400, slower=2.0)
    worse, better = compare_latencies(plain, slower), compare_latencies(slower, plain)
    assert (worse.matters, better.matters) == (True, True)
    assert worse.sentence.startswith("test is SLOWER: p99 differs by +")
    assert better.sentence.startswith("control is SLOWER: p99 differs by -")
    assert worse.difference.low == pytest.approx(-better.difference.high)


@pytest.mark.parametrize(
    ("p99", "low", "high", "text", "matters"),
    [
        (13.0, 12.9, 13.1, "test is SLOWER: p99 differs by +3.0 ms (95 % interval +2.9 to +3.1)", True),
        (10.9, 10.8, 11.0, "p99 differs by too little to matter: +0.9 ms", False),
        (15.0, 9.0, 20.0, "no significant difference of p99: +5.0 ms (95 % interval -1.0 to +10.0)", False),
        (15.0, None, None, "too few answers to compare p99", False),
    ],
)
def test_a_difference_matters_where_chance_is_ruled_out_and_it_is_great(
    p99: float, low: float | None, high: float | None, text: str, matters: bool
) -> None:
    found = compare_latencies(Latency(9, 5.0, 10.0, 10.0, 10.0), Latency(9, 5.0, p99, low, high))
    assert found.sentence.startswith(text)
    assert found.matters is matters


def test_few_answers_or_none_have_no_bounds() -> None:
    few = drawn(np.random.default_rng(3), 5)
    assert (few.p99_low, few.p99_high) == (None, None)
    assert drawn(np.random.default_rng(3), 1).p99_low is None
    assert compare_latencies(few, None).sentence == "not recorded in both variants, so not compared"
