"""The files of a saved model, and whether they are as the run wrote them; LightGBM is not needed for that."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np

from batch.arrays import Int64s
from contract.errors import ModelError

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


USERS = "users.npy"


def encoded(user_ids: Int64s) -> bytes:
    """Return the content of the file that keeps users."""
    content = io.BytesIO()
    np.save(content, user_ids, allow_pickle=False)
    return content.getvalue()


def users_of_run(folder: Path) -> Int64s:
    """Read the ids of all users that a run knew, ascending; the first of them were scored, mostly all.

    Raises
    ------
    ModelError
        The file is missing or is none of ours.
    """
    try:
        user_ids = np.load(folder / USERS, allow_pickle=False)
    except OSError as error:
        reason = f"{error.strerror}; run the night again"
        raise ModelError(f"cannot read the model in {folder}: {reason}") from None
    except ValueError as error:
        raise ModelError(f"the model in {folder} cannot be used: {error}; run the night again") from None
    return np.asarray(user_ids, np.int64)
