"""Encoding of the profile columns of users and posts as numbers, the same in training and at night."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from batch.arrays import Int64s
from batch.features.tables import Feature, FeatureColumns, Kind

MIN_ROWS = 10
MAX_CATEGORIES = 200


@dataclass(frozen=True)
class ColumnEncoder:
    """Encodes the columns of one relation.

    Attributes
    ----------
    kind
        USER or POST.
    categories
        Column -> its categories, most frequent first; a category is encoded
        as its index. None for a numeric column.
    """

    kind: Kind
    categories: dict[str, tuple[str, ...] | None]

    @classmethod
    def fit(cls, kind: Kind, frame: pd.DataFrame, training_rows: Int64s) -> ColumnEncoder:
        """Find the categories in the rows that training examples refer to.

        A category with fewer than MIN_ROWS such rows is treated as missing, as
        is an unseen category.

        Parameters
        ----------
        training_rows
            Distinct rows of the frame.
        """
        seen = frame.iloc[training_rows]
        return cls(
            kind,
            {
                str(column): None if frame[column].dtype == np.float64 else _find_frequent(seen[column])
                for column in frame.columns
            },
        )

    def encode(self, frame: pd.DataFrame) -> FeatureColumns:
        """Encode the columns; missing, infinite and unknown values become NaN."""
        values = np.full((len(frame), len(self.categories)), np.nan, dtype=np.float32)
        features = []
        for index, (column, categories) in enumerate(self.categories.items()):
            features.append(Feature(f"{self.kind}_{column}", self.kind, categorical=categories is not None))
            if categories is None:
                numbers = frame[column].to_numpy(np.float64)
                values[:, index] = np.where(np.abs(numbers) < np.finfo(np.float32).max, numbers, np.nan)
            else:
                codes = {category: code for code, category in enumerate(categories)}
                values[:, index] = _as_text(frame[column]).map(codes).to_numpy(np.float32)
        return FeatureColumns(tuple(features), values)


def _find_frequent(column: pd.Series) -> tuple[str, ...]:
    counts = _as_text(column).value_counts()
    counts = counts[counts >= MIN_ROWS]
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return tuple(str(category) for category, _ in ranked[:MAX_CATEGORIES])


def _as_text(column: pd.Series) -> pd.Series:
    """Convert values to text; null and empty text become null."""
    return column.map(
        lambda value: str(value) if value not in (None, "") else None, na_action="ignore"
    ).astype(object)
