from __future__ import annotations

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st
from redis.connection import Connection

from batch.ids import as_ids
from batch.publishing import memory
from batch.publishing.encode import ListEncoder, pack
from batch.publishing.list_tasks import Listed, ListTarget, cut_blocks
from batch.publishing.sender import Fence
from contract.codec import decode_stored_list, encode_list
from contract.ids import MAX_LENGTH, Id, IdKind, encode_id
from tests.support.random_lists import random_lists

MAX_FLOAT = 999_999_995_904.0
"""The greatest float32 below `GREATEST_SCORE`."""
NUMBERS = st.integers(-(2**63), 2**63 - 1)
UUIDS = st.uuids().map(str)
TEXTS = st.text(st.characters(exclude_categories=("Cc", "Cs")), min_size=1, max_size=MAX_LENGTH)
IDS = {IdKind.NUMBER: NUMBERS, IdKind.UUID: UUIDS, IdKind.TEXT: TEXTS}
SCORES = st.one_of(
    st.floats(-MAX_FLOAT, MAX_FLOAT, width=32),
    st.integers(-(10**6), 10**6).map(float),
    st.integers(-3_000, 3_000).map(lambda thousandths: float(np.float32(thousandths / 1000))),
)
Owned = list[tuple[Id, list[tuple[Id, float]]]]


def lists_of(kinds: tuple[IdKind, IdKind]) -> st.SearchStrategy[tuple[tuple[IdKind, IdKind], Owned]]:
    owner, post = (IDS[kind] for kind in kinds)
    ranked = st.lists(st.tuples(post, SCORES), max_size=5, unique_by=lambda pair: pair[0])
    return st.tuples(st.just(kinds), st.lists(st.tuples(owner, ranked), min_size=1, max_size=5))


@given(st.tuples(st.sampled_from(IdKind), st.sampled_from(IdKind)).flatmap(lists_of))
@example(
    (
        (IdKind.NUMBER, IdKind.NUMBER),
        [(-(2**63), [(2**63 - 1, -0.0004), (0, 999_999_995_904.0), (-7, 0.0005), (10, -12.0)])],
    )
)
@example(
    (
        (IdKind.NUMBER, IdKind.NUMBER),
        [(7, []), (10, [(100, 0.1), (-(2**63), -0.01), (3, 0.001), (9, -999.999)])],
    )
)
@example(((IdKind.TEXT, IdKind.TEXT), [("\U0001f600" * 128, [('"\\/ü%', 1.5), ("\U0001f600" * 128, 0.25)])]))
def test_lists_written_together_are_those_that_the_codec_writes_one_by_one(
    case: tuple[tuple[IdKind, IdKind], Owned],
) -> None:
    (owner_kind, post_kind), lists = case
    n = 5
    known = sorted({post for _, ranked in lists for post, _ in ranked})
    posts, scores = np.full((len(lists), n), -1, np.int32), np.full((len(lists), n), np.nan, np.float32)
    for row, (_, ranked) in enumerate(lists):
        posts[row, : len(ranked)] = [known.index(post) for post, _ in ranked]
        scores[row, : len(ranked)] = [score for _, score in ranked]
    owners = as_ids([owner for owner, _ in lists], owner_kind)
    encoder = ListEncoder(as_ids(known, post_kind))
    lines = encoder.lines(owners, posts, scores)
    expected = [(encode_id(owner), encode_list(ranked)) for owner, ranked in lists]
    assert list(lines.rows()) == expected
    text = "".join(f"{owner}\t{value}\n" for owner, value in expected)
    assert lines.text.tobytes() == text.encode()
    assert max(map(len, text.splitlines(keepends=True))) <= encoder.bytes_per_line(owners, n)
    assert lines.lengths.tolist() == [len(ranked) for _, ranked in lists]
    assert lines.value_bytes.tolist() == [len(value) for _, value in expected]
    words = ["MSET", *(word for owner, value in expected for word in ("p:" + owner, value))]
    assert bytes(pack(lines, "p:")) == b"".join(Connection().pack_command(*words))


def target(post_ids: np.ndarray, part: int = 2_000) -> ListTarget:
    return ListTarget("p:", Fence("p:writing", "token"), ListEncoder(post_ids), part)


def test_no_block_has_lists_of_two_parts() -> None:
    lists = random_lists(1_000, 20, 5)
    chunk = Listed(np.arange(1_000), lists.posts, lists.scores)
    blocks = list(cut_blocks([chunk], target(np.arange(20), 300), 600))
    assert [at for at, _ in blocks] == [600, 900, 1_200, 1_500]
    assert [len(block.owners) for _, block in blocks] == [300, 300, 300, 100]
    assert np.concatenate([block.owners for _, block in blocks]).tolist() == list(range(1_000))


def test_commands_of_posts_with_few_long_ids_are_about_as_large_as_those_of_others() -> None:
    lists = random_lists(2_000, 200, 50)
    block = [Listed(np.arange(2_000), lists.posts, lists.scores)]
    short = np.array([f"post-{number:04}" for number in range(200)], dtype=object)
    long = short.copy()
    long[7] = "\U0001f600" * 128
    blocks = [len(list(cut_blocks(block, target(posts), 0))) for posts in (short, long)]
    assert blocks[0] <= blocks[1] <= 2 * blocks[0]


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
    lines = ListEncoder(ids).lines(ids[[1]], posts, scores, drawn_from)
    probability = {size: [float(f"{1 / size:.6g}")] if size else [] for *_, size in ranked}
    value = encode_list((post, score, *probability[size]) for post, score, size in ranked)
    assert list(lines.rows()) == [("7", value)]
    assert decode_stored_list(value).probabilities == {
        index: probability[size][0] for index, (*_, size) in enumerate(ranked) if size
    }


def test_a_block_takes_no_more_than_a_command_may() -> None:
    lists = random_lists(100, 20, 10_000)
    blocks = cut_blocks([Listed(np.arange(100), lists.posts, lists.scores)], target(np.arange(20)), 0)
    sizes = [len(block.owners) for _, block in blocks]
    assert sum(sizes) == 100
    assert 1 <= max(sizes) <= 2


def test_sizes_are_rounded_up_as_the_allocator_does() -> None:
    sizes = [1, 8, 9, 64, 65, 128, 129, 161, 513, 640, 641, 1025]
    rounded = [8, 8, 16, 64, 80, 128, 160, 192, 640, 640, 768, 1280]
    assert memory._rounded_up(np.array(sizes)).tolist() == rounded
