"""Windows of time, their likes and drawn negatives; features do not depend on later data."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest

from batch.loading.examples import Examples, likes_among_all_posts
from batch.loading.history import History
from batch.loading.likes import Likes
from batch.loading.post_groups import Groupings
from batch.loading.split import WINDOWS, Split, split_by_time
from batch.training.recipe import LIKED, RECIPES, Recipe
from contract.errors import SourceError
from tests.support.batch_support import FIRST_DAY, execute, make_network, query
from tests.support.evaluation_support import (
    CLOCK,
    fit_model,
    load_database,
    load_small_network,
    pull_database,
)

HISTORY, HOLDOUT = 0.3, 0.2
NOON = datetime(2021, 10, 10, 12, tzinfo=UTC)


def split_database(database_url: str) -> Split:
    """Split the time of a database, and check what holds for any network."""
    pulled = pull_database(database_url)
    assert pulled.latest is not None
    split = split_by_time(pulled.store, pulled.latest, HISTORY, HOLDOUT)
    assert all(one < other for one, other in pairwise(split.windows))
    assert {split.history_end, split.holdout_start} <= set(split.windows)
    assert split.windows[-1] <= split.cutoff == pulled.latest
    assert split.bounds == (*split.windows, split.cutoff)
    return split


def count_likes(database_url: str, times: tuple[datetime, ...]) -> list[int]:
    counts = ", ".join(f"count(*) FILTER (WHERE happened_at <= '{time.isoformat()}')" for time in times)
    (found,) = query(database_url, f"SELECT {counts} FROM recs.interactions WHERE action = 'like'")
    return list(found)


@pytest.mark.parametrize("with_views", [True, False], ids=["views and likes", "likes only"])
def test_windows_hold_equally_many_likes(database_url: str, with_views: bool) -> None:
    make_network(database_url, interactions=10_000)
    if not with_views:
        execute(database_url, "DELETE FROM recs.interactions WHERE action = 'view'")
    split = split_database(database_url)
    shares = np.array(count_likes(database_url, split.bounds)) / count_likes(database_url, (CLOCK,))[0]
    step = (1 - HISTORY) / WINDOWS
    fixed = np.isin(split.windows, (split.history_end, split.holdout_start))
    positions = (shares[:-1][~fixed] - HISTORY) / step
    np.testing.assert_allclose(positions, positions.round(), atol=0.05)
    assert len(split.windows) in (WINDOWS, WINDOWS + 1)
    assert np.diff(shares).max() < 1.5 * step + 0.01
    assert shares[0] == pytest.approx(HISTORY, abs=0.02)


def test_likes_long_before_the_views_have_windows_too(database_url: str) -> None:
    make_network(database_url)
    execute(
        database_url,
        "UPDATE recs.posts SET created_at = NULL",
        "UPDATE recs.interactions SET happened_at = happened_at - interval '90 days' WHERE action = 'like'",
    )
    split = split_database(database_url)
    assert split.history_end > FIRST_DAY > split.windows[WINDOWS - 1]
    dataset = load_database(database_url)
    assert [each.history.cutoff for each in dataset.windows] == list(split.windows)
    assert dataset.before_holdout.cutoff < split.holdout_start
    labelled = [len(each.examples(LIKED, 10_000, 1)) for each in dataset.windows]
    assert min(labelled[: WINDOWS - 1]) > 100
    assert labelled[-1] == 0
    # The views were left out of the windows before the end of the history, where there are none.
    assert [each.views.viewed.any() for each in dataset.windows[: WINDOWS - 1]] == [False] * (WINDOWS - 1)
    assert dataset.windows[-1].views.viewed.any()


@pytest.mark.parametrize("second", [0, 30])
@pytest.mark.parametrize("action", ["view", "like"])
def test_three_minutes_can_be_cut_and_fewer_cannot(database_url: str, action: str, second: int) -> None:
    make_network(database_url, interactions=100)
    moments = [NOON + timedelta(minutes=minute, seconds=second) for minute in range(3)]
    rows = [
        f"({user}, {post}, '{kind}', '{moment.isoformat()}')"
        for user, moment in enumerate(moments, 1)
        for post, kind in ((101, action), (102, "like"))
    ]
    execute(
        database_url,
        "DELETE FROM recs.interactions",
        f"INSERT INTO recs.interactions VALUES {', '.join(rows)}",
    )
    split = split_database(database_url)
    assert split.windows == (NOON + timedelta(minutes=1), NOON + timedelta(minutes=2))
    execute(database_url, f"DELETE FROM recs.interactions WHERE happened_at > '{moments[1].isoformat()}'")
    with pytest.raises(SourceError, match=r"2 minute\(s\)"):
        split_database(database_url)


USERS, POSTS = 60, 50


def make_history(likes: Likes, known: np.ndarray) -> History:
    """Return a history that has likes and known posts only."""
    return History(
        cutoff=NOON,
        user_counts=pd.DataFrame(index=range(USERS)),
        post_counts=pd.DataFrame({"known": known.astype(np.float64)}),
        groupings=Groupings.of(all=(np.zeros(POSTS, np.int32), 1)),
        views_of_group={},
        likes_of_group={},
        likes=likes,
        store=None,  # type: ignore[arg-type]
    )


def draw_likes() -> tuple[Likes, Likes, np.ndarray]:
    """Draw likes up to two times, and known posts: four of five, whether liked or not."""
    random = np.random.default_rng(3)
    before, new = random.random((2, USERS, POSTS)) < np.array([0.04, 0.08])[:, None, None]
    new[7] = False
    earlier, later = (
        Likes.from_pairs(*(rows.astype(np.int32) for rows in np.nonzero(liked)), USERS)
        for liked in (before, before | new)
    )
    return earlier, later, np.arange(POSTS) % 5 > 0


def pair_keys(users: np.ndarray, posts: np.ndarray) -> np.ndarray:
    keys: np.ndarray = users.astype(np.int64) * POSTS + posts
    return keys


def test_positives_are_the_new_likes_of_known_posts_and_no_liked_post_is_drawn() -> None:
    before, later, known = draw_likes()
    found = likes_among_all_posts(make_history(before, known), later, 8, 10_000, seed=1)
    earlier, until = pair_keys(before.users, before.posts), pair_keys(later.users, later.posts)
    expected = np.setdiff1d(until, earlier)
    assert (~known[expected % POSTS]).sum() > 10
    expected = expected[known[expected % POSTS]]
    keys = pair_keys(found.users, found.posts)
    np.testing.assert_array_equal(keys[found.liked], expected)
    assert found.liked[: expected.size].all()
    drawn = keys[~found.liked]
    assert known[drawn % POSTS].all()
    assert not np.isin(drawn, until).any()
    assert set(found.users) == set(expected // POSTS)
    # Eight a like, less those that hit a post that the user likes.
    liked = np.bincount(until[known[until % POSTS]] // POSTS, minlength=USERS)
    fresh = 1 - liked[expected // POSTS] / known.sum()
    assert drawn.size == pytest.approx(8 * fresh.sum(), rel=0.03)
    assert not found.viewed.any()
    np.testing.assert_array_equal(found.weights, np.ones(len(found), np.float32))
    assert found.weights.dtype == np.float32


def test_posts_are_drawn_evenly_over_the_known_ones_whatever_their_likes() -> None:
    random, known = np.random.default_rng(5), np.arange(POSTS) % 5 > 0
    nothing = Likes.from_pairs(np.empty(0, np.int32), np.empty(0, np.int32), USERS)
    # Everybody likes post 1, half of all post 2: popular ones are not drawn more, only less by those likes.
    users = np.concatenate([np.arange(USERS), np.flatnonzero(random.random(USERS) < 0.5)]).astype(np.int32)
    posts = np.where(np.arange(users.size) < USERS, 1, 2).astype(np.int32)
    later = Likes.from_pairs(users, posts, USERS)
    drawn = likes_among_all_posts(make_history(nothing, known), later, 400, 10**6, seed=2)
    counts = np.bincount(drawn.posts[~drawn.liked], minlength=POSTS)
    assert not counts[~known].any()
    assert counts[1] == 0
    others = counts[known][2:]
    # Poisson: the sum of squared deviations over the mean is chi-square, with a standard deviation below 9.
    chi_square = ((others - others.mean()) ** 2 / others.mean()).sum()
    assert abs(chi_square - (others.size - 1)) < 4 * np.sqrt(2 * others.size)
    assert others.mean() == pytest.approx(users.size * 400 / known.sum(), rel=0.02)
    liked_by_half = np.bincount(later.users[later.posts == 2], minlength=USERS) > 0
    assert 0 < counts[2] < others.mean() * (1 - liked_by_half.mean())


def test_likes_are_thinned_to_the_rows_allowed_and_one_seed_gives_one_set() -> None:
    before, later, known = draw_likes()
    history = make_history(before, known)
    whole = likes_among_all_posts(history, later, 8, 10_000, seed=1)
    thin, again, other = (likes_among_all_posts(history, later, 8, 300, seed) for seed in (1, 1, 2))
    assert thin.liked.sum() == 300 // 9
    assert len(thin) <= 300
    everything = pair_keys(whole.users[whole.liked], whole.posts[whole.liked])
    for found in (thin, other):
        positive = pair_keys(found.users[found.liked], found.posts[found.liked])
        assert (np.diff(positive) > 0).all()
        assert np.isin(positive, everything).all()
        assert set(found.users) == set(positive // POSTS)
    np.testing.assert_array_equal(pair_keys(thin.users, thin.posts), pair_keys(again.users, again.posts))
    assert not np.array_equal(thin.users[thin.liked], other.users[other.liked])


def test_where_no_post_is_known_or_no_like_is_new_there_are_no_examples() -> None:
    before, later, known = draw_likes()
    for history, likes in (
        (make_history(before, np.zeros(POSTS, bool)), later),
        (make_history(later, known), later),
    ):
        assert len(likes_among_all_posts(history, likes, 8, 10_000, seed=1)) == 0


def test_a_window_has_examples_of_the_users_to_keep_alone(database_url: str) -> None:
    dataset = load_small_network(database_url)
    keep = np.arange(len(dataset.network.users)) % 3 == 0
    for recipe in (each for each in RECIPES.values() if each.objective == "binary"):
        for window in dataset.windows:
            whole, kept = (each.examples(recipe, 10_000, 1) for each in (window, window.keep_users(keep)))
            expected = whole.where(keep[whole.users])
            assert 0 < len(expected) < len(whole)
            for name in ("users", "posts", "liked", "viewed", "weights"):
                np.testing.assert_array_equal(getattr(kept, name), getattr(expected, name))


@pytest.mark.parametrize("with_times", [True, False], ids=["created", "first seen"])
def test_a_post_unknown_at_a_windows_start_is_in_none_of_its_examples(
    database_url: str, with_times: bool
) -> None:
    make_network(database_url, interactions=4_000)
    if not with_times:
        execute(
            database_url,
            "UPDATE recs.posts SET created_at = NULL",
            "DELETE FROM recs.interactions i USING recs.posts p WHERE i.post_id = p.post_id "
            f"AND happened_at < '{FIRST_DAY.isoformat()}'::timestamptz + "
            "interval '1 day' * ((i.post_id - 100) * 3 % 28)",
        )
    dataset = load_database(database_url)
    ids = dataset.network.posts.index.to_numpy()
    unknown_liked = 0
    for window, end in zip(dataset.windows, dataset.split.bounds[1:], strict=True):
        start = window.history.cutoff.isoformat()
        by_then = f"created_at <= '{start}'"
        if not with_times:
            by_then = (
                "EXISTS (SELECT 1 FROM recs.interactions i WHERE i.post_id = p.post_id "
                f"AND happened_at <= '{start}')"
            )
        found = query(database_url, f"SELECT post_id FROM recs.posts p WHERE {by_then}")
        known = np.isin(ids, [post for (post,) in found])
        np.testing.assert_array_equal(window.history.known, known)
        examples = window.examples(LIKED, 100_000, 1)
        assert known[examples.posts].all()
        pairs = query(
            database_url,
            "SELECT user_id, post_id FROM recs.interactions WHERE action = 'like' "
            f"AND happened_at <= '{end.isoformat()}' GROUP BY 1, 2 HAVING min(happened_at) > '{start}'",
        )
        unknown_liked += sum(post not in ids[known] for _, post in pairs)
        users = dataset.network.users.index.to_numpy()[examples.users[examples.liked]]
        new = {(user, post) for user, post in pairs if post in ids[known]}
        assert set(zip(users, ids[examples.posts[examples.liked]], strict=True)) == new
    assert unknown_liked > 10


@pytest.mark.parametrize("recipe", [LIKED, RECIPES["liked-if-viewed"]], ids=lambda recipe: recipe.name)
def test_nothing_after_a_windows_start_changes_the_features_of_its_examples(
    database_url: str, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = load_small_network(database_url)
    model, network = fit_model(database_url, dataset, "test", recipe), dataset.network
    monkeypatch.setattr("batch.training.dataset.split_by_time", lambda *_: dataset.split)

    def features(history: History, examples: Examples) -> tuple[np.ndarray, np.ndarray]:
        factors = model.factors(network, history)
        assert factors is not None
        rows = model.tables(network, history).rows(examples.users, examples.posts)
        return rows, factors.dot(examples.users, examples.posts)

    changed = 0
    for index in reversed(range(len(dataset.windows))):
        window = dataset.windows[index]
        examples = window.examples(recipe, 10_000, 1)
        assert len(examples) > 50
        since = window.history.cutoff.isoformat()
        execute(database_url, f"DELETE FROM recs.interactions WHERE happened_at > '{since}'")
        again = load_database(database_url)
        for one, other in zip(
            features(window.history, examples), features(again.windows[index].history, examples), strict=True
        ):
            np.testing.assert_array_equal(one, other)
        # The features of the time after that do change.
        changed += not np.array_equal(
            features(dataset.now, examples)[0], features(again.now, examples)[0], equal_nan=True
        )
    assert changed == len(dataset.windows)
