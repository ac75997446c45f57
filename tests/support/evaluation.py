"""Helpers for tests of training and evaluation: a small network, its dataset, and a fitted model."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest

from batch.arrays import Bools, Float64s, Int64s
from batch.evaluation.ranking_metrics import KS, compute_metrics, rank_rows
from batch.loading.likes import Likes
from batch.loading.pull import PullResult, pull
from batch.postgres import connected
from batch.training.dataset import Dataset, Window, load_dataset
from batch.training.fit import fit
from batch.training.model import Model
from batch.training.parameters import LIKED, LIKED_IF_VIEWED, Recipe
from batch.variants import MODELS
from contract.settings import Settings
from tests.support.batch import DAYS, FIRST_DAY, make_network

CLOCK = FIRST_DAY + timedelta(days=DAYS * 2)

OPEN_STORES = ExitStack()
"""Stores that a test reads from; conftest.py closes and removes them at its end."""


def make_settings(database_url: str) -> Settings:
    return Settings.of(database_url=database_url, threads=1)


@contextmanager
def pulled_database(database_url: str, until: datetime = CLOCK, **settings: Any) -> Iterator[PullResult]:
    """Pull a database into a store that is removed at the end."""
    with TemporaryDirectory(prefix="overnight-tests-") as folder:
        options = {"threads": 1, "store_dir": folder} | settings
        used = Settings.of(database_url=database_url, **options)
        with connected(used) as engine, pull(engine, used, until) as pulled:
            yield pulled


def pull_database(database_url: str, until: datetime = CLOCK, **settings: Any) -> PullResult:
    """Pull a database into a store that stays open until the end of the test."""
    return OPEN_STORES.enter_context(pulled_database(database_url, until, **settings))


def load_database(
    database_url: str, as_of: datetime | None = None, clock: datetime = CLOCK, **settings: Any
) -> Dataset:
    """Load the dataset of a database; its store stays open until the end of the test."""
    used = Settings.of(database_url=database_url, **{"threads": 1} | settings)
    pulled = pull_database(database_url, as_of or clock, **settings)
    with connected(used) as engine:
        return load_dataset(pulled, used, engine, as_of)


def load_small_network(database_url: str, users: int = 120, interactions: int = 6_000) -> Dataset:
    """Create a network in the database and load its dataset."""
    make_network(database_url, users=users, interactions=interactions)
    return load_database(database_url)


def shuffle_labels(dataset: Dataset, seed: int) -> Dataset:
    """Return the dataset with random labels: views liked in random order, later likes of random posts."""
    return replace(dataset, windows=tuple(shuffle_window(each, seed) for each in dataset.windows))


def shuffle_window(window: Window, seed: int) -> Window:
    random, posts = np.random.default_rng(seed), len(window.history.post_counts)
    views = replace(window.views, liked=random.permutation(window.views.liked))
    before, later = window.history.likes, window.later_likes
    new = later.posts.size - before.posts.size
    users = random.choice(later.users, new)
    drawn = random.choice(np.flatnonzero(window.history.known), new).astype(np.int32)
    liked = ~before.contain(users.astype(np.int64), drawn, posts)
    later_likes = Likes.from_pairs(
        np.concatenate([before.users, users[liked]]),
        np.concatenate([before.posts, drawn[liked]]),
        before.starts.size - 1,
    )
    return replace(window, views=views, later_likes=later_likes)


def fit_model(
    database_url: str, dataset: Dataset, variant: str = "test", recipe: Recipe | None = None
) -> Model:
    if recipe is None:
        recipe = LIKED_IF_VIEWED if dataset.with_views else LIKED
    settings = make_settings(database_url)
    return fit(MODELS[variant], dataset, windows=dataset.training, recipe=recipe, settings=settings)


def mean_metrics(
    users: Int64s, posts: Int64s, liked: Bools, scores: Float64s, k: int = KS[0]
) -> dict[str, float]:
    """Return each metric's mean over the users for whom it is defined; NaN if there are none."""
    values = compute_metrics(rank_rows(users, posts, liked, scores), (k,))
    defined = {name: of_user[~np.isnan(of_user)] for name, of_user in values.items()}
    return {name: float(of_user.mean()) if of_user.size else np.nan for name, of_user in defined.items()}


def run_benchmark(
    main: Callable[[], None], monkeypatch: pytest.MonkeyPatch, path: Path, **variables: str
) -> list[dict[str, Any]]:
    """Run a benchmark on one thread with these environment variables; return the rows it wrote to `path`."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("JSON", str(path))
    monkeypatch.setenv("OVERNIGHT_THREADS", "1")
    main()
    rows: list[dict[str, Any]] = json.loads(path.read_text())
    return rows
