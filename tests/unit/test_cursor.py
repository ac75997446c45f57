import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract.settings import RECIPE_NAMES
from serving.cursor import MAX_CURSOR_LENGTH, Cursor, decode_cursor, encode_cursor

USER_IDS = st.integers(0, 2**63 - 1)
CURSORS = st.builds(
    Cursor,
    run_id=st.sampled_from(["20261122T030000Z-control", "20261122T030000Z-test"]),
    source=st.sampled_from(["personal", "popular"]),
    offset=st.integers(0, 999_999_999),
    recipe=st.sampled_from([None, *RECIPE_NAMES]),
)
URL_SAFE = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"


@given(CURSORS, USER_IDS)
def test_a_cursor_decodes_to_what_was_encoded(cursor: Cursor, user_id: int) -> None:
    text = encode_cursor(cursor, user_id)
    assert set(text) <= set(URL_SAFE)
    assert len(text) <= MAX_CURSOR_LENGTH
    assert decode_cursor(text, user_id) == cursor


@given(CURSORS, USER_IDS, st.data())
def test_a_cursor_with_one_character_changed_is_refused(
    cursor: Cursor, user_id: int, data: st.DataObject
) -> None:
    text = encode_cursor(cursor, user_id)
    index = data.draw(st.integers(0, len(text) - 1))
    other = data.draw(st.sampled_from(URL_SAFE.replace(text[index], "")))
    with pytest.raises(ValueError):  # noqa: PT011 - any
        decode_cursor(text[:index] + other + text[index + 1 :], user_id)


def test_a_cursor_of_a_release_without_recipes_is_still_read() -> None:
    text = "YYudvinEMjAyNjExMjJUMTUzMzQwWi10ZXN0IHBlcnNvbmFsIDI"
    assert decode_cursor(text, 200) == Cursor("20261122T153340Z-test", "personal", 2, None)


@given(CURSORS, USER_IDS, USER_IDS)
def test_a_cursor_of_another_user_is_refused(cursor: Cursor, user_id: int, other: int) -> None:
    text = encode_cursor(cursor, user_id)
    if user_id != other:
        with pytest.raises(ValueError, match="another user"):
            decode_cursor(text, other)


@given(st.text())
def test_text_that_is_no_cursor_is_refused(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - any
        decode_cursor(text, 42)


@pytest.mark.parametrize("run_id", ["x", "a:b", "20261122T030000Z-other", "20261399T030000Z-test", "*"])
def test_a_forged_cursor_cannot_name_a_key_outside_the_runs(run_id: str) -> None:
    forged = encode_cursor(Cursor(run_id, "personal", 0), 42)
    with pytest.raises(ValueError):  # noqa: PT011 - any
        decode_cursor(forged, 42)
