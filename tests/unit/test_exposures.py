from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract.exposures import ExploredPost, Exposure, decode_exposures, encode_exposures
from tests.support.experiment import make_exposures

words = st.sampled_from(["control", "test", "popular", "R"])
ids = (
    st.integers(0, 2**63 - 1)
    | st.uuids().map(str)
    | st.text(st.characters(exclude_categories=("Cc", "Cs")), min_size=1, max_size=128)
)
explored = st.builds(ExploredPost, ids, st.integers(1, 1000), st.floats(1e-9, 1))
exposure = st.builds(
    Exposure,
    ids,
    words,
    words,
    words,
    st.integers(0, 2 * 10**12).map(lambda ms: ms / 1000),
    st.none() | st.integers(0, 10**6).map(lambda tenths: tenths / 10),
    st.just(()) | st.lists(explored, max_size=3).map(tuple),
).flatmap(lambda each: st.booleans().map(lambda first: each._replace(first_page=first or not each.explored)))


@given(st.lists(exposure, min_size=1, max_size=20))
def test_a_batch_decodes_to_what_was_encoded_times_to_the_millisecond_durations_to_a_tenth(
    batch: list[Exposure],
) -> None:
    def rounded(rows: list[Exposure]) -> Counter[Any]:
        return Counter((*row[:4], round(row.served_at * 1000), *row[5:]) for row in rows)

    assert rounded(decode_exposures(encode_exposures(batch))) == rounded(batch)


def test_a_batch_reads_well() -> None:
    assert encode_exposures(make_exposures(3, first=41)[::2]) == (
        '{"at":1795348800.041,"lists":[["test","20261122T030000Z-test","personal",[[41,0,1.2],[43,2,1.2]]]]}'
    )


def test_explored_posts_follow_the_duration_of_their_page_only() -> None:
    with_two, without = make_exposures(2, first=41)
    posts = (ExploredPost("a b", 5, 0.025), ExploredPost(9, 10, 1.0))
    batch = [with_two._replace(explored=posts), without]
    assert '[[41,0,1.2,[["a b",5,0.025],[9,10,1.0]]]]' in encode_exposures(batch)
    assert "[[42,1,1.2]]" in encode_exposures(batch)
    assert decode_exposures(encode_exposures([batch[0]._replace(took_ms=None)]))[0].explored == posts


def test_a_later_page_is_marked_after_its_explored_posts() -> None:
    (row,) = make_exposures(1, first=41)
    later = row._replace(explored=(ExploredPost(9, 10, 0.5),), first_page=False)
    assert "[[41,0,1.2,[[9,10,0.5]],false]]" in encode_exposures([later])
    assert [each.first_page for each in decode_exposures(encode_exposures([row, later]))] == [True, False]


def test_a_batch_of_a_serving_that_did_not_note_durations_decodes_all_the_same() -> None:
    batch = [row._replace(took_ms=None) for row in make_exposures(1)]
    assert "[[1,0]]" in encode_exposures(batch)
    assert decode_exposures(encode_exposures(batch)) == batch


@pytest.mark.parametrize(
    "value",
    [
        "", "{", "[]", "{}", '{"at":1}', '{"at":1,"lists":[[1]]}', '{"at":"soon","lists":[]}',
        '{"at":NaN,"lists":[["a","b","c",[[1,0]]]]}', '{"at":1e300,"lists":[["a","b","c",[[1,0]]]]}',
        '{"at":1,"lists":[["a","b","c",[[-1,0]]]]}', '{"at":1,"lists":[["a","b","c",[[1.5,0]]]]}',
        '{"at":1,"lists":[["a","b\\u0000","c",[[1,0]]]]}', '{"at":1,"lists":[["a","b",null,[[1,0]]]]}',
        '{"at":1,"lists":[["a","b","c",[[9223372036854775808,0]]]]}',
        '{"at":1,"lists":[["a","b","c",[[1,0,-1]]]]}', '{"at":1,"lists":[["a","b","c",[[1,0,"1"]]]]}',
        '{"at":1,"lists":[["a","b","c",[[1,0,NaN]]]]}', '{"at":1,"lists":[["a","b","c",[[1,0,1,1]]]]}',
        '{"at":1,"lists":[["a","b","c",[[1,0,1,[[1,2]]]]]]}', '{"at":1,"lists":[["a","b","c",[["",0]]]]}',
        '{"at":1,"lists":[["a","b","c",[[1,0,1,[[1,2,2]]]]]]}', '{"at":1,"lists":[["a","b","c",[[true,0]]]]}',
        '{"at":1,"lists":[["a","b","c",[[1,0,1,[[1,0,1]]]]]]}',
        '{"at":1,"lists":[["a","b","c",[[1,0,1,[],1]]]]}',
        '{"at":1,"lists":[["a","b","c",[[1,0,1,[],false,1]]]]}',
    ],
)  # fmt: skip
def test_what_is_no_batch_is_refused(value: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - any message will do
        decode_exposures(value)
