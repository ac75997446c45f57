"""Where stores are kept, and folders for temporary files, which are removed even after a kill."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from contract.errors import InteractionStoreError
from contract.settings import Settings

PREFIX = "work-"
LOCK = "lock"


def store_folder(settings: Settings) -> Path:
    """Return the folder of the runs' interaction stores, which has a folder for each run."""
    return Path(settings.night.store_dir or settings.night.model_dir)


@contextmanager
def work_folder(parent: Path) -> Iterator[Path]:
    """Make a folder of this process alone under `parent`, and remove it at the end.

    The process holds a file lock on it, which ends with the process: so
    `remove_abandoned` can tell a folder in use from one whose process was killed.

    Raises
    ------
    InteractionStoreError
        The folder cannot be made.
    """
    try:
        parent.mkdir(parents=True, exist_ok=True)
        folder, descriptor = _make_locked_folder(parent)
    except OSError as error:
        reason = f"{error.strerror}; set OVERNIGHT_STORE_DIR to a folder that can be written"
        raise InteractionStoreError(f"cannot keep interactions in {parent}: {reason}") from None
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(descriptor)


def _make_locked_folder(parent: Path) -> tuple[Path, int]:
    """Make a folder and lock it; again, if `remove_abandoned` has taken it before it was locked."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
        with suppress(FileNotFoundError):
            descriptor = os.open(folder / LOCK, os.O_CREAT | os.O_RDWR)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if os.fstat(descriptor).st_nlink:
                return folder, descriptor
            os.close(descriptor)


def remove_abandoned(parent: Path) -> None:
    """Remove the work folders directly under `parent` and under its subfolders whose process has ended."""
    for pattern in (f"{PREFIX}*", f"*/{PREFIX}*"):
        for folder in parent.glob(pattern):
            with suppress(OSError):
                _remove_if_abandoned(folder)


def _remove_if_abandoned(folder: Path) -> None:
    descriptor = os.open(folder / LOCK, os.O_CREAT | os.O_RDWR)  # its process may have died before
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails while its process lives
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(descriptor)
