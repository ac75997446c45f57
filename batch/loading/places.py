"""Where the users and posts of a relation stand in the network's frames."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd


def places_of(frame: pd.DataFrame, ids: pd.Series[Any]) -> npt.NDArray[np.int64]:
    """Return in which row of the frame (index ascending) each id stands, -1 for none and for null."""
    known = frame.index.to_numpy()
    wanted = ids.fillna(known[0]).to_numpy(np.int64)
    at = np.searchsorted(known, wanted)
    at[at == known.size] = 0
    return np.where((known[at] == wanted) & ids.notna().to_numpy(), at, -1)
