"""The factor model on data with known tastes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.sparse import csr_matrix
from scipy.special import expit
from sklearn.metrics import roc_auc_score

from batch.features import factorisation
from batch.features.factorisation import FactorRounds, factorise, infer_users
from batch.features.trials import Trials
from batch.loading.likes import Impressions

USERS, POSTS, KINDS = 400, 60, 4


POST_ATTRIBUTES = csr_matrix(np.hstack([np.ones((POSTS, 1)), np.eye(2)[np.arange(POSTS) % 2]]))


def draw_impressions() -> tuple[Impressions, csr_matrix, np.ndarray]:
    """Draw impressions of 400 users of 4 kinds; return them, the users' attributes and the true log-odds.

    Users of a kind differ a little. The last user has no impressions.
    """
    random = np.random.default_rng(0)
    kind = np.arange(USERS) % KINDS
    taste = random.normal(0, 1, (KINDS, 3))[kind] + random.normal(0, 0.7, (USERS, 3))
    taste[-1] = taste[kind == kind[-1]].mean(axis=0)
    truth = taste @ random.normal(0, 1, (POSTS, 3)).T + random.normal(0, 0.5, POSTS) - 1
    seen = random.random((USERS, POSTS)) < 0.6
    seen[-1] = False
    liked = random.random((USERS, POSTS)) < expit(truth)
    attributes = csr_matrix(np.hstack([np.ones((USERS, 1)), np.eye(KINDS)[kind]]))
    users, posts = np.nonzero(seen)
    return Impressions.from_pairs(users, posts, seen[seen], liked[seen], USERS), attributes, truth


def learn(impressions: Impressions, attributes: csr_matrix) -> tuple[np.ndarray, FactorRounds]:
    return factorise([Trials(impressions)], attributes, POST_ATTRIBUTES, 3, seed=1)


def log_odds(impressions: Impressions, attributes: csr_matrix) -> np.ndarray:
    """Return (users, posts) estimated log-odds."""
    users, rounds = learn(impressions, attributes)
    posts = rounds.post_means[-1]
    found: np.ndarray = rounds.level + users[:, :1] + posts[:, 0] + users[:, 1:] @ posts[:, 1:].T
    return found


def find_unseen_pairs(impressions: Impressions) -> np.ndarray:
    unseen = np.ones((USERS, POSTS), dtype=bool)
    unseen[impressions.users, impressions.posts] = False
    return unseen


def test_impressions_do_not_depend_on_the_order_of_pairs() -> None:
    impressions, _, _ = draw_impressions()
    order = np.random.default_rng(1).permutation(impressions.posts.size)
    views = impressions.views.astype(np.int64)
    views[5] = 256
    again = Impressions.from_pairs(
        impressions.users[order], impressions.posts[order], views[order], impressions.likes[order], USERS
    )
    np.testing.assert_array_equal(again.starts, impressions.starts)
    np.testing.assert_array_equal(again.posts, impressions.posts)
    np.testing.assert_array_equal(again.users, impressions.users)
    np.testing.assert_array_equal(again.views, views)
    np.testing.assert_array_equal(again.likes, impressions.likes)
    assert (again.starts.dtype, again.posts.dtype) == (np.int64, np.int32)
    assert (again.views.dtype, again.likes.dtype) == (np.uint16, np.uint8)


def test_impressions_are_cut_between_users_and_concatenated() -> None:
    impressions, _, _ = draw_impressions()
    bounds = list(impressions.blocks(1_000))
    parts = [impressions.of_users(start, stop) for start, stop in bounds]
    assert [start for start, _ in bounds] == [0, *(stop for _, stop in bounds[:-1])]
    assert bounds[-1][1] == USERS
    assert all(part.posts.size <= 1_000 for part in parts)
    assert all(np.shares_memory(part.posts, impressions.posts) for part in parts)
    assert list(impressions.blocks(1)) == [(user, user + 1) for user in range(USERS)]
    joined = Impressions.concatenate(parts)
    assert parts == []
    for name in ("starts", "posts", "views", "likes"):
        np.testing.assert_array_equal(getattr(joined, name), getattr(impressions, name))


def test_factors_recover_tastes_for_unseen_pairs_and_unseen_users() -> None:
    impressions, attributes, truth = draw_impressions()
    found, unseen = log_odds(impressions, attributes), find_unseen_pairs(impressions)
    assert np.corrcoef(found[unseen], truth[unseen])[0, 1] > 0.8
    assert np.corrcoef(found[-1], truth[-1])[0, 1] > 0.8
    assert np.abs(expit(found[unseen]).mean() - expit(truth[unseen]).mean()) < 0.03


def test_random_likes_give_small_factors() -> None:
    impressions, attributes, _ = draw_impressions()
    random_likes = np.random.default_rng(2).random(impressions.likes.size) < 0.3
    found = log_odds(replace(impressions, likes=random_likes.astype(np.uint8)), attributes)
    assert found.std() < log_odds(impressions, attributes).std() / 5


def test_results_of_several_blocks_do_not_depend_on_the_number_of_threads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    impressions, attributes, truth = draw_impressions()
    whole, unseen = log_odds(impressions, attributes), find_unseen_pairs(impressions)
    monkeypatch.setattr(factorisation, "PAIRS_PER_BLOCK", 3_000)
    found = []
    for threads in (1, 2, 5):
        monkeypatch.setattr(factorisation, "THREADS", threads)
        found.append(log_odds(impressions, attributes))
    assert found[0].tobytes() == found[1].tobytes() == found[2].tobytes()
    assert np.corrcoef(found[0][unseen], truth[unseen])[0, 1] > 0.8
    assert np.corrcoef(found[0][unseen], whole[unseen])[0, 1] > 0.97


@pytest.mark.parametrize("pairs_per_block", [1_000_000, 3_000])
def test_inferred_users_equal_fitted_users(monkeypatch: pytest.MonkeyPatch, pairs_per_block: int) -> None:
    impressions, attributes, _ = draw_impressions()
    monkeypatch.setattr(factorisation, "PAIRS_PER_BLOCK", pairs_per_block)
    users, rounds = learn(impressions, attributes)
    for start, stop in ((0, USERS), (7, 8), (100, 300), (USERS - 1, USERS)):
        some = infer_users(rounds, [Trials(impressions.of_users(start, stop))], attributes[start:stop])
        np.testing.assert_allclose(some, users[start:stop], rtol=0, atol=1e-9)


def test_a_user_inferred_from_new_likes_prefers_the_liked_posts() -> None:
    impressions, attributes, truth = draw_impressions()
    _, rounds = learn(impressions, attributes)
    posts = np.arange(POSTS)
    likes = truth[7] > np.median(truth[7])
    shown = Impressions.from_pairs(np.zeros(POSTS, np.int64), posts, np.ones(POSTS), likes, 1)
    (user,) = infer_users(rounds, [Trials(shown)], attributes[-1])
    dots = rounds.post_means[-1][:, 0] + rounds.post_means[-1][:, 1:] @ user[1:]
    assert roc_auc_score(likes, dots) > 0.9


def test_a_new_post_has_the_prior_mean_of_its_group_and_others_stay() -> None:
    impressions, attributes, _ = draw_impressions()
    users, rounds = learn(impressions, attributes)
    rows = np.append(np.arange(POSTS)[::-1], -1)
    grown = rounds.of_posts(rows, csr_matrix(POST_ATTRIBUTES.toarray()[np.append(rows[:-1], 1)]))
    np.testing.assert_array_equal(grown.post_means[:, :-1], rounds.post_means[:, ::-1])
    np.testing.assert_allclose(grown.post_means[-1, -1], rounds.post_effects[-1, [0, 2]].sum(axis=0))
    mirrored = Impressions.from_pairs(
        impressions.users, POSTS - 1 - impressions.posts, impressions.views, impressions.likes, USERS
    )
    some = infer_users(grown, [Trials(mirrored)], attributes)
    np.testing.assert_allclose(some, users, rtol=0, atol=1e-9)


def test_a_post_without_impressions_has_the_prior_mean_of_its_group() -> None:
    impressions, attributes, _ = draw_impressions()
    kept = impressions.posts != 4
    without = Impressions.from_pairs(
        *(
            column[kept]
            for column in (impressions.users, impressions.posts, impressions.views, impressions.likes)
        ),
        USERS,
    )
    users, rounds = learn(without, attributes)
    np.testing.assert_allclose(rounds.post_means[-1, 4], rounds.post_effects[-1, [0, 1]].sum(axis=0))
    np.testing.assert_allclose(infer_users(rounds, [Trials(without)], attributes), users, rtol=0, atol=1e-9)
