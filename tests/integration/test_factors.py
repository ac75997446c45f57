"""What factors make of impressions and likes."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
from scipy.sparse import csr_matrix
from scipy.special import expit
from sklearn.metrics import roc_auc_score

from batch.features import factorisation, factors
from batch.features.factorisation import FactorRounds, Trials, factorise, infer_users
from batch.features.factors import FactorState, draw_even_trials, draw_trials, fit_factor_state, fit_factors
from batch.loading.history import History
from batch.loading.impressions import Impressions
from batch.loading.likes import Likes
from batch.training.dataset import Dataset
from batch.training.recipe import LIKED
from tests.support.batch_support import execute, topics_of
from tests.support.evaluation_support import dataset_of, small_network

USERS, POSTS, KINDS, SHUFFLES = 400, 60, 4, 6
POST_ATTRIBUTES = csr_matrix(np.hstack([np.ones((POSTS, 1)), np.eye(2)[np.arange(POSTS) % 2]]))


def planted() -> tuple[Impressions, csr_matrix, np.ndarray]:
    """Draw impressions of 400 users of 4 kinds; return them, the users' attributes and the true log-odds.

    Users of a kind differ a little. Of the last user only the kind is known.
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


def hidden_pairs(impressions: Impressions) -> np.ndarray:
    hidden = np.ones((USERS, POSTS), dtype=bool)
    hidden[impressions.users, impressions.posts] = False
    return hidden


def test_impressions_are_the_same_whatever_the_order_of_pairs() -> None:
    impressions, _, _ = planted()
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


def test_impressions_are_cut_between_users_and_joined_again() -> None:
    impressions, _, _ = planted()
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


def test_planted_tastes_are_found_for_pairs_never_shown_and_for_users_never_seen() -> None:
    impressions, attributes, truth = planted()
    found, hidden = log_odds(impressions, attributes), hidden_pairs(impressions)
    assert np.corrcoef(found[hidden], truth[hidden])[0, 1] > 0.8
    assert np.corrcoef(found[-1], truth[-1])[0, 1] > 0.8
    assert np.abs(expit(found[hidden]).mean() - expit(truth[hidden]).mean()) < 0.03


def test_where_likes_are_chance_the_factors_fade() -> None:
    impressions, attributes, _ = planted()
    by_chance = np.random.default_rng(2).random(impressions.likes.size) < 0.3
    found = log_odds(replace(impressions, likes=by_chance.astype(np.uint8)), attributes)
    assert found.std() < log_odds(impressions, attributes).std() / 5


def test_several_blocks_find_the_same_tastes_whatever_the_number_of_threads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    impressions, attributes, truth = planted()
    whole, hidden = log_odds(impressions, attributes), hidden_pairs(impressions)
    monkeypatch.setattr(factorisation, "PAIRS_PER_BLOCK", 3_000)
    found = []
    for threads in (1, 2, 5):
        monkeypatch.setattr(factorisation, "THREADS", threads)
        found.append(log_odds(impressions, attributes))
    assert found[0].tobytes() == found[1].tobytes() == found[2].tobytes()
    assert np.corrcoef(found[0][hidden], truth[hidden])[0, 1] > 0.8
    assert np.corrcoef(found[0][hidden], whole[hidden])[0, 1] > 0.97


@pytest.mark.parametrize("pairs_per_block", [1_000_000, 3_000])
def test_users_inferred_anew_are_as_they_were(monkeypatch: pytest.MonkeyPatch, pairs_per_block: int) -> None:
    impressions, attributes, _ = planted()
    monkeypatch.setattr(factorisation, "PAIRS_PER_BLOCK", pairs_per_block)
    users, rounds = learn(impressions, attributes)
    for start, stop in ((0, USERS), (7, 8), (100, 300), (USERS - 1, USERS)):
        some = infer_users(rounds, [Trials(impressions.of_users(start, stop))], attributes[start:stop])
        np.testing.assert_allclose(some, users[start:stop], rtol=0, atol=1e-9)


def test_a_user_inferred_from_new_likes_moves_towards_them() -> None:
    impressions, attributes, truth = planted()
    _, rounds = learn(impressions, attributes)
    posts = np.arange(POSTS)
    likes = truth[7] > np.median(truth[7])
    shown = Impressions.from_pairs(np.zeros(POSTS, np.int64), posts, np.ones(POSTS), likes, 1)
    (user,) = infer_users(rounds, [Trials(shown)], attributes[-1])
    dots = rounds.post_means[-1][:, 0] + rounds.post_means[-1][:, 1:] @ user[1:]
    assert roc_auc_score(likes, dots) > 0.9


