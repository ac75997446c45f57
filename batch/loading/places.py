"""Rows of ids: where the users and posts of a relation stand in the network's frames."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from batch.arrays import Int64s


def rows_of(known: Int64s, wanted: Int64s) -> Int64s:
    """Return the row of each wanted id among the known ids, which ascend; -1 for none."""
    if known.size == 0:
        return np.full(wanted.size, -1)
    at = np.searchsorted(known, wanted).clip(max=known.size - 1)
    return np.where(known[at] == wanted, at, -1)


def places_of(frame: pd.DataFrame, ids: pd.Series[Any]) -> Int64s:
    """Return in which row of the frame (index ascending) each id stands, -1 for none and for null."""
    known = frame.index.to_numpy()
    rows = rows_of(known, ids.fillna(known[0]).to_numpy(np.int64))
    return np.where(ids.notna().to_numpy(), rows, -1)
