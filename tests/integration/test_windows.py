"""Windows of time, their likes and drawn negatives; features do not depend on later data."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise

import numpy as np
import pytest

from batch.evaluation.learner import choose_recipe
from batch.loading.examples import Examples
from batch.loading.history import History
from batch.loading.split import LIKES, VIEWS, WINDOWS, TimeSplit, split_by_time
from batch.training.parameters import LIKED, RECIPES, Recipe
from batch.variants import MODELS
from contract.errors import SourceError
from tests.support.batch import DAYS, FIRST_DAY, execute, make_network, query
from tests.support.evaluation import (
    CLOCK,
    fit_model,
    load_database,
    load_small_network,
    make_settings,
    pull_database,
)

HISTORY, HOLDOUT = 0.3, 0.2
NOON = datetime(2021, 10, 10, 12, tzinfo=UTC)
END = FIRST_DAY + timedelta(days=DAYS)


def split_database(database_url: str, *, views_only: bool = False) -> TimeSplit:
    """TimeSplit the time of a database, and check what holds for any network."""
    pulled = pull_database(database_url)
    assert pulled.latest is not None
    split = split_by_time(pulled.store, pulled.latest, HISTORY, HOLDOUT, views_only=views_only)
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
    split = split_database(database_url, views_only=True)
    assert split.history_end > FIRST_DAY > split.windows[WINDOWS - 1]
    dataset = load_database(database_url, recipe="liked-if-viewed")
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


def test_a_window_has_examples_of_the_users_to_keep_alone(database_url: str) -> None:
    dataset = load_small_network(database_url)
    keep = np.arange(len(dataset.network.users)) % 3 == 0
    for recipe in (each for each in RECIPES.values() if each.objective == "binary"):
        for window in dataset.windows:
            whole, kept = (each.examples(recipe, 10_000, 1) for each in (window, window.keep_users(keep)))
            expected = whole.select(keep[whole.users])
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
    monkeypatch.setattr("batch.training.dataset.split_by_time", lambda *_, **__: dataset.split)

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


def keep_views(database_url: str, condition: str) -> None:
    execute(database_url, f"DELETE FROM recs.interactions WHERE action = 'view' AND NOT ({condition})")


def assert_same_likes(one: Examples, other: Examples) -> None:
    """Compare the liked rows; negatives are drawn as often as posts were shown, also by views that ended."""
    assert not one.viewed.any()
    one, other = one.select(one.liked), other.select(other.liked)
    np.testing.assert_array_equal(one.users, other.users)
    np.testing.assert_array_equal(one.posts, other.posts)


@pytest.mark.parametrize(
    ("kept", "why"),
    [
        ("happened_at > '2021-10-30 21:00Z'", "views to train on (500 needed)"),
        ("happened_at < '2021-10-05'", " ended before "),
        ("happened_at BETWEEN '2021-10-30 21:00Z' AND '2021-10-30 21:03Z'", "minute(s)"),
    ],
    ids=["began hours ago", "ended weeks ago", "two minutes"],
)
def test_too_few_views_leave_the_labels_as_they_are_without_views(
    database_url: str, kept: str, why: str
) -> None:
    make_network(database_url, users=120, interactions=15_000)
    keep_views(database_url, kept)
    found = load_database(database_url, as_of=END)
    keep_views(database_url, "false")
    expected = load_database(database_url, as_of=END)
    assert (found.split.labels, expected.split.labels, expected.split.why) == (LIKES, LIKES, "")
    assert why in found.split.why
    assert found.split.bounds == expected.split.bounds
    for name in ("training_likes", "holdout_likes", "holdout_users", "shortage"):
        assert getattr(found.split.counts, name) == getattr(expected.split.counts, name)
    assert found.split.counts.shortage == ""
    assert_same_likes(found.holdout, expected.holdout)
    for one, other in zip(found.windows, expected.windows, strict=True):
        assert_same_likes(one.views, other.views)
    choice = choose_recipe(MODELS["control"], found, make_settings(database_url))
    assert (choice.recipe, choice.why) == (LIKED, f"too few views: {found.split.why}")
    assert found.split.warnings[0].startswith(f"the logged views are not used yet: {found.split.why}. ")


def test_few_views_are_used_if_a_recipe_is_set_that_learns_from_them(database_url: str) -> None:
    make_network(database_url, users=120, interactions=15_000)
    keep_views(database_url, "happened_at > '2021-10-30'")
    split = load_database(database_url, as_of=END, recipe="liked-if-viewed").split
    assert (split.labels, split.why) == (VIEWS, "")
    assert split.holdout_start > END - timedelta(days=1)
    (warning,) = split.warnings
    assert f"too little data: {split.counts.training_views} views to train on (500 needed)" in warning


def test_where_likes_are_too_few_as_well_time_is_cut_by_views_and_that_is_said(database_url: str) -> None:
    make_network(database_url, users=20, interactions=300)
    split = split_database(database_url)
    history_end, holdout_start = (each.isoformat() for each in (split.history_end, split.holdout_start))
    ((views, likes, users),) = query(
        database_url,
        f"""SELECT count(*) FILTER (WHERE action = 'view' AND happened_at < '{holdout_start}'),
            count(*) FILTER (WHERE action = 'like' AND happened_at < '{holdout_start}'),
            count(DISTINCT user_id) FILTER (WHERE action = 'like' AND happened_at > '{holdout_start}')
            FROM recs.interactions WHERE happened_at >= '{history_end}'""",
    )
    counts = split.counts
    assert (split.labels, split.why) == (VIEWS, "")
    assert (counts.training_views, counts.training_likes, counts.holdout_users) == (views, likes, users)
    (warning,) = split.warnings
    missing = f"{views} views to train on (500 needed), {likes} likes to train on (100 needed)"
    assert f"too little data: {missing}, {users} users with likes to evaluate on (30 needed). " in warning
