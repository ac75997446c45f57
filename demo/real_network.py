"""Real networks in folders of files: detect a folder's format and load it."""

from __future__ import annotations

from datetime import datetime
from enum import Enum
from pathlib import Path

from contract import columns
from contract.errors import EXIT_USAGE, OvernightError

TABLES = (columns.USERS, columns.POSTS, columns.INTERACTIONS)
ENDINGS = (".parquet", ".csv", ".csv.gz")
FIRST_NETWORK_ONLY = (
    "post_features.parquet",
    "history_users.csv.gz",
    "views_evening.csv.gz",
    "liked_views.parquet",
)
"""Files that only the format of demo/course_files.py has."""


class FormatError(OvernightError):
    """Raised when a folder holds no network in a known format."""

    exit_code = EXIT_USAGE


class Format(Enum):
    """Format of a folder of files.

    `VIEWS` is one file for each of the three views (demo/view_files.py), `FIRST_NETWORK`
    the six files of the network that Overnight was first made for (demo/course_files.py).
    """

    VIEWS = "views"
    FIRST_NETWORK = "first network"


def detect_format(folder: Path) -> Format:
    """Detect a folder's format by the names of its files.

    Raises
    ------
    FormatError
        If the folder does not exist or is in no known format; lists the file names of both.
    """
    if not folder.is_dir():
        raise FormatError(f"there is no folder {folder}")
    if _find_files(folder, columns.INTERACTIONS):
        for table in TABLES:
            find_file(folder, table)
        return Format.VIEWS
    if any((folder / name).exists() for name in FIRST_NETWORK_ONLY):
        return Format.FIRST_NETWORK
    endings = ", ".join(ENDINGS)
    raise FormatError(
        f"{folder} holds no network: neither the files {', '.join(TABLES)} (each with one of the endings "
        f"{endings}), nor those of the first network (users.csv.gz, posts.csv.gz, "
        f"{', '.join(FIRST_NETWORK_ONLY)})"
    )


def find_file(folder: Path, table: str) -> Path:
    """Return the one file of a table, with any of ENDINGS.

    Raises
    ------
    FormatError
        If there is none, or more than one.
    """
    files = _find_files(folder, table)
    if not files:
        names = " or ".join(f"{table}{ending}" for ending in ENDINGS)
        raise FormatError(f"{folder} has no file {names}")
    if len(files) > 1:
        raise FormatError(f"{folder} has {' and '.join(file.name for file in files)}; keep one of them there")
    return files[0]


def load_network(database_url: str, folder: Path, until: datetime | None = None) -> int:
    """Replace the network in the database by the one whose files are in `folder`.

    With `until`, all times are shifted by whole days, so that the last interaction is less than a day before.
    Returns by how many days they are later.

    Raises
    ------
    FormatError
        If the folder is in no known format.
    NetworkError
        If a file is invalid. The previous network stays.
    """
    # pandas and Arrow are imported only where files are read.
    from demo import course_files, view_files

    module = view_files if detect_format(folder) is Format.VIEWS else course_files
    shift_days: int = module.load_network(database_url, folder, until)
    return shift_days


def _find_files(folder: Path, table: str) -> list[Path]:
    return [path for ending in ENDINGS if (path := folder / f"{table}{ending}").exists()]
