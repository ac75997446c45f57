from __future__ import annotations

import numpy as np

from batch.loading.examples import Examples
from batch.loading.explored import MAX_WEIGHT, ExploredPlaces


def test_distinct_rows_are_liked_if_any_of_their_rows_is() -> None:
    yes, no = True, False
    examples = Examples(
        np.array([1, 0, 1]), np.array([5, 5, 5]), np.array([no, no, yes]), np.array([yes, yes, yes]),
        np.ones(3, dtype=np.float32),
    )  # fmt: skip
    distinct = examples.distinct()
    assert distinct.users.tolist() == [0, 1]
    assert distinct.liked.tolist() == [no, yes]


def test_a_view_within_a_day_of_its_explored_place_has_the_inverse_probability_as_weight() -> None:
    hour = 3_600_000_000
    explored = ExploredPlaces(
        users=np.array([3, 3, 3, 4]),
        posts=np.array([7, 7, 8, 7]),
        served_at=np.array([10, 40, 40, 50]) * hour,
        probabilities=np.array([1 / 2, 1 / 4, 1 / 5_000, 1 / 3]),
    )
    rows = [  # user, post, hour, viewed, weight
        (3, 7, 9, True, 1),  # before it was served
        (3, 7, 10, True, 2),
        (3, 7, 34, True, 2),
        (3, 7, 35, True, 1),  # more than a day later
        (3, 7, 41, True, 4),  # served twice: the last time counts
        (3, 7, 41, False, 1),  # a like without a view
        (3, 8, 41, True, MAX_WEIGHT),
        (4, 8, 51, True, 1),  # served to another user
        (4, 7, 51, True, 3),
    ]
    users, posts, hours, viewed, expected = map(np.array, zip(*rows, strict=True))
    order = np.random.default_rng(1).permutation(len(rows))
    weights = explored.weights(users[order], posts[order], hours[order] * hour, viewed[order])
    assert weights.dtype == np.float32
    assert weights.tolist() == expected[order].tolist()