def test_a_new_post_is_what_its_group_is_and_others_stay() -> None:
    impressions, attributes, _ = planted()
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


def test_a_post_without_impressions_is_in_the_record_as_its_group_is() -> None:
    impressions, attributes, _ = planted()
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


@pytest.fixture
def dataset(database_url: str) -> Dataset:
    return small_network(database_url)


def auc_of(dataset: Dataset, history: History) -> float:
    """Return how well factors of a history tell the holdout's likes from the rest."""
    found, rows = fit_factors(dataset.network, history, seed=1), dataset.holdout
    return float(roc_auc_score(rows.liked, found.dot(rows.users, rows.posts)))


def test_factors_tell_likes_that_come_later_and_shuffled_likes_tell_nothing(dataset: Dataset) -> None:
    assert auc_of(dataset, dataset.at_holdout) > 0.65
    impressions = dataset.at_holdout.impressions
    aucs = []
    for seed in range(SHUFFLES):
        likes = np.random.default_rng(seed).permutation(impressions.likes)
        shuffled = dataset.at_holdout.with_impressions(replace(impressions, likes=likes))
        aucs.append(auc_of(dataset, shuffled))
    assert abs(np.mean(aucs) - 0.5) < 0.04, aucs


def test_the_order_of_rows_in_the_database_makes_no_difference(database_url: str, dataset: Dataset) -> None:
    execute(
        database_url,
        "CREATE TABLE other_order AS SELECT * FROM recs.interactions ORDER BY md5(happened_at::text)",
        "DELETE FROM recs.interactions",
        "INSERT INTO recs.interactions SELECT * FROM other_order",
    )
    again = dataset_of(database_url)
    first, second = (fit_factors(each.network, each.at_holdout, seed=1) for each in (dataset, again))
    assert first.users.tobytes() == second.users.tobytes()
    assert first.posts.tobytes() == second.posts.tobytes()


def without_views(history: History) -> History:
    """Keep the likes alone."""
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
    assert auc_of(dataset, without_views(dataset.at_holdout)) > 0.6


