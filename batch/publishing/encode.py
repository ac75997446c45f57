"""Encode many lists at once: from arrays of posts and scores to bytes, in compiled code.

A chunk becomes lines `id<TAB>list<LF>`, the id as it stands in keys, the list as
`contract.codec.encode_list` writes it. A run's checksum is over these lines. `pack` puts the same bytes
into a command of Redis's protocol (RESP), so a list is encoded once.

The text of each post and of each thousandth is made once. It is copied in pieces of a fixed width: such
a copy is one or two instructions, and the next write overwrites the excess. Compiled functions that call
each other stay in one file: see batch/jit.py.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from batch.arrays import Bytes, Float32s, Int32s, Int64s
from batch.ids import Ids, encode_ids
from batch.jit import jit
from batch.scoring.simd import copy_bytes
from contract.codec import SCORE_DECIMALS
from contract.errors import ModelError
from contract.ids import MAX_LENGTH

MAX_SCORE = 1e12
"""Below this, the digits of a score in thousandths are those that Python's JSON encoder chooses."""


_UNITS = 10**SCORE_DECIMALS
_TEN = np.uint64(10)
_MAX_NUMBER = 20
_PIECE, _FRACTION_WIDTH = 32, 8
_MIN_POST_BYTES = len("[,") + _MAX_NUMBER
"""Whole numbers are taken to be of the greatest length, so that commands do not depend on their digits."""
_MAX_ENCODED_ID = 12 * MAX_LENGTH
"""A character takes up to four bytes of UTF-8, each of them three characters when it is encoded."""
_MAX_SCORE_TEXT = len("-1000000000000.000],")
PROBABILITY_DIGITS = 6
"""Significant digits of the probability of an explored place."""
_PROBABILITY_WIDTH = 16
"""Longest text is `,1.23457e-06],`."""
_MAX_BESIDE_PAIRS = len("\t[]\n")
_MAX_BESIDE_TEXT = 2 * (_MAX_NUMBER + len("$\r\n\r\n"))


class Texts(NamedTuple):
    """ASCII texts one after the other.

    Attributes
    ----------
    text
        All texts, and `_PIECE` bytes more.
    starts
        (texts + 1,) start of each text, and end of the last one.
    """

    text: Bytes
    starts: Int64s

    @classmethod
    def join(cls, texts: list[str]) -> Texts:
        """Join texts."""
        joined = bytearray("".join(texts).encode("ascii") + bytes(_PIECE))  # not read-only
        starts = np.zeros(len(texts) + 1, dtype=np.int64)
        np.cumsum(np.fromiter(map(len, texts), np.int64, len(texts)), out=starts[1:])
        return cls(np.frombuffer(joined, np.uint8), starts)

    @property
    def lengths(self) -> Int64s:
        """(texts,) length of each text."""
        return np.diff(self.starts)


@dataclass(frozen=True)
class Lines:
    """Encoded lists.

    Attributes
    ----------
    text
        The lines.
    starts
        (lists + 1,) start of each line, and end of the last one.
    tabs
        (lists,) position of the tab after each line's encoded id.
    lengths
        (lists,) number of posts in each list.
    """

    text: Bytes
    starts: Int64s
    tabs: Int64s
    lengths: Int64s

    @property
    def value_bytes(self) -> Int64s:
        """(lists,) bytes of each list."""
        sizes: Int64s = self.starts[1:] - self.tabs - 2
        return sizes

    def rows(self) -> Iterator[tuple[str, str]]:
        """Yield (owner's encoded id, list) of each line."""
        for line in str(self.text.tobytes(), "ascii").splitlines():
            owner, _, value = line.partition("\t")
            yield owner, value


