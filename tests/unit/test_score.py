"""The night's scores against LightGBM's own, pair by pair."""

from __future__ import annotations

from collections import Counter

import lightgbm as lgb
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from batch.features.factors import Factors
from batch.features.tables import Kind
from batch.scoring.compile import compile_forest
from batch.scoring.forest import read_forest
from contract.errors import ModelError
from tests.support.scoring_cases import (
    NONE_BLOCKED,
    Case,
    all_scores,
    assert_exact,
    cases,
    make_matrix,
    make_tables,
    train,
)

MODELS = 150
slow_data = settings(
    max_examples=MODELS,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.data_too_large, HealthCheck.too_slow],
)
seen: Counter[str] = Counter()


@slow_data
@given(cases(), st.integers(0, 5), st.integers(0, 2**32 - 1))
def compare_with_lightgbm(case: Case, width: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    factors = Factors(
        random.normal(size=(case.tables.users, width)).astype(np.float32),
        random.normal(size=(case.tables.posts, width)).astype(np.float32),
    )
    assert_exact(case, factors if width else None)
    trees = read_forest(case.booster).trees
    seen["models"] += 1
    seen["pairs"] += case.tables.users * case.tables.posts
    seen["constant trees"] += sum(len(tree.values) == 1 for tree in trees)
    seen["trees of several leaf blocks"] += sum(len(tree.values) > 31 for tree in trees)
    for tree in trees:
        for bits in tree.decisions.tolist():
            name = "categorical" if bits & 1 else ["none", "zero", "nan"][bits >> 2 & 3]
            seen[f"{name} {'left' if bits & 2 else 'right'}"] += 1


def test_models_with_every_kind_of_split_are_scored_as_by_lightgbm() -> None:
    seen.clear()
    compare_with_lightgbm()
    print("\ncompared with LightGBM:", dict(seen))  # shown by pytest -s
    assert seen["models"] >= MODELS
    for kind in ("categorical right", "none left", "zero left", "zero right", "nan left", "nan right"):
        assert seen[kind] > 20, kind
    assert seen["constant trees"] > 10
    assert seen["trees of several leaf blocks"] > 10


def test_a_leaf_below_many_columns_of_the_user_is_exact() -> None:
    random = np.random.default_rng(0)
    columns = 60
    matrix = (random.random((4000, columns)) < 0.9).astype(np.float32)
    target = np.cumprod(matrix, axis=1).sum(axis=1)
    parameters = {"num_leaves": 255, "min_data_in_leaf": 1, "objective": "regression", "verbosity": -1}
    booster = lgb.train(parameters, lgb.Dataset(matrix, target), 3)
    kinds: list[Kind | int] = [Kind.USER] * (columns - 2) + [Kind.POST] * 2
    assert max(len(set(tree.columns.tolist())) for tree in read_forest(booster).trees) > 30
    assert_exact(Case(booster, make_tables(random, matrix, kinds, 50, 20), matrix))


def test_a_column_that_changed_from_categorical_to_numeric_is_exact() -> None:
    random = np.random.default_rng(1)
    matrix = make_matrix(random, 800, ["category", "sparse"])
    parameters = {"objective": "regression", "num_leaves": 15, "min_data_per_group": 1}
    first = train(random, matrix, ["category", "sparse"], parameters, 5)
    target = np.nan_to_num(matrix[:, 0]) * 0.3 + np.nan_to_num(matrix[:, 1])
    data = lgb.Dataset(matrix, target, params={"zero_as_missing": True})
    both = lgb.train({**parameters, "verbosity": -1, "zero_as_missing": True}, data, 5, init_model=first)
    kinds = {bits & 1 for tree in read_forest(both).trees for bits in tree.decisions.tolist()}
    assert kinds == {0, 1}
    assert_exact(Case(both, make_tables(random, matrix, [Kind.USER, Kind.POST], 60, 60), matrix))
    assert_exact(Case(both, make_tables(random, matrix, [Kind.POST, 0], 60, 60), matrix))


def _booster(**parameters: object) -> lgb.Booster:
    random = np.random.default_rng(2)
    matrix = random.normal(size=(200, 2))
    data = lgb.Dataset(matrix, random.integers(0, 3, 200), params={"verbosity": -1, **parameters})
    return lgb.train({"verbosity": -1, "min_data_in_leaf": 5, **parameters}, data, 2)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"objective": "regression", "linear_tree": True}, "linear trees"),
        ({"objective": "multiclass", "num_class": 3}, "3 trees per iteration"),
        ({"objective": "multiclassova", "num_class": 3}, "3 trees per iteration"),
    ],
)
def test_a_model_whose_score_is_not_a_sum_of_leaves_is_refused(
    parameters: dict[str, object], message: str
) -> None:
    random = np.random.default_rng(3)
    tables = make_tables(random, random.normal(size=(50, 2)), [Kind.USER, Kind.POST], 3, 3)
    with pytest.raises(ModelError, match=message):
        all_scores(_booster(**parameters), tables)


def test_a_model_of_other_columns_and_non_finite_factors_are_refused() -> None:
    random = np.random.default_rng(4)
    booster = _booster(objective="regression")
    three = make_tables(random, random.normal(size=(50, 3)), [Kind.USER, Kind.POST, Kind.POST], 3, 3)
    with pytest.raises(ModelError, match="reads 2 columns, but there are 3 features"):
        all_scores(booster, three)
    two = make_tables(random, random.normal(size=(50, 2)), [Kind.USER, Kind.POST], 3, 3)
    with pytest.raises(ModelError, match="factor is NaN or infinite"):
        all_scores(booster, two, Factors(np.full((3, 1), np.nan, np.float32), np.ones((3, 1), np.float32)))


def test_models_that_cannot_be_scored_exactly_are_refused() -> None:
    random = np.random.default_rng(4)
    matrix = make_matrix(random, 500, ["number", "number"])
    tables = make_tables(random, matrix, [Kind.USER, Kind.POST], 5, 5)
    labels = np.zeros(500)
    labels[7] = 1e8
    wide_range = lgb.train(
        {"objective": "regression", "min_data_in_leaf": 1, "verbosity": -1}, lgb.Dataset(matrix, labels), 30
    )
    with pytest.raises(ModelError, match="so far apart"):
        compile_forest(wide_range, tables, None, NONE_BLOCKED)
    infinite = lgb.train(
        {"objective": "regression", "verbosity": -1}, lgb.Dataset(matrix, np.nan_to_num(matrix[:, 0])), 2
    )
    infinite.set_leaf_output(0, 0, float("inf"))
    with pytest.raises(ModelError, match="NaN or infinite"):
        compile_forest(infinite, tables, None, NONE_BLOCKED)
    fine = lgb.train(
        {"objective": "regression", "verbosity": -1}, lgb.Dataset(matrix, np.nan_to_num(matrix[:, 0])), 2
    )
    unequal = Factors(np.ones((5, 3), np.float32), np.ones((5, 2), np.float32))
    with pytest.raises(ModelError, match="3 factors and posts 2"):
        all_scores(fine, tables, unequal)


def test_a_feature_named_like_a_tree_is_not_read_as_a_tree() -> None:
    random = np.random.default_rng(5)
    matrix = make_matrix(random, 500, ["number", "number"])
    labels = np.nan_to_num(matrix[:, 0])
    data = lgb.Dataset(matrix, labels, feature_name=["Tree=x", "y"])
    booster = lgb.train({"objective": "regression", "verbosity": -1}, data, 5)
    assert_exact(Case(booster, make_tables(random, matrix, [Kind.USER, Kind.POST], 20, 20), matrix))
