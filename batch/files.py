"""Write files so that they are either complete or absent."""

from __future__ import annotations

import os
from pathlib import Path


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
