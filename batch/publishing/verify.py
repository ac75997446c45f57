"""Reads what was written back, before it may go live."""

from __future__ import annotations

import hashlib
from itertools import chain

import redis

from batch.publishing.store import blocks, get_many
from batch.publishing.write import Written
from contract.errors import StoreError

KEYS_AT_A_TIME = 1_000
ADVICE = "is something else writing, evicting, or was Redis restarted? Run again"


def verify(client: redis.Redis, written: Written, expected: int) -> None:
    """Check that every user, or post, has a list, and that all lists read back are those written.

    Raises
    ------
    StoreError
        Something is missing or differs; the run must not go live.
    """
    if written.lists != expected:
        raise StoreError(f"{written.lists} lists were written, {expected} were due; run again")
    found, missing, some = hashlib.sha256(), 0, ""
    for block in blocks(chain.from_iterable(ids.tolist() for ids in written.ids), KEYS_AT_A_TIME):
        names = [f"{written.key_start}{whose}" for whose in block]
        values = get_many(client, names)
        gone = [name for name, value in zip(names, values, strict=True) if value is None]
        missing, some = missing + len(gone), some or "".join(gone[:1])
        lines = (f"{whose}\t{value}\n" for whose, value in zip(block, values, strict=True))
        found.update("".join(lines).encode())
    if missing:
        raise StoreError(f"{missing} of {expected} lists are gone, {some} among them: {ADVICE}")
    if found.digest() != written.checksum.digest():
        raise StoreError(f"lists under {written.key_start} do not read back as written: {ADVICE}")
