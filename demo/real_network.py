"""Real networks in folders of files: which format a folder has, and loading it."""

from __future__ import annotations

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
    """What the files of a folder are.

    `VIEWS` is one file for each of the three views (demo/view_files.py), `FIRST_NETWORK`
    the six files of the network that Overnight was first made for (demo/course_files.py).
    """

    VIEWS = "views"
    FIRST_NETWORK = "first network"


def recognise(folder: Path) -> Format:
    """Tell a folder's format by the names of its files.

    Raises
    ------
    FormatError
        If there is no such folder, or it is in no known format; says what was looked for.
    """
    if not folder.is_dir():
        raise FormatError(f"there is no folder {folder}")
    if _files(folder, columns.INTERACTIONS):
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
    """Return the one file of a table, whatever its ending.

    Raises
    ------
    FormatError
        If there is none, or more than one.
    """
    files = _files(folder, table)
    if not files:
        names = " or ".join(f"{table}{ending}" for ending in ENDINGS)
        raise FormatError(f"{folder} has no file {names}")
    if len(files) > 1:
        raise FormatError(f"{folder} has {' and '.join(file.name for file in files)}; keep one of them there")
    return files[0]


def load(database_url: str, folder: Path) -> None:
    """Replace the network in the database by the one whose files are in `folder`.

    Raises
    ------
    FormatError
        If the folder is in no known format.
    NetworkError
        If a file is not as it should be. What was there stays.
    """
    # pandas and Arrow only where files are read.
    from demo import course_files, view_files

    loader = view_files.load if recognise(folder) is Format.VIEWS else course_files.load
    loader(database_url, folder)


def _files(folder: Path, table: str) -> list[Path]:
    return [path for ending in ENDINGS if (path := folder / f"{table}{ending}").exists()]
