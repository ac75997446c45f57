"""A model over the full catalogue with its baselines; later likes are not used."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from batch.evaluation import MODEL, POPULARITY, PRIMARY_METRIC, RANDOM, RANKERS, RECENCY
from batch.evaluation.catalogue_case import build_case, rank_by_score, score_lists
from batch.evaluation.full_catalogue import (
    ALL,
    COLD,
    WARM,
    CatalogueResult,
    RankedCase,
    choose_half_life,
    measure_cases,
    rank_case,
)
from batch.evaluation.holdout import rank_holdout
from batch.evaluation.ranking_metrics import DEPTH
from batch.loading.history import count_histories, read_likes
from batch.loading.likes import Likes
from batch.loading.period_counts import FADING_COLUMNS, HALF_LIVES
from batch.training.dataset import Dataset
from contract.settings import Settings
from tests.support.batch import execute
from tests.support.evaluation import CLOCK, fit_model, load_small_network, pull_database

MANY = 10_000
ONE_THREAD = Settings.of(threads=1)
LIMITS: dict[str, Any] = {"settings": ONE_THREAD, "max_users": MANY}


def measure_holdout(database_url: str, dataset: Dataset) -> CatalogueResult:
    return measure_cases([rank_holdout(fit_model(database_url, dataset), dataset, ONE_THREAD, MANY)], seed=1)


def test_lists_are_the_best_by_brute_force_less_what_was_liked(database_url: str) -> None:
    dataset = load_small_network(database_url)
    model, history = fit_model(database_url, dataset), dataset.at_holdout
    ranked = rank_holdout(model, dataset, ONE_THREAD, MANY)
    tables, factors = model.tables(dataset.network, history), model.factors(dataset.network, history)
    posts = np.arange(len(dataset.network.posts))
    assert ranked.case.users.size > 50
    for row, user in enumerate(ranked.case.users):
        users = np.full(posts.size, user)
        scores = model.booster.predict(tables.rows(users, posts), raw_score=True)
        scores += 0 if factors is None else factors.dot(users, posts)
        left_out = np.union1d(history.likes.of(int(user)), ranked.case.hidden)
        shown = ranked.lists[MODEL][row][ranked.lists[MODEL][row] >= 0]
        best = np.sort(scores[np.setdiff1d(posts, left_out)])[::-1][:DEPTH]
        assert not np.isin(shown, left_out).any()
        np.testing.assert_allclose(scores[shown], best, atol=2e-4)


def test_the_model_beats_the_simpler_rankers_where_there_is_something_to_learn(database_url: str) -> None:
    result = measure_holdout(database_url, load_small_network(database_url))
    assert list(result.rankers) == list(RANKERS)
    assert result.insufficient_because == ""
    model = result.rankers[MODEL]
    assert model.interval(PRIMARY_METRIC)[0] > result.rankers[RANDOM].values[PRIMARY_METRIC]
    for name, differences in result.differences().items():
        difference, low, high = differences[PRIMARY_METRIC]
        assert difference == pytest.approx(
            model.values[PRIMARY_METRIC] - result.rankers[name].values[PRIMARY_METRIC]
        )
        assert 0 < low < difference < high


def test_warm_and_cold_users_are_told_apart(database_url: str) -> None:
    dataset = load_small_network(database_url, interactions=1_500)
    ranked = rank_holdout(fit_model(database_url, dataset), dataset, ONE_THREAD, MANY)
    result, warm = measure_cases([ranked], seed=1), ranked.case.warm
    assert (result.users[WARM], result.users[COLD]) == (warm.sum(), (~warm).sum())
    values = score_lists(ranked.case, ranked.lists[MODEL]).values[PRIMARY_METRIC]
    for group, keep in ((WARM, warm), (COLD, ~warm)):
        assert result.groups[group][MODEL].values[PRIMARY_METRIC] == pytest.approx(values[keep].mean())
    record = result.record()
    assert record["warm"]["users"] + record["cold"]["users"] == record["users"]
    assert record["cold"]["model"][PRIMARY_METRIC] == pytest.approx(values[~warm].mean(), abs=1e-6)


def test_the_half_life_is_the_one_that_ranks_best_what_came_before_the_cutoff(database_url: str) -> None:
    dataset = load_small_network(database_url)
    earlier, history = dataset.at_history_end, dataset.at_holdout
    # Make one half-life rank what was liked between the two, and the others the reverse.
    case = build_case(dataset.network, earlier, history.likes, MANY, seed=1)
    liked = np.bincount(case.liked_later % case.popularity.size, minlength=case.popularity.size)
    for best in (0, 4):
        fading = {name: liked if column == best else -liked for column, name in enumerate(FADING_COLUMNS)}
        planted = replace(earlier, post_counts=earlier.post_counts.assign(**fading))
        column, half_life = choose_half_life(dataset.network, planted, history, MANY, seed=1)
        assert column == best
        assert half_life.length == list(HALF_LIVES.values())[best]
        assert (half_life.since, half_life.until) == (earlier.cutoff, history.cutoff)
        assert half_life.users == case.users.size


def test_nothing_after_the_cutoff_changes_a_list_or_a_ranker(database_url: str) -> None:
    dataset = load_small_network(database_url)
    model, network, split = fit_model(database_url, dataset), dataset.network, dataset.split

    def ranked() -> RankedCase:
        store, moments = pull_database(database_url).store, [split.history_end, split.holdout_start]
        earlier, history = count_histories(store, network, moments, dataset.now.groupings)
        likes = read_likes(store, CLOCK, len(network.users))
        return rank_case(model, network, earlier, history, likes, **LIMITS)

    before = ranked()
    # All users like all posts right after the cutoff: if one such like were used, all lists would change.
    execute(
        database_url,
        "INSERT INTO recs.interactions SELECT user_id, post_id, 'like', "
        f"'{split.holdout_start.isoformat()}'::timestamptz + interval '1 s' FROM recs.users, recs.posts",
    )
    after = ranked()
    shared = np.isin(after.case.users, before.case.users)
    assert after.case.users.size > shared.sum() == before.case.users.size
    assert after.case.relevant[shared].sum() > before.case.relevant.sum()
    assert after.half_life == before.half_life
    for name, lists in before.lists.items():
        np.testing.assert_array_equal(after.lists[name][shared], lists, err_msg=name)


def test_a_holdout_without_likes_has_no_values_and_gives_the_reason(database_url: str) -> None:
    dataset = load_small_network(database_url)
    network, history = dataset.network, dataset.at_holdout
    model = fit_model(database_url, dataset)
    ranked = rank_case(model, network, dataset.at_history_end, history, history.likes, **LIMITS)
    result = measure_cases([ranked], seed=1)
    record = result.record()
    assert result.users == {ALL: 0, WARM: 0, COLD: 0}
    assert (record["judged"], record["model"][PRIMARY_METRIC]) == (False, None)
    assert record["why_not_judged"] == "no user liked a post that they had not liked before"
    assert record["differences"][POPULARITY][PRIMARY_METRIC] == [None, None, None]


def test_too_few_users_are_counted_and_given_as_the_reason(database_url: str) -> None:
    dataset = load_small_network(database_url)
    likes, before = dataset.now.likes, dataset.at_holdout.likes
    few = np.arange(likes.starts.size - 1) < 7
    users, posts = (
        np.concatenate([each[few[owner] == kept] for each, owner, kept in parts])
        for parts in (
            [(likes.users, likes.users, True), (before.users, before.users, False)],
            [(likes.posts, likes.users, True), (before.posts, before.users, False)],
        )
    )
    after = Likes.from_pairs(users, posts, few.size)
    model = fit_model(database_url, dataset)
    ranked = rank_case(
        model,
        dataset.network,
        dataset.at_history_end,
        dataset.at_holdout,
        after,
        **LIMITS,
    )
    result = measure_cases([ranked], seed=1)
    assert 0 < result.users[ALL] <= 7
    assert result.insufficient_because.startswith(f"only {result.users[ALL]} users liked a post")
    assert result.record()["judged"] is False


def test_several_cutoffs_are_pooled_over_users_and_cutoffs(database_url: str) -> None:
    dataset = load_small_network(database_url)
    model = fit_model(database_url, dataset)
    earlier, end, start = (each.history for each in dataset.windows[:3])
    first = rank_case(model, dataset.network, earlier, end, start.likes, **LIMITS)
    second = rank_case(model, dataset.network, end, start, dataset.now.likes, **LIMITS)
    result = measure_cases([first, second], seed=1)
    ids = [each.case.user_ids for each in (first, second)]
    assert result.lists[ALL] == ids[0].size + ids[1].size
    assert result.users[ALL] == np.unique(np.concatenate(ids)).size < result.lists[ALL]
    values = [score_lists(each.case, each.lists[RECENCY]).values[PRIMARY_METRIC] for each in (first, second)]
    assert result.rankers[RECENCY].values[PRIMARY_METRIC] == pytest.approx(np.concatenate(values).mean())
    coverage = [measure_cases([each], 1).rankers[MODEL].values["coverage_at_10"] for each in (first, second)]
    assert result.rankers[MODEL].values["coverage_at_10"] == pytest.approx(np.mean(coverage))
    assert [each.until for each in result.half_lives] == [end.cutoff, start.cutoff]
    assert np.array_equal(first.lists[POPULARITY], rank_by_score(first.case, first.case.popularity))
