"""Reads a network's files, each checked: errors name the file and what is wrong in it."""

from __future__ import annotations

import zlib
from pathlib import Path

import pandas as pd

from demo.network import NetworkError

WHOLE = "whole number"
NUMBER = "whole number or nothing"
TEXT = "text"
TIME = "time, UTC"


def read(path: Path, types: dict[str, str]) -> pd.DataFrame:
    """Read a CSV or Parquet file whole and give the named columns their types.

    Parameters
    ----------
    types
        WHOLE, NUMBER, TEXT or TIME by column; other columns stay as they are.

    Raises
    ------
    NetworkError
        If the file is missing or damaged, or lacks a column, or a value is not of the type.
    """
    try:
        if path.suffix == ".parquet":
            rows = pd.read_parquet(path)
        else:
            rows = pd.read_csv(path, dtype=str, keep_default_na=False, na_values=[""])
    except FileNotFoundError:
        raise NetworkError(f"{path} is missing; a real network's folder must hold it") from None
    except (OSError, ValueError, EOFError, zlib.error) as error:
        raise NetworkError(f"{path} cannot be read: {str(error).splitlines()[0]}") from error
    for column, kind in types.items():
        if column not in rows:
            raise NetworkError(f"{path} lacks the column {column!r}")
        try:
            rows[column] = _typed(rows[column], kind)
        except (ValueError, TypeError) as error:
            reason = str(error).splitlines()[0]
            raise NetworkError(f"{path}: {column!r} must be a {kind}: {reason}") from error
    return rows


def check_ids(path: Path, ids: pd.Series[int]) -> None:
    """Raise a NetworkError if an id stands twice."""
    twice = ids[ids.duplicated()]
    if not twice.empty:
        raise NetworkError(f"{path} has {twice.nunique()} ids more than once, first {twice.iloc[0]}")


def check_values(path: Path, values: pd.Series, allowed: set[object]) -> None:
    """Raise a NetworkError if a value is not one of those allowed."""
    odd = values[~values.isin(allowed)]
    if not odd.empty:
        names = " or ".join(sorted(map(str, allowed)))
        raise NetworkError(f"{path}: {values.name!r} must be {names}, not {odd.iloc[0]}")


def parse_times(values: pd.Series) -> pd.Series:
    """Parse times in ISO 8601, to the microsecond; those without an offset are in UTC, null stays null.

    Raises
    ------
    ValueError
        Names the first value that is no time.
    """
    times = pd.to_datetime(values, utc=True, format="ISO8601", errors="coerce")
    odd = values[times.isna() & values.notna()]
    if not odd.empty:
        raise ValueError(f"{odd.iloc[0]!r} is not in ISO 8601")
    return times.astype("datetime64[us, UTC]")


def _typed(values: pd.Series, kind: str) -> pd.Series:
    if kind == TEXT:
        return values
    if kind == TIME:
        times = parse_times(values)
        if times.isna().any():
            raise ValueError("a time is missing")
        return times
    return pd.to_numeric(values).astype("int64" if kind == WHOLE else "Int64")
