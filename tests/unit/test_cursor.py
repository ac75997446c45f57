import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract.ids import Id
from contract.settings import RECIPE_NAMES
from serving.cursor import MAX_CURSOR_LENGTH, Cursor, decode_cursor, encode_cursor

USER_IDS = (
    st.integers(0, 2**63 - 1)
    | st.uuids().map(str)
    | st.text(st.characters(exclude_categories=("Cc", "Cs")), min_size=1, max_size=128)
)
SEGMENTS = st.none() | st.text(st.characters(exclude_categories=("Cc", "Cs")), max_size=128)
CURSORS = st.builds(
    Cursor,
    run_id=st.sampled_from(["20261122T030000Z-control", "20261122T030000Z-test"]),
    source=st.sampled_from(["personal", "popular"]),
    offset=st.integers(0, 999_999_999),
    recipe=st.sampled_from([None, *RECIPE_NAMES]),
    segment=SEGMENTS,
)
URL_SAFE = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"


@given(CURSORS, USER_IDS)
def test_a_cursor_decodes_to_what_was_encoded(cursor: Cursor, user_id: Id) -> None:
    text = encode_cursor(cursor, user_id)
    assert set(text) <= set(URL_SAFE)
    assert len(text) <= MAX_CURSOR_LENGTH
    assert decode_cursor(text, user_id) == cursor


@given(CURSORS, USER_IDS, st.data())
def test_a_cursor_with_one_character_changed_is_refused(
    cursor: Cursor, user_id: Id, data: st.DataObject
) -> None:
    text = encode_cursor(cursor, user_id)
    index = data.draw(st.integers(0, len(text) - 1))
    other = data.draw(st.sampled_from(URL_SAFE.replace(text[index], "")))
    with pytest.raises(ValueError):  # noqa: PT011 - any
        decode_cursor(text[:index] + other + text[index + 1 :], user_id)


def test_a_cursor_of_a_whole_number_without_a_segment_is_as_in_earlier_releases() -> None:
    cursor = Cursor("20261127T085927Z-test", "personal", 2, "liked-if-viewed")
    text = "I2Ut8Jb-MjAyNjExMjdUMDg1OTI3Wi10ZXN0IHBlcnNvbmFsIDIgbGlrZWQtaWYtdmlld2Vk"
    assert encode_cursor(cursor, 200) == text


def test_a_segment_cannot_pass_for_another_part_of_a_cursor() -> None:
    for segment in (" liked", "a segment=b", "", "liked segment=x"):
        cursor = Cursor("20261122T030000Z-test", "popular", 5, None, segment)
        assert decode_cursor(encode_cursor(cursor, 7), 7) == cursor


def test_a_cursor_of_a_release_without_recipes_is_still_read() -> None:
    text = "YYudvinEMjAyNjExMjJUMTUzMzQwWi10ZXN0IHBlcnNvbmFsIDI"
    assert decode_cursor(text, 200) == Cursor("20261122T153340Z-test", "personal", 2, None)


@given(CURSORS, USER_IDS, USER_IDS)
def test_a_cursor_of_another_user_is_refused(cursor: Cursor, user_id: Id, other: Id) -> None:
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
