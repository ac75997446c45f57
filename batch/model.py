"""Fits one variant: the forest, trained from the dot product of the factors, and what encodes its columns."""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightgbm as lgb
import numpy as np
import numpy.typing as npt

from batch.encode import Encoder
from batch.examples import Examples
from batch.factors import Factors, fit_log_odds, like_factors
from batch.features import TextFeatures, build_tables, profile_columns
from batch.gather import Gathered
from batch.groupings import Groupings
from batch.history import History
from batch.load import Network
from batch.tables import Feature, FeatureTables, Kind
from batch.variants import Variant
from contract.errors import ModelError
from contract.settings import Settings

PARAMETERS: dict[str, Any] = {
    "objective": "binary",
    "num_iterations": 200,
    "learning_rate": 0.02,
    "num_leaves": 31,
    "min_data_in_leaf": 100,
    "feature_fraction": 0.5,
    "bagging_fraction": 0.8,
    "bagging_freq": 1,
    "lambda_l2": 20.0,
    "cat_smooth": 50,
    "max_cat_to_onehot": 8,
    "deterministic": True,
    "force_row_wise": True,
    "verbosity": -1,
}


@dataclass(frozen=True)
class Model:
    """score(user, post) = dot(factors) + forest(features), in log-odds of a like.

    Attributes
    ----------
    text
        Columns of the posts' texts, in the order of the network's posts.
    groupings
        The groups of posts that affinities speak of, in the same order.
    log_odds
        Slope and intercept that turn the like factors' dot product into
        log-odds; None where the variant has no factors.
    """

    variant: Variant
    booster: lgb.Booster
    users: Encoder
    posts: Encoder
    text: TextFeatures
    groupings: Groupings
    log_odds: tuple[float, float] | None
    seed: int

    def tables(self, network: Network, history: History) -> FeatureTables:
        """Build the features as of `history.cutoff`, encoded as in training."""
        return _tables(self.variant, network, history, self.users, self.posts, self.text)

    def factors(self, network: Network, history: History) -> Factors | None:
        """Return the factors as of `history.cutoff` in log-odds."""
        if self.log_odds is None:
            return None
        found = like_factors(history.likes, len(network.posts), network.people, self.seed)
        return found.as_log_odds(*self.log_odds)

    @property
    def digest(self) -> str:
        """SHA-256 of the forest (not of how it was trained) and of all that encodes its columns."""
        forest, columns = self._parts()
        return hashlib.sha256((forest.partition("\nparameters:")[0] + columns).encode()).hexdigest()

    def save(self, folder: Path) -> None:
        """Write `model.txt` (LightGBM's format) and `model.json`, whole or not at all.

        Raises
        ------
        ModelError
            The disk is full or the folder cannot be written.
        """
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for name, content in zip(("model.txt", "model.json"), self._parts(), strict=True):
                unfinished = folder / f"{name}.unfinished"
                with unfinished.open("w", encoding="utf-8") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
                unfinished.replace(folder / name)
        except OSError as error:
            reason = f"{error.strerror}; free space or set OVERNIGHT_MODEL_DIR"
            raise ModelError(f"cannot save the model in {folder}: {reason}") from None

    def _parts(self) -> tuple[str, str]:
        columns = {
            "variant": self.variant.name,
            "users": self.users.categories,
            "posts": self.posts.categories,
            "log_odds": self.log_odds,
        }
        return self.booster.model_to_string(), json.dumps(columns, ensure_ascii=False)


def fit(variant: Variant, gathered: Gathered, examples: Examples, settings: Settings) -> Model:
    """Train on examples that came after the end of the history, from features as of that end.

    Raises
    ------
    ModelError
        The examples are all of one kind: nothing can be learnt from them.
    """
    network, history, seed = gathered.network, gathered.at_history_end, settings.seed
    if examples.liked.all() or not examples.liked.any():
        raise ModelError(
            f"after {history.cutoff.isoformat()} there are {int(examples.liked.sum())} likes among "
            f"{len(examples)} examples; both kinds are needed: let more interactions gather, "
            "or change OVERNIGHT_HISTORY_FRACTION"
        )
    user_columns, post_columns = profile_columns(network)
    users = Encoder.fit(Kind.USER, user_columns, np.unique(examples.users))
    posts = Encoder.fit(Kind.POST, post_columns, np.unique(examples.posts))
    text = _text(variant, gathered)
    windows = [(gathered.half_way, gathered.older), (history, examples)]
    windows = [(known, labels) for known, labels in windows if len(labels)]
    factors, log_odds, start = [], None, None
    if variant.with_factors:
        factors = [
            like_factors(known.likes, len(network.posts), network.people, seed) for known, _ in windows
        ]
        log_odds = fit_log_odds(factors[-1], examples)
        start = [
            of_window.as_log_odds(*log_odds).dot(labels.users, labels.posts)
            for of_window, (_, labels) in zip(factors, windows, strict=True)
        ]
    tables = [_tables(variant, network, known, users, posts, text) for known, _ in windows]
    booster = _train(tables, [labels for _, labels in windows], start, seed, settings.threads)
    return Model(variant, booster, users, posts, text, history.groupings, log_odds, seed)


def _text(variant: Variant, gathered: Gathered) -> TextFeatures:
    text = TextFeatures.none(len(gathered.network.posts))
    if variant.with_text:
        text = text.beside(gathered.text)
    return text.beside(gathered.embeddings) if variant.with_embeddings else text


def _tables(
    variant: Variant, network: Network, history: History, users: Encoder, posts: Encoder, text: TextFeatures
) -> FeatureTables:
    return build_tables(
        network, history, users, posts, text, variant.groupings, with_people=variant.with_people
    )


def _train(
    tables: list[FeatureTables],
    examples: list[Examples],
    start: list[npt.NDArray[np.float32]] | None,
    seed: int,
    threads: int,
) -> lgb.Booster:
    """Train on examples of several times, each with the features of its own time."""
    columns = tables[0].columns
    rows = [known.rows(labels.users, labels.posts) for known, labels in zip(tables, examples, strict=True)]
    data = lgb.Dataset(
        np.concatenate(rows),
        label=np.concatenate([labels.liked for labels in examples]).astype(np.float32),
        weight=np.concatenate([labels.weights for labels in examples]),
        init_score=None if start is None else np.concatenate(start).astype(np.float64),
        feature_name=[_plain(place, feature) for place, feature in enumerate(columns)],
        categorical_feature=[place for place, feature in enumerate(columns) if feature.categorical],
        free_raw_data=True,
    )
    parameters = PARAMETERS | {"seed": seed, "num_threads": threads}
    try:
        return lgb.train(parameters, data)
    except lgb.basic.LightGBMError as error:
        raise ModelError(f"LightGBM could not train: {error}") from None


def _plain(place: int, feature: Feature) -> str:
    """Name a column so that LightGBM takes it: no JSON signs, no two alike."""
    return f"{place}_{re.sub(r'[^0-9A-Za-z_]+', '_', feature.name)}"
