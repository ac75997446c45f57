"""Labels do not leak into features or training: shuffled labels teach nothing, planted leaks are found."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from batch.evaluation import protocols
from batch.evaluation.holdout import score_holdout
from batch.evaluation.learner import choose_recipe
from batch.evaluation.scored_rows import ScoredRows, score_rows
from batch.loading.cohorts import Groupings
from batch.loading.examples import Examples
from batch.loading.history import History, count_history
from batch.loading.interaction_store import InteractionStore
from batch.loading.network import Network
from batch.training.dataset import Dataset
from batch.training.fit import fit
from batch.training.model import Model
from batch.training.parameters import LIKED, LIKED_IF_VIEWED, RECIPES, Recipe
from batch.variants import MODELS, Variant
from contract.settings import Settings
from tests.integration import test_point_in_time
from tests.support.batch import execute, make_network
from tests.support.evaluation import (
    fit_model,
    load_database,
    load_small_network,
    make_settings,
    shuffle_labels,
)

SHUFFLES = 6

QUICK = {"num_iterations": 30, "learning_rate": 0.1}


def auc_of(database_url: str, dataset: Dataset, recipe: Recipe = LIKED_IF_VIEWED) -> float:
    model = fit_model(database_url, dataset, "control", recipe)
    scored = score_holdout(model, dataset, Settings.of(threads=1))
    return float(roc_auc_score(scored.rows.liked, scored.scores))


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=list(RECIPES))
def test_shuffled_training_labels_teach_nothing(database_url: str, recipe: Recipe) -> None:
    # Many posts, so that few negatives are liked posts: otherwise a like reveals the user's like rate.
    make_network(database_url, users=300, posts=300, interactions=12_000)
    dataset = load_database(database_url)
    aucs = [auc_of(database_url, shuffle_labels(dataset, seed), recipe) for seed in range(SHUFFLES)]
    assert abs(np.mean(aucs) - 0.5) < 0.04, aucs
    # The true labels do teach something.
    assert auc_of(database_url, dataset, recipe) > 0.7


def test_a_label_among_the_features_would_be_seen(database_url: str) -> None:
    """With holdout labels in its history, a model is much better than without."""
    dataset = load_small_network(database_url)
    windows = [
        replace(each, history=replace(dataset.now, cutoff=each.history.cutoff)) for each in dataset.windows
    ]
    leaky = replace(dataset, windows=tuple(windows))
    assert auc_of(database_url, leaky) > auc_of(database_url, dataset) + 0.02


@pytest.mark.parametrize("recipe", [LIKED_IF_VIEWED, LIKED], ids=lambda recipe: recipe.name)
@pytest.mark.parametrize("variant", sorted(MODELS))
def test_removing_the_holdout_does_not_change_a_training_row_or_the_model(
    database_url: str, variant: str, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset, without = with_and_without_holdout(database_url, monkeypatch)
    assert len(dataset.holdout) > 100
    assert len(without.holdout) == 0
    settings = make_settings(database_url)
    models = [fit_model(database_url, each, variant, recipe) for each in (dataset, without)]
    for window, other in zip(dataset.training, without.training, strict=True):
        training = []
        for each, model, own in zip((window, other), models, (dataset, without), strict=True):
            examples = each.examples(recipe, settings.night.training_rows, settings.night.seed)
            tables = model.tables(own.network, each.history)
            training.append((tables.rows(examples.users, examples.posts), examples.liked, examples.weights))
        for one, same in zip(*training, strict=True):
            np.testing.assert_array_equal(one, same)
    assert models[0].digest == models[1].digest


@pytest.mark.parametrize("variant", sorted(MODELS))
def test_removing_the_holdout_does_not_change_the_choice_of_the_recipe(
    database_url: str, variant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    choices = [
        choose_recipe(MODELS[variant], each, make_settings(database_url), QUICK)
        for each in with_and_without_holdout(database_url, monkeypatch)
    ]
    assert len(choices[0].candidates) == 2
    assert choices[0] == choices[1]


def with_and_without_holdout(database_url: str, monkeypatch: pytest.MonkeyPatch) -> tuple[Dataset, Dataset]:
    """Load a dataset, and again without the data after the holdout's start, split at the same times."""
    dataset = load_small_network(database_url)
    since = dataset.split.holdout_start.isoformat()
    execute(database_url, f"DELETE FROM recs.interactions WHERE happened_at > '{since}'")
    monkeypatch.setattr("batch.training.dataset.split_by_time", lambda *_, **__: dataset.split)
    return dataset, load_database(database_url)


def test_a_feature_from_after_the_cutoff_is_caught(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def count_one_day_too_far(
        store: InteractionStore, network: Network, cutoff: datetime, groupings: Groupings
    ) -> History:
        return replace(count_history(store, network, cutoff + timedelta(days=1), groupings), cutoff=cutoff)

    make_network(database_url)
    cutoff = test_point_in_time.CUTOFF
    monkeypatch.setattr(test_point_in_time, "count_history", count_one_day_too_far)
    planted = test_point_in_time.features_at(database_url, cutoff)
    execute(database_url, f"DELETE FROM recs.interactions WHERE happened_at > '{cutoff.isoformat()}'")
    honest = test_point_in_time.features_at(database_url, cutoff)
    with pytest.raises(AssertionError):
        test_point_in_time.assert_equal(planted, honest)


@pytest.mark.parametrize("recipe", [LIKED_IF_VIEWED, LIKED], ids=lambda recipe: recipe.name)
def test_no_label_of_a_fold_is_in_its_model_or_its_features(
    database_url: str, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = load_small_network(database_url)
    trained, scored_users, cutoffs = [], [], set()

    def fit_and_note(variant: Variant, dataset: Dataset, **options: Any) -> Model:
        windows, recipe = options["windows"], options["recipe"]
        rows = [each.examples(recipe, 1_000_000, 1) for each in windows]
        assert len(rows) == len(dataset.windows)
        trained.append(set(np.concatenate([each.users for each in rows]).tolist()))
        return fit(variant, dataset, **options)

    def score_and_note(
        model: Model, network: Network, history: History, rows: Examples, **options: Any
    ) -> ScoredRows:
        scored_users.append(set(rows.users.tolist()))
        cutoffs.add(history.cutoff)
        return score_rows(model, network, history, rows, **options)

    monkeypatch.setattr(protocols, "fit", fit_and_note)
    monkeypatch.setattr(protocols, "score_rows", score_and_note)
    settings = make_settings(database_url).replace(recipe=recipe.name)
    evaluation = protocols.evaluate_folds(MODELS["control"], dataset, 4, settings)
    assert len(trained) == 4
    assert all(not model & own for model, own in zip(trained, scored_users, strict=True))
    labelled = [each.views for each in dataset.windows if each.history.cutoff >= dataset.split.history_end]
    viewers = [views.users[views.viewed].tolist() for views in labelled]
    assert set.union(*scored_users) == set().union(*viewers)
    assert min(map(len, trained)) > len(dataset.network.users) / 2
    assert sum(map(len, scored_users)) == evaluation.users
    assert cutoffs == {dataset.split.history_end}