def test_negatives_are_sampled_block_by_block(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    history = without_views(dataset.at_holdout)
    (whole,) = draw_trials(history, seed=1, rate=0.2)
    monkeypatch.setattr(factors, "PAIRS_PER_BLOCK", 500)
    monkeypatch.setattr(factors, "PAIRS_PER_SAMPLE", 100)
    blocks = draw_trials(history, seed=1, rate=0.2)
    assert len(blocks) > 3
    assert sum(block.impressions.starts.size - 1 for block in blocks) == len(dataset.network.users)
    samples = [int(block.impressions.views[block.sampled].sum()) for block in (whole, *blocks)]
    assert sum(samples[1:]) == pytest.approx(samples[0], rel=0.1)
    for block in (whole, *blocks):
        assert not block.impressions.likes[block.sampled].any()
    assert auc_of(dataset, history) > 0.6


def test_without_a_like_there_are_no_factors(dataset: Dataset) -> None:
    impressions = dataset.at_holdout.impressions
    none = replace(impressions, likes=np.zeros_like(impressions.likes), views=np.ones_like(impressions.views))
    history = dataset.at_holdout.with_impressions(none)
    found = fit_factors(dataset.network, history, seed=1)
    assert not found.users.any()
    assert not found.posts.any()
    state = FactorState.from_arrays(fit_factor_state(dataset.network, history, seed=1).to_arrays())
    network, rows = dataset.network, np.arange(len(dataset.network.posts))
    assert not state.factors(history, network.cohorts.rows(network.users), rows, seed=1).users.any()


def test_a_state_read_from_a_file_gives_some_users_the_factors_of_the_night(dataset: Dataset) -> None:
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
    found = state.factors(some, network.cohorts.rows(network.users)[20:50], rows, seed=1)
    np.testing.assert_allclose(found.users, night.users[20:50], rtol=0, atol=1e-6)
    np.testing.assert_array_equal(found.posts, night.posts)
    other_groups = replace(some, groupings=topics_of(network))
    with pytest.raises(ValueError, match="attributes"):
        state.factors(other_groups, network.cohorts.rows(network.users)[20:50], rows, seed=1)


def test_a_like_without_a_view_is_told_from_one_with(database_url: str, dataset: Dataset) -> None:
    user, post = dataset.network.users.index[0], dataset.network.posts.index[0]
    moment = dataset.now.cutoff.isoformat()
    execute(
        database_url,
        f"DELETE FROM recs.interactions WHERE user_id = {user}",
        f"INSERT INTO recs.interactions VALUES ({user}, {post}, 'like', '{moment}')",
    )
    mine = dataset_of(database_url).now.impressions.of_users(0, 1)
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


def test_even_trials_are_the_likes_and_posts_drawn_among_those_known_and_not_liked(
    database_url: str,
) -> None:
    dataset = small_network(database_url)
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
    # Eight a like, less those that hit a known post that the user likes.
    per_user = np.diff(history.likes.starts)
    known_liked = np.bincount(
        history.likes.users[history.known[history.likes.posts]], minlength=per_user.size
    )
    fresh = 1 - known_liked / history.known.sum()
    assert count.sum() == pytest.approx(PER_LIKE * (per_user * fresh).sum(), rel=0.03)
    # Even: a post is drawn as often as another, but for the users who like it.
    of_post = np.bincount(drawn % posts, count, minlength=posts)
    wanted = np.zeros(posts)
    for user, likes_of_user in enumerate(per_user):
        free = history.known.copy()
        free[history.likes.of(user)] = False
        wanted[free] += PER_LIKE * likes_of_user / history.known.sum()
    at = wanted > 0
    chi_square = ((of_post[at] - wanted[at]) ** 2 / wanted[at]).sum()
    assert abs(chi_square - at.sum()) < 4 * np.sqrt(2 * at.sum())


def test_even_trials_are_the_same_for_one_seed_and_in_parts_but_for_the_seeds(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    history, posts = dataset.at_holdout, len(dataset.network.posts)
    whole, again, other = (even_pairs(draw_even_trials(history, seed, PER_LIKE), posts) for seed in (1, 1, 2))
    for one, same in zip(whole, again, strict=True):
        np.testing.assert_array_equal(one, same)
    assert whole[0].tobytes() != other[0].tobytes()
    monkeypatch.setattr(factors, "PAIRS_PER_BLOCK", 900)
    monkeypatch.setattr(factors, "PAIRS_PER_SAMPLE", 450)
    blocks = draw_even_trials(history, 1, PER_LIKE)
    assert len(blocks) > 5
    assert sum(block.impressions.starts.size - 1 for block in blocks) == len(dataset.network.users)
    keys, trials, likes = even_pairs(blocks, posts)
    np.testing.assert_array_equal(keys[likes > 0], whole[0][whole[2] > 0])
    assert trials[likes == 0].sum() == pytest.approx(whole[1][whole[2] == 0].sum(), rel=0.03)
    assert not np.isin(keys[likes == 0], keys[likes > 0]).any()
    # Each part is what its users alone give, with a seed of its own.
    start = 0
    monkeypatch.setattr(factors, "PAIRS_PER_BLOCK", 10**6)
    for number, block in enumerate(blocks):
        stop = start + block.impressions.starts.size - 1
        own = replace(history, likes=history.likes.of_users(start, stop))
        (alone,) = draw_even_trials(own, 1 + number, PER_LIKE)
        for name in ("starts", "posts", "views", "likes"):
            np.testing.assert_array_equal(
                getattr(block.impressions, name), getattr(alone.impressions, name), name
            )
        start = stop


def test_without_a_known_post_or_a_like_there_are_no_factors_from_even_trials(dataset: Dataset) -> None:
    history = dataset.at_holdout
    for nothing in (
        replace(history, post_counts=history.post_counts.assign(known=0.0)),
        replace(history, likes=Likes(np.zeros_like(history.likes.starts), history.likes.posts[:0])),
    ):
        found = fit_factors(dataset.network, nothing, 1, PER_LIKE)
        assert not found.users.any()
        assert not found.posts.any()


def test_factors_from_even_trials_rank_what_is_liked_later(dataset: Dataset) -> None:
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
    values, rows = dataset.network.cohorts.rows(dataset.network.users), np.arange(found.posts.shape[0])
    again = state.factors(history, values, rows, 1)
    np.testing.assert_allclose(again.users, found.users, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(again.posts, found.posts)
