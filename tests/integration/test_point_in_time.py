"""No feature, factor or label depends on data after its cutoff."""

from __future__ import annotations

from datetime import datetime, timedelta
from itertools import pairwise

import numpy as np
import pytest

from batch.features.build import build_tables, compute_population, select_profile_columns
from batch.features.factors import fit_factors
from batch.features.tables import ColumnEncoder, FeatureTables, Kind
from batch.features.text import compute_text_features
from batch.loading.examples import collect_labelled_views
from batch.loading.history import count_history
from batch.training.parameters import LIKED
from batch.variants import Variant
from tests.support.batch import DAYS, FIRST_DAY, execute, make_network, query, topics_of
from tests.support.evaluation import load_database, pull_database, pulled_database

VARIANT = Variant("every kind of feature", with_cohorts=True)
CUTOFF = FIRST_DAY + timedelta(days=DAYS / 2)
LATER = FIRST_DAY + timedelta(days=DAYS * 2)


def features_at(database_url: str, cutoff: datetime, until: datetime = LATER) -> FeatureTables:
    with pulled_database(database_url, until) as pulled:
        network = pulled.network
        users, posts = select_profile_columns(network)
        history = count_history(pulled.store, network, cutoff, topics_of(network))
        return build_tables(
            VARIANT,
            network,
            history,
            compute_population(VARIANT, network, history),
            users=ColumnEncoder.fit(Kind.USER, users, np.arange(len(users))),
            posts=ColumnEncoder.fit(Kind.POST, posts, np.arange(len(posts))),
            text=compute_text_features(network.posts["text"], seed=1),
        ).of_users(slice(None))


def assert_equal(found: FeatureTables, expected: FeatureTables) -> None:
    assert found.columns == expected.columns
    np.testing.assert_array_equal(found.user_values, expected.user_values)
    np.testing.assert_array_equal(found.post_values, expected.post_values)
    for one, other in zip(found.affinities, expected.affinities, strict=True):
        np.testing.assert_array_equal(one.values, other.values)


def add_counters(database_url: str) -> None:
    """Add the network's own counters to the posts, with their current values."""
    counted = "SELECT count(*) FROM recs.interactions i WHERE i.post_id = p.post_id AND i.action ="
    execute(
        database_url,
        "ALTER TABLE recs.posts ADD COLUMN IF NOT EXISTS like_count bigint",
        "ALTER TABLE recs.posts ADD COLUMN IF NOT EXISTS view_count bigint",
        f"UPDATE recs.posts p SET like_count = 1000 + ({counted} 'like')",
        f"UPDATE recs.posts p SET view_count = 9000 + ({counted} 'view')",
    )


@pytest.mark.parametrize("counters", [False, True], ids=["without counters", "with the network's counters"])
def test_features_do_not_depend_on_later_interactions(database_url: str, counters: bool) -> None:
    make_network(database_url)
    if counters:
        add_counters(database_url)
    with_future = features_at(database_url, CUTOFF)
    execute(database_url, f"DELETE FROM recs.interactions WHERE happened_at > '{CUTOFF.isoformat()}'")
    if counters:
        add_counters(database_url)
    assert_equal(features_at(database_url, CUTOFF), with_future)


def test_features_depend_on_interactions_before_the_cutoff(database_url: str) -> None:
    make_network(database_url)
    whole = features_at(database_url, CUTOFF)
    earlier = CUTOFF - timedelta(days=2)
    execute(database_url, f"DELETE FROM recs.interactions WHERE happened_at > '{earlier.isoformat()}'")
    cut = features_at(database_url, CUTOFF)
    assert not np.array_equal(whole.user_values, cut.user_values, equal_nan=True)
    assert not np.array_equal(whole.post_values, cut.post_values, equal_nan=True)
    assert not np.array_equal(whole.affinities[0].values, cut.affinities[0].values, equal_nan=True)


