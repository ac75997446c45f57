"""The files of a saved model, read and checked without LightGBM."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np

from batch.arrays import Int64s
from contract.errors import ModelError

FOREST, COLUMNS, POSTS, USERS = "model.txt", "model.json", "posts.npz", "users.npy"


def read_forest(folder: Path) -> tuple[bytes, dict[str, Any]]:
    """Read the forest in LightGBM's format, and the encoding of its columns.

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


def encode_ids(user_ids: Int64s) -> bytes:
    """Return the content of the file of user ids."""
    content = io.BytesIO()
    np.save(content, user_ids, allow_pickle=False)
    return content.getvalue()


def read_user_ids(folder: Path) -> Int64s:
    """Read the ids of all users of a run's network, ascending. A run scores the first of them, or all.

    Raises
    ------
    ModelError
        The file is missing or is not what the run wrote.
    """
    try:
        user_ids = np.load(folder / USERS, allow_pickle=False)
    except OSError as error:
        reason = f"{error.strerror}; run the night again"
        raise ModelError(f"cannot read the model in {folder}: {reason}") from None
    except ValueError as error:
        raise ModelError(f"the model in {folder} cannot be used: {error}; run the night again") from None
    return np.asarray(user_ids, np.int64)
