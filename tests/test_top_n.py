import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from batch.likes import Likes
from batch.top_n import top_n


def slow_top_n(scores: np.ndarray, liked: set[tuple[int, int]], blocked: set[int], n: int) -> list[list[int]]:
    """Say what a list is, in the plainest words."""
    lists = []
    for user, row in enumerate(scores):
        left = [post for post in range(row.size) if (user, post) not in liked and post not in blocked]
        lists.append(sorted(left, key=lambda post: (-row[post], post))[:n])
    return lists


@st.composite
def cases(draw: st.DrawFn) -> tuple[np.ndarray, set[tuple[int, int]], set[int], int]:
    users, posts = draw(st.integers(1, 6)), draw(st.integers(1, 12))
    # few distinct scores, so that there are many ties
    scores = draw(st.lists(st.integers(-3, 3), min_size=users * posts, max_size=users * posts))
    liked = draw(st.sets(st.tuples(st.integers(0, users - 1), st.integers(0, posts - 1))))
    blocked = draw(st.sets(st.integers(0, posts - 1)))
    return np.array(scores, np.float32).reshape(users, posts) / 8, liked, blocked, draw(st.integers(1, 15))


@given(cases())
def test_lists_are_those_of_a_plain_sort(
    case: tuple[np.ndarray, set[tuple[int, int]], set[int], int],
) -> None:
    scores, liked, blocked, n = case
    pairs = np.array(sorted(liked), dtype=np.int32).reshape(-1, 2)
    likes = Likes.from_pairs(pairs[:, 0], pairs[:, 1], len(scores))
    best, best_scores = top_n(scores.copy(), likes, np.array(sorted(blocked), dtype=np.int64), n)
    for user, expected in enumerate(slow_top_n(scores, liked, blocked, n)):
        assert best[user].tolist() == expected + [-1] * (n - len(expected))
        assert best_scores[user, : len(expected)].tolist() == scores[user, expected].tolist()
        assert np.isnan(best_scores[user, len(expected) :]).all()


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 9)), max_size=30))
def test_likes_hold_each_pair_once_and_in_order(pairs: list[tuple[int, int]]) -> None:
    places = np.array(pairs, dtype=np.int32).reshape(-1, 2)
    likes = Likes.from_pairs(places[:, 0], places[:, 1], 6)
    for user in range(6):
        assert likes.of(user).tolist() == sorted({post for other, post in pairs if other == user})
    part = likes.of_users(2, 5)
    assert [part.of(user).tolist() for user in range(3)] == [likes.of(user).tolist() for user in (2, 3, 4)]
    assert sorted(zip(likes.users.tolist(), likes.posts.tolist(), strict=True)) == sorted(set(pairs))
