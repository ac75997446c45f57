"""Fitting of one variant's model.

for each window:
    count the features as of its start, encode the columns
    with factors: the initial score is their dot product, in log-odds
train one forest on the examples of all windows, from these initial scores
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import lightgbm as lgb
import numpy as np

from batch.arrays import Float32s, Int64s
from batch.features.build import NetworkTables, build_tables, compute_population, select_profile_columns
from batch.features.factors import fit_factors, fit_log_odds
from batch.features.tables import ROWS_BATCH, ColumnEncoder, FeatureColumns, Kind
from batch.loading.examples import Examples
from batch.training.dataset import Dataset, Window
from batch.training.model import Model, feature_names
from batch.training.parameters import Recipe, load_parameters
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

MAX_QUERY_ROWS = 10_000
"""LightGBM's limit; the rows of a user with more are split into several queries."""


def fit(
    variant: Variant,
    dataset: Dataset,
    *,
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
        What to learn; batch/evaluation/learner.py chooses it.
    tuned
        Override the default parameters; None uses those that tuning saved for the variant.

    Raises
    ------
    ModelError
        All examples have the same label, so there is nothing to learn.
    ParametersError
        The file of tuned parameters is invalid.
    """
    tuned = load_parameters(variant.name, settings) if tuned is None else tuned
    network, seed = dataset.network, settings.night.seed
    max_rows = settings.night.training_rows // max(len(windows), 1)
    labelled = [(each.history, each.examples(recipe, max_rows, seed)) for each in windows]
    labelled = [(history, examples) for history, examples in labelled if len(examples)]
    _check_labels([examples for _, examples in labelled], dataset)
    histories, labels = zip(*labelled, strict=True)
    user_columns, post_columns = select_profile_columns(network)
    users = ColumnEncoder.fit(Kind.USER, user_columns, _distinct([each.users for each in labels]))
    posts = ColumnEncoder.fit(Kind.POST, post_columns, _distinct([each.posts for each in labels]))
    text = _text_features(variant, dataset)
    log_odds, initial_scores = None, None
    if variant.with_factors:
        factors = [fit_factors(network, each, seed, recipe.factor_negatives) for each in histories]
        log_odds = fit_log_odds(factors, labels)
        initial_scores = [
            of_window.as_log_odds(*log_odds).dot(examples.users, examples.posts)
            for of_window, examples in zip(factors, labels, strict=True)
        ]
    tables = [
        build_tables(
            variant,
            network,
            each,
            compute_population(variant, network, each),
            users=users,
            posts=posts,
            text=text,
        )
        for each in histories
    ]
    parameters = PARAMETERS | dict(tuned) | {"seed": seed, "num_threads": settings.night.threads}
    of_recipe = {"objective": recipe.objective, "max_bin": recipe.max_bin}
    booster = _train(tables, list(labels), initial_scores, parameters | of_recipe)
    return Model(
        variant=variant,
        booster=booster,
        users=users,
        posts=posts,
        text=text,
        groupings=dataset.now.groupings,
        log_odds=log_odds,
        seed=seed,
        recipe=recipe,
    )


def _check_labels(examples: Sequence[Examples], dataset: Dataset) -> None:
    liked = sum(int(each.liked.sum()) for each in examples)
    rows = sum(map(len, examples))
    if liked in (0, rows):
        since = dataset.split.windows[0].isoformat()
        raise ModelError(
            f"after {since} there are {liked} likes among {rows} examples; both labels are needed: "
            "wait for more interactions, or change OVERNIGHT_HISTORY_FRACTION"
        )


def _distinct(rows: list[Int64s]) -> Int64s:
    return np.unique(np.concatenate(rows))


def _text_features(variant: Variant, dataset: Dataset) -> FeatureColumns:
    text = FeatureColumns.empty(len(dataset.network.posts))
    if variant.with_text:
        text = text.hstack(dataset.text)
    return text.hstack(dataset.embeddings) if variant.with_embeddings else text


def _train(
    tables: list[NetworkTables],
    examples: list[Examples],
    initial_scores: list[Float32s] | None,
    parameters: dict[str, Any],
) -> lgb.Booster:
    """Train one forest on the examples of several windows, each with the features of its own window.

    For a ranking objective, the rows of one user in one window are one query.
    """
    columns, groups = tables[0].columns, None
    if parameters["objective"] != "binary":
        orders = [np.argsort(each.users, kind="stable") for each in examples]
        examples = [each.select(order) for each, order in zip(examples, orders, strict=True)]
        if initial_scores is not None:
            initial_scores = [scores[order] for scores, order in zip(initial_scores, orders, strict=True)]
        groups = np.concatenate([_query_sizes(each.users) for each in examples])
    data = lgb.Dataset(
        _matrix(tables, examples),
        label=np.concatenate([each.liked for each in examples]).astype(np.float32),
        weight=np.concatenate([each.weights for each in examples]),
        group=groups,
        init_score=None if initial_scores is None else np.concatenate(initial_scores).astype(np.float64),
        feature_name=feature_names(columns),
        categorical_feature=[index for index, feature in enumerate(columns) if feature.categorical],
        free_raw_data=True,
    )
    try:
        return lgb.train(parameters, data)
    except lgb.basic.LightGBMError as error:
        raise ModelError(f"LightGBM could not train: {error}") from None


def _matrix(tables: list[NetworkTables], examples: list[Examples]) -> Float32s:
    """Return the feature rows of all examples in one array, filled in batches to hold no second copy."""
    matrix = np.empty((sum(map(len, examples)), len(tables[0].columns)), np.float32)
    filled = 0
    for table, of_window in zip(tables, examples, strict=True):
        users, index = np.unique(of_window.users, return_inverse=True)
        of_users = table.of_users(users)
        for start in range(0, len(of_window), ROWS_BATCH):
            batch = slice(start, start + ROWS_BATCH)
            rows = of_users.rows(index[batch], of_window.posts[batch])
            matrix[filled : filled + len(rows)] = rows
            filled += len(rows)
    return matrix


def _query_sizes(users: Int64s) -> Int64s:
    """Return the query sizes, users in ascending order; a user with too many rows has several queries."""
    sizes = np.unique(users, return_counts=True)[1]
    queries = -(-sizes // MAX_QUERY_ROWS)
    first = sizes - (queries - 1) * MAX_QUERY_ROWS
    query_sizes = np.full(int(queries.sum()), MAX_QUERY_ROWS)
    query_sizes[np.cumsum(queries) - queries] = first
    return query_sizes
