"""Whether the views still have the columns that a saved model was trained with, of the same kind.

Read before anything else where a saved model is used: a column that is gone ends in an error of another
part, and one of another type is unknown to the model without any error.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from batch.files import COLUMNS
from batch.loading.schema import OPTIONAL, TIMES, Columns
from contract import columns
from contract.errors import ModelError
from contract.ids import IdKinds

NUMERIC = ("smallint", "integer", "bigint", "real", "double precision", "numeric")
TEXTS = ("text", "character varying", "character")
CATEGORICAL = (*TEXTS, "boolean")

TYPES = "types"
"""Name in the model's file: view -> column -> Postgres type, for the users and the posts."""

KINDS = "ids"
"""Name in the model's file: the kinds of the ids, see `IdKinds.to_record`."""

ADVICE = "{restore} the column in the view, or run a night now (python -m batch run)"


def check_model_columns(folder: Path, views: Columns) -> None:
    """Check the columns of the model in a run's folder against the views.

    A model that cannot be read is left to `load_model`. Models of earlier releases did not record the
    types: only the names of their further columns are checked.

    Raises
    ------
    ModelError
        A column is gone or has another type, or ids are of another kind; one line names the first, and
        says what to do.
    """
    saved: dict[str, Any] = {}
    with suppress(OSError, ValueError):
        saved = json.loads((folder / COLUMNS).read_text(encoding="utf-8"))
    check_kinds(folder, saved, views.kinds)
    if columns.AUTHOR_ID in saved.get(columns.POSTS, {}):
        raise ModelError(
            f"the model of {folder.name} was trained with {columns.SCHEMA}.{columns.POSTS}."
            f"{columns.AUTHOR_ID}, which is no feature any more; its lists stay as they are; "
            "run a night now (python -m batch run)"
        )
    for view in (columns.USERS, columns.POSTS):
        relation, now = f"{columns.SCHEMA}.{view}", getattr(views, view)
        for column, before in _trained_with(saved, view).items():
            stay = "its lists stay as they are"
            if column not in now:
                kind = f" ({before})" if before else ""
                raise ModelError(
                    f"{relation} has no column {column}{kind} any more, and the model of {folder.name} was "
                    f"trained with it; {stay}; {ADVICE.format(restore='restore')}"
                )
            if before and _kind(before) != _kind(now[column]):
                raise ModelError(
                    f"{relation}.{column} is of type {now[column]} now, and the model of {folder.name} was "
                    f"trained with type {before}; {stay}; {ADVICE.format(restore='cast')}"
                )


def check_kinds(folder: Path, saved: Mapping[str, Any], now: IdKinds) -> None:
    """Check that the ids of the network are of the kinds that they were of in the run's night.

    Parameters
    ----------
    saved
        What the model's file has.

    Raises
    ------
    ModelError
        They are of another kind.
    """
    with suppress(ValueError):  # left to `load_model`
        before = IdKinds.from_record(saved.get(KINDS))
        for view, column, then, kind in (
            (columns.USERS, columns.USER_ID, before.users, now.users),
            (columns.POSTS, columns.POST_ID, before.posts, now.posts),
        ):
            if then != kind:
                raise ModelError(
                    f"the ids in {columns.SCHEMA}.{view}.{column} are of kind {kind} now, and {folder.name} "
                    f"was made with ids of kind {then}; its lists stay as they are; run a night now "
                    "(python -m batch run)"
                )


def _trained_with(saved: Mapping[str, Any], view: str) -> dict[str, str | None]:
    """Return column -> type of a saved model; None for an unknown type."""
    if TYPES in saved:
        return dict(saved[TYPES].get(view, {}))
    # An earlier release gave the posts all optional columns.
    return {name: None for name in saved.get(view, {}) if name not in OPTIONAL.get(view, {})}


def _kind(kind: str) -> str:
    """Return what a column of a Postgres type is to a model."""
    for name, kinds in (("number", NUMERIC), ("text", TEXTS), ("time", TIMES)):
        if kind in kinds:
            return name
    return kind
