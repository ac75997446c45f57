from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.texts import NO_TEXT, Post, Texts


@given(
    most=st.integers(1, 6),
    asked=st.lists(st.lists(st.integers(0, 12), max_size=8, unique=True), max_size=20),
)
def test_memory_is_bounded_and_every_text_is_right(most: int, asked: list[list[int]]) -> None:
    stored = {post_id: Post(str(post_id), "t") for post_id in range(10)}
    cache = Texts({9: stored[9]}, most)

    def read(post_ids: Sequence[int]) -> dict[int, Post]:
        assert 9 not in post_ids
        return {post_id: stored.get(post_id, NO_TEXT) for post_id in post_ids}

    for post_ids in asked:
        assert cache.get(post_ids, read) == [stored.get(post_id, NO_TEXT) for post_id in post_ids]
        assert len(cache) <= most + 1
    if asked and 0 < len(asked[-1]) <= most:
        cache.get(asked[-1], lambda missing: pytest.fail(f"{missing} were used last"))
