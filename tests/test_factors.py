"""What factors make of what was shown and liked."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.sparse import csr_matrix
from scipy.special import expit
from sklearn.metrics import roc_auc_score

from batch.features.factorisation import Trials, factorise
from batch.features.factors import taste_factors
from batch.learning.gather import Gathered
from batch.loading import pairs
from batch.loading.history import History
from batch.loading.pairs import Shown, pairs_until
from batch.loading.source import open_engine, snapshot
from contract.settings import Settings
from tests.batch_support import execute
from tests.evaluation_support import gathered_of, small_network

USERS, POSTS, KINDS, SHUFFLES = 400, 60, 4, 6


def planted() -> tuple[Trials, csr_matrix, np.ndarray]:
    """Draw what 400 users of 4 kinds were shown and liked; return it, the kinds, and the true log-odds.

    Users of a kind are not quite the same. Of the last user nothing but the kind is known.
    """
    random = np.random.default_rng(0)
    kind = np.arange(USERS) % KINDS
    taste = random.normal(0, 1, (KINDS, 3))[kind] + random.normal(0, 0.7, (USERS, 3))
    taste[-1] = taste[kind == kind[-1]].mean(axis=0)
    truth = taste @ random.normal(0, 1, (POSTS, 3)).T + random.normal(0, 0.5, POSTS) - 1
    seen = random.random((USERS, POSTS)) < 0.6
    seen[-1] = False
    liked = random.random((USERS, POSTS)) < expit(truth)
    kinds = csr_matrix(np.hstack([np.ones((USERS, 1)), np.eye(KINDS)[kind]]))
    return Trials(csr_matrix(seen.astype(np.float64)), liked[seen].astype(np.float64)), kinds, truth


def log_odds(trials: Trials, kinds: csr_matrix) -> np.ndarray:
    """Return (users, posts) what is found."""
    level, users, posts = factorise(trials, kinds, csr_matrix(np.ones((POSTS, 1))), 3, seed=1)
    found: np.ndarray = level + users[:, :1] + posts[:, 0] + users[:, 1:] @ posts[:, 1:].T
    return found


def test_planted_tastes_are_found_for_pairs_never_shown_and_for_users_never_seen() -> None:
    trials, kinds, truth = planted()
    found = log_odds(trials, kinds)
    hidden = trials.pairs.toarray() == 0
    assert np.corrcoef(found[hidden], truth[hidden])[0, 1] > 0.8
    assert np.corrcoef(found[-1], truth[-1])[0, 1] > 0.8
    assert np.abs(expit(found[hidden]).mean() - expit(truth[hidden]).mean()) < 0.03


def test_where_likes_are_chance_the_factors_fade() -> None:
    trials, kinds, _ = planted()
    by_chance = np.random.default_rng(2).random(trials.liked.size) < 0.3
    found = log_odds(replace(trials, liked=by_chance.astype(np.float64)), kinds)
    assert found.std() < log_odds(trials, kinds).std() / 5


@pytest.fixture
def gathered(database_url: str) -> Gathered:
    return small_network(database_url)


def auc_of(gathered: Gathered, history: History) -> float:
    """Return how well factors of a history tell the holdout's likes from the rest."""
    factors, rows = taste_factors(gathered.network, history, seed=1), gathered.holdout
    return float(roc_auc_score(rows.liked, factors.dot(rows.users, rows.posts)))


def test_factors_tell_likes_that_come_later_and_shuffled_likes_tell_nothing(gathered: Gathered) -> None:
    assert auc_of(gathered, gathered.at_holdout) > 0.65
    shown = gathered.at_holdout.shown
    aucs = []
    for seed in range(SHUFFLES):
        likes = np.random.default_rng(seed).permutation(shown.likes)
        aucs.append(auc_of(gathered, replace(gathered.at_holdout, shown=replace(shown, likes=likes))))
    assert abs(np.mean(aucs) - 0.5) < 0.04, aucs


def test_the_order_of_rows_in_the_database_makes_no_difference(database_url: str, gathered: Gathered) -> None:
    execute(
        database_url,
        "CREATE TABLE other_order AS SELECT * FROM recs.interactions ORDER BY md5(happened_at::text)",
        "DELETE FROM recs.interactions",
        "INSERT INTO recs.interactions SELECT * FROM other_order",
    )
    again = gathered_of(database_url)
    first, second = (taste_factors(each.network, each.at_holdout, seed=1) for each in (gathered, again))
    assert first.users.tobytes() == second.users.tobytes()
    assert first.posts.tobytes() == second.posts.tobytes()


def test_without_views_likes_stand_beside_posts_drawn(gathered: Gathered) -> None:
    shown, at = gathered.at_holdout.shown, gathered.at_holdout.shown.likes > 0
    alone = Shown(shown.users[at], shown.posts[at], np.zeros_like(shown.views[at]), shown.likes[at])
    assert auc_of(gathered, replace(gathered.at_holdout, shown=alone)) > 0.6


def test_without_a_like_there_are_no_factors(gathered: Gathered) -> None:
    shown = gathered.at_holdout.shown
    none = replace(shown, likes=np.zeros_like(shown.likes), views=np.ones_like(shown.views))
    factors = taste_factors(gathered.network, replace(gathered.at_holdout, shown=none), seed=1)
    assert not factors.users.any()
    assert not factors.posts.any()


def test_of_very_many_pairs_a_share_is_kept_and_every_like(
    database_url: str, gathered: Gathered, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, history = gathered.network, gathered.now
    monkeypatch.setattr(pairs, "MOST_PAIRS", 1_000)
    with snapshot(open_engine(Settings(database_url=database_url))) as connection:
        likes, shown = pairs_until(connection, network, history.cutoff, most=4_000)
    np.testing.assert_array_equal(likes.posts, history.likes.posts)
    assert 0.2 < shown.users.size / history.shown.users.size < 0.3
    assert (shown.likes > 0).mean() == pytest.approx((history.shown.likes > 0).mean(), abs=0.05)
    whole = set(zip(history.shown.users.tolist(), history.shown.posts.tolist(), strict=True))
    assert set(zip(shown.users.tolist(), shown.posts.tolist(), strict=True)) <= whole


def test_a_like_without_a_view_is_told_from_one_with(database_url: str, gathered: Gathered) -> None:
    user, post = gathered.network.users.index[0], gathered.network.posts.index[0]
    moment = gathered.now.cutoff.isoformat()
    execute(
        database_url,
        f"DELETE FROM recs.interactions WHERE user_id = {user}",
        f"INSERT INTO recs.interactions VALUES ({user}, {post}, 'like', '{moment}')",
    )
    with snapshot(open_engine(Settings(database_url=database_url))) as connection:
        _, shown = pairs_until(connection, gathered.network, gathered.now.cutoff, most=1)
    (mine,) = np.flatnonzero(shown.users == 0)
    assert (shown.posts[mine], shown.views[mine], shown.likes[mine]) == (0, 0, 1)
