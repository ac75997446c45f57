"""Fits one variant: the forest, trained from the dot product of the factors, and what encodes its columns."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
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
from batch.history import History
from batch.load import Network
from batch.parameters import parameters_for
from batch.tables import Feature, FeatureTables, Kind
from batch.variants import Variant
from contract.errors import ModelError
from contract.settings import Settings

PARAMETERS: dict[str, Any] = {
    "objective": "binary",
    "num_iterations": 200,
    "learning_rate": 0.02,
    "num_leaves": 31,
    "max_depth": -1,
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
    log_odds
        Slope and intercept that turn the like factors' dot product into
        log-odds; None where the variant has no factors.
    """

    variant: Variant
    booster: lgb.Booster
    users: Encoder
    posts: Encoder
    text: TextFeatures
    log_odds: tuple[float, float] | None
    seed: int

    def tables(self, network: Network, history: History) -> FeatureTables:
        """Build the features as of `history.cutoff`, encoded as in training."""
        return build_tables(network, history, self.users, self.posts, self.text)

    def factors(self, history: History) -> Factors | None:
        """Return the factors as of `history.cutoff` in log-odds."""
        if self.log_odds is None:
            return None
        posts = len(history.post_counts)
        return like_factors(history.likes, posts, self.seed).as_log_odds(*self.log_odds)

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


def fit(
    variant: Variant,
    gathered: Gathered,
    examples: Examples,
    settings: Settings,
    tuned: Mapping[str, Any] | None = None,
) -> Model:
    """Train on examples that came after the end of the history, from features as of that end.

    Parameters
    ----------
    tuned
        Laid over the default parameters; None takes those that tuning kept for the variant.

    Raises
    ------
    ModelError
        The examples are all of one kind: nothing can be learnt from them.
    ParametersError
        The file of tuned parameters cannot be used.
    """
    tuned = parameters_for(variant.name, settings) if tuned is None else tuned
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
    text = gathered.text if variant.with_text else TextFeatures.none(len(network.posts))
    tables = build_tables(network, history, users, posts, text)
    log_odds, start = None, None
    if variant.with_factors:
        factors = like_factors(history.likes, len(network.posts), seed)
        log_odds = fit_log_odds(factors, examples)
        start = factors.as_log_odds(*log_odds).dot(examples.users, examples.posts).astype(np.float64)
    parameters = PARAMETERS | dict(tuned) | {"seed": seed, "num_threads": settings.threads}
    booster = _train(tables, examples, start, parameters)
    return Model(variant, booster, users, posts, text, log_odds, seed)


def _train(
    tables: FeatureTables,
    examples: Examples,
    start: npt.NDArray[np.float64] | None,
    parameters: dict[str, Any],
) -> lgb.Booster:
    columns = tables.columns
    data = lgb.Dataset(
        tables.rows(examples.users, examples.posts),
        label=examples.liked.astype(np.float32),
        init_score=start,
        feature_name=[_plain(place, feature) for place, feature in enumerate(columns)],
        categorical_feature=[place for place, feature in enumerate(columns) if feature.categorical],
        free_raw_data=True,
    )
    try:
        return lgb.train(parameters, data)
    except lgb.basic.LightGBMError as error:
        raise ModelError(f"LightGBM could not train: {error}") from None


def _plain(place: int, feature: Feature) -> str:
    """Name a column so that LightGBM takes it: no JSON signs, no two alike."""
    return f"{place}_{re.sub(r'[^0-9A-Za-z_]+', '_', feature.name)}"
