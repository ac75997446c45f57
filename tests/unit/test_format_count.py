"""Numbers with what they count."""

from __future__ import annotations

from batch.formatting import format_count


def test_one_is_singular_and_large_numbers_have_commas() -> None:
    texts = [format_count(count, "user") for count in (0, 1, 2, 20_000)]
    assert texts == ["0 users", "1 user", "2 users", "20,000 users"]
