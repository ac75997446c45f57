"""The users that a run knew, kept beside its model: who is not among them is new.

A file of its own, and a module of its own: it is read without loading what learns.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np

from batch.arrays import Int64s
from contract.errors import ModelError

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
