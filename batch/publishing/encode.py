"""Lists as text, many at a time: from arrays of posts and scores to bytes, compiled.

A chunk becomes *lines*, `id<TAB>list<LF>` with each list as `contract.codec.encode_list`
writes it. Lines are what a run's checksum is taken over. `pack` cuts the same
bytes into commands as Redis reads them (RESP), so a list becomes text once.

The text of each post is made once, and that of every thousandth. What is copied
from those tables has a fixed width, one or two instructions; what is too much
is written over by what follows. Compiled functions that call each other stay in
one file: see batch/jit.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from batch.arrays import Bytes, Float32s, Int32s, Int64s
from batch.jit import jit
from batch.scoring.simd import copy_bytes
from contract.codec import SCORE_DECIMALS
from contract.errors import ModelError

GREATEST_SCORE = 1e12
"""Scores below have so few digits that those of their thousandths are what Python's own encoder chooses."""


_UNITS = 10**SCORE_DECIMALS
_TEN = np.uint64(10)
_LONGEST_ID = 20
_POST_WIDTH, _FRACTION_WIDTH = 32, 8
_LONGEST_PAIR = _LONGEST_ID + len("[,-1000000000000.000],")
_LONGEST_BESIDE_PAIRS = _LONGEST_ID + len("\t[]\n")
_LONGEST_BESIDE_TEXT = 2 * (_LONGEST_ID + len("$\r\n\r\n"))


@dataclass(frozen=True)
class Lines:
    """Some lists as text.

    Attributes
    ----------
    text
        Lines, one after the other.
    starts
        (lists + 1,) where each line starts, and where the last one ends.
    tabs
        (lists,) where the tab stands that ends each line's id.
    lengths
        (lists,) how many posts each list has.
    """

    text: Bytes
    starts: Int64s
    tabs: Int64s
    lengths: Int64s

    @property
    def value_bytes(self) -> Int64s:
        """(lists,) size of each list."""
        sizes: Int64s = self.starts[1:] - self.tabs - 2
        return sizes

    def rows(self) -> Iterator[tuple[str, str]]:
        """Yield (whose id, list) of each line."""
        for line in str(self.text.tobytes(), "ascii").splitlines():
            whose, _, value = line.partition("\t")
            yield whose, value


class Encoder:
    """Writes lists of the same posts.

    Parameters
    ----------
    post_ids
        (posts,) int64; lists name the posts by their places in here.
    """

    def __init__(self, post_ids: Int64s) -> None:
        self._posts, self._lengths = _table([f"[{post}," for post in post_ids.tolist()], _POST_WIDTH)

    def lines(self, ids: Int64s, posts: Int32s, scores: Float32s) -> Lines:
        """Write lists as text.

        Parameters
        ----------
        ids
            (lists,) whose lists they are.
        posts, scores
            (lists, n) places of posts, best first (-1 pads), and their scores.

        Raises
        ------
        ModelError
            A score is not finite or not below `GREATEST_SCORE`.
        """
        text = np.empty(len(ids) * bytes_per_line(posts.shape[1]) + _POST_WIDTH, dtype=np.uint8)
        starts = np.zeros(len(ids) + 1, dtype=np.int64)
        tabs, lengths = np.empty(len(ids), dtype=np.int64), np.empty(len(ids), dtype=np.int64)
        tables = self._posts, self._lengths, *_FRACTIONS
        end = _write_lines(ids, posts, scores, *tables, text, starts, tabs, lengths)
        if end < 0:
            raise ModelError("the model gives a score that is not finite; it is unusable")
        return Lines(text[:end], starts, tabs, lengths)


def bytes_per_line(n: int) -> int:
    """Tell the most memory that the line of a list of n posts takes."""
    return _LONGEST_BESIDE_PAIRS + n * _LONGEST_PAIR


def pack(lines: Lines, key_start: str) -> memoryview:
    """Pack lists into one MSET, as Redis reads it; `key_start` and a list's id make its key."""
    before = np.frombuffer(key_start.encode(), dtype=np.uint8)
    head = f"*{1 + 2 * len(lines.tabs)}\r\n$4\r\nMSET\r\n".encode()
    size = len(head) + len(lines.text) + len(lines.tabs) * (len(before) + _LONGEST_BESIDE_TEXT)
    command = np.empty(size, dtype=np.uint8)
    command[: len(head)] = np.frombuffer(head, dtype=np.uint8)
    end = _write_pairs(lines.text, lines.starts, lines.tabs, before, command, len(head))
    return command[:end].data


def _table(texts: list[str], width: int) -> tuple[Bytes, Int64s]:
    """Lay texts out side by side, each in so many bytes; return them and their lengths."""
    row = np.array(texts, dtype=f"S{width}")
    return row.view(np.uint8).reshape(len(texts), width), np.char.str_len(row).astype(np.int64)


def _fraction(thousandths: int) -> str:
    """Write what comes after a score's whole part."""
    digits = f".{thousandths:0{SCORE_DECIMALS}}".rstrip("0") if thousandths else ""
    return f"{digits}],"


_FRACTIONS = _table([_fraction(thousandths) for thousandths in range(_UNITS)], _FRACTION_WIDTH)


@jit
def _write_lines(
    ids: Int64s,
    posts: Int32s,
    scores: Float32s,
    post_texts: Bytes,
    post_lengths: Int64s,
    fractions: Bytes,
    fraction_lengths: Int64s,
    text: Bytes,
    starts: Int64s,
    tabs: Int64s,
    lengths: Int64s,
) -> int:
    """Write all lines; return where they end, or -1 when a score has no text."""
    at = 0
    for row in range(len(ids)):
        at = _write_number(text, at, ids[row])
        tabs[row] = at
        text[at], text[at + 1] = ord("\t"), ord("[")
        at += 2
        length = 0
        while length < posts.shape[1] and posts[row, length] >= 0:
            post, score = posts[row, length], np.float64(scores[row, length])
            if not abs(score) < GREATEST_SCORE:
                return -1
            copy_bytes(post_texts, post * _POST_WIDTH, text, at, _POST_WIDTH)
            at += post_lengths[post]
            thousandths = np.int64(np.rint(score * _UNITS))
            if thousandths < 0:
                text[at] = ord("-")
                at += 1
            whole, part = divmod(abs(thousandths), _UNITS)
            at = _write_number(text, at, whole)
            copy_bytes(fractions, part * _FRACTION_WIDTH, text, at, _FRACTION_WIDTH)
            at += fraction_lengths[part]
            length += 1
        lengths[row] = length
        at -= length > 0  # the last pair's comma
        text[at], text[at + 1] = ord("]"), ord("\n")
        at += 2
        starts[row + 1] = at
    return at


@jit
def _write_pairs(text: Bytes, starts: Int64s, tabs: Int64s, before: Bytes, command: Bytes, at: int) -> int:
    """Write a key and a value for each line, each with its length before it; return where they end."""
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
    """Write a whole number of 64 bits; return where it ends."""
    if number < 0:
        text[at] = ord("-")
        at += 1
    # Two steps, since the least number has no counterpart above zero.
    rest = np.uint64(number) if number >= 0 else np.uint64(-(number + 1)) + np.uint64(1)
    if rest < _TEN:
        text[at] = ord("0") + rest
        return at + 1
    end, greater = at + 1, rest // _TEN
    while greater:
        end += 1
        greater //= _TEN
    for place in range(end - 1, at - 1, -1):
        text[place] = ord("0") + rest % _TEN
        rest //= _TEN
    return end