class ListEncoder:
    """Encode lists of posts that belong to users or posts.

    Parameters
    ----------
    post_ids
        Ids of all posts that may be in a list; lists name posts by their rows in this array.
    """

    def __init__(self, post_ids: Ids) -> None:
        self._posts = Texts.join([f"[{json.dumps(post)}," for post in post_ids.tolist()])
        self._longest = np.sort(np.maximum(self._posts.lengths, _MIN_POST_BYTES))[::-1]
        self._max_post_bytes = int(self._longest.max(initial=0))

    def lines(self, owners: Ids, posts: Int32s, scores: Float32s, drawn_from: Int32s | None = None) -> Lines:
        """Encode lists.

        Parameters
        ----------
        owners
            (lists,) ids of the owners.
        posts, scores
            (lists, n) rows of posts, best first, -1 pads; their scores.
        drawn_from
            (lists, n) as in `scoring.chunk.Lists`; a post that was drawn has its probability as third value.

        Raises
        ------
        ModelError
            A score is not finite or not below `MAX_SCORE`.
        """
        ids = _encode_owners(owners)
        pairs = posts.shape[1] * (self._max_post_bytes + _MAX_SCORE_TEXT)
        if drawn_from is not None:
            pairs += posts.shape[1] * _PROBABILITY_WIDTH
        text = np.empty(ids.text.size + len(owners) * (_MAX_BESIDE_PAIRS + pairs), dtype=np.uint8)
        starts = np.zeros(len(owners) + 1, dtype=np.int64)
        tabs, lengths = np.empty(len(owners), dtype=np.int64), np.empty(len(owners), dtype=np.int64)
        buffers = _Buffers(text, starts, tabs, lengths)
        probabilities, chances = _encode_probabilities(drawn_from)
        words = _Words(ids, self._posts, _FRACTIONS, probabilities)
        end = _write_lines(posts, scores, chances, words, buffers)
        if end < 0:
            raise ModelError("the model gives a score that is not finite; it is unusable")
        return Lines(text[:end], starts, tabs, lengths)

    def bytes_per_line(self, owners: Ids, n: int) -> int:
        """Return the maximum bytes of the line of a list of n distinct posts, without probabilities."""
        owner = _MAX_NUMBER if owners.dtype == np.int64 else _MAX_ENCODED_ID
        posts = int(self._longest[:n].sum()) + max(0, n - self._longest.size) * _MIN_POST_BYTES
        return owner + _MAX_BESIDE_PAIRS + posts + n * _MAX_SCORE_TEXT


def pack(lines: Lines, key_start: str) -> memoryview:
    """Pack lists into one MSET in Redis's protocol; a list's key is `key_start` and its owner."""
    before = np.frombuffer(key_start.encode(), dtype=np.uint8)
    head = f"*{1 + 2 * len(lines.tabs)}\r\n$4\r\nMSET\r\n".encode()
    size = len(head) + len(lines.text) + len(lines.tabs) * (len(before) + _MAX_BESIDE_TEXT)
    command = np.empty(size, dtype=np.uint8)
    command[: len(head)] = np.frombuffer(head, dtype=np.uint8)
    buffers = _Buffers(lines.text, lines.starts, lines.tabs, lines.lengths)
    end = _write_pairs(buffers, before, command, len(head))
    return command[:end].data


def _encode_owners(ids: Ids) -> Texts:
    if ids.dtype != np.int64:
        return Texts.join(encode_ids(ids))
    text, starts = np.empty(len(ids) * _MAX_NUMBER + _PIECE, np.uint8), np.zeros(len(ids) + 1, np.int64)
    _write_numbers(ids, text, starts)
    return Texts(text, starts)


def _encode_probabilities(drawn_from: Int32s | None) -> tuple[Texts, Int32s]:
    """Return the texts after a score, and (lists, n) the index of each post's text; the first is for none."""
    if drawn_from is None:
        return _NO_TEXTS, _NO_CHANCES
    drawn, chances = drawn_from > 0, np.zeros(drawn_from.shape, np.int32)
    sizes, index = np.unique(drawn_from[drawn], return_inverse=True)
    chances[drawn] = index + 1
    texts = ["", *(f",{json.dumps(probability_of(size))}]," for size in sizes.tolist())]
    return Texts.join(texts), chances


def probability_of(size: int) -> float:
    """Return the probability of each of so many posts, rounded."""
    return float(f"{1 / size:.{PROBABILITY_DIGITS}g}")


def _fraction(thousandths: int) -> str:
    """Return the text after a score's integer part."""
    digits = f".{thousandths:0{SCORE_DECIMALS}}".rstrip("0") if thousandths else ""
    return f"{digits}],"


_FRACTIONS = Texts.join([_fraction(thousandths) for thousandths in range(_UNITS)])


_NO_TEXTS, _NO_CHANCES = Texts.join([]), np.empty((0, 0), np.int32)


class _Words(NamedTuple):
    """Texts of the lists' owners, of posts, of thousandths and of probabilities."""

    owners: Texts
    posts: Texts
    fractions: Texts
    probabilities: Texts


