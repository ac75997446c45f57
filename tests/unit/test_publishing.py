from __future__ import annotations

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st
from redis.connection import Connection

from batch.publishing import memory
from batch.publishing.encode import ListEncoder, pack
from batch.publishing.write import Listed, cut_blocks
from contract.codec import decode_stored_list, encode_list
from tests.support.random_lists import random_lists

MAX_FLOAT = 999_999_995_904.0
"""The greatest float32 below `GREATEST_SCORE`."""
IDS = st.integers(-(2**63), 2**63 - 1)
SCORES = st.one_of(
    st.floats(-MAX_FLOAT, MAX_FLOAT, width=32),
    st.integers(-(10**6), 10**6).map(float),
    st.integers(-3_000, 3_000).map(lambda thousandths: float(np.float32(thousandths / 1000))),
)
RANKED = st.lists(st.tuples(IDS, SCORES), max_size=5, unique_by=lambda pair: pair[0])


@given(st.lists(st.tuples(IDS, RANKED), min_size=1, max_size=5))
@example([(-(2**63), [(2**63 - 1, -0.0004), (0, 999_999_995_904.0), (-7, 0.0005), (10, -12.0)])])
@example([(7, []), (10, [(100, 0.1), (-(2**63), -0.01), (3, 0.001), (9, -999.999)])])
def test_lists_written_together_are_those_that_the_codec_writes_one_by_one(
    lists: list[tuple[int, list[tuple[int, float]]]],
) -> None:
    n = 5
    known = sorted({post for _, ranked in lists for post, _ in ranked})
    posts, scores = np.full((len(lists), n), -1, np.int32), np.full((len(lists), n), np.nan, np.float32)
    for row, (_, ranked) in enumerate(lists):
        posts[row, : len(ranked)] = [known.index(post) for post, _ in ranked]
        scores[row, : len(ranked)] = [score for _, score in ranked]
    ids = np.array([whose for whose, _ in lists], dtype=np.int64)
    lines = ListEncoder(ids, np.array(known, dtype=np.int64)).lines(np.arange(len(ids)), posts, scores)
    expected = [(str(whose), encode_list(ranked)) for whose, ranked in lists]
    assert list(lines.rows()) == expected
    assert lines.text.tobytes() == "".join(f"{whose}\t{value}\n" for whose, value in expected).encode()
    assert lines.lengths.tolist() == [len(ranked) for _, ranked in lists]
    assert lines.value_bytes.tolist() == [len(value) for _, value in expected]
    words = ["MSET", *(word for whose, value in expected for word in ("p:" + whose, value))]
    assert bytes(pack(lines, "p:")) == b"".join(Connection().pack_command(*words))


@given(
    st.lists(
        st.tuples(st.sampled_from(["a", "ü/b", "7"]), SCORES, st.integers(0, 3) | st.integers(0, 10**6)),
        min_size=1,
        unique_by=lambda row: row[0],
    )
)
@example([("a", -999_999_995_904.0, 810_001)])  # the longest text of a probability
@example([("7", 0.0, 1)])
def test_a_drawn_post_has_its_probability(ranked: list[tuple[str, float, int]]) -> None:
    ids = np.array(["a", "7", "ü/b"], dtype=object)
    posts = np.array([[ids.tolist().index(post) for post, *_ in ranked]], np.int32)
    scores = np.array([[score for _, score, _ in ranked]], np.float32)
    drawn_from = np.array([[size for *_, size in ranked]], np.int32)
    lines = ListEncoder(ids, ids).lines(np.array([1]), posts, scores, drawn_from)
    probability = {size: [float(f"{1 / size:.6g}")] if size else [] for *_, size in ranked}
    value = encode_list((post, score, *probability[size]) for post, score, size in ranked)
    assert list(lines.rows()) == [("7", value)]
    assert decode_stored_list(value).probabilities == {
        index: probability[size][0] for index, (*_, size) in enumerate(ranked) if size
    }


def test_a_block_takes_no_more_than_a_command_may() -> None:
    lists = random_lists(100, 20, 10_000)
    encoder = ListEncoder(np.arange(100), np.arange(20))
    blocks = cut_blocks([Listed(lists.rows, lists.posts, lists.scores)], encoder)
    sizes = [len(block.owners) for block in blocks]
    assert sum(sizes) == 100
    assert 1 <= max(sizes) <= 2


def test_sizes_are_rounded_up_as_the_allocator_does() -> None:
    sizes = [1, 8, 9, 64, 65, 128, 129, 161, 513, 640, 641, 1025]
    rounded = [8, 8, 16, 64, 80, 128, 160, 192, 640, 640, 768, 1280]
    assert memory._rounded_up(np.array(sizes)).tolist() == rounded
