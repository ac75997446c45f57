"""Nothing of the labels gets into features or training; shuffled labels teach nothing, plants are caught."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from batch.judging import protocols
from batch.judging.evaluate import judged
from batch.judging.judged import judge
from batch.learning.fit import fit
from batch.learning.gather import NEGATIVES_PER_LIKE, Gathered
from batch.loading.examples import labelled_between
from batch.loading.groupings import Groupings
from batch.loading.history import History, count_history
from batch.loading.interaction_store import InteractionStore
from batch.loading.load import Network
from batch.variants import VARIANTS
from tests import test_point_in_time
from tests.batch_support import execute, make_network
from tests.evaluation_support import fitted, pulled_of, settings_of, small_network

SHUFFLES = 6


def with_labels(gathered: Gathered, liked: np.ndarray) -> Gathered:
    training = gathered.training
    return replace(gathered, training=replace(training, liked=liked))


def auc_of(database_url: str, gathered: Gathered) -> float:
    found = judged(fitted(database_url, gathered, "control"), gathered, threads=1)
    return float(roc_auc_score(found.rows.liked, found.scores))


def test_shuffled_training_labels_teach_nothing(database_url: str) -> None:
    gathered = small_network(database_url, users=300, interactions=12_000)
    aucs = [
        auc_of(
            database_url,
            with_labels(gathered, np.random.default_rng(seed).permutation(gathered.training.liked)),
        )
        for seed in range(SHUFFLES)
    ]
    assert abs(np.mean(aucs) - 0.5) < 0.04, aucs
    assert auc_of(database_url, gathered) > 0.7  # the same test on the true labels does find something


def test_a_label_among_the_features_would_be_seen(database_url: str) -> None:
    """What a leak looks like: with holdout labels in its history, a model does far better than it can."""
    gathered = small_network(database_url)
    leaky = replace(gathered, at_history_end=gathered.now, at_holdout=gathered.now)
    assert auc_of(database_url, leaky) > auc_of(database_url, gathered) + 0.02


@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_removing_the_holdout_does_not_change_a_training_row_or_the_model(
    database_url: str, variant: str
) -> None:
    gathered = small_network(database_url)
    split = gathered.split
    execute(
        database_url,
        f"DELETE FROM recs.interactions WHERE happened_at > '{split.holdout_start.isoformat()}'",
    )
    settings = settings_of(database_url)
    pulled = pulled_of(database_url)
    network = pulled.network
    history = count_history(pulled.store, network, split.history_end, gathered.now.groupings)
    limits = (settings.training_rows, settings.seed, NEGATIVES_PER_LIKE)
    training = labelled_between(pulled.store, history, split.holdout_start, *limits)
    without = replace(gathered, network=network, at_history_end=history, training=training)
    models = [fit(VARIANTS[variant], each, each.training, settings) for each in (gathered, without)]
    rows = [
        model.tables(each.network, each.at_history_end).rows(each.training.users, each.training.posts)
        for model, each in zip(models, (gathered, without), strict=True)
    ]
    np.testing.assert_array_equal(rows[0], rows[1])
    np.testing.assert_array_equal(gathered.training.liked, training.liked)
    assert models[0].digest == models[1].digest


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


def test_no_label_of_a_fold_is_in_its_model_or_its_features(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    gathered = small_network(database_url)
    trained, judged_users, cutoffs = [], [], set()

    def fit_noted(*arguments: object) -> object:
        trained.append(set(arguments[2].users.tolist()))  # type: ignore[attr-defined]
        return fit(*arguments)  # type: ignore[arg-type]

    def judge_noted(*arguments: object) -> object:
        judged_users.append(set(arguments[3].users.tolist()))  # type: ignore[attr-defined]
        cutoffs.add(arguments[2].cutoff)  # type: ignore[attr-defined]
        return judge(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(protocols, "fit", fit_noted)
    monkeypatch.setattr(protocols, "judge", judge_noted)
    found = protocols.by_folds(VARIANTS["control"], gathered, 4, settings_of(database_url))
    assert len(trained) == 4
    assert all(not model & own for model, own in zip(trained, judged_users, strict=True))
    assert set.union(*judged_users) == set(gathered.latest.users[gathered.latest.viewed].tolist())
    assert sum(map(len, judged_users)) == found.users
    assert cutoffs == {gathered.split.history_end}