class _Buffers(NamedTuple):
    """Arrays that lines are written into, see `Lines`."""

    text: Bytes
    starts: Int64s
    tabs: Int64s
    lengths: Int64s


@jit
def _write_lines(posts: Int32s, scores: Float32s, chances: Int32s, words: _Words, lines: _Buffers) -> int:
    """Write all lines; return their end, or -1 if a score is not finite or too large."""
    owners, listed, fractions, probabilities = words
    text, starts, tabs, lengths = lines.text, lines.starts, lines.tabs, lines.lengths
    at = 0
    for row in range(len(posts)):
        id_length = owners.starts[row + 1] - owners.starts[row]
        copy_bytes(owners.text, owners.starts[row], text, at, id_length)
        at += id_length
        tabs[row] = at
        text[at], text[at + 1] = ord("\t"), ord("[")
        at += 2
        length = 0
        while length < posts.shape[1] and posts[row, length] >= 0:
            post, score = posts[row, length], np.float64(scores[row, length])
            if not abs(score) < MAX_SCORE:
                return -1
            start, end = listed.starts[post], listed.starts[post + 1]
            copy_bytes(listed.text, start, text, at, _PIECE)
            at += _PIECE
            while start + _PIECE < end:
                start += _PIECE
                copy_bytes(listed.text, start, text, at, _PIECE)
                at += _PIECE
            at += end - start - _PIECE
            thousandths = np.int64(np.rint(score * _UNITS))
            if thousandths < 0:
                text[at] = ord("-")
                at += 1
            whole, part = divmod(abs(thousandths), _UNITS)
            at = _write_number(text, at, whole)
            copy_bytes(fractions.text, fractions.starts[part], text, at, _FRACTION_WIDTH)
            at += fractions.starts[part + 1] - fractions.starts[part]
            if len(chances) and chances[row, length] > 0:
                chance = chances[row, length]
                at -= 2  # the bracket and the comma
                copy_bytes(probabilities.text, probabilities.starts[chance], text, at, _PROBABILITY_WIDTH)
                at += probabilities.starts[chance + 1] - probabilities.starts[chance]
            length += 1
        lengths[row] = length
        at -= length > 0  # the last pair's comma
        text[at], text[at + 1] = ord("]"), ord("\n")
        at += 2
        starts[row + 1] = at
    return at


@jit
def _write_numbers(numbers: Int64s, text: Bytes, starts: Int64s) -> None:
    """Write numbers one after the other; `starts` gets their starts and the last one's end."""
    for row in range(len(numbers)):
        starts[row + 1] = _write_number(text, starts[row], numbers[row])


@jit
def _write_pairs(lines: _Buffers, before: Bytes, command: Bytes, at: int) -> int:
    """Write key and value of each line, each after its length; return their end."""
    text, starts, tabs = lines.text, lines.starts, lines.tabs
    for row in range(len(tabs)):
        id_length = tabs[row] - starts[row]
        at = _write_length(command, at, len(before) + id_length)
        copy_bytes(before, 0, command, at, len(before))
        at += len(before)
        copy_bytes(text, starts[row], command, at, id_length)
        at = _end_line(command, at + id_length)
        length = starts[row + 1] - tabs[row] - 2
        at = _write_length(command, at, length)
        copy_bytes(text, tabs[row] + 1, command, at, length)
        at = _end_line(command, at + length)
    return at


@jit
def _write_length(command: Bytes, at: int, length: int) -> int:
    command[at] = ord("$")
    return _end_line(command, _write_number(command, at + 1, length))


@jit
def _end_line(command: Bytes, at: int) -> int:
    command[at], command[at + 1] = ord("\r"), ord("\n")
    return at + 2


@jit
def _write_number(text: Bytes, at: int, number: int) -> int:
    """Write a 64-bit integer; return its end."""
    if number < 0:
        text[at] = ord("-")
        at += 1
    # In two steps: the smallest int64 has no positive counterpart.
    rest = np.uint64(number) if number >= 0 else np.uint64(-(number + 1)) + np.uint64(1)
    if rest < _TEN:
        text[at] = ord("0") + rest
        return at + 1
    end, remaining = at + 1, rest // _TEN
    while remaining:
        end += 1
        remaining //= _TEN
    for index in range(end - 1, at - 1, -1):
        text[index] = ord("0") + rest % _TEN
        rest //= _TEN
    return end
