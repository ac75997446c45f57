"""Cursors: where the next page starts, as an opaque, URL-safe string.

A cursor names the run whose list is paged, so that pages stay consistent when
another run goes live. A checksum over the cursor and the user id detects a
cursor that was altered or belongs to another user. The checksum is not a
secret: a forged cursor gives access only to lists of the requested user, which
the client may request anyway.
"""

from __future__ import annotations

import base64
import hashlib
import re
from typing import NamedTuple

from contract.ids import Id
from contract.run_id import parse_run_id
from contract.score_kind import PERSONAL, POPULAR
from contract.settings import RECIPE_NAMES

MAX_CURSOR_LENGTH = 1024
"""A segment of 128 characters takes up to 512 bytes, in base64 a third more."""

CHECKSUM_BYTES = 6

_BODY = re.compile(
    rf"([^ ]+) ({PERSONAL}|{POPULAR}) ([0-9]{{1,9}})(?: ({'|'.join(RECIPE_NAMES)}))?(?: segment=(.*))?"
)


class Cursor(NamedTuple):
    """A position in one list of one run.

    Attributes
    ----------
    run_id
        The run whose list is paged.
    source
        `personal` for the user's own list, `popular` for the run's popular list.
    offset
        Index in the stored list, from 0, of the first post of the page.
    recipe
        The recipe of the run, which is needed after another run went live. None if
        not known, as in cursors of earlier releases.
    segment
        The segment whose popular list is paged; None if it is another list.
    """

    run_id: str
    source: str
    offset: int
    recipe: str | None = None
    segment: str | None = None


def encode_cursor(cursor: Cursor, user_id: Id) -> str:
    """Encode a cursor for one user."""
    recipe = "" if cursor.recipe is None else f" {cursor.recipe}"
    segment = "" if cursor.segment is None else f" segment={cursor.segment}"
    body = f"{cursor.run_id} {cursor.source} {cursor.offset}{recipe}{segment}".encode()
    checksum = hashlib.blake2b(b"%s %s" % (str(user_id).encode(), body), digest_size=CHECKSUM_BYTES).digest()
    return base64.urlsafe_b64encode(checksum + body).decode().rstrip("=")


def decode_cursor(text: str, user_id: Id) -> Cursor:
    """Decode a cursor that `encode_cursor` made for this user.

    Raises
    ------
    ValueError
        If the text is anything else.
    """
    if len(text) > MAX_CURSOR_LENGTH:
        raise ValueError("too long for a cursor")
    padded = text + "=" * (-len(text) % 4)
    body = base64.b64decode(padded, altchars=b"-_", validate=True)[CHECKSUM_BYTES:].decode()
    match = _BODY.fullmatch(body)
    if match is None:
        raise ValueError("not a cursor")
    cursor = Cursor(match[1], match[2], int(match[3]), match[4], match[5])
    parse_run_id(cursor.run_id)
    # Each cursor has exactly one encoding, so this compares the checksum and everything else.
    if encode_cursor(cursor, user_id) != text:
        raise ValueError("altered, or of another user")
    return cursor
