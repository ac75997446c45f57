"""Scores of large models against LightGBM: half a minute of CPU, too slow for the unit tests."""

from __future__ import annotations

import numpy as np
import pytest

from batch.features.tables import Kind
from tests.support.scoring_cases import (
    Case,
    assert_exact,
    make_matrix,
    make_tables,
    train,
)


@pytest.mark.parametrize(
    ("trees", "leaves", "kinds"),
    [
        (2000, 6, [Kind.USER] * 2 + [Kind.POST] * 3 + [0, 1]),
        (12, 255, [Kind.USER] * 8 + [Kind.POST] * 2 + [0, 0, 1]),
        (300, 2, [Kind.USER, Kind.POST]),
        (30, 255, [Kind.USER]),
        (30, 255, [Kind.POST]),
        (30, 255, [0]),
    ],
)
def test_large_and_one_sided_models_are_exact(trees: int, leaves: int, kinds: list[Kind | int]) -> None:
    random = np.random.default_rng(trees + leaves + len(kinds))
    contents = ["number"] * len(kinds)
    matrix = make_matrix(random, 3000, contents)
    parameters = {
        "objective": "binary",
        "num_leaves": leaves,
        "min_data_in_leaf": 1,
        "learning_rate": 30 / trees if trees > 100 else 0.1,
        "num_threads": 2,
    }
    booster = train(random, matrix, contents, parameters, trees)
    assert booster.num_trees() == trees
    assert_exact(Case(booster, make_tables(random, matrix, kinds, 40, 70), matrix))
