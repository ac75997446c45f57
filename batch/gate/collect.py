"""Measures a written run for the gate."""

from __future__ import annotations

from typing import Any

import numpy as np
import redis
import sqlalchemy as sa

from batch.evaluation import PRIMARY_METRIC
from batch.evaluation.bootstrap import Difference
from batch.evaluation.full_catalogue import RankedCase
from batch.evaluation.scored_rows import ScoredRows
from batch.gate.compare_with_live import beside_live, find_live
from batch.gate.inputs import GateInputs, PopularityComparison
from batch.gate.liked_check import liked_served
from batch.gate.list_stats import ListStats
from batch.runs.ledger import Run
from batch.training.dataset import Dataset
from contract.keys import Keys
from contract.settings import Settings


def measure(
    engine: sa.Engine,
    client: redis.Redis,
    settings: Settings,
    run: Run,
    dataset: Dataset,
    rows: ScoredRows,
    ranked: RankedCase,
    metrics: dict[str, Any],
    list_stats: ListStats,
    asked: int,
) -> GateInputs:
    """Collect what the rules look at.

    Parameters
    ----------
    rows
        The holdout as the model that was fit before it scores it.
    ranked
        The lists of that model over the full catalogue.
    metrics
        What the manifest keeps of that model's evaluation.
    tally
        The lists as they were written.
    asked
        How many users were to get one.
    """
    keys, users = Keys(settings.stores.key_prefix), len(dataset.network.users)
    live = find_live(engine, client, keys, run.variant)
    beside = None
    if live is not None:
        beside = beside_live(client, settings, live, run.run_id, dataset, rows, ranked, list_stats.lists)
    found, read = liked_served(client, keys, run.run_id, dataset, list_stats.lists, settings.night.seed)
    return GateInputs(
        users_of_network=users,
        users_asked=asked,
        lists=list_stats.lists,
        full=list_stats.full,
        of_five=list_stats.of_five,
        posts=list_stats.posts,
        posts_in_first=list_stats.posts_in_first,
        not_finite=list_stats.not_finite + int((~np.isfinite(rows.scores)).sum()),
        liked_served=found,
        lists_joined=read,
        popularity_comparison=compare_with_popularity(metrics["full_catalogue"]),
        live=beside,
    )


def compare_with_popularity(record: dict[str, Any]) -> PopularityComparison:
    """Take what the rules look at from the figures over the full catalogue, see `CatalogueFigures.record`."""
    differences = {}
    for ranker, found in record["differences"].items():
        difference, low, high = (np.nan if number is None else number for number in found[PRIMARY_METRIC])
        differences[ranker] = Difference(difference, low, high)
    return PopularityComparison(record["users"], differences, record["why_not_judged"])
