"""The input of every scorer, in a file, so that each can be measured in a process of its own."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from pathlib import Path

import lightgbm as lgb

from batch.arrays import Float32s
from batch.features.tables import FeatureTables
from batch.loading.likes import Likes


@dataclass(frozen=True)
class Case:
    """Users, posts, and a forest trained on their features.

    Attributes
    ----------
    forest
        The model as LightGBM writes it.
    tables
        The features.
    factors
        (users, factors) and (posts, factors), whose dot product is added to the score; or None.
    likes
        Posts to exclude from the lists.
    n
        Longest list.
    budget_mib
        Memory of the chunks in work.
    """

    forest: str
    tables: FeatureTables
    factors: tuple[Float32s, Float32s] | None
    likes: Likes
    n: int
    budget_mib: int

    @property
    def booster(self) -> lgb.Booster:
        """The forest."""
        return lgb.Booster(model_str=self.forest)

    def save(self, path: Path) -> None:
        """Write the case to a file."""
        with path.open("wb") as file:
            pickle.dump(self, file)

    @classmethod
    def load(cls, path: Path) -> Case:
        """Read what `save` wrote."""
        with path.open("rb") as file:
            case: Case = pickle.load(file)
        return case
