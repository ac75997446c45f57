"""Fits one variant: the forest, trained from the dot product of the factors, and what encodes its columns."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import lightgbm as lgb
import numpy as np
import numpy.typing as npt

from batch.arrays import Float32s
from batch.features.encode import Encoder
from batch.features.factors import fit_log_odds, taste_factors
from batch.features.features import TextFeatures, build_tables, profile_columns
from batch.features.population import population_of
from batch.features.tables import ROWS_BATCH, Feature, FeatureTables, Kind
from batch.learning.gather import Gathered
from batch.learning.model import Model
from batch.learning.parameters import parameters_for
from batch.loading.examples import Examples
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


def fit(
    variant: Variant,
    gathered: Gathered,
    examples: Examples,
    settings: Settings,
    tuned: Mapping[str, Any] | None = None,
) -> Model:
    """Train on examples that came after the end of the history, and on older ones.

    Each example has the features of its own time: as of the end of the
    history, or as of half way through it.

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
    windows = [(gathered.half_way, gathered.older), (history, examples)]
    windows = [(known, labels) for known, labels in windows if len(labels)]
    user_columns, post_columns = profile_columns(network)
    users = Encoder.fit(Kind.USER, user_columns, _distinct([labels.users for _, labels in windows]))
    posts = Encoder.fit(Kind.POST, post_columns, _distinct([labels.posts for _, labels in windows]))
    text = _text(variant, gathered)
    log_odds, start = None, None
    if variant.with_factors:
        factors = [taste_factors(network, known, seed) for known, _ in windows]
        log_odds = fit_log_odds(factors[-1], examples)
        start = [
            of_window.as_log_odds(*log_odds).dot(labels.users, labels.posts)
            for of_window, (_, labels) in zip(factors, windows, strict=True)
        ]
    tables = [
        build_tables(variant, network, known, population_of(variant, network, known), users, posts, text)
        for known, _ in windows
    ]
    parameters = PARAMETERS | dict(tuned) | {"seed": seed, "num_threads": settings.threads}
    booster = _train(tables, [labels for _, labels in windows], start, parameters)
    return Model(variant, booster, users, posts, text, history.groupings, log_odds, seed)


def _distinct(places: list[npt.NDArray[np.int64]]) -> npt.NDArray[np.int64]:
    return np.unique(np.concatenate(places))


def _text(variant: Variant, gathered: Gathered) -> TextFeatures:
    text = TextFeatures.none(len(gathered.network.posts))
    if variant.with_text:
        text = text.beside(gathered.text)
    return text.beside(gathered.embeddings) if variant.with_embeddings else text


def _train(
    tables: list[FeatureTables],
    examples: list[Examples],
    start: list[Float32s] | None,
    parameters: dict[str, Any],
) -> lgb.Booster:
    """Train one forest on examples of several times, each with the features of its own time."""
    columns = tables[0].columns
    data = lgb.Dataset(
        _matrix(tables, examples),
        label=np.concatenate([labels.liked for labels in examples]).astype(np.float32),
        weight=np.concatenate([labels.weights for labels in examples]),
        init_score=None if start is None else np.concatenate(start).astype(np.float64),
        feature_name=[_plain(place, feature) for place, feature in enumerate(columns)],
        categorical_feature=[place for place, feature in enumerate(columns) if feature.categorical],
        free_raw_data=True,
    )
    try:
        return lgb.train(parameters, data)
    except lgb.basic.LightGBMError as error:
        raise ModelError(f"LightGBM could not train: {error}") from None


def _matrix(tables: list[FeatureTables], examples: list[Examples]) -> Float32s:
    """Return the rows of all examples, one set after another; no second copy of them is made on the way."""
    matrix = np.empty((sum(map(len, examples)), len(tables[0].columns)), np.float32)
    filled = 0
    for known, labels in zip(tables, examples, strict=True):
        for start in range(0, len(labels), ROWS_BATCH):
            some = slice(start, start + ROWS_BATCH)
            rows = known.rows(labels.users[some], labels.posts[some])
            matrix[filled : filled + len(rows)] = rows
            filled += len(rows)
    return matrix


def _plain(place: int, feature: Feature) -> str:
    """Name a column so that LightGBM takes it: no JSON signs, no two alike."""
    return f"{place}_{re.sub(r'[^0-9A-Za-z_]+', '_', feature.name)}"
