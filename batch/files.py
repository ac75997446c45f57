"""Files of runs: complete or absent once written, in folders that are removed even after a kill.

The files of a saved model are read and checked here, without LightGBM.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from batch.ids import Ids, among, pack_ids, unpack_ids
from contract.errors import InteractionStoreError, ModelError
from contract.ids import Id
from contract.settings import Settings


def write_atomically(path: Path, content: bytes) -> None:
    """Write to a file beside `path`, flush it to disk and rename it to `path`.

    Raises
    ------
    OSError
        The disk is full or the folder cannot be written; an earlier file at `path` is unchanged.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.unfinished")
    unfinished.write_bytes(content)
    move_into_place(unfinished, path)


def move_into_place(unfinished: Path, path: Path) -> Path:
    """Flush a complete file to disk, rename it to `path`, and return `path`.

    Raises
    ------
    OSError
        The file cannot be flushed or renamed.
    """
    with unfinished.open("rb") as file:
        os.fsync(file.fileno())
    return unfinished.replace(path)


PREFIX = "work-"
LOCK = "lock"


def store_folder(settings: Settings) -> Path:
    """Return the folder of the interaction stores; it has a subfolder for each run."""
    return Path(settings.night.store_dir or settings.night.model_dir)


def folder_error(
    path: Path, error: OSError, advice: str = "free space or set OVERNIGHT_STORE_DIR"
) -> InteractionStoreError:
    """Return the error for a folder or file that cannot be written."""
    return InteractionStoreError(f"cannot keep interactions in {path}: {error.strerror}; {advice}")


@contextmanager
def work_folder(parent: Path) -> Iterator[Path]:
    """Make a temporary folder under `parent`, and remove it at the end.

    The process holds a file lock on the folder. The lock ends with the process,
    so `remove_abandoned` recognises the folders of killed processes.

    Raises
    ------
    InteractionStoreError
        The folder cannot be made.
    """
    try:
        parent.mkdir(parents=True, exist_ok=True)
        folder, descriptor = _make_locked_folder(parent)
    except OSError as error:
        raise folder_error(parent, error, "set OVERNIGHT_STORE_DIR to a folder that can be written") from None
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(descriptor)


def _make_locked_folder(parent: Path) -> tuple[Path, int]:
    """Make a folder and lock it; retry if `remove_abandoned` removed it before it was locked."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
        with suppress(FileNotFoundError):
            descriptor = os.open(folder / LOCK, os.O_CREAT | os.O_RDWR)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if os.fstat(descriptor).st_nlink:
                return folder, descriptor
            os.close(descriptor)


def remove_abandoned(parent: Path) -> None:
    """Remove the work folders of ended processes in `parent` and in its subfolders."""
    for pattern in (f"{PREFIX}*", f"*/{PREFIX}*"):
        for folder in parent.glob(pattern):
            with suppress(OSError):
                _remove_if_abandoned(folder)


def _remove_if_abandoned(folder: Path) -> None:
    descriptor = os.open(folder / LOCK, os.O_CREAT | os.O_RDWR)  # a killed process may not have made it
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails while its process lives
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(descriptor)


FOREST, COLUMNS, POSTS, USERS = "model.txt", "model.json", "posts.npz", "users.npy"
REFRESH_STATE = "refresh.npz"


def nobody(ids: Ids) -> Id:
    """Return the id in the row of a forgotten user if no row before it has another user's id."""
    return int(np.iinfo(np.int64).min) if ids.dtype == np.int64 else ""


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


def encode_user_ids(user_ids: Ids) -> bytes:
    """Return the content of the file of user ids."""
    content = io.BytesIO()
    np.save(content, pack_ids(user_ids), allow_pickle=False)
    return content.getvalue()


def read_user_ids(folder: Path) -> Ids:
    """Read the ids of all users of a run's network, ascending. A run scores the first of them, or all.

    The row of a forgotten user has the id that `forget_ids` gave it.

    Raises
    ------
    ModelError
        The file is missing or is not what the run wrote.
    """
    try:
        return unpack_ids(np.load(folder / USERS, allow_pickle=False))
    except OSError as error:
        reason = f"{error.strerror}; run the night again"
        raise ModelError(f"cannot read the model in {folder}: {reason}") from None
    except ValueError as error:
        raise ModelError(f"the model in {folder} cannot be used: {error}; run the night again") from None


def forget_ids(known: Ids, forgotten: Ids) -> Ids:
    """Return ascending ids without those of forgotten users; every row keeps its position.

    The row of a forgotten user gets the id of the row before it, or `nobody`. The ids still ascend, and a
    search for an id finds the first of equal ones: that of the user who has it.
    """
    gone = among(known, np.unique(forgotten))
    rows = np.maximum.accumulate(np.where(gone, -1, np.arange(known.size)))
    return np.where(rows < 0, nobody(known), known[rows])


def forget_in_user_ids(path: Path, forgotten: Ids) -> None:
    """Replace the ids of forgotten users in a file of user ids.

    Raises
    ------
    ModelError, OSError
        The file cannot be read or written.
    """
    write_atomically(path, encode_user_ids(forget_ids(read_user_ids(path.parent), forgotten)))


def read_refresh_state(path: Path) -> dict[str, np.ndarray]:
    """Read the arrays of a run's refresh state.

    Raises
    ------
    OSError, KeyError, ValueError, TypeError, EOFError, zipfile.BadZipFile
        The file is missing or is not what the run wrote.
    """
    # Opened here, because numpy does not close a damaged file.
    with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        return dict(arrays)


def read_post_ids(folder: Path) -> Ids | None:
    """Read the ids of all posts of a run's network, ascending; None if its file cannot be read."""
    try:
        with (folder / REFRESH_STATE).open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return unpack_ids(arrays["post_ids"])
    except (OSError, KeyError, ValueError, TypeError, EOFError, zipfile.BadZipFile):
        return None


def encode_arrays(arrays: dict[str, np.ndarray]) -> bytes:
    """Return the content of a file of named arrays."""
    content = io.BytesIO()
    np.savez(content, **arrays)  # type: ignore[arg-type]
    return content.getvalue()
