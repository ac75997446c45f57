"""Where the next page begins, as an opaque, url-safe word.

A cursor names the run whose list is being paged, so that a run going live in
between changes nothing. A checksum over it and the user's id catches a cursor
that was altered or belongs to another user. It is no secret: who forges one
reaches only lists of the user they ask for, which they may ask for anyway.
"""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import dataclass

from contract.run_id import parse_run_id
from contract.settings import RECIPE_NAMES

PERSONAL = "personal"
POPULAR = "popular"

LONGEST_CURSOR = 128
CHECKSUM_BYTES = 6

_BODY = re.compile(rf"([^ ]+) ({PERSONAL}|{POPULAR}) ([0-9]{{1,9}})(?: ({'|'.join(RECIPE_NAMES)}))?")


@dataclass(frozen=True)
class Cursor:
    """A place in one list of one run.

    Attributes
    ----------
    run_id
        The run whose list is paged.
    source
        `personal` for the user's own list, `popular` for the run's popular list.
    offset
        Position in the list as stored, from 0, at which the page begins.
    recipe
        What the run learnt, so that it is known once another run is live. None if
        it is not known, as in cursors of earlier releases.
    """

    run_id: str
    source: str
    offset: int
    recipe: str | None = None


def encode_cursor(cursor: Cursor, user_id: int) -> str:
    """Encode a cursor for one user."""
    recipe = "" if cursor.recipe is None else f" {cursor.recipe}"
    body = f"{cursor.run_id} {cursor.source} {cursor.offset}{recipe}".encode()
    checksum = hashlib.blake2b(b"%d %s" % (user_id, body), digest_size=CHECKSUM_BYTES).digest()
    return base64.urlsafe_b64encode(checksum + body).decode().rstrip("=")


def decode_cursor(text: str, user_id: int) -> Cursor:
    """Decode what `encode_cursor` made for this user.

    Raises
    ------
    ValueError
        If it made no such cursor.
    """
    if len(text) > LONGEST_CURSOR:
        raise ValueError("too long for a cursor")
    padded = text + "=" * (-len(text) % 4)
    body = base64.b64decode(padded, altchars=b"-_", validate=True)[CHECKSUM_BYTES:].decode()
    match = _BODY.fullmatch(body)
    if match is None:
        raise ValueError("not a cursor")
    cursor = Cursor(match[1], match[2], int(match[3]), match[4])
    parse_run_id(cursor.run_id)
    # There is one spelling of each cursor, so comparing checks the checksum and all else.
    if encode_cursor(cursor, user_id) != text:
        raise ValueError("altered, or of another user")
    return cursor
