from __future__ import annotations

import numpy as np

from batch.loading.examples import Examples


def test_distinct_rows_are_liked_if_any_of_their_rows_is() -> None:
    yes, no = True, False
    examples = Examples(
        np.array([1, 0, 1]), np.array([5, 5, 5]), np.array([no, no, yes]), np.array([yes, yes, yes]),
        np.ones(3, dtype=np.float32),
    )  # fmt: skip
    distinct = examples.distinct()
    assert distinct.users.tolist() == [0, 1]
    assert distinct.liked.tolist() == [no, yes]
