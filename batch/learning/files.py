"""The files of a saved model, and whether they are as the run wrote them; LightGBM is not needed for that."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

FOREST, COLUMNS, POSTS = "model.txt", "model.json", "posts.npz"


def read_forest(folder: Path) -> tuple[bytes, dict[str, Any]]:
    """Read the forest in LightGBM's format, and what encodes its columns.

    Raises
    ------
    OSError
        A file is missing or cannot be read.
    KeyError, ValueError, TypeError
        A file is not what the run wrote.
    """
    forest = (folder / FOREST).read_bytes()
    columns: dict[str, Any] = json.loads((folder / COLUMNS).read_text(encoding="utf-8"))
    if hashlib.sha256(forest).hexdigest() != columns[FOREST]:
        raise ValueError(f"{FOREST} is not what the run wrote")
    return forest, columns
