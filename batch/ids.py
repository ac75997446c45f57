"""Arrays of ids, ascending: the row of an id is its position.

Ids of whole numbers are int64; uuids and text are an object array of str, in the order of their
characters' code points (Postgres may order text otherwise). Files have text of fixed width in its place.
"""

from __future__ import annotations

import string
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from batch.arrays import Bools, Int64s
from contract.ids import UNENCODED, Id, IdKind, encode_id

_PLAIN = f"{string.ascii_letters}{string.digits}._~-{UNENCODED}".encode()

Ids = npt.NDArray[Any]
"""(ids,) int64, or object array of str."""


def as_ids(values: Iterable[Id], kind: IdKind) -> Ids:
    """Return ids as an array, in the order given."""
    return np.array(list(values), np.int64 if kind is IdKind.NUMBER else object)


def rows_of_ids(known: Ids, wanted: Ids) -> Int64s:
    """Return the row of each wanted id among the known ids, which ascend; -1 for unknown ids."""
    if known.size == 0:
        return np.full(wanted.size, -1)
    rows = np.searchsorted(known, wanted).clip(max=known.size - 1)
    return np.where(known[rows] == wanted, rows, -1)


def among(ids: Ids, others: Ids) -> Bools:
    """Return which ids are among others, which ascend; none is if they are of another kind."""
    if ids.dtype != others.dtype:
        return np.zeros(ids.size, bool)
    if ids.dtype == np.int64:
        return rows_of_ids(others, ids) >= 0
    is_known = set(others.tolist()).__contains__  # several times as fast as a search among text
    return np.fromiter(map(is_known, ids.tolist()), bool, ids.size)


def drop_repeats(ids: Ids) -> Ids:
    """Return ascending ids, each once."""
    is_first = np.append(True, ids[1:] != ids[:-1])[: ids.size]
    return np.compress(is_first, ids)


def encode_ids(ids: Ids) -> list[str]:
    """Return the ids as keys have them."""
    values: list[Any] = ids.tolist()
    if ids.dtype != np.int64 and _is_plain("".join(values)):
        return values
    return [encode_id(each) for each in values]


def _is_plain(text: str) -> bool:
    """Return whether `encode_id` changes none of the characters; much faster than to encode."""
    return not text.encode().translate(None, _PLAIN)


def pack_ids(ids: Ids) -> npt.NDArray[Any]:
    """Return ids in the form of files: object arrays would need pickle."""
    return ids if ids.dtype == np.int64 else ids.astype("U")


def unpack_ids(packed: npt.NDArray[Any]) -> Ids:
    """Return ids that were packed by `pack_ids`."""
    return packed.astype(object) if packed.dtype.kind == "U" else packed.astype(np.int64, copy=False)