def test_likes_and_factors_end_at_the_cutoff(database_url: str) -> None:
    make_network(database_url)
    pulled = pull_database(database_url, LATER)
    network = pulled.network
    history = count_history(pulled.store, network, CUTOFF, topics_of(network))
    likes = history.likes
    expected = query(
        database_url,
        "SELECT DISTINCT user_id, post_id FROM recs.interactions "
        f"WHERE action = 'like' AND happened_at <= '{CUTOFF.isoformat()}'",
    )
    user_ids, post_ids = network.users.index.to_numpy(), network.posts.index.to_numpy()
    found = zip(user_ids[likes.users].tolist(), post_ids[likes.posts].tolist(), strict=True)
    assert set(found) == set(expected)
    before = fit_factors(network, history, seed=1)
    execute(database_url, f"DELETE FROM recs.interactions WHERE happened_at > '{CUTOFF.isoformat()}'")
    cut = count_history(pull_database(database_url, LATER).store, network, CUTOFF, topics_of(network))
    after = fit_factors(network, cut, seed=1)
    for name in ("starts", "posts", "views", "likes"):
        np.testing.assert_array_equal(getattr(cut.impressions, name), getattr(history.impressions, name))
    np.testing.assert_array_equal(before.users, after.users)
    np.testing.assert_array_equal(before.posts, after.posts)


def test_labels_are_later_than_their_features(database_url: str) -> None:
    make_network(database_url)
    dataset = load_database(database_url, clock=LATER)
    split = dataset.split
    assert split.history_end < split.holdout_start < split.cutoff
    assert dataset.at_history_end.cutoff == split.history_end
    assert dataset.at_holdout.cutoff == split.holdout_start
    assert dataset.now.cutoff == split.cutoff
    assert tuple(each.history.cutoff for each in dataset.windows) == split.windows
    windows = zip(dataset.windows, pairwise(split.bounds), strict=True)
    for examples, since, until in (
        *((each.views, *bounds) for each, bounds in windows),
        (dataset.holdout, split.holdout_start, split.cutoff),
    ):
        ((views,),) = query(
            database_url,
            "SELECT count(*) FROM (SELECT DISTINCT * FROM recs.interactions WHERE action = 'view' "
            f"AND happened_at > '{since.isoformat()}' AND happened_at <= '{until.isoformat()}') seen",
        )
        assert int(examples.viewed.sum()) == views


def test_a_label_does_not_depend_on_a_like_after_its_window(database_url: str) -> None:
    make_network(database_url, interactions=100)
    execute(
        database_url,
        "DELETE FROM recs.interactions",
        "INSERT INTO recs.interactions VALUES (1, 101, 'view', '2021-10-10 12:00Z'), "
        "(1, 101, 'like', '2021-10-10 12:05Z'), (1, 102, 'like', '2021-10-01 12:00Z')",
    )
    pulled = pull_database(database_url, LATER)
    groups = topics_of(pulled.network)
    before = count_history(pulled.store, pulled.network, FIRST_DAY + timedelta(days=2), groups)
    for minute, liked in ((3, False), (6, True)):
        until = datetime.fromisoformat(f"2021-10-10 12:0{minute}Z")
        examples = collect_labelled_views(pulled.store, before, until, max_rows=100, seed=1)
        assert examples.liked.tolist() == [liked]


def test_as_of_computes_the_features_of_that_day(database_url: str) -> None:
    make_network(database_url)
    then = load_database(database_url, CUTOFF, LATER)
    execute(database_url, f"DELETE FROM recs.interactions WHERE happened_at > '{CUTOFF.isoformat()}'")
    again = load_database(database_url, CUTOFF, LATER)
    assert then.split == again.split
    examples = []
    for each in (then, again):
        examples.append([each.holdout, *(window.views for window in each.windows)])
        examples[-1] += [window.examples(LIKED, 10_000, 1) for window in each.windows]
    for one, other in zip(*examples, strict=True):
        np.testing.assert_array_equal(one.users, other.users)
        np.testing.assert_array_equal(one.posts, other.posts)
        np.testing.assert_array_equal(one.liked, other.liked)
