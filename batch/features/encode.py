"""Turns the columns of users and posts into numbers, the same way in training and on the night."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from batch.arrays import Float32s, Int64s
from batch.features.tables import Feature, Kind

FEWEST_ROWS = 10
MOST_CATEGORIES = 200


@dataclass(frozen=True)
class Encoder:
    """The columns of one relation as features.

    Attributes
    ----------
    kind
        USER or POST.
    categories
        Column -> its categories, most frequent first; the place of a category
        is its number in the matrix. None for a numeric column.
    """

    kind: Kind
    categories: dict[str, tuple[str, ...] | None]

    @classmethod
    def fit(cls, kind: Kind, frame: pd.DataFrame, trained_on: Int64s) -> Encoder:
        """Learn the categories from the rows that the training examples touch.

        A category with fewer than ten such rows is not worth a number of its
        own: it is treated like a missing value, as is one never seen.

        Parameters
        ----------
        trained_on
            Distinct rows.
        """
        seen = frame.iloc[trained_on]
        return cls(
            kind,
            {
                str(column): None if frame[column].dtype == np.float64 else _frequent(seen[column])
                for column in frame.columns
            },
        )

    @property
    def features(self) -> tuple[Feature, ...]:
        """The columns of the matrix."""
        return tuple(
            Feature(f"{self.kind}_{column}", self.kind, categorical=categories is not None)
            for column, categories in self.categories.items()
        )

    def encode(self, frame: pd.DataFrame) -> Float32s:
        """Return (rows, columns) float32; NaN for missing, infinite and unknown values."""
        values = np.full((len(frame), len(self.categories)), np.nan, dtype=np.float32)
        for place, (column, categories) in enumerate(self.categories.items()):
            if categories is None:
                numbers = frame[column].to_numpy(np.float64)
                values[:, place] = np.where(np.abs(numbers) < np.finfo(np.float32).max, numbers, np.nan)
            else:
                numbers_of = {category: number for number, category in enumerate(categories)}
                values[:, place] = _words(frame[column]).map(numbers_of).to_numpy(np.float32)
        return values


def _frequent(column: pd.Series) -> tuple[str, ...]:
    counts = _words(column).value_counts()
    counts = counts[counts >= FEWEST_ROWS]
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return tuple(str(category) for category, _ in ranked[:MOST_CATEGORIES])


def _words(column: pd.Series) -> pd.Series:
    """Text as it is, booleans as words, null and empty text as null."""
    return column.map(
        lambda value: str(value) if value not in (None, "") else None, na_action="ignore"
    ).astype(object)
