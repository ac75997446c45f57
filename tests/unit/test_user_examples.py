"""The example users of a run's page."""

from __future__ import annotations

import numpy as np

from batch.loading.likes import Likes
from batch.reports.user_examples import choose_users


def test_users_are_chosen_from_few_likes_to_many_and_only_of_those_with_lists() -> None:
    counts = np.array([0, 9, 1, 0, 4, 2, 30, 7, 50])
    users = np.repeat(np.arange(9), counts).astype(np.int32)
    posts = np.concatenate([np.arange(count) for count in counts]).astype(np.int32)
    likes = Likes.from_pairs(users, posts, 9)
    assert choose_users(likes, 8).tolist() == [2, 5, 7, 1, 6]
    assert choose_users(likes, 5).tolist() == [2, 4, 1]
    nobody = Likes.from_pairs(users[:0], posts[:0], 3)
    assert choose_users(nobody, 3).tolist() == [0, 1, 2]
