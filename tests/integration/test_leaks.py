"""Nothing of the labels gets into features or training; shuffled labels teach nothing, plants are caught."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from batch.evaluation import protocols
from batch.evaluation.choose_recipe import choose_recipe
from batch.evaluation.evaluate import judged
from batch.evaluation.scored_rows import judge
from batch.loading.history import History, count_history
from batch.loading.interaction_store import InteractionStore
from batch.loading.network import Network
from batch.loading.post_groups import Groupings
from batch.training import dataset as gathering
from batch.training.dataset import Dataset
from batch.training.fit import fit
from batch.training.recipe import LIKED, LIKED_IF_VIEWED, RECIPES, Recipe
from batch.variants import MODELS
from tests.integration import test_point_in_time
from tests.support.batch import execute, make_network
from tests.support.evaluation import dataset_of, fitted, settings_of, shuffled, small_network

SHUFFLES = 6

QUICK = {"num_iterations": 30, "learning_rate": 0.1}


def auc_of(database_url: str, dataset: Dataset, recipe: Recipe = LIKED_IF_VIEWED) -> float:
    found = judged(fitted(database_url, dataset, "control", recipe), dataset, threads=1)
    return float(roc_auc_score(found.rows.liked, found.scores))


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=list(RECIPES))
def test_shuffled_training_labels_teach_nothing(database_url: str, recipe: Recipe) -> None:
    # So many posts that few draws are liked ones: where many are, what a user likes tells how often.
    make_network(database_url, users=300, posts=300, interactions=12_000)
    dataset = dataset_of(database_url)
    aucs = [auc_of(database_url, shuffled(dataset, seed), recipe) for seed in range(SHUFFLES)]
    assert abs(np.mean(aucs) - 0.5) < 0.04, aucs
    # The same test on the true labels does find something.
    assert auc_of(database_url, dataset, recipe) > 0.7


def test_a_label_among_the_features_would_be_seen(database_url: str) -> None:
    """What a leak looks like: with holdout labels in its history, a model does far better than it can."""
    dataset = small_network(database_url)
    knowing = [
        replace(each, history=replace(dataset.now, cutoff=each.history.cutoff)) for each in dataset.windows
    ]
    leaky = replace(dataset, windows=tuple(knowing))
    assert auc_of(database_url, leaky) > auc_of(database_url, dataset) + 0.02


@pytest.mark.parametrize("recipe", [LIKED_IF_VIEWED, LIKED], ids=lambda recipe: recipe.name)
@pytest.mark.parametrize("variant", sorted(MODELS))
def test_removing_the_holdout_does_not_change_a_training_row_or_the_model(
    database_url: str, variant: str, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset, without = with_and_without_holdout(database_url, monkeypatch)
    assert len(dataset.holdout) > 100
    assert len(without.holdout) == 0
    settings = settings_of(database_url)
    models = [fitted(database_url, each, variant, recipe) for each in (dataset, without)]
    for window, other in zip(dataset.training, without.training, strict=True):
        found = []
        for each, model, gathered_of_it in zip((window, other), models, (dataset, without), strict=True):
            examples = each.examples(recipe, settings.night.training_rows, settings.night.seed)
            tables = model.tables(gathered_of_it.network, each.history)
            found.append((tables.rows(examples.users, examples.posts), examples.liked, examples.weights))
        for one, same in zip(*found, strict=True):
            np.testing.assert_array_equal(one, same)
    assert models[0].digest == models[1].digest


@pytest.mark.parametrize("variant", sorted(MODELS))
def test_removing_the_holdout_does_not_change_the_choice_of_the_recipe(
    database_url: str, variant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = [
        choose_recipe(MODELS[variant], each, settings_of(database_url), QUICK)
        for each in with_and_without_holdout(database_url, monkeypatch)
    ]
    assert len(found[0].candidates) == 2
    assert found[0] == found[1]


def with_and_without_holdout(database_url: str, monkeypatch: pytest.MonkeyPatch) -> tuple[Dataset, Dataset]:
    """Gather a network, and again once what came after the holdout's start is gone; time is cut alike."""
    dataset = small_network(database_url)
    since = dataset.split.holdout_start.isoformat()
    execute(database_url, f"DELETE FROM recs.interactions WHERE happened_at > '{since}'")
    monkeypatch.setattr(gathering, "split_by_time", lambda *_: dataset.split)
    return dataset, dataset_of(database_url)


def test_a_feature_from_after_the_cutoff_is_caught(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def knowing_a_day_too_much(
        store: InteractionStore, network: Network, cutoff: datetime, groupings: Groupings
    ) -> History:
        return replace(count_history(store, network, cutoff + timedelta(days=1), groupings), cutoff=cutoff)

    make_network(database_url)
    cutoff = test_point_in_time.CUTOFF
    monkeypatch.setattr(test_point_in_time, "count_history", knowing_a_day_too_much)
    planted = test_point_in_time.features_at(database_url, cutoff)
    execute(database_url, f"DELETE FROM recs.interactions WHERE happened_at > '{cutoff.isoformat()}'")
    honest = test_point_in_time.features_at(database_url, cutoff)
    with pytest.raises(AssertionError):
        test_point_in_time.assert_equal(planted, honest)


@pytest.mark.parametrize("recipe", [LIKED_IF_VIEWED, LIKED], ids=lambda recipe: recipe.name)
def test_no_label_of_a_fold_is_in_its_model_or_its_features(
    database_url: str, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = small_network(database_url)
    trained, judged_users, cutoffs = [], [], set()

    def fit_noted(*arguments: object) -> object:
        windows, recipe = arguments[2:4]
        rows = [each.examples(recipe, 1_000_000, 1) for each in windows]  # type: ignore[attr-defined]
        assert len(rows) == len(dataset.windows)
        trained.append(set(np.concatenate([each.users for each in rows]).tolist()))
        return fit(*arguments)  # type: ignore[arg-type]

    def judge_noted(*arguments: object) -> object:
        judged_users.append(set(arguments[3].users.tolist()))  # type: ignore[attr-defined]
        cutoffs.add(arguments[2].cutoff)  # type: ignore[attr-defined]
        return judge(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(protocols, "fit", fit_noted)
    monkeypatch.setattr(protocols, "judge", judge_noted)
    settings = settings_of(database_url).replace(recipe=recipe.name)
    found = protocols.by_folds(MODELS["control"], dataset, 4, settings)
    assert len(trained) == 4
    assert all(not model & own for model, own in zip(trained, judged_users, strict=True))
    labelled = [each.views for each in dataset.windows if each.history.cutoff >= dataset.split.history_end]
    viewers = [views.users[views.viewed].tolist() for views in labelled]
    assert set.union(*judged_users) == set().union(*viewers)
    assert min(map(len, trained)) > len(dataset.network.users) / 2
    assert sum(map(len, judged_users)) == found.users
    assert cutoffs == {dataset.split.history_end}
