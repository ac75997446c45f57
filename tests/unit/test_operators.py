from __future__ import annotations

from batch.inspection.lists import compute_overlap, list_changes


def test_what_changed_between_two_lists_worked_out_by_hand() -> None:
    before, after = [(1, 0.9), (2, 0.8), (3, 0.7), (4, 0.6)], [(2, 0.9), (1, 0.8), (3, 0.7), (5, 0.1)]
    found = list_changes(before, after)
    assert [(row["post_id"], row["change"], row["rank_a"], row["rank_b"]) for row in found] == [
        (2, "up", 2, 1), (1, "down", 1, 2), (3, "same", 3, 3), (5, "in", None, 4), (4, "out", 4, None)
    ]  # fmt: skip
    assert compute_overlap(before, after) == 0.75
    assert compute_overlap(before, after, 3) == 1
    assert compute_overlap(before, after, 1) == 0
    assert compute_overlap(before, []) == 0
    assert compute_overlap([], []) == 1
