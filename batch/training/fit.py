"""Fits one variant: the forest, trained from the dot product of the factors, and what encodes its columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import lightgbm as lgb
import numpy as np

from batch.arrays import Float32s, Int64s
from batch.features.build import build_tables, select_profile_columns
from batch.features.encode import ColumnEncoder
from batch.features.factors import fit_factors, fit_log_odds
from batch.features.population import compute_population
from batch.features.tables import ROWS_BATCH, FeatureColumns, FeatureTables, Kind
from batch.loading.examples import Examples
from batch.training.dataset import Dataset, Window
from batch.training.model import Model, feature_names
from batch.training.parameters import parameters_for
from batch.training.recipe import Recipe
from batch.variants import Variant
from contract.errors import ModelError
from contract.settings import Settings

PARAMETERS: dict[str, Any] = {
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


MAX_ROWS_OF_A_QUERY = 10_000
"""LightGBM takes no more; a user with more rows makes several queries."""


def fit(
    variant: Variant,
    dataset: Dataset,
    windows: Sequence[Window],
    recipe: Recipe,
    settings: Settings,
    tuned: Mapping[str, Any] | None = None,
) -> Model:
    """Train on the labels of windows, each with the features as of its start.

    Parameters
    ----------
    windows
        In order of time.
    recipe
        What to learn; batch/evaluation/choose_recipe.py finds it.
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
    network, seed = dataset.network, settings.night.seed
    max_rows = settings.night.training_rows // max(len(windows), 1)
    labelled = [(each.history, each.examples(recipe, max_rows, seed)) for each in windows]
    labelled = [(known, labels) for known, labels in labelled if len(labels)]
    _check_labels([labels for _, labels in labelled], dataset)
    histories, examples = zip(*labelled, strict=True)
    user_columns, post_columns = select_profile_columns(network)
    users = ColumnEncoder.fit(Kind.USER, user_columns, _distinct([labels.users for labels in examples]))
    posts = ColumnEncoder.fit(Kind.POST, post_columns, _distinct([labels.posts for labels in examples]))
    text = _text(variant, dataset)
    log_odds, start = None, None
    if variant.with_factors:
        factors = [fit_factors(network, known, seed, recipe.factor_negatives) for known in histories]
        log_odds = fit_log_odds(factors, examples)
        start = [
            of_window.as_log_odds(*log_odds).dot(labels.users, labels.posts)
            for of_window, labels in zip(factors, examples, strict=True)
        ]
    tables = [
        build_tables(
            variant,
            network,
            known,
            compute_population(variant, network, known),
            users=users,
            posts=posts,
            text=text,
        )
        for known in histories
    ]
    parameters = PARAMETERS | dict(tuned) | {"seed": seed, "num_threads": settings.night.threads}
    of_recipe = {"objective": recipe.objective, "max_bin": recipe.max_bin}
    booster = _train(tables, list(examples), start, parameters | of_recipe)
    return Model(variant, booster, users, posts, text, dataset.now.groupings, log_odds, seed, recipe)


def _check_labels(examples: Sequence[Examples], dataset: Dataset) -> None:
    liked = sum(int(labels.liked.sum()) for labels in examples)
    rows = sum(map(len, examples))
    if liked in (0, rows):
        since = dataset.split.windows[0].isoformat()
        raise ModelError(
            f"after {since} there are {liked} likes among {rows} examples; both kinds are needed: "
            "let more interactions gather, or change OVERNIGHT_HISTORY_FRACTION"
        )


def _distinct(places: list[Int64s]) -> Int64s:
    return np.unique(np.concatenate(places))


def _text(variant: Variant, dataset: Dataset) -> FeatureColumns:
    text = FeatureColumns.empty(len(dataset.network.posts))
    if variant.with_text:
        text = text.hstack(dataset.text)
    return text.hstack(dataset.embeddings) if variant.with_embeddings else text


def _train(
    tables: list[FeatureTables],
    examples: list[Examples],
    start: list[Float32s] | None,
    parameters: dict[str, Any],
) -> lgb.Booster:
    """Train one forest on examples of several times, each with the features of its own time.

    For a ranking objective, rows of one user in one window are one query.
    """
    columns, groups = tables[0].columns, None
    if parameters["objective"] != "binary":
        orders = [np.argsort(labels.users, kind="stable") for labels in examples]
        examples = [labels.select(order) for labels, order in zip(examples, orders, strict=True)]
        if start is not None:
            start = [scores[order] for scores, order in zip(start, orders, strict=True)]
        groups = np.concatenate([_query_sizes(labels.users) for labels in examples])
    data = lgb.Dataset(
        _matrix(tables, examples),
        label=np.concatenate([labels.liked for labels in examples]).astype(np.float32),
        weight=np.concatenate([labels.weights for labels in examples]),
        group=groups,
        init_score=None if start is None else np.concatenate(start).astype(np.float64),
        feature_name=feature_names(tables[0]),
        categorical_feature=[index for index, feature in enumerate(columns) if feature.categorical],
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


def _query_sizes(users: Int64s) -> Int64s:
    """Return how many rows each user has, users in ascending order; none has too many for LightGBM."""
    sizes = np.unique(users, return_counts=True)[1]
    parts = -(-sizes // MAX_ROWS_OF_A_QUERY)
    first = sizes - (parts - 1) * MAX_ROWS_OF_A_QUERY
    cut = np.full(int(parts.sum()), MAX_ROWS_OF_A_QUERY)
    cut[np.cumsum(parts) - parts] = first
    return cut
