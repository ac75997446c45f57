"""Factors of a small network, and the pairs they are learned from."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from batch.features.factors import FactorState, fit_factor_state, fit_factors
from batch.features.trials import Trials, draw_even_trials, draw_trials
from batch.loading.history import History
from batch.loading.likes import Impressions, Likes
from batch.training.dataset import Dataset
from batch.training.parameters import LIKED
from tests.support.batch import execute, topics_of
from tests.support.evaluation import load_database, load_small_network

SHUFFLES = 6


@pytest.fixture
def dataset(database_url: str) -> Dataset:
    return load_small_network(database_url)


def holdout_auc(dataset: Dataset, history: History) -> float:
    """Return the ROC AUC of a history's factors on the holdout."""
    found, rows = fit_factors(dataset.network, history, seed=1), dataset.holdout
    return float(roc_auc_score(rows.liked, found.dot(rows.users, rows.posts)))


def test_factors_predict_later_likes_and_shuffled_likes_do_not(dataset: Dataset) -> None:
    assert holdout_auc(dataset, dataset.at_holdout) > 0.65
    impressions = dataset.at_holdout.impressions
    aucs = []
    for seed in range(SHUFFLES):
        likes = np.random.default_rng(seed).permutation(impressions.likes)
        shuffled = dataset.at_holdout.with_impressions(replace(impressions, likes=likes))
        aucs.append(holdout_auc(dataset, shuffled))
    assert abs(np.mean(aucs) - 0.5) < 0.04, aucs


def test_factors_do_not_depend_on_the_order_of_rows_in_the_database(
    database_url: str, dataset: Dataset
) -> None:
    execute(
        database_url,
        "CREATE TABLE other_order AS SELECT * FROM recs.interactions ORDER BY md5(happened_at::text)",
        "DELETE FROM recs.interactions",
        "INSERT INTO recs.interactions SELECT * FROM other_order",
    )
    again = load_database(database_url)
    first, second = (fit_factors(each.network, each.at_holdout, seed=1) for each in (dataset, again))
    assert first.users.tobytes() == second.users.tobytes()
    assert first.posts.tobytes() == second.posts.tobytes()


def without_views(history: History) -> History:
    """Remove all views; keep the likes."""
    pairs = history.impressions
    at = pairs.likes > 0
    alone = Impressions.from_pairs(
        pairs.users[at],
        pairs.posts[at],
        np.zeros_like(pairs.views[at]),
        pairs.likes[at],
        pairs.starts.size - 1,
    )
    return history.with_impressions(alone)


def test_without_views_likes_are_completed_by_sampled_negatives(dataset: Dataset) -> None:
    assert holdout_auc(dataset, without_views(dataset.at_holdout)) > 0.6


