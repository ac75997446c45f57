"""Encode many lists at once: from arrays of posts and scores to bytes, in compiled code.

A chunk becomes lines `id<TAB>list<LF>`, each list as `contract.codec.encode_list` writes it. A run's
checksum is over these lines. `pack` puts the same bytes into a command of Redis's protocol (RESP), so
a list is encoded once.

The text of each post and of each thousandth is made once, in tables of a fixed width: a copy of fixed
width is one or two instructions, and the next write overwrites the excess. Compiled functions that call
each other stay in one file: see batch/jit.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from batch.arrays import Bytes, Float32s, Int32s, Int64s
from batch.jit import jit
from batch.scoring.simd import copy_bytes
from contract.codec import SCORE_DECIMALS
from contract.errors import ModelError

MAX_SCORE = 1e12
"""Below this, the digits of a score in thousandths are those that Python's JSON encoder chooses."""


_UNITS = 10**SCORE_DECIMALS
_TEN = np.uint64(10)
_MAX_ID = 20
_POST_WIDTH, _FRACTION_WIDTH = 32, 8
_MAX_PAIR = _MAX_ID + len("[,-1000000000000.000],")
_MAX_BESIDE_PAIRS = _MAX_ID + len("\t[]\n")
_MAX_BESIDE_TEXT = 2 * (_MAX_ID + len("$\r\n\r\n"))


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
        (lists,) position of the tab after each line's id.
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
        """Yield (owner's id, list) of each line."""
        for line in str(self.text.tobytes(), "ascii").splitlines():
            owner, _, value = line.partition("\t")
            yield owner, value


class ListEncoder:
    """Encode lists of posts.

    Parameters
    ----------
    post_ids
        (posts,) int64 ids; lists name posts by their row in this array.
    """

    def __init__(self, post_ids: Int64s) -> None:
        self._posts, self._lengths = _table([f"[{post}," for post in post_ids.tolist()], _POST_WIDTH)

    def lines(self, ids: Int64s, posts: Int32s, scores: Float32s) -> Lines:
        """Encode lists.

        Parameters
        ----------
        ids
            (lists,) ids of the owners.
        posts, scores
            (lists, n) rows of posts, best first, -1 pads; their scores.

        Raises
        ------
        ModelError
            A score is not finite or not below `MAX_SCORE`.
        """
        text = np.empty(len(ids) * bytes_per_line(posts.shape[1]) + _POST_WIDTH, dtype=np.uint8)
        starts = np.zeros(len(ids) + 1, dtype=np.int64)
        tabs, lengths = np.empty(len(ids), dtype=np.int64), np.empty(len(ids), dtype=np.int64)
        texts = _Texts(self._posts, self._lengths, *_FRACTIONS)
        end = _write_lines(ids, posts, scores, texts, _Buffers(text, starts, tabs, lengths))
        if end < 0:
            raise ModelError("the model gives a score that is not finite; it is unusable")
        return Lines(text[:end], starts, tabs, lengths)


def bytes_per_line(n: int) -> int:
    """Return the maximum bytes of the line of a list of n posts."""
    return _MAX_BESIDE_PAIRS + n * _MAX_PAIR


def pack(lines: Lines, key_start: str) -> memoryview:
    """Pack lists into one MSET in Redis's protocol; a list's key is `key_start` and its owner's id."""
    before = np.frombuffer(key_start.encode(), dtype=np.uint8)
    head = f"*{1 + 2 * len(lines.tabs)}\r\n$4\r\nMSET\r\n".encode()
    size = len(head) + len(lines.text) + len(lines.tabs) * (len(before) + _MAX_BESIDE_TEXT)
    command = np.empty(size, dtype=np.uint8)
    command[: len(head)] = np.frombuffer(head, dtype=np.uint8)
    buffers = _Buffers(lines.text, lines.starts, lines.tabs, lines.lengths)
    end = _write_pairs(buffers, before, command, len(head))
    return command[:end].data


def _table(texts: list[str], width: int) -> tuple[Bytes, Int64s]:
    """Return the texts as rows of `width` bytes, and their lengths."""
    row = np.array(texts, dtype=f"S{width}")
    return row.view(np.uint8).reshape(len(texts), width), np.char.str_len(row).astype(np.int64)


def _fraction(thousandths: int) -> str:
    """Return the text after a score's integer part."""
    digits = f".{thousandths:0{SCORE_DECIMALS}}".rstrip("0") if thousandths else ""
    return f"{digits}],"


_FRACTIONS = _table([_fraction(thousandths) for thousandths in range(_UNITS)], _FRACTION_WIDTH)


class _Texts(NamedTuple):
    """Texts of posts and of thousandths: (count, width) bytes and (count,) lengths of each."""

    posts: Bytes
    post_lengths: Int64s
    fractions: Bytes
    fraction_lengths: Int64s


class _Buffers(NamedTuple):
    """Arrays that lines are written into, see `Lines`."""

    text: Bytes
    starts: Int64s
    tabs: Int64s
    lengths: Int64s


@jit
def _write_lines(ids: Int64s, posts: Int32s, scores: Float32s, texts: _Texts, lines: _Buffers) -> int:
    """Write all lines; return their end, or -1 if a score is not finite or too large."""
    text, starts, tabs, lengths = lines.text, lines.starts, lines.tabs, lines.lengths
    at = 0
    for row in range(len(ids)):
        at = _write_number(text, at, ids[row])
        tabs[row] = at
        text[at], text[at + 1] = ord("\t"), ord("[")
        at += 2
        length = 0
        while length < posts.shape[1] and posts[row, length] >= 0:
            post, score = posts[row, length], np.float64(scores[row, length])
            if not abs(score) < MAX_SCORE:
                return -1
            copy_bytes(texts.posts, post * _POST_WIDTH, text, at, _POST_WIDTH)
            at += texts.post_lengths[post]
            thousandths = np.int64(np.rint(score * _UNITS))
            if thousandths < 0:
                text[at] = ord("-")
                at += 1
            whole, part = divmod(abs(thousandths), _UNITS)
            at = _write_number(text, at, whole)
            copy_bytes(texts.fractions, part * _FRACTION_WIDTH, text, at, _FRACTION_WIDTH)
            at += texts.fraction_lengths[part]
            length += 1
        lengths[row] = length
        at -= length > 0  # the last pair's comma
        text[at], text[at + 1] = ord("]"), ord("\n")
        at += 2
        starts[row + 1] = at
    return at


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
