"""A model over the full catalogue beside popularity and recency popularity; no like from later is known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from batch.evaluation import MODEL, POPULARITY, RANDOM, RANKERS, RECENCY
from batch.evaluation.catalogue_case import build_case, rank_by_score, score_lists
from batch.evaluation.evaluate import rank_holdout
from batch.evaluation.full_catalogue import (
    ALL,
    COLD,
    FIRST,
    WARM,
    CatalogueFigures,
    RankedCase,
    choose_half_life,
    measure_cases,
    rank_case,
)
from batch.evaluation.ranking_metrics import DEPTH
from batch.loading.history import count_histories, read_likes
from batch.loading.likes import Likes
from batch.loading.period_counts import FADING_COLUMNS, HALF_LIVES
from batch.training.dataset import Dataset
from tests.support.batch import execute
from tests.support.evaluation import CLOCK, fitted, pulled_of, small_network

MANY = 10_000


def figures_of(database_url: str, dataset: Dataset) -> CatalogueFigures:
    return measure_cases([rank_holdout(fitted(database_url, dataset), dataset, 1, MANY)], seed=1)


def test_lists_are_the_best_by_brute_force_less_what_was_liked(database_url: str) -> None:
    dataset = small_network(database_url)
    model, history = fitted(database_url, dataset), dataset.at_holdout
    ranked = rank_holdout(model, dataset, 1, MANY)
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
    found = figures_of(database_url, small_network(database_url))
    assert list(found.rankers) == list(RANKERS)
    assert found.cannot_judge == ""
    model = found.rankers[MODEL]
    assert model.interval(FIRST)[0] > found.rankers[RANDOM].values[FIRST]
    for name, differences in found.differences().items():
        difference, low, high = differences[FIRST]
        assert difference == pytest.approx(model.values[FIRST] - found.rankers[name].values[FIRST])
        assert 0 < low < difference < high


def test_warm_and_cold_users_are_told_apart(database_url: str) -> None:
    dataset = small_network(database_url, interactions=1_500)
    ranked = rank_holdout(fitted(database_url, dataset), dataset, 1, MANY)
    found, warm = measure_cases([ranked], seed=1), ranked.case.warm
    assert (found.users[WARM], found.users[COLD]) == (warm.sum(), (~warm).sum())
    values = score_lists(ranked.case, ranked.lists[MODEL]).values[FIRST]
    for group, keep in ((WARM, warm), (COLD, ~warm)):
        assert found.groups[group][MODEL].values[FIRST] == pytest.approx(values[keep].mean())
    record = found.record()
    assert record["warm"]["users"] + record["cold"]["users"] == record["users"]
    assert record["cold"]["model"][FIRST] == pytest.approx(values[~warm].mean(), abs=1e-6)


def test_the_half_life_is_the_one_that_ranks_best_what_came_before_the_cutoff(database_url: str) -> None:
    dataset = small_network(database_url)
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
    dataset = small_network(database_url)
    model, network, split = fitted(database_url, dataset), dataset.network, dataset.split

    def ranked() -> RankedCase:
        store, moments = pulled_of(database_url).store, [split.history_end, split.holdout_start]
        earlier, history = count_histories(store, network, moments, dataset.now.groupings)
        likes = read_likes(store, CLOCK, len(network.users))
        return rank_case(model, network, earlier, history, likes, 1, MANY)

    before = ranked()
    # Everybody likes everything right after the cutoff: were one such like known, all would change.
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


def test_a_holdout_without_likes_has_no_figures_says_so_and_is_no_error(database_url: str) -> None:
    dataset = small_network(database_url)
    network, history = dataset.network, dataset.at_holdout
    model = fitted(database_url, dataset)
    ranked = rank_case(model, network, dataset.at_history_end, history, history.likes, 1, MANY)
    found = measure_cases([ranked], seed=1)
    record = found.record()
    assert found.users == {ALL: 0, WARM: 0, COLD: 0}
    assert (record["judged"], record["model"][FIRST]) == (False, None)
    assert record["why_not_judged"] == "no user liked a post that they had not liked before"
    assert record["differences"][POPULARITY][FIRST] == [None, None, None]


def test_few_users_cannot_judge_and_are_counted(database_url: str) -> None:
    dataset = small_network(database_url)
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
    model = fitted(database_url, dataset)
    ranked = rank_case(model, dataset.network, dataset.at_history_end, dataset.at_holdout, after, 1, MANY)
    found = measure_cases([ranked], seed=1)
    assert 0 < found.users[ALL] <= 7
    assert found.cannot_judge.startswith(f"only {found.users[ALL]} users liked a post")
    assert found.record()["judged"] is False


def test_several_cutoffs_are_pooled_over_users_and_cutoffs(database_url: str) -> None:
    dataset = small_network(database_url)
    model = fitted(database_url, dataset)
    earlier, end, start = (each.history for each in dataset.windows[:3])
    first = rank_case(model, dataset.network, earlier, end, start.likes, 1, MANY)
    second = rank_case(model, dataset.network, end, start, dataset.now.likes, 1, MANY)
    found = measure_cases([first, second], seed=1)
    ids = [each.case.user_ids for each in (first, second)]
    assert found.lists[ALL] == ids[0].size + ids[1].size
    assert found.users[ALL] == np.unique(np.concatenate(ids)).size < found.lists[ALL]
    values = [score_lists(each.case, each.lists[RECENCY]).values[FIRST] for each in (first, second)]
    assert found.rankers[RECENCY].values[FIRST] == pytest.approx(np.concatenate(values).mean())
    coverage = [measure_cases([each], 1).rankers[MODEL].values["coverage_at_10"] for each in (first, second)]
    assert found.rankers[MODEL].values["coverage_at_10"] == pytest.approx(np.mean(coverage))
    assert [each.until for each in found.half_lives] == [end.cutoff, start.cutoff]
    assert np.array_equal(first.lists[POPULARITY], rank_by_score(first.case, first.case.popularity))