def test_negatives_are_sampled_in_parts(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    history = without_views(dataset.at_holdout)
    (whole,) = draw_trials(history, seed=1, rate=0.2)
    monkeypatch.setattr("batch.features.trials.PAIRS_PER_BLOCK", 500)
    monkeypatch.setattr("batch.features.trials.PAIRS_PER_SAMPLE", 100)
    blocks = draw_trials(history, seed=1, rate=0.2)
    assert len(blocks) > 3
    assert sum(block.impressions.starts.size - 1 for block in blocks) == len(dataset.network.users)
    samples = [int(block.impressions.views[block.sampled].sum()) for block in (whole, *blocks)]
    assert sum(samples[1:]) == pytest.approx(samples[0], rel=0.1)
    for block in (whole, *blocks):
        assert not block.impressions.likes[block.sampled].any()
    assert holdout_auc(dataset, history) > 0.6


def test_without_likes_factors_are_zero(dataset: Dataset) -> None:
    impressions = dataset.at_holdout.impressions
    none = replace(impressions, likes=np.zeros_like(impressions.likes), views=np.ones_like(impressions.views))
    history = dataset.at_holdout.with_impressions(none)
    found = fit_factors(dataset.network, history, seed=1)
    assert not found.users.any()
    assert not found.posts.any()
    state = FactorState.from_arrays(fit_factor_state(dataset.network, history, seed=1).to_arrays())
    network, rows = dataset.network, np.arange(len(dataset.network.posts))
    assert not state.factors(history, network.cohorts.encode(network.users), rows, seed=1).users.any()


def test_a_state_read_from_a_file_infers_the_same_factors_for_some_users(dataset: Dataset) -> None:
    network, history = dataset.network, dataset.at_holdout
    night, file = fit_factors(network, history, seed=1), io.BytesIO()
    np.savez(file, **fit_factor_state(network, history, seed=1).to_arrays())
    file.seek(0)
    with np.load(file, allow_pickle=False) as arrays:
        state = FactorState.from_arrays(arrays)
    some = replace(
        history,
        given_impressions=history.impressions.of_users(20, 50),
        likes=history.likes.of_users(20, 50),
    )
    rows = np.arange(len(network.posts))
    found = state.factors(some, network.cohorts.encode(network.users)[20:50], rows, seed=1)
    np.testing.assert_allclose(found.users, night.users[20:50], rtol=0, atol=1e-6)
    np.testing.assert_array_equal(found.posts, night.posts)
    other_groups = replace(some, groupings=topics_of(network))
    with pytest.raises(ValueError, match="attributes"):
        state.factors(other_groups, network.cohorts.encode(network.users)[20:50], rows, seed=1)


def test_a_like_without_a_view_has_no_view(database_url: str, dataset: Dataset) -> None:
    user, post = dataset.network.users.index[0], dataset.network.posts.index[0]
    moment = dataset.now.cutoff.isoformat()
    execute(
        database_url,
        f"DELETE FROM recs.interactions WHERE user_id = {user}",
        f"INSERT INTO recs.interactions VALUES ({user}, {post}, 'like', '{moment}')",
    )
    mine = load_database(database_url).now.impressions.of_users(0, 1)
    assert (mine.posts.tolist(), mine.views.tolist(), mine.likes.tolist()) == ([0], [0], [1])


PER_LIKE = 8


def even_pairs(blocks: list[Trials], posts: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return keys (user * posts + post), trials and likes of the pairs of all blocks, users in order."""
    keys, first = [], 0
    for block in blocks:
        pairs = block.impressions
        keys.append((pairs.users.astype(np.int64) + first) * posts + pairs.posts)
        first += pairs.starts.size - 1
    trials, likes = (
        np.concatenate([getattr(block.impressions, name) for block in blocks]) for name in ("views", "likes")
    )
    return np.concatenate(keys), trials.astype(np.int64), likes.astype(np.int64)


def test_even_trials_are_the_likes_and_posts_drawn_from_those_known_and_not_liked(
    database_url: str,
) -> None:
    dataset = load_small_network(database_url)
    history, posts = dataset.windows[0].history, len(dataset.network.posts)
    assert 0 < history.known.sum() < posts
    blocks = draw_even_trials(history, 1, PER_LIKE)
    keys, trials, likes = even_pairs(blocks, posts)
    assert len(blocks) == 1
    assert (np.diff(keys) > 0).all()
    liked = history.likes.users.astype(np.int64) * posts + history.likes.posts
    np.testing.assert_array_equal(keys[likes > 0], liked)
    assert set(trials[likes > 0]) == set(likes[likes > 0]) == {1}
    drawn, count = keys[likes == 0], trials[likes == 0]
    assert history.known[drawn % posts].all()
    assert count.min() >= 1
    # Eight per like, minus draws of a known post that the user likes.
    per_user = np.diff(history.likes.starts)
    known_liked = np.bincount(
        history.likes.users[history.known[history.likes.posts]], minlength=per_user.size
    )
    fresh = 1 - known_liked / history.known.sum()
    assert count.sum() == pytest.approx(PER_LIKE * (per_user * fresh).sum(), rel=0.03)
    # Uniform: all posts are drawn equally often, except by users who like them.
    of_post = np.bincount(drawn % posts, count, minlength=posts)
    wanted = np.zeros(posts)
    for user, likes_of_user in enumerate(per_user):
        free = history.known.copy()
        free[history.likes.of(user)] = False
        wanted[free] += PER_LIKE * likes_of_user / history.known.sum()
    at = wanted > 0
    chi_square = ((of_post[at] - wanted[at]) ** 2 / wanted[at]).sum()
    assert abs(chi_square - at.sum()) < 4 * np.sqrt(2 * at.sum())


def test_even_trials_depend_on_the_seed_only_and_are_drawn_in_parts(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    history, posts = dataset.at_holdout, len(dataset.network.posts)
    whole, again, other = (even_pairs(draw_even_trials(history, seed, PER_LIKE), posts) for seed in (1, 1, 2))
    for one, same in zip(whole, again, strict=True):
        np.testing.assert_array_equal(one, same)
    assert whole[0].tobytes() != other[0].tobytes()
    monkeypatch.setattr("batch.features.trials.PAIRS_PER_BLOCK", 900)
    monkeypatch.setattr("batch.features.trials.PAIRS_PER_SAMPLE", 450)
    blocks = draw_even_trials(history, 1, PER_LIKE)
    assert len(blocks) > 5
    assert sum(block.impressions.starts.size - 1 for block in blocks) == len(dataset.network.users)
    keys, trials, likes = even_pairs(blocks, posts)
    np.testing.assert_array_equal(keys[likes > 0], whole[0][whole[2] > 0])
    assert trials[likes == 0].sum() == pytest.approx(whole[1][whole[2] == 0].sum(), rel=0.03)
    assert not np.isin(keys[likes == 0], keys[likes > 0]).any()
    # Each part equals a draw for its users only, with its own seed.
    start = 0
    monkeypatch.setattr("batch.features.trials.PAIRS_PER_BLOCK", 10**6)
    for number, block in enumerate(blocks):
        stop = start + block.impressions.starts.size - 1
        own = replace(history, likes=history.likes.of_users(start, stop))
        (alone,) = draw_even_trials(own, 1 + number, PER_LIKE)
        for name in ("starts", "posts", "views", "likes"):
            np.testing.assert_array_equal(
                getattr(block.impressions, name), getattr(alone.impressions, name), name
            )
        start = stop


def test_factors_of_even_trials_are_zero_without_known_posts_or_likes(dataset: Dataset) -> None:
    history = dataset.at_holdout
    for nothing in (
        replace(history, post_counts=history.post_counts.assign(known=0.0)),
        replace(history, likes=Likes(np.zeros_like(history.likes.starts), history.likes.posts[:0])),
    ):
        found = fit_factors(dataset.network, nothing, 1, PER_LIKE)
        assert not found.users.any()
        assert not found.posts.any()


def test_factors_of_even_trials_predict_later_likes(dataset: Dataset) -> None:
    examples = dataset.windows[-1].examples(LIKED, 100_000, 1)
    history = dataset.windows[-1].history
    found = fit_factors(dataset.network, history, 1, PER_LIKE)
    assert roc_auc_score(examples.liked, found.dot(examples.users, examples.posts)) > 0.6
    file = io.BytesIO()
    np.savez(file, **fit_factor_state(dataset.network, history, 1, PER_LIKE).to_arrays())
    file.seek(0)
    with np.load(file, allow_pickle=False) as arrays:
        state = FactorState.from_arrays(arrays)
    assert state.negatives_per_like == PER_LIKE
    values, rows = dataset.network.cohorts.encode(dataset.network.users), np.arange(found.posts.shape[0])
    again = state.factors(history, values, rows, 1)
    np.testing.assert_allclose(again.users, found.users, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(again.posts, found.posts)
